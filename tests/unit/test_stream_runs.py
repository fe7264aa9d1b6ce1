"""Runs over streams: what they leave, that they resume, continue and equal a refit where they should."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from limpet import artifact, compare, stream_runner
from limpet.calibration import Calibration
from limpet.callbacks.checkpoint import ResumeCheckpoint
from limpet.errors import LimpetError, RecipeError
from limpet.evaluate import evaluate_run
from limpet.predict import predict_command
from limpet.recipe import load
from limpet.runner import fit, resume

SMALL = ["protocol=all", "data.shots=2", "data.test=2", "data.val=2", "data.species=6", "data.batch_size=4",
         "trainer.epochs=2", "trainer.threads=1"]  # fmt: skip
CLASSES = ["stream.by=classes", "stream.increment=2"]
OTHER = ["evaluate.others={murky: {look: murky, test: 1}}"]
LORA = ["method=lora", "optim.lr=0.01"]
VR = ["continual=vr_lwf", "continual.count=30", "continual.length=3", "continual.student_count=10"]


class Stop(BaseException):
    """As a kill: nothing that the run would do afterwards happens."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path / "cache"))


def run(folder, *words, name="quickstart"):
    (recipe,) = load(name, [*SMALL, *words, f"run.dir={folder.parent / 'runs'}"])
    return fit(recipe, folder)


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_what_a_stream_leaves(tmp_path):
    folder = run(tmp_path / "run", *LORA, *VR, *CLASSES, *OTHER)
    found, plan = metrics(folder), json.loads((folder / "split.json").read_text(encoding="utf-8"))
    stream = found["continual"]
    assert [len(row) for row in stream["matrix"]] == [3, 3, 3]
    assert all(0 <= value <= 1 for row in stream["matrix"] for value in row)
    assert stream["seen"][-1] == stream["last"] == pytest.approx(found["results"]["all"]["accuracy"])
    assert stream["average_incremental"] == pytest.approx(sum(stream["seen"]) / 3)
    assert stream["zero_shot_seen"][-1] == pytest.approx(found["zero_shot"]["all"]["accuracy"])
    kept = stream["retention"]["data"]["murky"]
    assert len(kept["after"]) == 3 and kept["zero_shot"] is not None
    assert stream["retention"]["mean"]["after"] == kept["after"][-1]
    sessions = plan["stream"]["sessions"]
    paths = [{path for split in session["splits"].values() for path in split} for session in sessions]
    assert not paths[0] & paths[1] and not paths[1] & paths[2] and not paths[0] & paths[2]
    assert [n for n, _ in artifact.versions(folder)] == [1, 2, 3]
    names = [n for session in sessions for n in session["classes"]]
    for number, version in artifact.versions(folder):
        assert artifact.load_info(version)["classes"]["names"] == names[: 2 * number]
    assert (folder / "continual_matrix.png").stat().st_size > 1000
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Over the sessions" in page and "Kept on data that were never trained on" in page
    rows = compare.summarise(compare.load_runs([folder]))
    own = next(row for row in rows if row.group["method"] == "lora")
    assert own.mean("stream_last") == stream["last"] and own.mean("retention") == kept["after"][-1]
    assert own.mean("forgetting") == pytest.approx(stream["forgetting"])
    assert {"Last", "Avg", "Forgetting", "Retention"} <= {compare.heading(column) for column in own.values}
    assert not list(folder.glob("sessions/*/last.ckpt"))


def saved_once(monkeypatch):
    """Stop when the checkpoint of an epoch has been written; a session that was trained to its end writes no more."""
    written = ResumeCheckpoint.on_train_epoch_end

    def stop(self, trainer, pl_module):
        written(self, trainer, pl_module)
        raise Stop

    monkeypatch.setattr(ResumeCheckpoint, "on_train_epoch_end", stop)


def after_session(monkeypatch, after, when):
    """Stop right before (or after) the state of the `after`-th session is written; its adapter is saved by then."""
    save = stream_runner.StreamRun.save

    def stop(self):
        if when == "after":
            save(self)
        if self.done == after:
            raise Stop
        if when == "before":
            save(self)

    monkeypatch.setattr(stream_runner.StreamRun, "save", stop)


@pytest.mark.parametrize("words", [[*LORA, *VR], ["method=coop", "continual=replay", "continual.memory=3"],
                                   [*LORA, "continual=zscl", "continual.count=30", "continual.ensemble_every=1"],
                                   ["method=gda"]])  # fmt: skip
def test_an_interrupted_stream_gives_the_same_numbers(tmp_path, monkeypatch, words):
    whole = run(tmp_path / "whole", *words, *CLASSES, *OTHER)
    stops = [lambda patch: after_session(patch, 1, "before"), lambda patch: after_session(patch, 2, "after"),
             lambda patch: after_session(patch, 3, "after")]  # fmt: skip
    if "method=gda" not in words:
        stops.insert(1, lambda patch: saved_once(patch))  # in the second session
    folder = tmp_path / "stopped"
    for number, stop in enumerate(stops):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop(patch)
            resume(folder) if number else run(folder, *words, *CLASSES, *OTHER)
        assert not (folder / "metrics.json").exists()
    resume(folder)
    assert (whole / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()
    for version in (1, 2, 3):
        ours, theirs = (artifact.load(place, version=version).state_dict() for place in (whole, folder))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("method", "fixed"), [("gda", "method.alpha=1.0"), ("nearest_mean", "method.share=0.5")])
def test_a_training_free_stream_equals_a_fit_to_everything(tmp_path, method, fixed):
    words = [f"method={method}", fixed]
    stream, whole = run(tmp_path / "stream", *words, *CLASSES), run(tmp_path / "whole", *words)
    ours, theirs = (artifact.load(folder).eval() for folder in (stream, whole))
    assert ours.classes.names == theirs.classes.names
    features = {"feature": torch.randn(20, ours.backbone.embed_dim, generator=torch.Generator().manual_seed(1))}
    torch.testing.assert_close(ours.logits(features), theirs.logits(features), rtol=1e-4, atol=1e-4)
    assert metrics(stream)["results"]["all"]["accuracy"] == metrics(whole)["results"]["all"]["accuracy"]
    matrix = metrics(stream)["continual"]["matrix"]
    assert matrix[0][1] is None and matrix[2][0] is not None  # what is to come has no images yet


@pytest.mark.parametrize("method", ["tip_adapter", "taskres", "linear_probe", "zero_shot", "tip_adapter_f", "clap", "promptsrc"])
def test_every_kind_of_method_goes_through_a_stream(tmp_path, method):
    found = metrics(run(tmp_path / "run", f"method={method}", *CLASSES))
    assert found["continual"]["last"] is not None
    assert found["results"]["all"]["classes"] == 6


def test_sessions_never_see_old_images(tmp_path, monkeypatch):
    seen = []
    train = stream_runner.runner.train

    def watch(own, data, *rest, **more):
        seen.append({s.path for s in data.restrict(own.training_classes.names).samples["train"]})
        return train(own, data, *rest, **more)

    monkeypatch.setattr(stream_runner.runner, "train", watch)
    folder = run(tmp_path / "run", *LORA, *CLASSES)
    sessions = json.loads((folder / "split.json").read_text(encoding="utf-8"))["stream"]["sessions"]
    assert seen == [set(session["splits"]["train"]) for session in sessions]


def test_domains(tmp_path):
    found = metrics(run(tmp_path / "run", *LORA, *VR, "data.look=both", "stream.by=domains"))["continual"]
    assert [session["name"] for session in found["sessions"]] == ["clear", "murky"]
    assert all(value is not None for row in found["matrix"] for value in row)
    assert found["sessions"][0]["train"] == found["sessions"][1]["train"] == 12


def test_tasks_with_their_own_classes_and_rates(tmp_path):
    tasks = "stream.tasks={first: {species: 2}, second: {species: 3, drawing_seed: 2, lr: 0.02}}"
    rates = []
    from limpet import runner

    module = runner.AdaptationModule

    class Watched(module):
        def __init__(self, adapter, optim, *rest):
            rates.append(optim.lr)
            super().__init__(adapter, optim, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "AdaptationModule", Watched)
        folder = run(tmp_path / "run", *LORA, "continual=replay", "continual.memory=3", "stream.by=tasks", tasks)
    found = metrics(folder)
    assert rates == [0.01, 0.02]
    assert set(found["results"]) == {"task:first", "task:second"}
    assert found["results"]["task:first"]["classes"] == 2
    assert found["continual"]["transfer"] == found["continual"]["matrix"][0][1]


def test_what_is_replayed_comes_from_all_tasks_so_far(tmp_path, monkeypatch):
    """The third of three tasks sees kept images of both others, each with the classes of its own task."""
    seen = []
    replayed = stream_runner.Exemplars.draw

    def draw(self, step, generator):
        seen.append((len(self.data.class_names), len(self)))
        return replayed(self, step, generator)

    monkeypatch.setattr(stream_runner.Exemplars, "draw", draw)
    tasks = "stream.tasks={first: {species: 2}, second: {species: 3, drawing_seed: 2}, third: {species: 4, drawing_seed: 3}}"
    folder = run(tmp_path / "run", *LORA, "continual=replay", "continual.memory=12", "stream.by=tasks", tasks)
    assert set(metrics(folder)["results"]) == {"task:first", "task:second", "task:third"}
    assert {classes for classes, _ in seen} == {2, 3}, seen


TASKS = ["stream.by=tasks", "stream.tasks={first: {species: 2}, second: {species: 3, drawing_seed: 2}}"]


def test_probabilities_of_a_stream_of_tasks_are_calibrated_on_all_of_its_sessions(tmp_path, draw):
    folder = run(tmp_path / "run", *LORA, *TASKS)
    found, counts = metrics(folder)["calibration"], [s["val"] for s in metrics(folder)["continual"]["sessions"]]
    assert found["images"] == sum(counts) and found["temperature"] > 0
    assert set(found["ece"]) == {"task:first", "task:second"}
    stored = [artifact.load_info(version)["info"]["calibration"] for _, version in artifact.versions(folder)]
    names = [len(artifact.load_info(version)["classes"]["names"]) for _, version in artifact.versions(folder)]
    assert [part["images"] for part in stored] == [counts[0], sum(counts)] and [part["classes"] for part in stored] == names
    assert stored[1]["temperature"] == found["temperature"]
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert all(0 <= float(row["calibrated"]) <= 1 for row in csv.DictReader(file))
    images = draw(tmp_path / "images", 2, 3)
    assert predict_command(folder, str(images), tmp_path / "out.csv", coverage=0.5) == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cut = Calibration.from_dict(stored[1]).cut(coverage=0.5)
    assert [row["abstained"] == "1" for row in rows] == [float(row["calibrated"]) < cut.threshold for row in rows]


def test_a_stream_without_validation_images_says_that_nothing_is_calibrated(tmp_path, draw):
    words = [word for word in SMALL if not word.startswith(("data.val", "data.shots"))]
    single = ["data.train=1", "data.val=0", "data.shots=1"]  # of a single image no share becomes val
    (recipe,) = load("quickstart", [*words, *single, *LORA, *CLASSES, f"run.dir={tmp_path / 'runs'}"])
    folder = fit(recipe, tmp_path / "run")
    found = metrics(folder)
    assert "calibration" not in found and any("no temperature and no threshold" in note for note in found["notes"])
    with pytest.raises(LimpetError, match="--threshold"):
        predict_command(folder, str(draw(tmp_path / "images", 1, 2)), tmp_path / "out.csv", coverage=0.5)


def test_a_stream_of_tasks_is_evaluated_task_by_task(tmp_path):
    folder = run(tmp_path / "run", *LORA, *TASKS)
    found, fitted = evaluate_run(folder), metrics(folder)["results"]
    assert found["results"].keys() == fitted.keys()
    for space, values in fitted.items():
        assert found["results"][space]["accuracy"] == values["accuracy"]
        assert found["results"][space]["classes"] == values["classes"]
    assert found["task_mean"] == pytest.approx(sum(values["accuracy"] for values in fitted.values()) / 2)
    other = evaluate_run(folder, ["data.species=5", "data.test=1"])["results"]
    assert set(other) == {"all"} and other["all"]["classes"] == 5
    with pytest.raises(LimpetError, match="one data set, and this run has 2 tasks"):
        evaluate_run(folder, ["evaluate.task=retrieval"])


def test_continuing_months_later(tmp_path):
    first = run(tmp_path / "first", *LORA, "classes.first=4")
    before = artifact.load(first)
    new = [before.classes.names[3], *metrics_names(6)[4:]]  # one known class, two new ones
    words = [*LORA, *VR, f"init_from={first}", f"classes.include=[{', '.join(new)}]"]
    second = run(tmp_path / "second", *words)
    after = artifact.load(second)
    assert after.classes.names == (*before.classes.names, *new[1:])
    found = metrics(second)["continual"]
    assert found["sessions"][0]["classes"] == new and found["last"] is not None
    assert metrics(second)["results"]["all"]["classes"] == 6  # old classes stay among the candidates
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    named = run(tmp_path / "named", *LORA, *VR, f"init_from={first}@v1", f"classes.include=[{', '.join(new)}]")
    assert (named / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    recorded = load(str(second / "recipe.yaml"))[0].init_from
    assert recorded == str((first / "adapter" / "v1").resolve())  # a later version of it changes nothing
    with pytest.raises(RecipeError, match="method=lora"):
        run(tmp_path / "third", "method=coop", f"init_from={first}")
    with pytest.raises(LimpetError, match="no adapter of version 7"):
        run(tmp_path / "third", *LORA, f"init_from={first}@v7")


def test_one_new_class_months_later(tmp_path):
    first = run(tmp_path / "first", *LORA, "classes.first=3")
    name = metrics_names(4)[3]
    words = [*LORA, *VR, f"init_from={first}", f"classes.include=[{name}]"]
    told = [note for note in metrics(run(tmp_path / "own", *words))["notes"] if "one class only" in note]
    assert len(told) == 1 and "stream.candidates=seen" in told[0]
    seen = run(tmp_path / "seen", *words, "stream.candidates=seen")
    assert not any("one class only" in note for note in metrics(seen)["notes"])
    for by in ([], ["stream.by=classes", "stream.increment=2"]):
        with pytest.raises(RecipeError, match="a single one has none"):
            run(tmp_path / "replay", *LORA, "continual=replay", f"init_from={first}", f"classes.include=[{name}]", *by)


def metrics_names(count):
    from limpet.datamodules import load as load_data
    from limpet.datamodules.configs import ReefConfig

    data = load_data(ReefConfig(species=count), 1)
    data.setup()
    return data.class_names


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*LORA, "continual=lwf"], "nothing to forget"),
        (["method=gda", *CLASSES, "continual=lwf"], "not trained by any"),
        (["method=taskres", *CLASSES, "continual=vr_lwf"], "row for each class"),
        (["method=cocoop", *CLASSES, "continual=zscl"], "neither carries a gradient"),
        (["method=coop", "method.class_specific=true", "method.init=null", *CLASSES], "cannot grow"),
        ([*LORA, "stream.by=domains"], "one session only"),
        ([*LORA, *CLASSES, "trainer.devices=2"], "one device"),
        ([*LORA, "continual=replay", "init_from=x"], "a single one has none"),
    ],
)
def test_what_is_refused(tmp_path, words, message):
    with pytest.raises(Exception, match=message) as caught:
        run(tmp_path / "run", *words)
    assert isinstance(caught.value, LimpetError | ValueError) and not (tmp_path / "run").exists()


def test_a_changed_stream_is_not_resumed(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        after_session(patch, 1, "after")
        run(folder, *LORA, *CLASSES)
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    (folder / "recipe.yaml").write_text(text.replace("increment: 2", "increment: 3"), encoding="utf-8")
    with pytest.raises(LimpetError, match="changed since"):
        resume(folder)


def test_regularisers_make_a_grid():
    cells = load("quickstart", [*SMALL, *LORA, *CLASSES, "continual=none,lwf,vr_lwf,zscl,replay", "seed=1,2"])
    assert [cell.cell["continual"] for cell in cells[::2]] == ["none", "lwf", "vr_lwf", "zscl", "replay"]
    assert [cell.continual.name for cell in cells[::2]] == ["none", "lwf", "vr_lwf", "zscl", "replay"]
    assert all(dataclasses.is_dataclass(cell.continual) for cell in cells)


@pytest.mark.slow
def test_a_killed_stream_gives_the_same_numbers(tmp_path):
    """Killed without a chance to say anything, inside a session and between two, then resumed: as if nothing had been."""
    small = [word for word in SMALL if not word.startswith("trainer.epochs")]
    words = [*small, *LORA, *VR, *CLASSES, *OTHER, "trainer.epochs=6", f"run.dir={tmp_path / 'runs'}"]
    environment = {**os.environ, "LIMPET_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "limpet", "fit", "quickstart", *words]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    whole, killed = tmp_path / "runs" / "quickstart" / "001", tmp_path / "runs" / "quickstart" / "002"

    def kill_when(words, there):
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not there():
            time.sleep(0.002)
        process.kill()
        process.wait()

    kill_when(command, (killed / "sessions" / "01" / "last.ckpt").exists)
    again = [sys.executable, "-m", "limpet", "resume", str(killed)]
    for version in (1, 2):
        if not (killed / "metrics.json").exists():  # a busy machine may notice too late
            kill_when(again, (killed / "adapter" / f"v{version}" / "adapter.json").exists)
    if not (killed / "metrics.json").exists():
        subprocess.run(again, env=environment, check=True, capture_output=True)
    assert (whole / "metrics.json").read_bytes() == (killed / "metrics.json").read_bytes()
    for version in (1, 2, 3):
        ours, theirs = (place / "adapter" / f"v{version}" / "adapter.safetensors" for place in (whole, killed))
        assert ours.read_bytes() == theirs.read_bytes()
