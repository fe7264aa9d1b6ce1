"""Commands in process with bounds on memory and processor time, and what counts as a good answer to bad input.

`LIMPET_ROBUST=full` tries the full numbers of mutated files, kills and processes instead of a sample.
"""

import contextlib
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from limpet.cli import main

FULL = os.environ.get("LIMPET_ROBUST") == "full"
MEMORY = 6 << 30  # bytes of address space beyond what the process has: enough for any command here
SECONDS = 60  # of processor time: a command of these tests takes about one


class Hang(BaseException):
    """A command that does not end; no handler for ordinary errors catches it."""


@dataclass
class Answer:
    """What a command gave: exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self):
        """The error, or "" after success."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return errors[-1] if errors else ""


def _stop(number, frame):
    raise Hang(f"after {SECONDS} s of processor time")


@contextlib.contextmanager
def bounded():
    """Bounds on address space and processor time while a command runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    previous = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_command(*words):
    """Run `limpet WORDS` in process; an error of ours (a traceback) is raised."""
    out, err = io.StringIO(), io.StringIO()
    with bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


def check_answer(answer, good=(0,)):
    """A right result (an exit code in `good`), or exit code 2 with one sentence."""
    assert "Traceback" not in answer.out + answer.err
    if answer.code in good:
        return
    assert answer.code == 2, f"exit code {answer.code}: {answer.err}"
    text = answer.err[answer.err.rfind("error: ") :].strip()
    assert text.startswith("error: "), answer.err
    assert len(text) > 20 and re.search(r"[\w)\]'\"}>.?!…*]\Z", text), text


TALLY = Counter()  # (test, outcome) -> how often


@pytest.fixture(scope="session")
def tally():
    """tally("refused") counts an outcome of the test that runs; the table is printed at the end."""

    def count(outcome):
        TALLY[os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition("[")[0].partition(" ")[0], outcome] += 1

    return count


KILLS = []  # (job, moment, outcome)


def pytest_terminal_summary(terminalreporter):
    """How many inputs each test tried, and what came of them; every kill."""
    if KILLS:
        terminalreporter.section("killed")
        for job, moment, outcome in KILLS:
            terminalreporter.write_line(f"{job:18} {moment:60} {outcome}")
    if TALLY:
        terminalreporter.section("inputs tried")
        for test in sorted({test for test, _ in TALLY}):
            counts = {outcome: n for (t, outcome), n in sorted(TALLY.items()) if t == test}
            terminalreporter.write_line(f"{sum(counts.values()):6d} {test}: {', '.join(f'{n} {o}' for o, n in counts.items())}")


@pytest.fixture(scope="session")
def jobs():
    """The file jobs.py: commands that are interrupted."""
    sys.path.insert(0, str(Path(__file__).parent))  # processes of its own find it there, too
    import jobs

    return jobs


@dataclass
class Whole:
    """A job that nothing happened to: its words, where it ran, how many changes it made, and in what time."""

    words: list[str]
    place: Path
    changes: int
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(jobs, draw, tmp_path_factory):
    """undisturbed("fit") -> Whole; undisturbed.prepare("fit", place) puts there what is there before the job starts."""
    fish = draw(tmp_path_factory.mktemp("drawn") / "fish", species=3, images=8)
    for path in fish.rglob("*.png"):
        os.utime(path, (1e9, 1e9))  # long ago: their keys are remembered
    made = {}

    def run(job):
        if job not in made:
            place = tmp_path_factory.mktemp("whole")
            words = [word.format(fish=fish) for word in jobs.JOBS[job]]
            prepare(job, place)
            before = time.time()
            count = jobs.changes(jobs.limpet(place, *words))
            made[job] = Whole(words, place, count, jobs.seconds(place, before))
        return made[job]

    def prepare(job, place):
        if job.startswith("export"):
            shutil.copytree(run("tower").place / "runs", place / "runs")

    run.prepare = prepare
    return run


@pytest.fixture(scope="session")
def killed():
    """killed(job, moment, outcome) adds a line to the table that is printed at the end."""
    return lambda *row: KILLS.append(row)


@pytest.fixture(scope="session")
def ask(tally):
    """ask("check", ...) -> Answer, which is a right result or a sentence."""

    def run(*words, good=(0,)):
        answer = run_command(*words)
        check_answer(answer, good)
        tally("refused" if answer.code == 2 else "answered")
        return answer

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, draw):
    """(folder of drawn fish, folder of a finished run of CoOp on them); treat both as read-only."""
    place = tmp_path_factory.mktemp("finished")
    fish = draw(place / "fish", species=3, images=6)
    answer = run_command(
        "fit", "fish", f"data.root={fish}", f"run.dir={place / 'runs'}", "backbone=limpet-tiny", "data.shots=2",
        "data.augment=none", "trainer.accelerator=cpu", "trainer.epochs=1",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return fish, place / "runs" / "fish" / "001"


@pytest.fixture(scope="session")
def separately():
    """separately(place, "-m", "limpet", "fit", ...) -> what `python -m limpet fit ...` gave in the folder `place`.

    Its cache lies in `place`, too. Its interpreter, and those of all processes it starts, begin with the lines `site`.
    """

    def run(place, *command, site="", **environment):
        (place / "site").mkdir(parents=True, exist_ok=True)
        (place / "site" / "sitecustomize.py").write_text(site)
        outside = ("LIMPET", "SLURM", "MASTER", "TORCHELASTIC")
        env = {key: value for key, value in os.environ.items() if not key.startswith(outside)}
        env |= {"LIMPET_CACHE": str(place / "cache"), "PYTHONPATH": str(place / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
        env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment}
        words = [sys.executable, *map(str, command)]
        done = subprocess.run(words, cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    return run
