"""Full and read-only disks, a vanishing and a shared cache, a clock set back: going on gives the numbers of an undisturbed run."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

FULL = os.environ.get("LIMPET_ROBUST") == "full"


@pytest.mark.parametrize("fault", ["full", "readonly"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95] if FULL else [0.5])
def test_a_run_on_a_disk_that_cannot_be_written_is_said_and_resumed(fault, share, jobs, undisturbed, tmp_path):
    whole = undisturbed("fit")
    done = jobs.limpet(tmp_path, *whole.words, fault=fault, at=max(1, int(share * whole.changes)))
    said_and_resumed(done.code, done.err, "No space left" if fault == "full" else "Read-only", share, jobs, whole, tmp_path)


def said_and_resumed(code, err, reason, share, jobs, whole, place):
    """Check what a command left on a disk that took no more after a share of what it writes."""
    assert reason in err and "Traceback" not in err, err
    if share > 0.9 and code == 0:  # all but the last row of the log was written, and that is said
        assert "could not log the results" in err
        assert [line.split(": ")[0] for line in jobs.differences(place, whole.place)] == ["run 0 log/metrics.csv"]
        return
    assert code == 2 and "error: " in err, err
    assert jobs.again(place, whole.words)[1].code == 0
    assert jobs.differences(place, whole.place) == []


def test_a_cache_that_vanishes_costs_time_and_nothing_else(jobs, undisturbed, tmp_path):
    whole = undisturbed("caching")
    (tmp_path / "cache").mkdir()
    done = jobs.limpet(tmp_path, *whole.words, fault="wipe", folder=tmp_path / "cache", at=4)
    assert done.code == 0, done.err
    assert jobs.results(tmp_path) == jobs.results(whole.place)


def test_two_runs_share_a_cache(jobs, undisturbed, tmp_path):
    whole = undisturbed("caching")
    places = [tmp_path / "one", tmp_path / "two"]
    started = [jobs.Command(place, *whole.words, cache=tmp_path / "cache") for place in places]
    assert [command.wait().code for command in started] == [0, 0]
    assert all(jobs.results(place) == jobs.results(whole.place) for place in places)
    assert jobs.entries(tmp_path / "cache") == jobs.entries(whole.place / "cache")


def test_a_clock_set_back_between_and_in_runs_changes_nothing(jobs, undisturbed, tmp_path):
    whole = undisturbed("fit")
    done = jobs.limpet(tmp_path, *whole.words, fault="kill", at=r"rename.*last\.ckpt:3")
    assert done.code == -signal.SIGKILL
    later = time.time() + 3 * 86400
    for path in tmp_path.rglob("*"):
        os.utime(path, (later, later))
    how, last = jobs.again(tmp_path, whole.words, fault="clock", at=3)
    assert (how, last.code) == ("resumed", 0), last.err
    assert jobs.differences(tmp_path, whole.place) == []


@pytest.mark.parametrize("words", [["resume", "runs/quickstart/001"], None], ids=["resume", "grid"])
def test_a_run_that_another_process_works_on_is_left_to_it(words, jobs, undisturbed, tmp_path):
    whole = undisturbed("fit" if words else "grid")
    at = r"rename.*/metrics\.json:1" if words else r"rename.*last\.ckpt:1"  # all is done but the name; the first epoch is
    first = jobs.Command(tmp_path, *whole.words, fault="pause", at=at)
    assert first.paused(), first.err
    second = jobs.limpet(tmp_path, *(words or whole.words))
    text = second.out + second.err
    assert second.code == 2 and "Traceback" not in text, text
    assert "is being worked on by another process (pid " in " ".join(text.split()) and str(first.process.pid) in text
    first.go_on()
    if words is None:
        assert first.wait().code == 0, first.err
        assert jobs.limpet(tmp_path, *whole.words).code == 0  # says that all is finished
    assert first.wait().code == 0, first.err
    assert jobs.differences(tmp_path, whole.place) == []


def test_a_killed_process_lets_go_of_its_run_at_once(jobs, undisturbed, tmp_path):
    whole = undisturbed("fit")
    first = jobs.Command(tmp_path, *whole.words, fault="pause", at=r"rename.*last\.ckpt:2")
    assert first.paused(), first.err
    first.kill()
    first.wait()
    assert (tmp_path / "runs" / "quickstart" / "001" / ".lock").exists()
    how, last = jobs.again(tmp_path, whole.words)
    assert (how, last.code) == ("resumed", 0), last.err
    assert jobs.differences(tmp_path, whole.place) == []


# A command on a file system of $1 bytes at $2; what lies there afterwards is copied to $3, where there is space.
SMALL_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2" || exit 77
out=$3; shift 3
"$@"
code=$?
cp -a . "$out"
exit $code
"""


@pytest.fixture(scope="module")
def small_disk(jobs, tmp_path_factory):
    """small_disk(bytes, out, *command, **environment) -> the command, run on such a disk, at small_disk.mount."""
    mount = tmp_path_factory.mktemp("disk")

    def run(size, out, *command, **env):
        if shutil.which("unshare") is None:
            pytest.skip("no small file system can be made here: there is no `unshare`")
        words = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(size), str(mount), str(out), *command]
        done = subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode in (1, 77) and not any(out.iterdir()):
            pytest.skip(f"no small file system can be made here: {done.stderr}")
        return done

    run.mount = mount
    return run


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.8, 0.95] if FULL else [0.6])
def test_a_run_on_a_small_disk_is_said_and_resumed(share, jobs, undisturbed, small_disk, tmp_path):
    whole = undisturbed("fit")
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in (whole.place / "runs").rglob("*") if path.is_file())
    command = [sys.executable, "-m", "limpet", *whole.words]
    done = small_disk(int(used * share), tmp_path, *command, **jobs.environment(tmp_path / "cache"))
    said_and_resumed(done.returncode, done.stderr, "No space left", share, jobs, whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096, 16384, 32768] if FULL else [16384])
def test_a_cache_on_a_small_disk_costs_time_and_nothing_else(size, jobs, undisturbed, small_disk, tmp_path):
    whole = undisturbed("caching")
    place, cache = tmp_path / "place", tmp_path / "cache"
    place.mkdir()
    cache.mkdir()
    command = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(place), sys.executable, "-m", "limpet", *whole.words]
    done = small_disk(size, cache, *command, **jobs.environment(small_disk.mount))
    assert done.returncode == 0, done.stderr
    assert "cannot be kept in the cache folder" in done.stderr and "No space left" in done.stderr
    assert jobs.results(place) == jobs.results(whole.place)
    assert jobs.entries(cache).items() <= jobs.entries(whole.place / "cache").items()
    later = jobs.limpet(tmp_path / "later", *whole.words, cache=cache)  # where there is space again, the same cache is used
    assert later.code == 0 and jobs.entries(cache) == jobs.entries(whole.place / "cache"), later.err
