"""One process at a time works on a run; whoever dies lets go of it, and nothing stays behind."""

import errno
import os
import subprocess
import sys

import pytest
from limpet import run_lock
from limpet.errors import RunError

HOLD = """
import sys, time
from pathlib import Path
from limpet.run_lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_leaves_nothing_behind(tmp_path):
    with run_lock.held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), run_lock.held(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_who_holds_it_is_said_and_a_killed_one_lets_go(holder, tmp_path):
    with pytest.raises(RunError, match=rf"worked on by another process \(pid {holder.pid} on .+, since 2\d.+\): wait"), \
            run_lock.held(tmp_path):  # fmt: skip
        raise AssertionError
    holder.kill()
    holder.wait()
    with run_lock.held(tmp_path):
        assert f"{os.getpid()} " in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_said_so_yet_is_another_process(holder, tmp_path):
    os.truncate(tmp_path / ".lock", 0)
    with pytest.raises(RunError, match="by another process: wait"), run_lock.held(tmp_path):
        raise AssertionError


def test_further_devices_of_a_run_take_no_lock(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with run_lock.held(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()


def test_a_lock_removed_by_its_holder_is_taken_anew(tmp_path, monkeypatch):
    lock, taken = run_lock._lock, []

    def removed(file):
        lock(file)
        if not taken:
            (tmp_path / ".lock").unlink()
        taken.append(file)

    monkeypatch.setattr(run_lock, "_lock", removed)
    with run_lock.held(tmp_path):
        assert len(taken) == 2 and (tmp_path / ".lock").exists()


def test_without_locks_a_run_goes_on(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    with run_lock.held(tmp_path / "missing"):
        pass
    monkeypatch.setattr(run_lock, "_lock", refuse)
    with run_lock.held(tmp_path):
        assert list(tmp_path.iterdir()) == []
