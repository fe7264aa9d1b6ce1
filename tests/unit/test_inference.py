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
    columns = ["path", "label", "text", "probability", "calibrated", "abstained", "top2", "probability2", "calibrated2", "error"]
    assert list(rows[0]) == columns
    assert {r["calibrated"] for r in rows} == {""}, "this adapter was saved without a temperature"
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


@pytest.fixture(scope="module")
def calibrated(tiny, tmp_path_factory):
    """A run whose logits are to be divided by 3, with a curve of three thresholds."""
    folder = tmp_path_factory.mktemp("calibrated")
    kind = adapters.find("zero_shot")
    stored = {"temperature": 3.0, "images": 40, "classes": 5, "curve": [[0, 1, 0.5], [0.25, 0.5, 0.25], [0.999, 0.1, 0.2]]}
    artifact.save(kind(adapters.config_class(kind)()).setup(tiny, ClassSet(NAMES)), folder, {"calibration": stored})
    return folder


def test_calibrated_probabilities_stand_beside_the_plain_ones(calibrated, images, tiny):
    classifier = Classifier.load(calibrated, backbone=tiny)
    paths = find_images(str(images))
    logits = classifier.scores(torch.stack([tiny.transform()(Image.open(p).convert("RGB")) for p in paths]))
    plain, scaled = logits.softmax(-1).sort(descending=True), (logits / 3).softmax(-1).sort(descending=True)
    for n, found in enumerate(classifier.predict(paths, top=3)):
        assert [p for _, p in found.top] == pytest.approx(plain.values[n, :3].tolist(), abs=1e-5)
        assert found.calibrated_top == pytest.approx(scaled.values[n, :3].tolist(), abs=1e-5)
        assert found.calibrated == found.confidence == found.calibrated_top[0] and not found.abstained


def test_abstained_answers_are_marked_not_dropped(calibrated, images, tmp_path):
    console = Console(file=io.StringIO(), width=300)
    assert predict_command(calibrated, str(images), tmp_path / "a.csv", 2, console, max_error=0.2) == 0
    rows = table(tmp_path / "a.csv")
    assert len(rows) == 7 and all(r["label"] and r["abstained"] == "1" for r in rows)
    text = console.file.getvalue()
    assert "Abstained from 7 of 7 images (less sure than 99.9 %); on the 40 validation images that threshold answered 10 %" in text
    predict_command(calibrated, str(images), tmp_path / "b.csv", console=console, coverage=1.0)
    assert {r["abstained"] for r in table(tmp_path / "b.csv")} == {"0"}
    middle = sorted(float(r["calibrated"]) for r in rows)[3]
    predict_command(calibrated, str(images), tmp_path / "c.csv", console=console, threshold=middle + 1e-5)
    assert sum(int(r["abstained"]) for r in table(tmp_path / "c.csv")) == 4
    for settings, words in (
        ({"coverage": 0.9, "threshold": 0.5}, "give one of them"), ({"threshold": 7.0}, "between 0 and 1"),
        ({"max_error": 0.01}, "cannot be reached"), ({"coverage": 90.0}, "between 0 and 1"),
    ):  # fmt: skip
        with pytest.raises(LimpetError, match=words):
            predict_command(calibrated, str(images), tmp_path / "d.csv", **settings)
    assert not (tmp_path / "d.csv").exists()


def test_thresholds_need_validation_images(run, images):
    with pytest.raises(LimpetError, match="no thresholds"):
        predict_command(run, str(images), coverage=0.9)


def test_changed_classes_keep_the_temperature_with_a_warning(calibrated, tiny, images, tmp_path):
    classifier = Classifier.load(calibrated, backbone=tiny)
    classifier.add_classes(["ray"])
    classifier.save(tmp_path / "run")
    console = Console(file=io.StringIO(), width=300)
    predict_command(tmp_path / "run", str(images), tmp_path / "a.csv", console=console)
    assert "fitted for 5 classes; there are 6 now" in console.file.getvalue()
    assert all(r["calibrated"] for r in table(tmp_path / "a.csv"))


def test_the_same_table_in_every_format(calibrated, images, tmp_path):
    import pandas

    (images / "bad.jpg").write_bytes(b"nothing")
    console = Console(file=io.StringIO(), width=300)
    for suffix in ("csv", "parquet", "jsonl"):
        assert predict_command(calibrated, str(images), tmp_path / f"a.{suffix}", 9, console) == 1
    assert "--top 9: there are only 5 classes" in console.file.getvalue()
    plain = pandas.read_csv(tmp_path / "a.csv")
    parquet = pandas.read_parquet(tmp_path / "a.parquet")
    lines = pandas.read_json(tmp_path / "a.jsonl", lines=True, dtype=False)
    assert list(plain) == list(parquet) == list(lines) and len(plain) == len(parquet) == len(lines) == 8
    assert "top5" in plain and "top6" not in plain
    assert parquet["label"].tolist()[1:] == lines["label"].tolist()[1:] and parquet["label"].isna()[0]
    assert np.allclose(plain["calibrated"][1:], parquet["calibrated"][1:], atol=1e-6)
    assert np.allclose(lines["probability"][1:], parquet["probability"][1:].astype(float))
    assert "not an image" in parquet["error"][0] and parquet["error"][1:].isna().all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "a.parquet", "pictures"]


@pytest.mark.parametrize("name", ["a.txt", "a", "folder.csv"])
def test_a_file_that_cannot_be_written_is_refused_first(name, calibrated, images, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(LimpetError, match="says no format|is a folder"):
        predict_command(calibrated, str(images), tmp_path / name)


def test_an_interrupted_table_is_not_left_behind(calibrated, images, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"old")

    def stop(self, batch, top, threshold):
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "_answer", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_command(calibrated, str(images), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_an_archive_with_odd_members(calibrated, images, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "new.zip", "w") as file:
        for n, path in enumerate(find_images(str(images))):
            file.write(path, f"deep/{n}.png")
        file.writestr("../x.png", b"")
        frames = [Image.new("RGB", (9, 9), (n, n, n)) for n in (0, 200)]
        frames[0].save(tmp_path / "m.gif", save_all=True, append_images=frames[1:])
        file.write(tmp_path / "m.gif", "m.gif")
    console = Console(file=io.StringIO(), width=300)
    assert predict_command(calibrated, [str(tmp_path / "new.zip")], tmp_path / "a.csv", console=console) == 1
    inside, outside = table(tmp_path / "a.csv"), list(Classifier.load(calibrated).predict(find_images(str(images))))
    by_name = {r["path"]: r for r in inside}
    for n, one in enumerate(outside):
        assert float(by_name[f"{tmp_path}/new.zip/deep/{n}.png"]["probability"]) == pytest.approx(one.probability, abs=1e-5)
    assert by_name[f"{tmp_path}/new.zip/../x.png"]["label"] == "" and by_name[f"{tmp_path}/new.zip/m.gif"]["label"]
    text = console.file.getvalue()
    assert "1 of 9 images could not be read" in text and "leads out of the archive" in text
    assert "only the first was looked at: 1" in text and "m.gif" in text
