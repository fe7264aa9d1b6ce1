"""The CSV log of a run, and loggers by their dotted paths."""

from __future__ import annotations

import csv
import types

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from limpet import loggers, recipe
from limpet.errors import RecipeError


def entry(*names):
    return types.SimpleNamespace(trainer=types.SimpleNamespace(loggers=list(names)), to_yaml=lambda: "a: {b: 1, c: [x]}\n")


def table(folder):
    with (folder / "log" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_goes_on_after_an_interruption(tmp_path):
    first = loggers.RunLog(tmp_path)
    for step in range(6):
        first.log_metrics({"loss": torch.tensor(float(step)), "epoch": step}, step=10 * step)
        first.save()
    again = loggers.RunLog(tmp_path)  # the checkpoint was of step 30: 40 and 50 happen again
    assert [row["step"] for row in table(tmp_path)] == ["0", "10", "20", "30", "40", "50"], "opening it loses nothing"
    again.log_metrics({"loss": 0.5, "val_accuracy": 0.25}, step=40)
    again.save()
    rows = table(tmp_path)
    assert [row["step"] for row in rows] == ["0", "10", "20", "30", "40"]
    assert rows[-1]["loss"] == "0.5" and rows[-1]["val_accuracy"] == "0.25" and rows[0]["val_accuracy"] == ""
    assert sorted(p.name for p in (tmp_path / "log").iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (b"\xff\xfe\x00", 0),
        (b"step,loss\n0,1.5\n10,1.0\nabc,\"x\n20,0.5\n", 2),  # the quote takes the rest with it
        (b"step,loss\n0,1.5\nabc,1\n10,1.0\n", 2),
        (b"step,loss\n0,1.5\n10,1.0\n,2\n", 2),
        (b"step,loss\n0,1.5\n10,1.0,7,8\n", 1),
        (b"step,loss\n0,1.5\n10,1.0\n20,\xff\n", 2),
        (b"step,loss\n0,1.5\n20,\"" + b"1" * 140_000, 1),  # longer than the csv module reads
    ],
)
def test_of_a_damaged_log_what_can_be_read_is_kept(damage, kept, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "metrics.csv").write_bytes(damage)
    with pytest.warns(UserWarning, match=f"metrics.csv is damaged: {kept} of its rows are kept"):
        log = loggers.RunLog(tmp_path)
    log.log_metrics({"loss": 0.25}, step=20)
    log.finalize("success")
    rows = table(tmp_path)
    assert rows[:-1] == [{"step": "0", "loss": "1.5"}, {"step": "10", "loss": "1.0"}][:kept]
    assert rows[-1] == {"step": "20", "loss": "0.25"}
    assert loggers.read_log(tmp_path) == rows  # no warning any more


def test_loggers_by_dotted_path_with_arguments(tmp_path):
    chosen = entry("csv", {"lightning.pytorch.loggers.CSVLogger": {"name": "mine", "version": "a"}})
    own, other = loggers.open_loggers(chosen, tmp_path)
    assert isinstance(own, loggers.RunLog) and type(other) is CSVLogger
    loggers.log_results([own, other], {"results": {"all": {"accuracy": 0.5, "images": 3}}, "harmonic_mean": None})
    assert table(tmp_path)[-1] == {"step": "0", "test/all/accuracy": "0.5"}
    assert "test/all/accuracy" in (tmp_path / "mine" / "a" / "metrics.csv").read_text()
    assert "a.b: 1" in (tmp_path / "mine" / "a" / "hparams.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lightning.pytorch.loggers.NoLogger", "does not exist"),
        ("lightning.pytorch.Trainer", "is no subclass"),
        ("no_such_package.Logger", "does not import"),
        ({"lightning.pytorch.loggers.CSVLogger": {"nonsense": 1}}, "cannot be started: .*nonsense"),
    ],
)
def test_what_is_no_logger_is_refused_in_a_sentence(name, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        loggers.open_loggers(entry(name), tmp_path)


def test_a_logger_that_fails_at_the_end_does_not_take_the_run_with_it(tmp_path):
    class Offline(Logger):
        name = version = "offline"

        def log_hyperparams(self, params):
            pass

        def log_metrics(self, metrics, step=None):
            raise ConnectionError("no network")

    own = loggers.RunLog(tmp_path)
    with pytest.warns(UserWarning, match="Offline could not log the results: no network"):
        loggers.log_results([Offline(), own], {"results": {"all": {"accuracy": 1.0}}})
    assert table(tmp_path)


@pytest.mark.parametrize("words", ["[3]", "[{a.B: 1}]", "[wandb]", "['a b.c']"])
def test_entries_of_another_form_are_refused_with_their_place(words):
    with pytest.raises(RecipeError, match=r"command line: trainer\.loggers names .*csv, tensorboard, a dotted path"):
        recipe.load("quickstart", [f"trainer.loggers={words}"])


def test_arguments_survive_the_recipe_of_the_run(tmp_path):
    text = "trainer.loggers=[tensorboard, {lightning.pytorch.loggers.CSVLogger: {save_dir: out, flush_logs_every_n_steps: 5}}]"
    (loaded,) = recipe.load("quickstart", [text])
    (tmp_path / "recipe.yaml").write_text(loaded.to_yaml())
    again = recipe.Recipe.from_run(tmp_path)
    assert again.trainer.loggers == loaded.trainer.loggers
    assert again.trainer.loggers[1]["lightning.pytorch.loggers.CSVLogger"] == {"save_dir": "out", "flush_logs_every_n_steps": 5}
