"""limpet add-classes, remove-classes, rename-classes on a small run of drawn fish."""

import json
from pathlib import Path

import numpy as np
import pytest
from limpet import artifact
from limpet.cli import main
from PIL import Image

SETTINGS = [
    "protocol=all", "data.shots=2", "data.test=2", "data.val=2", "classes.first=4", "trainer.accelerator=cpu",
    "data.augment.preset=natural", "data.augment.views=2",
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Make a run of a method and a folder of new images, from within an empty working folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("Lion_Fish", "sea star"):
        (tmp_path / "shots" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "shots" / name / f"{i}.png")

    def make(method):
        assert main(["fit", "quickstart", f"method={method}", *SETTINGS]) == 0
        return "quickstart"

    return make


def version(number):
    return json.loads(Path(f"runs/quickstart/001/adapter/v{number}/adapter.json").read_text("utf-8"))


def test_grow_shrink_rename_predict_evaluate(run, capsys):
    name = run("gda")
    first = version(1)["classes"]["names"]
    assert main(["add-classes", name, "lion fish", "sea star", "--shots", "shots"]) == 0
    out = capsys.readouterr().out
    assert "4 -> 6 classes" in out and "v2" in out and "limpet predict" in out
    assert version(2)["classes"]["names"] == [*first, "lion fish", "sea star"]
    assert version(2)["info"]["history"] == [{"added": {"lion fish": 3, "sea star": 3}}]
    assert main(["predict", name, "shots", "--top", "6", "--out", "p.csv"]) == 0
    assert {"lion fish", "sea star"} <= set(Path("p.csv").read_text("utf-8").replace("\n", ",").split(","))
    assert main(["remove-classes", name, "sea star", first[0]]) == 0
    assert main(["rename-classes", name, f"{first[1]}=a=b"]) == 0
    assert version(4)["classes"]["names"] == ["a=b", *first[2:], "lion fish"]
    assert version(1)["classes"]["names"] == first
    capsys.readouterr()
    assert main(["evaluate", name]) == 0
    out = capsys.readouterr().out
    assert "3 classes" in out and "lion fish" in out
    assert artifact.locate("runs/quickstart/001").name == "v4"
    card = Path("runs/quickstart/001/adapter/v4/README.md").read_text("utf-8")
    assert "removed sea star" in card and "Results on the test images" not in card


def test_text_methods_need_no_images(run, capsys):
    name = run("zero_shot")
    assert main(["add-classes", name, "lionfish"]) == 0
    assert "4 -> 5 classes" in capsys.readouterr().out


def test_mistakes_are_sentences_and_write_nothing(run, capsys):
    name = run("nearest_mean")
    known = version(1)["classes"]["names"][0]
    Path("empty").mkdir()
    Path("broken/ray").mkdir(parents=True)
    Path("broken/ray/1.jpg").write_bytes(b"not a picture")
    for words, said in (
        (["add-classes", name, "lionfish"], "--shots"),
        (["add-classes", name, "manta", "--shots", "shots"], "Lion_Fish"),
        (["add-classes", name, "manta", "--shots", "nowhere"], "nowhere"),
        (["add-classes", name, known, "--shots", "shots/sea star"], "exists already"),
        (["add-classes", name, "manta", "manta", "--shots", "shots"], "named twice"),
        (["add-classes", name, "manta", "--shots", "shots/sea star/0.png"], "is a file"),
        (["add-classes", name, "manta", "--shots", "empty"], "no sub-folder"),
        (["add-classes", name, "ray", "--shots", "broken"], "can be read"),
        (["rename-classes", name, f"{known}=a", f"{known}=b"], "more than one new name"),
        (["remove-classes", name, "whale"], "whale"),
        (["rename-classes", name, known], "OLD=NEW"),
        (["rename-classes", name, f"{known}="], "empty"),
    ):
        capsys.readouterr()
        assert main(words) == 2, words
        assert said in capsys.readouterr().err
    assert [n for n, _ in artifact.versions("runs/quickstart/001")] == [1]
    assert main(["add-classes", name, "manta", "--shots", "shots/sea star"]) == 0
