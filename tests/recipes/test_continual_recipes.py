"""The continual recipes on small data: a few drawn fish instead of the real ones, limpet-tiny instead of a download."""

import json

import pytest
from limpet import artifact
from limpet.recipe import load
from limpet.runner import fit

TINY = ["backbone={name: limpet-tiny, pretrained: null, activation: null}", "trainer=cpu", "trainer.threads=1"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path / "cache"))


def test_published_cifar_stream():
    (recipe,) = load("cil_cifar100", ["data.root=x"])
    names = recipe.classes.include
    assert len(set(names)) == 100
    alphabetical = sorted(names)
    assert [alphabetical.index(name) for name in names[:10]] == [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]
    assert [cell.stream.increment for cell in load("cil_cifar100", ["stream.increment=10,5,2"])] == [10, 5, 2]
    assert (recipe.continual.name, recipe.continual.image_weight, recipe.continual.ensemble_every) == ("zscl", 5.0, 10)


def test_reef(tmp_path):
    words = ["data.species=8", "data.shots=2", "data.test=2", "data.val=2", "trainer.epochs=1", "continual.count=30",
             "evaluate.others.murky.test=1", "trainer.threads=1", f"run.dir={tmp_path / 'runs'}"]  # fmt: skip
    (recipe,) = load("continual_reef", words)
    run = fit(recipe)
    found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["continual"]
    assert len(found["matrix"]) == 2 and found["regulariser"] == "vr_lwf" and "murky" in found["retention"]["data"]


def test_folder_and_months_later(tmp_path, draw):
    old, new = draw(tmp_path / "old", species=4, images=8), tmp_path / "new"
    draw(new, species=6, images=8)
    for folder in old.iterdir():  # the old images are gone
        for image in (new / folder.name).iterdir():
            image.unlink()
        (new / folder.name).rmdir()
    words = [*TINY, "data.shots=2", "trainer.epochs=1", "continual.count=30", f"run.dir={tmp_path / 'runs'}"]
    (recipe,) = load("continual_folder", [*words, f"data.root={old}"])
    first = fit(recipe)
    (recipe,) = load("continual_folder", [*words, f"data.root={new}", "init_from=continual_folder"])
    second = fit(recipe)
    assert [len(artifact.load_info(path)["classes"]["names"]) for _, path in artifact.versions(first)] == [2, 4]
    names = artifact.load_info(second)["classes"]["names"]
    assert len(names) == 6 and names[:4] == artifact.load_info(first)["classes"]["names"]


def test_list_of_data_sets(tmp_path, draw):
    fish, more = draw(tmp_path / "fish", species=2, images=6), draw(tmp_path / "more", species=3, images=6)
    words = [*TINY, f"stream.tasks={{fish: {{root: {fish}}}, more: {{root: {more}, lr: 5.0e-5}}}}", "trainer.max_steps=2",
             "optim.warmup=1", "continual.count=20", f"run.dir={tmp_path / 'runs'}"]  # fmt: skip
    (recipe,) = load("mtil", words)
    found = json.loads((fit(recipe) / "metrics.json").read_text(encoding="utf-8"))
    assert set(found["results"]) == {"task:fish", "task:more"}
    assert found["continual"]["transfer"] is not None
