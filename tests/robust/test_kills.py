"""`kill -9` at chosen and random moments of every kind of job: going on gives the files and the cache of an undisturbed one.

`LIMPET_ROBUST=full` adds thirty random moments and prints a table of them.
"""

import os
import random
import signal

import pytest

FULL = os.environ.get("LIMPET_ROBUST") == "full"
pytestmark = pytest.mark.slow

CHOSEN = [
    ("fit", "torn", r"rename.*last\.ckpt:2"),  # a checkpoint is half written
    ("fit", "kill", r"rename.*\.metrics\.csv\.part:7"),  # all is done but the last row of the log
    ("caching", "torn", r"rename.*\.rows:3"),  # so are features
    ("grid", "kill", r"rename.*seed=2/.*metrics\.json:1"),  # the second cell is all but finished
    ("stream", "kill", r"rename.*stream\.json:1"),  # the first session has an artefact, but is not noted as done
    ("export weights", "kill", r"rename \S*/\.weights[^/]*$:1"),  # an export is whole, but not in its place
]


@pytest.mark.parametrize(("job", "fault", "at"), CHOSEN, ids=[job for job, _, _ in CHOSEN])
def test_a_job_killed_at_its_worst_moment_goes_on(job, fault, at, jobs, undisturbed, killed, tmp_path):
    whole = undisturbed(job)
    undisturbed.prepare(job, tmp_path)
    done = jobs.limpet(tmp_path, *whole.words, fault=fault, at=at)
    assert done.code == -signal.SIGKILL, done.err
    how, last = jobs.again(tmp_path, whole.words)
    assert last.code == 0, last.err
    assert jobs.differences(tmp_path, whole.place) == []
    killed(job, f"{fault} before {done.out.splitlines()[-1]}", f"{how}, equal")


@pytest.mark.skipif(not FULL, reason="LIMPET_ROBUST=full tries thirty random moments")
@pytest.mark.parametrize("number", range(30))
def test_a_job_killed_at_a_random_moment_goes_on(number, jobs, undisturbed, killed, tmp_path):
    chance = random.Random(number)
    job = ("fit", "caching", "grid", "stream", f"export {jobs.TARGETS[number // 5 % len(jobs.TARGETS)]}")[number % 5]
    fault = ("kill", "time", "torn")[number // 5 % 3]
    whole = undisturbed(job)
    undisturbed.prepare(job, tmp_path)
    if fault == "time":
        delay = chance.uniform(0, whole.seconds)
        done = jobs.shoot(tmp_path, whole.words, delay)
        moment = f"{delay:.2f} s after the first change, behind {jobs.last_changed(tmp_path)}"
    else:
        done = jobs.limpet(tmp_path, *whole.words, fault=fault, at=chance.randint(1, whole.changes))
        moment = f"{fault} before {done.out.splitlines()[-1]}"
    assert done.code in (0, -signal.SIGKILL)
    further = {"fault": "kill", "at": chance.randint(1, whole.changes)} if number >= 20 else {}
    how, last = jobs.again(tmp_path, whole.words, **further)
    if last is not None and last.code == -signal.SIGKILL:
        moment += f", and again before {last.out.splitlines()[-1]}"
        how, last = jobs.again(tmp_path, whole.words)
    assert last is None or last.code == 0, last.err
    found = jobs.differences(tmp_path, whole.place)
    killed(job, moment, f"{how}, {'; '.join(found) or 'equal'}")
    assert found == []
