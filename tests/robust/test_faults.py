"""Full and read-only disks, a vanishing and a shared cache: what is resumed gives the numbers of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = os.environ.get("LIMPET_ROBUST") == "full"
SMALL = ["data.species=3", "data.train=4", "data.val=2", "data.test=3", "data.shots=4", "data.batch_size=8", "trainer.threads=1",
         "trainer.accelerator=cpu"]  # fmt: skip
FIT = ["fit", "quickstart", *SMALL, "trainer.epochs=3", "protocol=all"]
JOBS = {
    "fit": FIT,
    "caching": ["fit", "quickstart", *SMALL, "method=gda", "protocol=all", "data.augment.preset=natural", "data.augment.views=2"],
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


def again(place, words):
    """Continue what was interrupted, as its user would."""
    for empty in [path for path in place.glob("runs/*/[0-9]*") if not any(path.iterdir())]:
        empty.rmdir()  # killed before its recipe was written: nothing was begun
    runs = [path.parent for path in place.glob("runs/*/[0-9]*/recipe.yaml")]
    if not runs:
        done = limpet(place, *words)
    elif (runs[0] / "metrics.json").exists():
        return
    else:
        done = limpet(place, "resume", runs[0])
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


def test_a_cache_that_vanishes_costs_time_and_nothing_else(undisturbed, tmp_path):
    whole, _ = undisturbed("caching")
    place = tmp_path / "place"
    (place / "cache").mkdir(parents=True)
    done = limpet(place, *JOBS["caching"], fault="wipe", folder=place / "cache", at=4)
    assert done.returncode == 0, done.stderr
    assert results(place) == results(whole)


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
