"""fit, grids, resume, evaluate, predict and compare, as a user types them."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from limpet.callbacks.checkpoint import ResumeCheckpoint

RUN_FOLDER = {
    "recipe.yaml", "split.json", "env.json", "metrics.json", "per_class.csv", "predictions.csv", "report.html",
    "adapter", "last.ckpt", "log",
}  # fmt: skip


def rows(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_the_design_says(fit_fish):
    run, metrics = fit_fish()
    assert str(run) == "runs/fish/001"
    assert {p.name for p in run.iterdir()} == RUN_FOLDER
    assert {p.name for p in (run / "adapter").iterdir()} == {"v1"}
    assert {"adapter.safetensors", "adapter.json"} <= {p.name for p in (run / "adapter" / "v1").iterdir()}
    assert metrics["format"] == 1 and metrics["recipe"] == "fish" and metrics["method"] == "coop"
    assert metrics["trainable_parameters"] == 4 * 128 and metrics["seed"] == 1 and metrics["shots"] == 2
    for table in (metrics["results"], metrics["zero_shot"]):
        (values,) = table.values()
        assert {"accuracy", "balanced_accuracy", "macro_f1", "ece", "top3", "images", "classes"} == set(values)
        assert values["classes"] == 4 and all(0 <= v <= 1 for k, v in values.items() if k not in ("images", "classes"))
    assert "seconds" in json.loads((run / "env.json").read_text())
    assert len(rows(run / "predictions.csv")) == metrics["results"]["all"]["images"]
    right = [float(r["correct"]) for r in rows(run / "predictions.csv")]
    assert sum(right) / len(right) == pytest.approx(metrics["results"]["all"]["accuracy"])
    assert [r["class"] for r in rows(run / "per_class.csv")] == json.loads((run / "split.json").read_text())["classes"]


def test_the_screen_fits_eighty_columns_and_says_what_next(limpet, fish):
    out = limpet("fit", "fish", f"data.root={fish}", "protocol=base_to_new")
    for word in ("accuracy", "zero-shot", "balanced", "macro-F1", "ECE", "harmonic mean", "base + new (4)", "runs/fish/001"):
        assert word in out
    assert "…" not in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith(("next:", "error:")))
    assert "limpet predict runs/fish/001" in out


def test_equal_recipes_give_equal_bytes(fit_fish):
    first, _ = fit_fish("data.augment.preset=natural", "data.augment.views=2")
    second, _ = fit_fish("data.augment.preset=natural", "data.augment.views=2", "data.num_workers=2")
    _, other = fit_fish("data.augment.preset=natural", "data.augment.views=2", "seed=2")
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    assert (first / "predictions.csv").read_bytes() == (second / "predictions.csv").read_bytes()
    assert other["seed"] == 2 and other["split_hash"] != json.loads((first / "metrics.json").read_text())["split_hash"]


def test_fresh_augmentation_does_not_depend_on_workers(fit_fish):
    settings = ["data.augment.preset=natural", "data.augment.views=0", "data.shots=4"]
    first, _ = fit_fish(*settings)
    second, _ = fit_fish(*settings, "data.num_workers=2")
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()


def test_a_grid_lists_its_images_once_and_gives_the_numbers_of_single_runs(limpet, fish, monkeypatch):
    from limpet.datamodules import checks, folder

    listed, opened = [], []
    listing, check = folder.FolderDataModule.listing, checks.check_image
    monkeypatch.setattr(folder.FolderDataModule, "listing", lambda self: listed.append(1) or listing(self))
    monkeypatch.setattr(checks, "check_image", lambda file: opened.append(file) or check(file))
    words = [f"data.root={fish}", "method=gda"]
    limpet("fit", "fish", *words, "seed=1,2", "data.shots=1,2")
    assert len(listed) == 1
    assert len(opened) == len(set(opened))
    (grid,) = Path("runs/fish").glob("grid-*")
    for number, (seed, shots) in enumerate(((1, 1), (2, 2)), 1):
        limpet("fit", "fish", *words, f"seed={seed}", f"data.shots={shots}")
        alone, cell = Path(f"runs/fish/{number:03d}"), grid / f"data.shots={shots},seed={seed}"
        for name in ("split.json", "predictions.csv"):
            assert (alone / name).read_bytes() == (cell / name).read_bytes()
        one, other = (json.loads((run / "metrics.json").read_text()) for run in (alone, cell))
        assert {**other, "cell": {}} == one
    assert len(listed) == 3


def test_a_grid_has_cells_a_table_and_is_not_run_twice(limpet, fish):
    words = ["fit", "fish", f"data.root={fish}", "seed=1,2", "method=zero_shot,tip_adapter"]
    out = limpet(*words)
    assert "±" in out and "tip_adapter" in out and out.count("class names hold words") <= 1
    (grid,) = Path("runs/fish").glob("grid-*")
    cells = sorted(p.name for p in grid.iterdir() if p.is_dir())
    assert cells == [f"method={m},seed={s}" for m in ("tip_adapter", "zero_shot") for s in (1, 2)]
    before = {c: (grid / c / "metrics.json").stat().st_mtime_ns for c in cells}
    again = limpet(*words)
    assert again.count("already finished") == 4 and "±" in again
    assert before == {c: (grid / c / "metrics.json").stat().st_mtime_ns for c in cells}
    assert "±" in limpet("compare", grid)


def test_a_failing_cell_does_not_stop_the_others(limpet, fish):
    out = limpet("fit", "fish", f"data.root={fish}", "method.init=null", "method.context_length=300,4", code=2)
    assert "1 of 2 cells could not run" in out and "tokens" in out
    (grid,) = Path("runs/fish").glob("grid-*")
    assert (grid / "method.context_length=4" / "metrics.json").exists()
    assert "limpet" not in json.loads((grid / "grid.json").read_text())["failed"]


def test_a_cell_that_another_process_finishes_meanwhile_has_not_failed(limpet, fish, monkeypatch):
    from limpet import runner

    words = ("fit", "fish", f"data.root={fish}", "method=zero_shot", "seed=1,2")
    limpet(*words)
    (cell,) = Path("runs/fish").glob("grid-*/seed=1")
    done = (cell / "metrics.json").read_bytes()
    (cell / "metrics.json").unlink()
    resume = runner.resume

    def late(run_dir):
        (cell / "metrics.json").write_bytes(done)
        return resume(run_dir)

    monkeypatch.setattr(runner, "resume", late)
    assert "cannot run" not in limpet(*words)


def stop_after(monkeypatch, epochs):
    """Press Ctrl-C after so many epochs; returns what undoes that."""
    written, seen = ResumeCheckpoint.on_train_epoch_end, []

    def stop(self, trainer, module):
        written(self, trainer, module)
        seen.append(1)
        if len(seen) == epochs:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ResumeCheckpoint, "on_train_epoch_end", stop)
    return lambda: monkeypatch.setattr(ResumeCheckpoint, "on_train_epoch_end", written)


@pytest.mark.parametrize("settings", [[], ["evaluate.select=val"], ["method=tip_adapter_f"]])
def test_resume_after_ctrl_c_equals_an_uninterrupted_run(settings, limpet, fish, fit_fish, monkeypatch):
    whole, _ = fit_fish("trainer.epochs=4", *settings)
    release = stop_after(monkeypatch, 2)
    out = limpet("fit", "fish", f"data.root={fish}", "trainer.epochs=4", *settings, code=130)
    assert "limpet resume fish/002" in out
    assert not Path("runs/fish/002/metrics.json").exists()
    release()
    limpet("resume", "fish/002")
    logs = [rows(run / "log" / "metrics.csv") for run in (whole, Path("runs/fish/002"))]
    assert logs[0] == logs[1] and sum(bool(row["loss"]) for row in logs[0]) == 4
    assert ("val_accuracy" in logs[0][0]) == ("evaluate.select=val" in settings)
    assert Path("runs/fish/002/metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
    assert "nothing to resume" in limpet("resume", "fish/002", code=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_kill_equals_an_uninterrupted_run(number, command, limpet):
    words = ["fit", "quickstart", "data.species=4", "data.test=5", "data.train=8", "data.shots=8", "trainer.epochs=150",
             "trainer.threads=1", "data.batch_size=8"]  # fmt: skip
    started = command(*words, wait=False)
    checkpoint = Path("runs/quickstart/001/last.ckpt")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(number)
    _, err = started.communicate()
    if number == signal.SIGTERM:  # as a cluster ends a job
        assert (started.returncode, err) == (143, "interrupted: continue with: limpet resume quickstart/001\n")
    assert not Path("runs/quickstart/001/metrics.json").exists(), "finished before it could be killed"
    threads = torch.get_num_threads()
    try:
        limpet("resume", "quickstart")
        limpet(*words)
    finally:
        torch.set_num_threads(threads)
    assert Path("runs/quickstart/001/metrics.json").read_bytes() == Path("runs/quickstart/002/metrics.json").read_bytes()


@pytest.mark.slow
def test_a_run_whose_output_is_closed_is_said_to_be_unfinished(command, limpet):
    """`limpet fit ... | head -1`; a list may be cut short so, a run may not."""
    words = ["data.species=4", "data.test=5", "data.train=4", "data.shots=4", "trainer.epochs=150", "trainer.threads=1"]
    started = command("fit", "quickstart", *words, wait=False)
    started.stdout.readline()
    started.stdout.close()
    err = started.stderr.read()
    assert (started.wait(timeout=300), err) == (141, "interrupted: continue with: limpet resume quickstart/001\n")
    limpet("resume", "quickstart/001")
    started = command("recipes", wait=False)
    started.stdout.close()
    assert (started.wait(timeout=300), started.stderr.read()) == (0, "")


def test_commands_on_what_cannot_be_are_answered_with_a_sentence(limpet, fish, place):
    small = ("data.train=4", "data.val=1", "data.test=2", "protocol=all", "trainer=cpu")
    limpet("fit", "quickstart", *small, "data.species=2", "data.shots=1", "method=zero_shot")
    limpet("fit", "order_reef", *small, "method=prompt_pair")
    limpet("index", fish, "backbone=limpet-tiny", "--out", "it")
    (place / "file").write_text("x")
    (place / "empty").mkdir()
    for words, message in (
        (("predict", "quickstart", fish, "--instruction", "more fish"), "this one classifies"),
        (("predict", "quickstart", fish, "--top", "0"), "greater than or equal to 1"),
        (("predict", "quickstart", fish, "--out", "file/a.csv"), "The predictions cannot be written to file/a.csv: "),
        (("predict", "order_reef", fish, "--out", "file/a.csv"), "file/a.csv"),
        (("predict", "order_reef", fish, "--top", "3"), "--top is for adapters that classify; this one orders images."),
        (("index", fish, "--run", "order_reef"), "orders images and has no features to search by"),
        (("index", fish, "--run", "quickstart", "data.root=x"), "with --run everything is the run's own"),
        (("search", "it", "a fish", "--out", "file/a.csv"), "file/a.csv"),
        (("export", "quickstart", "--to", "weights", "--out", "file/a"), "Nothing can be written in file: "),
        (("compare", "quickstart", "--out", "file/a"), "The comparison cannot be written to file/a: "),
        (("compare", "empty"), "empty holds no run: no recipe.yaml in empty"),
        (("evaluate", "runs/quickstart/001/adapter"), "holds no run"),
        (("rename-classes", "quickstart", "cod"), "write OLD=NEW"),
        (("fit", "fish", "data.root=nothere", "seed=1,2"), "2 of 2 cells could not run; the first, seed=1: There is no folder"),
        (("predict", "fish", fish), "fish holds no run"),
    ):
        assert message in " ".join(limpet(*words, code=2).split())


def test_signs_of_markup_in_names_are_letters(limpet, place):
    (place / "mine[/x]").mkdir(parents=True)
    small = ("data.species=2", "data.train=2", "data.val=1", "data.test=1", "data.shots=1", "protocol=all", "method=zero_shot")
    shown = limpet("fit", "fish", "data.root=mine[/x]", "seed=1,2", code=2)
    assert shown.count("No images in mine[/x]") == 3 and "cell 2 of 2" in shown
    shown = limpet("fit", "quickstart", *small, "run.dir=r[/b]", "run.name=a[b]c", "seed=1,2", "classes.include=null")
    assert "grid folder: r[/b]/a[b]c/grid-" in shown
    (cell,) = place.glob("r[[]/b]/a[[]b]c/grid-*/seed=2")
    assert "zero_shot" in limpet("compare", cell)
    assert "/r[/b]/a[b]c/grid-" in limpet("evaluate", cell)


def test_resume_refuses_changed_data(limpet, draw, place, monkeypatch):
    root = draw(place / "mine", species=2, images=6)
    release = stop_after(monkeypatch, 1)
    limpet("fit", "fish", "data.root=mine", code=130)
    release()
    for image in sorted((root / sorted(p.name for p in root.iterdir())[0]).iterdir())[:3]:
        image.unlink()
    assert "data changed" in limpet("resume", "fish", code=2)


def test_resume_keeps_what_can_be_read_of_a_damaged_log(limpet, begun):
    with (begun / "log" / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write('abc,"x\n')
    with pytest.warns(UserWarning, match=r"log/metrics.csv is damaged: 2 of its rows are kept"):
        limpet("resume", "fish")
    assert [row["step"] for row in rows(begun / "log" / "metrics.csv") if row["loss"]] == ["0", "1", "2"]


@pytest.fixture
def begun(limpet, draw, place, monkeypatch):
    """A run on the images in `mine` that was interrupted after two of three epochs."""
    draw(place / "mine", species=2, images=6)
    release = stop_after(monkeypatch, 2)
    limpet("fit", "fish", "data.root=mine", "trainer.epochs=3", code=130)
    release()
    return Path("runs/fish/001")


def rewrite(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_resume_refuses_a_changed_recipe(limpet, begun):
    recipe = (begun / "recipe.yaml").read_text(encoding="utf-8")
    for old, new, words in (
        ("epochs: 3", "epochs: 1", "trainer.epochs was 3 and is 1 now"),
        ("  name: sgd", "  name: adamw", "optim.name was sgd and is adamw now"),
        ("  lr: 0.002", "  lr: 0.1", "optim.lr was 0.002 and is 0.1 now"),
        ("  batch_size: 32", "  batch_size: 2", "data.batch_size was 32 and is 2 now"),
        ("  wordings: {}\n", "  wordings: {a: {templates: ['{}']}}\n", 'evaluate.wordings.a.templates was not set and is ["{}"] now'),
    ):
        rewrite(begun / "recipe.yaml", old, new)
        out = limpet("resume", "fish", code=2)
        assert f"runs/fish/001/recipe.yaml changed since the run was started: {words}." in out and "put it back" in out
        (begun / "recipe.yaml").write_text(recipe, encoding="utf-8")
    limpet("resume", "fish")


def test_resume_allows_what_changes_no_result(limpet, begun, place):
    (place / "mine").rename(place / "elsewhere")
    rewrite(begun / "recipe.yaml", "root: mine", "root: elsewhere")
    rewrite(begun / "recipe.yaml", "num_workers: 0", "num_workers: 1")
    rewrite(begun / "recipe.yaml", "accelerator: cpu", "accelerator: auto")
    limpet("resume", "fish")


def test_resume_finds_the_same_weights_where_they_lie_now(limpet, draw, place, monkeypatch):
    """The backbone and the adapter that a training goes on from may move; others in their place are refused."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    sizes = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 16},
             "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}}  # fmt: skip
    for name in ("clip", "another"):
        (place / name).mkdir()
        (place / name / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}), encoding="utf-8")
        save_file(CLIP(**sizes).state_dict(), place / name / "open_clip_model.safetensors")
    draw(place / "mine", species=3, images=6)
    words = ["data.root=mine", "method=lora", "backbone=clip", "run.name=lora"]
    limpet("fit", "fish", *words)
    release = stop_after(monkeypatch, 1)
    limpet("fit", "fish", *words, "trainer.epochs=3", "init_from=lora", code=130)
    release()
    recipe = place / "runs" / "lora" / "002" / "recipe.yaml"
    for folder, moved in (("clip", "moved"), ("runs/lora/001", "first")):
        (place / folder).rename(place / moved)
    begun_with = f"init_from: {place.resolve() / 'runs' / 'lora' / '001' / 'adapter' / 'v1'}"
    rewrite(recipe, begun_with, "init_from: first/adapter/v1")
    rewrite(recipe, "name: clip", "name: another")
    out = limpet("resume", "lora/002", code=2)
    assert "made on another backbone" in out and "weights (fingerprint)" in out
    rewrite(recipe, "name: another", "name: moved")
    card = place / "first" / "adapter" / "v1" / "README.md"
    kept = card.read_bytes()
    card.write_bytes(kept + b"changed")
    out = limpet("resume", "lora/002", code=2)
    assert "The adapter that runs/lora/002 goes on from changed" in out and "first/adapter/v1 now" in out
    card.write_bytes(kept)
    limpet("resume", "lora/002")


def test_resume_refuses_other_images_of_the_same_names(limpet, begun, place):
    split = json.loads((begun / "split.json").read_text())["splits"]
    first, second = (place / "mine" / path for path in split["train"]["paths"][:2])
    other = place / "mine" / split["val"]["paths"][0]
    for name, changed, source in (("training", first, second), ("validation", other, second)):
        kept = changed.read_bytes()
        changed.write_bytes(source.read_bytes())
        out = limpet("resume", "fish", code=2)
        assert "data changed" in out and f"the {name} images in mine have the names they had" in out
        changed.write_bytes(kept)
    limpet("resume", "fish")


def test_a_run_that_is_finished_meanwhile_keeps_its_adapter(limpet, begun, monkeypatch):
    """Where the file system has no locks, another process may finish a run while this one prepares to go on with it."""
    from limpet import runner

    prepare = runner.prepare

    def finish(recipe):
        (begun / "adapter" / "v1").mkdir(parents=True)
        (begun / "metrics.json").write_text("{}")
        return prepare(recipe)

    monkeypatch.setattr(runner, "prepare", finish)
    assert "is finished: there is nothing to resume" in limpet("resume", "fish", code=2)
    assert (begun / "adapter" / "v1").is_dir()


def test_of_very_many_images_resume_compares_the_sizes(limpet, draw, place, monkeypatch):
    from limpet import run_record

    monkeypatch.setattr(run_record, "MOST_READ", 1)
    draw(place / "mine", species=2, images=6)
    release = stop_after(monkeypatch, 1)
    limpet("fit", "fish", "data.root=mine", code=130)
    release()
    record = json.loads(Path("runs/fish/001/split.json").read_text())
    assert record["begun"]["images"]["train"].startswith("sizes:")
    image = place / "mine" / record["splits"]["train"]["paths"][0]
    image.write_bytes(image.read_bytes() + b"\0")
    assert "data changed" in limpet("resume", "fish", code=2)


def test_a_run_without_a_record_of_its_beginning_is_resumed(limpet, begun):
    """Runs of earlier versions; and a newer one may know settings that the run did not."""
    record = json.loads((begun / "split.json").read_text())
    begun_with = record.pop("begun")
    (begun / "split.json").write_text(json.dumps(record))
    limpet("resume", "fish")
    (begun / "metrics.json").unlink()
    del begun_with["settings"]["optim.restart"]
    (begun / "split.json").write_text(json.dumps({**record, "begun": {**begun_with, "limpet": "0.0.9"}}))
    limpet("resume", "fish")


def test_check_goes_as_far_as_the_first_step(limpet, fish):
    out = limpet("check", "fish", f"data.root={fish}")
    assert "16 test" in out or "test" in out
    assert "weights" in out and "MB" in out and not Path("runs").exists()
    assert "tokens" in limpet("check", "fish", f"data.root={fish}", "method.init=null",
                              "method.context_length=300", code=2)  # fmt: skip


def test_evaluate_again_elsewhere_and_by_another_protocol(limpet, fit_fish, draw, place):
    run, metrics = fit_fish()
    limpet("evaluate", "fish")
    (written,) = run.glob("evaluation-*.json")
    assert json.loads(written.read_text())["results"] == metrics["results"]
    root = draw(place / "other", species=3, images=8)
    assert "3 classes" in limpet("evaluate", "fish", f"data.root={root}")
    (root / "called.csv").write_text("folder,name\n")
    named = ("data.classnames=called.csv", "method=zero_shot", "run.name=called")
    limpet("fit", "fish", f"data.root={root}", *named)
    third = draw(place / "third", species=3, images=8)
    limpet("evaluate", "called", f"data.root={third}")  # that file lies in the folder of the fit
    assert "There is no called.csv (data.classnames)" in limpet("fit", "fish", f"data.root={third}", *named, code=2)
    out = limpet("evaluate", "fish", "protocol=base_to_new")
    assert "base:" in out and "new:" in out and "joint:" in out and "harmonic mean" in out
    assert "nearest that exists" in limpet("evaluate", "fish", "data.root=nowhere", code=2)
    assert "cannot be changed" in limpet("evaluate", "fish", "method=zero_shot", code=2)


def test_a_method_that_needs_images_says_so_for_new_classes(limpet, fit_fish, draw, place):
    run, metrics = fit_fish("method=linear_probe", "protocol=base_to_new")
    assert set(metrics["results"]) == {"base"} and metrics["harmonic_mean"] is None
    assert any("needs images" in note for note in metrics["notes"])
    assert "new" in (run / "report.html").read_text()


def test_predict_a_folder_a_file_and_a_pattern(limpet, fit_fish, fish, place):
    run, _ = fit_fish("method=tip_adapter", "data.shots=4")
    limpet("predict", "fish", fish, "--out", "all.csv", "--top", "2")
    found = rows("all.csv")
    assert len(found) == 40 and {"path", "label", "text", "probability", "calibrated", "top2", "probability2"} <= set(found[0])
    assert all(0 < float(r["calibrated"]) <= 1 for r in found)
    measured = {r["path"]: r["predicted"] for r in rows(run / "predictions.csv")}
    for row in found:
        name = Path(row["path"]).relative_to(fish).as_posix()
        assert measured.get(name, row["label"]) == row["label"]
    one = next(fish.rglob("*.png"))
    limpet("predict", run, one, "--out", "one.csv")
    assert [r["path"] for r in rows("one.csv")] == [str(one)]
    limpet("predict", "fish/001", f"{fish}/*/00.png", "--out", "some.csv")
    assert len(rows("some.csv")) == 4
    out = limpet("predict", "fish", *list(fish.rglob("*.png"))[:3], "--out", "three.jsonl", "--coverage", "0.5")
    assert "Abstained from" in out and len(Path("three.jsonl").read_text().splitlines()) == 3
    place.joinpath("empty").mkdir()
    for words in (["empty"], ["nothing*"], [fish, "--coverage", "0.5", "--max-error", "0.1"], [fish, "--out", "x.txt"]):
        assert "error:" in limpet("predict", "fish", *words, code=2)


def test_predict_lists_what_it_cannot_read(limpet, fit_fish, place):
    fit_fish()
    (place / "new").mkdir()
    (place / "new" / "broken.jpg").write_bytes(b"no image")
    from limpet.datamodules.reef_drawing import draw_scene

    draw_scene(0, 1).image.save(place / "new" / "good.png")
    out = limpet("predict", "fish", "new", "--out", "p.csv", code=1)
    assert "1 of 2 images could not be read" in out and "broken.jpg" in out
    labels = {Path(r["path"]).name: r["label"] for r in rows("p.csv")}
    assert labels["broken.jpg"] == "" and labels["good.png"]


def test_compare_runs(limpet, fit_fish):
    fit_fish()
    fit_fish("method=linear_probe")
    out = limpet("compare", "fish/001", "fish/002")
    assert "coop" in out and "linear_probe" in out and "zero_shot" in out


@pytest.mark.parametrize("select", ["val", "test_as_published"])
def test_the_epoch_can_be_chosen(select, fit_fish):
    _, metrics = fit_fish(f"evaluate.select={select}")
    assert metrics["selected"]["epoch"] in (1, 2) and metrics["select"] == select
    assert any("optimistic" in note for note in metrics["notes"]) == (select == "test_as_published")


def test_mixed_precision(fit_fish):
    _, metrics = fit_fish("trainer.precision=bf16-mixed")
    assert metrics["results"]["all"]["accuracy"] >= 0


@pytest.mark.slow
def test_two_runs_share_a_cache_at_once(command, fish, tmp_path):
    words = ["fit", "fish", f"data.root={fish}", "data.augment.preset=natural", "data.augment.views=2"]
    both = [command(*words, wait=False, LIMPET_CACHE=str(tmp_path / "shared")) for _ in range(2)]
    for started in both:
        out, err = started.communicate(timeout=300)
        assert started.returncode == 0, out + err
        assert err == ""
    first, second = (Path(f"runs/fish/00{i}/metrics.json").read_bytes() for i in (1, 2))
    assert first == second


@pytest.mark.slow
def test_nothing_of_the_libraries_reaches_the_user(command, fish):
    words = ["method=coop,linear_probe,tip_adapter_f", "evaluate.select=val", "trainer.precision=16-mixed"]
    code, out, err = command("fit", "fish", f"data.root={fish}", *words)
    assert (code, err) == (0, ""), err
    assert not any(word in out for word in ("GPU available", "Warning", "lightning.ai", "HPU", "bar`"))


@pytest.mark.slow
def test_two_devices_make_one_run_a_cell(command):
    words = ["data.species=4", "data.train=4", "data.test=3", "data.shots=4", "trainer.epochs=2", "trainer.devices=2"]
    code, out, err = command("fit", "quickstart", *words, "seed=1,2", "evaluate.select=val")
    assert (code, err) == (0, ""), out + err
    (grid,) = Path("runs/quickstart").iterdir()
    cells = [p for p in grid.iterdir() if p.is_dir()]
    assert len(cells) == 2 and out.count("run folder:") == 2
    for cell in cells:
        assert {p.name for p in cell.iterdir()} == RUN_FOLDER | {"cell.json"}
        assert json.loads((cell / "metrics.json").read_text())["results"]["joint"]["images"] == 12
        assert len(rows(cell / "predictions.csv")) == 6 + 6 + 12


@pytest.mark.parametrize("words", ["fit quickstart", "fit fish data.root=x", "compare fish", "recipes show x.yaml"])
def test_a_working_folder_that_is_gone_is_said(limpet, place, words):
    gone = place / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    try:
        assert "error: The folder that this terminal works in is gone" in limpet(*words.split(), code=2)
    finally:
        os.chdir(place)
