"""Kills, full and read-only disks, a vanishing cache: what is resumed gives the numbers of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FULL = os.environ.get("LIMPET_ROBUST") == "full"
KILLS = 6 if FULL else 1  # of each kind of job
SMALL = ["data.species=3", "data.train=4", "data.val=2", "data.test=3", "data.shots=4", "data.batch_size=8", "trainer.threads=1",
         "trainer.accelerator=cpu"]  # fmt: skip
FIT = ["fit", "quickstart", *SMALL, "trainer.epochs=3", "protocol=all"]
JOBS = {
    "fit": FIT,
    "caching": ["fit", "quickstart", *SMALL, "method=gda", "protocol=all", "data.augment.preset=natural", "data.augment.views=2"],
    "grid": ["fit", "quickstart", *SMALL, "method=zero_shot,gda", "protocol=all", "seed=1,2"],
    "stream": ["fit", "continual_reef", "data.species=4", "data.train=3", "data.val=2", "data.test=2", "data.shots=3",
               "stream.increment=2", "stream.first=2", "trainer.epochs=2", "trainer.threads=1", "trainer.accelerator=cpu",
               "evaluate.others={}", "evaluate.shift={}"],
}  # fmt: skip


def limpet(place, *words, fault="none", folder=None, at=0):
    """`limpet WORDS` in `place`, in a process of its own, with a fault; its cache lies in `place`, too."""
    script = str(Path(__file__).parent / "faults.py")
    command = [sys.executable, script, fault, str(folder or place), str(at), *map(str, words)]
    env = {**os.environ, "LIMPET_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"}
    place.mkdir(exist_ok=True)
    return subprocess.run(command, cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def changes(done):
    """How many changes an undisturbed command made."""
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def results(place):
    """Numbers and answers of all runs in a place, by path."""
    found = [*place.glob("runs/**/metrics.json"), *place.glob("runs/**/predictions.csv"), *place.glob("runs/**/*.safetensors")]
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def names(place):
    """Every file of the runs; what a kill left behind would show among them."""
    return sorted(str(path.relative_to(place)) for path in (place / "runs").rglob("*") if path.is_file())


def again(place, words):
    """Continue what was interrupted, as its user would."""
    begun = [path.parent for path in place.glob("runs/*/*/recipe.yaml") if not (path.parent / "metrics.json").exists()]
    if "grid" in "".join(str(path) for path in (place / "runs").glob("*/*")) or not begun:
        for empty in place.glob("runs/*/[0-9]*"):  # killed before its recipe was written: nothing was begun
            if not any(empty.iterdir()):
                empty.rmdir()
        if list(place.glob("runs/*/[0-9]*/metrics.json")):
            return
        done = limpet(place, *words)
    else:
        done = limpet(place, "resume", begun[0])
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """undisturbed("fit") -> (place of a run that nothing happened to, number of changes it made)."""
    made = {}

    def run(job):
        if job not in made:
            place = tmp_path_factory.mktemp(job)
            made[job] = place, changes(limpet(place, *JOBS[job]))
        return made[job]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("job", sorted(JOBS))
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_job_ends_with_the_numbers_of_an_undisturbed_one(job, number, undisturbed, tmp_path):
    whole, count = undisturbed(job)
    at = random.Random(f"{job} {number}").randint(2, count)
    place = tmp_path / "killed"
    done = limpet(place, *JOBS[job], fault="kill", at=at)
    assert done.returncode == -signal.SIGKILL
    again(place, JOBS[job])
    assert results(place) == results(whole)
    assert names(place) == names(whole)
    shutil.rmtree(place / "runs")  # whatever the cache holds now is right
    assert limpet(place, *JOBS[job]).returncode == 0
    assert results(place) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_export_leaves_no_half_of_one(number, undisturbed, tmp_path):
    whole, _ = undisturbed("fit")
    place = tmp_path / "place"
    shutil.copytree(whole, place)
    words = ["export", "quickstart/001", "--to", "weights"]
    count = changes(limpet(place, *words))
    exports = place / "runs/quickstart/001/exports"
    complete = {path.name: path.read_bytes() for path in (exports / "weights").iterdir() if path.suffix != ".md"}
    shutil.rmtree(exports)
    done = limpet(place, *words, fault="kill", at=random.Random(number).randint(1, count))
    assert done.returncode == -signal.SIGKILL
    shown = [path for path in exports.iterdir() if not path.name.startswith(".")] if exports.is_dir() else []
    assert limpet(place, *words).returncode == 0
    for folder in {*shown, *(path for path in exports.iterdir() if not path.name.startswith("."))}:
        assert {path.name for path in folder.iterdir() if path.suffix != ".md"} == set(complete), folder
    assert [path.name for path in exports.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("fault", ["full", "readonly"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95] if FULL else [0.5])
def test_a_run_on_a_disk_that_cannot_be_written_is_said_and_resumed(fault, share, undisturbed, tmp_path):
    whole, count = undisturbed("fit")
    place = tmp_path / "place"
    done = limpet(place, *FIT, fault=fault, at=max(1, int(share * count)))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    reason = "No space left" if fault == "full" else "Read-only"
    assert reason in done.stderr and "error: " in done.stderr
    again(place, FIT)
    assert results(place) == results(whole)


@pytest.mark.parametrize("fault", ["full", "wipe"])
def test_a_cache_that_cannot_be_kept_costs_time_and_nothing_else(fault, undisturbed, tmp_path):
    whole, _ = undisturbed("caching")
    place = tmp_path / "place"
    (place / "cache").mkdir(parents=True)
    done = limpet(place, *JOBS["caching"], fault=fault, folder=place / "cache", at=4)
    assert done.returncode == 0, done.stderr
    assert results(place) == results(whole)
    assert fault == "wipe" or "LIMPET_CACHE" in done.stderr
    assert not [path for path in place.glob("cache/**/*") if path.name.endswith(".part")]


def test_two_runs_share_a_cache(undisturbed, tmp_path):
    whole, _ = undisturbed("caching")
    script = str(Path(__file__).parent / "faults.py")
    started = []
    for name in ("one", "two"):
        place = tmp_path / name
        place.mkdir()
        env = {**os.environ, "LIMPET_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, script, "none", str(place), "0", *JOBS["caching"]]
        started.append(subprocess.Popen(command, cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    assert [process.wait() for process in started] == [0, 0]
    assert results(tmp_path / "one") == results(tmp_path / "two") == results(whole)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_of_a_few_hundred_kilobytes(undisturbed, tmp_path):
    """The real thing: a tmpfs that fills up while files are written, not while they are opened."""
    whole, _ = undisturbed("fit")
    place = tmp_path / "place"
    (place / "runs").mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place / "runs")]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        done = limpet(place, *FIT)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "No space left" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(place / "runs")], check=True)
        again(place, FIT)
        assert results(place) == results(whole)
    finally:
        subprocess.run(["umount", str(place / "runs")], check=True)


def test_a_clock_that_goes_back_changes_nothing(ask, finished, tmp_path, monkeypatch):
    import time

    fish, run = finished
    now = [2_000_000_000.0]

    def earlier():
        now[0] -= 1000
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    answer = ask("fit", "fish", f"data.root={fish}", f"run.dir={tmp_path / 'runs'}", "backbone=limpet-tiny", "data.shots=2",
                 "data.augment=none", "trainer.accelerator=cpu", "trainer.epochs=1")  # fmt: skip
    assert answer.code == 0
    assert (tmp_path / "runs/fish/001/metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
