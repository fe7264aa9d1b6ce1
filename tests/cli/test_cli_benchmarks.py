"""Benchmarks as a user runs them, on miniatures with the embedded backbone."""

import json
from pathlib import Path

import pytest

TINY = ["backbone=limpet-tiny", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory, fakes):
    folder = tmp_path_factory.mktemp("published")
    for name in ("dtd", "eurosat", "oxford_pets"):
        fakes.write(name, folder)
    return folder


def test_check_of_a_grid_gives_cells_data_and_time(limpet, root):
    words = [f"data.root={root}", *TINY, "method=kgcoop,coop", "data.dataset=dtd,food101", "seed=1"]
    out = limpet("check", "benchmarks/few_shot_11", *words, "data.shots=1,2")
    flat = " ".join(out.split())
    assert "few_shot_11: 8 cells, 0 of them finished" in flat
    assert "missing food101: Food101 was not found" in flat and "data.download=true" in flat
    assert "estimated time on this machine" in flat and "4 cells cannot run before" in flat
    row = next(line for line in out.splitlines() if line.split()[:1] == ["coop"])
    assert row.split()[1] == "2" and "ms" in row
    assert [line.split()[0] for line in out.splitlines() if line.startswith(" dtd ")] == ["dtd"]  # two templates, one data set
    assert not Path("runs").exists()


def test_few_shot_grid_on_miniatures_resumes_and_makes_the_papers_table(limpet, root):
    words = [f"data.root={root}", *TINY, "method=gda", "data.dataset=dtd,eurosat", "data.shots=1", "seed=1,2"]
    limpet("fit", "benchmarks/few_shot_11", *words)
    (grid,) = Path("runs/few_shot_11").iterdir()
    metrics = json.loads((grid / "data.dataset=dtd,seed=2" / "metrics.json").read_text())
    assert metrics["data"] == "dtd" and metrics["seed"] == 2
    assert any("official split" in note for note in metrics["notes"])
    split = json.loads((grid / "data.dataset=dtd,seed=2" / "split.json").read_text())
    assert split["templates"] == ["{} texture."] and split["dataset"] == "dtd"
    assert limpet("fit", "benchmarks/few_shot_11", *words).count("already finished") == 4
    out = limpet("compare", grid)
    assert "Few-shot, 1 shots" in " ".join(out.split()) and "average of 2" in out
    assert "4 of them finished" in " ".join(limpet("check", "benchmarks/few_shot_11", *words).split())


def test_base_to_new_on_miniatures(limpet, root):
    words = [f"data.root={root}", *TINY, "method=zero_shot,coop", "data.dataset=oxford_pets", "seed=1", "trainer.epochs=1"]
    limpet("fit", "benchmarks/base_to_new_11", *words, "data.shots=1")
    (grid,) = Path("runs/base_to_new_11").iterdir()
    metrics = json.loads((grid / "method=coop" / "metrics.json").read_text())
    assert set(metrics["results"]) == {"base", "new", "joint"}
    out = " ".join(limpet("compare", grid).split())
    assert "Base to new: coop on limpet-tiny" in out and "cannot be compared" in out
