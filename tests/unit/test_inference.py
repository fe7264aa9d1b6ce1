"""Predicting files, folders and patterns."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from limpet import adapter as adapters
from limpet import artifact
from limpet.classes import ClassSet
from limpet.errors import LimpetError
from limpet.inference import Classifier
from limpet.predict import find_images, predict_command
from PIL import Image
from rich.console import Console

NAMES = ("=SUM(A1)", "fish, blue", "two\nlines", "Ångström", "-3")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    kind = adapters.find("zero_shot")
    classes = ClassSet(NAMES, {"-3": ("sea_star",)})
    artifact.save(kind(adapters.config_class(kind)()).setup(tiny, classes), folder, {})
    return folder


@pytest.fixture(scope="module")
def classifier(run, tiny):
    return Classifier.load(run, backbone=tiny)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(1)
    for n in range(7):
        folder = tmp_path / "pictures" / f"part {n % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50, 40, 3), dtype=np.uint8)).save(folder / f"ü,{n}.png")
    return tmp_path / "pictures"


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))


def test_predictions_are_the_adapters_own(classifier, images, tiny):
    paths = find_images(str(images))
    found = list(classifier.predict(paths, batch_size=3, top=10))
    assert [p.path for p in found] == paths
    batch = torch.stack([tiny.transform()(Image.open(p).convert("RGB")) for p in paths])
    feature = tiny.encode_image(batch, normalize=False)
    with torch.no_grad():
        expected = classifier.adapter.logits(
            {"feature": feature, "path": paths, "index": torch.arange(7)}
        ).softmax(-1)
    for row, prediction in zip(expected, found, strict=True):
        assert prediction.label == NAMES[int(row.argmax())] and prediction.error is None
        assert prediction.probability == pytest.approx(float(row.max()), abs=1e-5)
        assert [p for _, p in prediction.top] == sorted((p for _, p in prediction.top), reverse=True)
        assert len(prediction.top) == 5 and sum(p for _, p in prediction.top) == pytest.approx(1)


def test_one_image_a_path_an_object_or_a_generator(classifier, images):
    path = find_images(str(images))[0]
    (a,), (b,) = classifier.predict(path), classifier.predict(Image.open(path))
    assert (a.label, a.path, b.path) == (b.label, path, "0")
    assert a.probability == pytest.approx(b.probability, abs=1e-6)
    assert classifier.classes == list(NAMES) and classifier.text("-3") == "sea star"
    assert list(classifier.predict([])) == []


def test_images_are_taken_as_they_are_needed(classifier):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield Image.new("RGB", (64, 64))

    stream = classifier.predict(endless(), batch_size=4)
    assert [next(stream).label for _ in range(10)]
    assert len(taken) < 40


def test_broken_images_are_answered_with_an_error(classifier, images):
    (images / "bad.jpg").write_bytes(b"\xff\xd8nothing")
    (images / "empty.png").write_bytes(b"")
    paths = [
        str(images / "bad.jpg"),
        *find_images(str(images / "part 0")),
        str(images / "empty.png"),
        "gone.png",
    ]
    found = list(classifier.predict(paths, batch_size=2))
    assert [p.error is None for p in found] == [False] + [True] * 4 + [False, False]
    assert all(p.label is None and p.top == [] for p in found if p.error)


def test_csv_of_a_folder(run, images, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    assert predict_command(run, str(images), tmp_path / "out" / "new.csv", 2, console) == 0
    rows = table(tmp_path / "out" / "new.csv")
    assert list(rows[0]) == ["path", "label", "text", "probability", "top2", "probability2"]
    assert [r["path"] for r in rows] == find_images(str(images))
    assert {r["label"].removeprefix("'") for r in rows} <= set(NAMES)
    assert not any(v.startswith(("=", "@", "+")) for r in rows for v in r.values())
    assert all(float(r["probability"]) >= float(r["probability2"]) for r in rows)
    assert "7 images in" in console.file.getvalue()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new.csv"]


def test_broken_images_are_listed_and_the_exit_code_says_so(run, images):
    (images / "bad.jpg").write_bytes(b"nothing")
    console = Console(file=io.StringIO(), width=300)
    assert predict_command(run, str(images), console=console) == 1
    assert (
        "1 of 8 images could not be read" in console.file.getvalue() and "bad.jpg" in console.file.getvalue()
    )
    first = run / "predicted-1.csv"
    assert {r["label"] == "" for r in table(first) if "bad.jpg" in r["path"]} == {True}
    predict_command(run, str(images / "part 0"), console=console)
    assert (run / "predicted-2.csv").exists()


def test_finding_images(images, tmp_path):
    everything = find_images(str(images))
    assert len(everything) == 7 and everything == sorted(everything)
    assert find_images(everything[0]) == [everything[0]]
    assert len(find_images(str(images / "part 0" / "*.png"))) == 4
    assert find_images(str(images / "part*")) == everything
    assert find_images(str(tmp_path / "**" / "*.png")) == everything
    (images / "loop").symlink_to(images, target_is_directory=True)
    assert len(find_images(str(images))) == 7
    (tmp_path / "none").mkdir()
    with pytest.raises(LimpetError, match="No images found in"):
        find_images(str(tmp_path / "none"))
    with pytest.raises(LimpetError, match="matches none"):
        find_images(str(tmp_path / "missing*"))


def test_new_classes_are_the_adapters_business(run, tiny, images):
    classifier = Classifier.load(run, backbone=tiny)
    classifier.add_classes(["ray"])
    assert classifier.classes[-1] == "ray"
    (found,) = classifier.predict(find_images(str(images))[0], top=9)
    assert len(found.top) == 6


def test_run_that_does_not_exist(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LimpetError, match="nowhere"):
        predict_command("nowhere", str(images))
