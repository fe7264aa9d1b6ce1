"""Full and read-only disks, a vanishing and a shared cache: what is resumed gives the numbers of an undisturbed run."""

import os

import pytest

FULL = os.environ.get("LIMPET_ROBUST") == "full"


@pytest.mark.parametrize("fault", ["full", "readonly"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95] if FULL else [0.5])
def test_a_run_on_a_disk_that_cannot_be_written_is_said_and_resumed(fault, share, jobs, undisturbed, tmp_path):
    whole = undisturbed("fit")
    done = jobs.limpet(tmp_path, *whole.words, fault=fault, at=max(1, int(share * whole.changes)))
    assert done.code == 2 and "Traceback" not in done.err, done.err
    reason = "No space left" if fault == "full" else "Read-only"
    assert reason in done.err and "error: " in done.err
    assert jobs.again(tmp_path, whole.words)[1].code == 0
    assert jobs.differences(tmp_path, whole.place) == []


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


# `limpet` on a file system of its own, of $1 bytes at $2; what is there once there is space enough is copied to $3
SMALL_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2" || exit 77
export=$3; python=$4; shift 4
"$python" -m limpet "$@"
echo $? > "$export/code"
mount -o remount,size=64m "$2" && cp -a "$2/." "$export"
"""
