"""Runs and artefacts written by every released version load in this one; a newer version's are refused in a sentence."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from limpet import artifact
from limpet.inference import Classifier

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir() and (path / "runs").is_dir())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of the fixtures' backbone, made anew from its formula."""
    spec = importlib.util.spec_from_file_location("write_fixtures", FIXTURES / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.backbone(tmp_path_factory.mktemp("fixtures") / "backbone")


@pytest.fixture(params=VERSIONS)
def place(request, tmp_path, monkeypatch, written):
    """A working folder with a version's runs, images and backbone."""
    for name in ("runs", "images"):
        shutil.copytree(FIXTURES / request.param / name, tmp_path / name)
    shutil.copytree(written, tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_there_are_fixtures_of_this_format_and_they_are_small():
    assert VERSIONS
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 1_000_000


def finished(place):
    return sorted(path.parent for path in place.glob("runs/*/*/metrics.json"))


@pytest.mark.filterwarnings("ignore:.*made with other settings or versions.*")
def test_every_artefact_answers_as_it_did(place):
    assert len(finished(place)) >= 6
    for run in finished(place):
        before = {row["path"]: row for row in rows(run / "predictions.csv")}
        classifier = Classifier.load(run, version=1)
        for answer in classifier.predict([place / "images" / name for name in before]):
            row = before[Path(answer.path).name]
            assert answer.label == row["predicted"], run
            assert answer.probability == pytest.approx(float(row["probability"]), abs=1e-4), run


@pytest.mark.filterwarnings("ignore:.*made with other settings or versions.*")
def test_runs_are_evaluated_compared_exported_and_grown(place, ask):
    runs = [run.relative_to(place) for run in finished(place)]
    assert ask("compare", *runs).code == 0
    run = place / "runs/coop/001"
    assert len(artifact.versions(run)) == 2
    assert ask("evaluate", "coop/001").code == 0
    (again,) = run.glob("evaluation-*.json")
    assert json.loads(again.read_text())["results"]["all"]["images"] == 6
    assert ask("export", "coop/001", "--to", "adapter").code == 0
    assert ask("add-classes", "coop/001", "goby").code == 0
    assert len(artifact.versions(run)) == 3


@pytest.mark.filterwarnings("ignore:.*made with other settings or versions.*")
def test_an_interrupted_run_is_resumed_to_the_numbers_of_a_whole_one(place, ask):
    assert ask("resume", "interrupted").code == 0
    one, other = (json.loads((place / f"runs/{name}/001/metrics.json").read_text()) for name in ("interrupted", "coop"))
    for measure, value in other["results"]["all"].items():
        assert one["results"]["all"][measure] == pytest.approx(value, abs=1e-5), measure


@pytest.mark.parametrize(
    ("name", "command"),
    [("adapter/v1/adapter.json", ["predict", "gda/001", "images"]), ("metrics.json", ["compare", "gda/001"])],
)
def test_a_newer_format_is_a_sentence(name, command, place, ask):
    file = place / "runs/gda/001" / name
    content = json.loads(file.read_text())
    content["format"] = 99
    file.write_text(json.dumps(content))
    sentence = ask(*command).sentence
    assert "format 99" in sentence and "newer Limpet" in sentence


def test_a_stream_of_a_newer_format_is_a_sentence(place, tmp_path, ask):
    from limpet.errors import RunError
    from limpet.stream_runner import read_state

    (tmp_path / "stream.json").write_text(json.dumps({"format": 99, "done": 1}))
    with pytest.raises(RunError, match="format 99"):
        read_state(tmp_path / "stream.json")
    (tmp_path / "stream.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_state(tmp_path / "stream.json")
