"""Data sets that the embedded backbone saw in pretraining are marked wherever their figures stand."""

import json

import pytest
from limpet import compare, seen
from limpet.datamodules.configs import SCHEMAS, BenchmarkConfig, ReefConfig


def folder(root, name, data, backbone="limpet-tiny"):
    run = {"format": 1, "recipe": "r", "method": name, "backbone": backbone, "protocol": "all", "seed": 1, "shots": 1, "data": data}
    run |= {"results": {"all": {"accuracy": 0.5}}, "notes": []}
    (root / name).mkdir()
    (root / name / "metrics.json").write_text(json.dumps(run))
    (root / name / "recipe.yaml").write_text("")
    return root / name


def test_only_what_a_backbone_saw_is_named():
    assert seen.was_seen("limpet-tiny", seen.data_name(BenchmarkConfig(dataset="cifar100")))
    assert seen.was_seen("limpet-tiny", seen.data_name(ReefConfig()))
    assert not seen.was_seen("limpet-tiny", "dtd") and not seen.was_seen("ViT-B-16", "cifar100")
    (line,) = seen.sentences([("limpet-tiny", "cifar100"), ("limpet-tiny", "cifar100"), ("limpet-tiny", "dtd")])
    assert "pretraining" in line and "cifar100" in line


@pytest.mark.parametrize("name", ["reef", "reef_scenes", "reef_defects", "reef_ordering", "shapes"])
def test_drawings_are_data_modules_that_exist(name):
    assert name in SCHEMAS and seen.was_seen("limpet-tiny", name)


def test_comparisons_mark_them(tmp_path):
    runs = [folder(tmp_path, "coop", "cifar100"), folder(tmp_path, "gda", "dtd"), folder(tmp_path, "lora", "cifar100", "ViT-B-16")]
    rows = compare.summarise(compare.load_runs(runs))
    assert {row.label("method") for row in rows} == {"coop †", "gda", "lora"}
    compare.compare(runs, tmp_path / "out")
    for name in ("compare.md", "compare.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "coop †" in text and "gda †" not in text and text.count("in pretraining") == 1
    assert "†" not in (tmp_path / "out" / "compare.csv").read_text()


def test_a_run_says_so_before_and_after(tmp_path, capsys, monkeypatch):
    from limpet import recipe, runner, show

    monkeypatch.setattr(show, "said", set())
    words = ["data=reef", "backbone=limpet-tiny", "method=zero_shot", "protocol=all", "data.train=2", "data.val=1", "data.test=2"]
    asked = recipe.load_recipe("quickstart", [*words, "data.shots=1", "trainer.accelerator=cpu"])
    run = runner.fit(asked, tmp_path / "run")
    assert any("pretraining" in note for note in json.loads((run / "metrics.json").read_text())["notes"])
    assert "pretraining" in " ".join(capsys.readouterr().out.split()) and "pretraining" in (run / "report.html").read_text()
