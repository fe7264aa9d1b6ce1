"""A place of its own for each test, and the command line in process and in a process of its own."""

import json
import os
import subprocess
import sys

import pytest
from limpet.cli import main

QUICK = ["backbone=limpet-tiny", "data.shots=2", "data.augment=none", "trainer.accelerator=cpu", "trainer.epochs=2"]


def quick(*words):
    """Settings of a quick run, and `words` in place of those they replace."""
    given = {str(word).partition("=")[0] for word in words}
    given |= {"data.augment"} if any(key.startswith("data.augment.") for key in given) else set()
    return [word for word in QUICK if word.partition("=")[0] not in given] + [str(word) for word in words]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.fixture
def limpet(place, capsys):
    """limpet("fit", "fish", ..., code=0) -> what was printed; fails on another exit code or a long line of tables."""

    def run(*words, code=0):
        """A `fit` or `check` of fish takes the quick settings where it says nothing else."""
        if words[:2] in (("fit", "fish"), ("check", "fish")):
            words = (*words[:2], *quick(*words[2:]))
        capsys.readouterr()
        got = main([str(w) for w in words])
        out, err = capsys.readouterr()
        assert got == code, out + err
        assert "Traceback" not in err
        return out + err

    return run


@pytest.fixture
def fit_fish(limpet, fish):
    """fit_fish("method=coop") -> metrics.json of a quick run of the fish recipe, newest run folder in .run."""

    def run(*words, root=fish, name="fish"):
        limpet("fit", name, *quick(f"data.root={root}", *words))
        from limpet.runs import resolve_run

        folder = resolve_run(name)
        return folder, json.loads((folder / "metrics.json").read_text())

    return run


def process(*words, wait=True, **environment):
    """`python -m limpet WORDS` in a process of its own; its output is text."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment}
    words = [*words[:2], *quick(*words[2:])] if words[:2] == ("fit", "fish") else words
    command = [sys.executable, "-m", "limpet", *map(str, words)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    if not wait:
        return started
    out, err = started.communicate(timeout=300)
    return started.returncode, out, err


@pytest.fixture
def command(place):
    """command("fit", ...) -> (exit code, stdout, stderr); wait=False gives the process."""
    return process
