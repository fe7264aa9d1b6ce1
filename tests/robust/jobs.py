"""Jobs that are interrupted: their commands, what their user does afterwards, and what they leave on the disk."""

import itertools
import multiprocessing
import os
import signal
import sqlite3
import time
import zlib
from contextlib import closing, suppress
from pathlib import Path

import faults
import numpy as np

SMALL = ["data.species=3", "data.train=4", "data.val=2", "data.test=3", "data.shots=4", "data.batch_size=8", "trainer.threads=1",
         "trainer.accelerator=cpu"]  # fmt: skip
FIT = ["fit", "quickstart", *SMALL, "trainer.epochs=3", "protocol=all"]
JOBS = {
    "fit": FIT,
    # files of drawn images, each in two views; {fish} is their folder
    "caching": ["fit", "fish", "data.root={fish}", "backbone=limpet-tiny", "method=gda", "data.shots=4", "data.batch_size=4",
                "data.augment.preset=natural", "data.augment.views=2", "trainer.threads=1", "trainer.accelerator=cpu"],
    "grid": ["fit", "quickstart", *SMALL, "trainer.epochs=2", "protocol=all", "seed=1,2"],
    "stream": ["fit", "continual_reef", "data.species=4", "stream.increment=2", "data.shots=2", "data.test=2", "data.val=2",
               "trainer.epochs=2", "continual.count=20", "evaluate.others.murky.test=1", "trainer.threads=1"],
    "tower": ["fit", "quickstart", *SMALL, "method=lora", "trainer.epochs=1", "protocol=all"],
}  # fmt: skip
TARGETS = ("weights", "adapter", "merged", "hub-folder", "peft", "onnx")
JOBS |= {f"export {target}": ["export", "quickstart", "--to", target] for target in TARGETS}


# Processes are forked from one that has imported everything and done nothing: starting takes no time.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "limpet.cli", "limpet.runner", "limpet.stream_runner", "limpet.grid", "limpet.export_onnx", "limpet.export_peft",
    "limpet.export_merged", "limpet.tower_adapter", "limpet.prompting", "limpet.datamodules.reef", "limpet.datamodules.folder",
    "ftfy", "matplotlib.backends.backend_agg", "matplotlib.figure", "open_clip", "pandas", "pydantic", "sklearn.metrics",
])  # fmt: skip
NUMBERS = itertools.count()


def environment(cache):
    """The environment of a command whose cache lies there."""
    return {**os.environ, "LIMPET_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


class Command:
    """`limpet WORDS` in `place`, in a process of its own, perhaps with a fault (see faults.py); its cache lies in `place`, too."""

    def __init__(self, place, *words, fault="none", folder=None, at=0, cache=None):
        place.mkdir(exist_ok=True)
        number = next(NUMBERS)
        self.files = [place.with_name(f"{place.name}.{number}.{name}") for name in ("out", "err")]
        surroundings = str(place), list(map(str, self.files)), environment(cache or place / "cache")
        arguments = (*surroundings, list(map(str, words)), fault, str(folder or place), str(at))
        self.process = FORKS.Process(target=faults.run, args=arguments)
        self.process.start()

    def kill(self):
        """SIGKILL, from outside, to it and its own processes."""
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(self.process.pid, signal.SIGKILL)

    def paused(self, seconds=120):
        """Wait until it has stopped itself (the fault "pause"), or ended; whether it has stopped."""
        stat, until = Path(f"/proc/{self.process.pid}/stat"), time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            with suppress(OSError):  # it is gone
                if stat.read_text().rpartition(")")[2].split()[0] == "T":
                    return True
            time.sleep(0.02)
        return False

    def go_on(self):
        """Let it go on after a pause."""
        os.kill(self.process.pid, signal.SIGCONT)

    def wait(self, seconds=None):
        """Wait until it ends, or so long; returns itself."""
        self.process.join(seconds)
        return self

    @property
    def code(self):
        """Its exit code, -9 after SIGKILL; None while it runs."""
        return self.process.exitcode

    @property
    def out(self):
        """What it printed."""
        return self.files[0].read_text()

    @property
    def err(self):
        """What it complained of."""
        return self.files[1].read_text()


def limpet(place, *words, **fault):
    """Run a command to its end."""
    return Command(place, *words, **fault).wait()


def shoot(place, words, seconds):
    """Kill a command from outside so long after its first change."""
    before = len(list(place.rglob("*")))
    command = Command(place, *words)
    while command.code is None and len(list(place.rglob("*"))) == before:
        command.wait(0.005)
    if command.wait(seconds).code is None:
        command.kill()
    return command.wait()


def changes(done):
    """How many changes an undisturbed command made."""
    assert done.code == 0, done.err
    return int(done.out.splitlines()[-1])


def again(place, words, **fault):
    """Go on after an interruption, as the user of a command would.

    Returns:
        What was done ("resumed", "begun anew", "was finished"), and the process; None where nothing was left to do.
    """
    if words[0] == "export":
        if (place / "runs" / "quickstart" / "001" / "exports" / words[-1]).is_dir():
            return "was finished", None
        return "begun anew", limpet(place, *words, **fault)
    runs = sorted(path.parent for path in place.glob("runs/*/[0-9]*/recipe.yaml"))
    if not runs:  # of a grid, or nothing was begun
        cells = list(place.glob("runs/*/grid-*/*/recipe.yaml"))
        return "resumed" if cells else "begun anew", limpet(place, *words, **fault)
    if (runs[-1] / "metrics.json").exists():
        return "was finished", None
    return "resumed", limpet(place, "resume", runs[-1].relative_to(place), **fault)


def results(place):
    """Every file of the runs in a place: path -> content.

    Without env.json, which has the times, and without the .lock of a process that was killed, which locks nothing any more.
    """
    folders = sorted(place.glob("runs/*/[0-9]*"))
    begun = [folder for folder in folders if (folder / "recipe.yaml").exists()]  # the user had to start anew without it
    names = {folder: f"run {number}" for number, folder in enumerate(begun)}
    found = {}
    for path in place.glob("runs/**/*"):
        run = next((folder for folder in folders if folder in path.parents), None)
        if path.is_file() and path.name not in ("env.json", ".lock") and (run is None or run in names):
            found[f"{names[run]} {path.relative_to(run)}" if run else str(path.relative_to(place))] = path.read_bytes()
    return found


def entries(cache):
    """Everything in a cache, checked: (space, key) -> feature, and path -> key of its image."""
    found = {}
    for shard in cache.glob("features/*/*.rows"):
        with shard.open("rb") as file:
            keys, sums, rows = (np.lib.format.read_array(file) for _ in range(3))
            assert not file.read()
        for key, checksum, row in zip(keys, sums, rows, strict=True):
            assert zlib.crc32(row.tobytes(), zlib.crc32(bytes(key).ljust(32, b"\0"))) == checksum
            assert found.setdefault((shard.parent.name, key), row.tobytes()) == row.tobytes()
    if (cache / "keys.sqlite").exists():
        with closing(sqlite3.connect(cache / "keys.sqlite")) as connection:
            assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
            if connection.execute("select 1 from sqlite_master where name = 'keys'").fetchone():  # there was space for that
                found |= {name: (size, key) for name, size, key in connection.execute("select name, size, key from keys")}
    return found


def differences(place, whole):
    """What differs between what an interrupted and an uninterrupted job left; empty where nothing does."""
    found = []
    for one, other in ((results(place), results(whole)), (entries(place / "cache"), entries(whole / "cache"))):
        found += [f"{name}: only after an interruption" for name in one.keys() - other]
        found += [f"{name}: missing after an interruption" for name in other.keys() - one]
        found += [f"{name}: other content" for name in one.keys() & other.keys() if one[name] != other[name]]
    return sorted(found)


def last_changed(place):
    """Name of the file or folder that was written last."""
    paths = [path for path in place.rglob("*") if path.name != "cache"]
    return max(paths, key=lambda path: path.stat().st_mtime_ns).name if paths else "nothing"


def seconds(place, since):
    """Between the first and the last file that was written after a time."""
    times = [path.stat().st_mtime for path in place.rglob("*") if path.is_file()]
    times = [time for time in times if time >= since]
    return max(times) - min(times)
