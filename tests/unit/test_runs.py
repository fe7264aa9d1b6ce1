"""Making and finding run folders."""

import concurrent.futures
import os

import pytest
from limpet.errors import RunError
from limpet.runs import expand_runs, new_run_dir, resolve_run, short


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(path, finished=True, age=0):
    path.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.yaml", "metrics.json") if finished else ("recipe.yaml",):
        (path / name).write_text("{}")
        os.utime(path / name, (1e9 - age, 1e9 - age))
    return path


def test_numbers_count_up_and_never_collide(tmp_path):
    assert new_run_dir("fish").as_posix() == "runs/fish/001"
    (tmp_path / "runs/fish/007").mkdir()
    (tmp_path / "runs/fish/notes").mkdir()
    assert new_run_dir("fish").name == "008"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run_dir("crowd"), range(40)))
    assert len(set(made)) == 40


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"No run folder can be made in runs/fish"):
        new_run_dir("fish")


def test_every_way_to_name_a_run(tmp_path):
    runs = tmp_path / "runs"
    first, second = make(runs / "fish/001"), make(runs / "fish/002")
    unfinished = make(runs / "fish/003", finished=False)
    assert resolve_run("fish").resolve() == second
    assert resolve_run("fish/001").resolve() == first
    assert resolve_run("runs/fish/001").resolve() == first
    assert resolve_run(str(first)) == first
    assert resolve_run("runs/fish/001/metrics.json").resolve() == first
    assert resolve_run("fish", state="unfinished").resolve() == unfinished
    assert resolve_run("fish", state="any").resolve() == unfinished
    assert short(first) == "fish/001" and short(tmp_path) == str(tmp_path)


def test_a_folder_of_images_does_not_hide_the_runs(tmp_path):
    run = make(tmp_path / "runs/fish/001")
    (tmp_path / "fish").mkdir()
    assert resolve_run("fish").resolve() == run


def test_grids(tmp_path):
    grid = tmp_path / "runs/fish/grid-abc"
    old, new = make(grid / "seed=1", age=10), make(grid / "seed=2")
    make(grid / "seed=3", finished=False)
    assert resolve_run("fish").resolve() == new
    assert resolve_run("fish/grid-abc/seed=1").resolve() == old
    assert [p.resolve() for p in expand_runs(["fish/grid-abc"])] == [old, new]


def test_the_newest_run_has_the_highest_number_whatever_the_clock_said(tmp_path):
    make(tmp_path / "runs/fish/001", age=0)
    later = make(tmp_path / "runs/fish/002", age=5000)
    assert resolve_run("fish").resolve() == later
    cell = make(tmp_path / "runs/fish/grid-abc/seed=1", age=10)
    assert resolve_run("fish").resolve() == cell  # cells have no numbers


def test_a_recipe_stands_for_all_its_finished_runs(tmp_path):
    first, second, cell = (make(tmp_path / "runs/fish" / name) for name in ("001", "003", "grid-abc/seed=1"))
    make(tmp_path / "runs/fish/002", finished=False)
    assert [p.resolve() for p in expand_runs(["fish"])] == [first, second, cell]
    assert [p.resolve() for p in expand_runs(["fish/003", "fish"])] == [second, first, cell]
    make(tmp_path / "runs/open/001", finished=False)
    with pytest.raises(RunError, match="open has no finished run"):
        expand_runs(["open"])


@pytest.mark.parametrize(
    ("word", "state", "expected"),
    [
        ("", "finished", "The name of the run is empty"),
        (
            "fsh",
            "finished",
            "There is no run 'fsh' in runs. Did you mean 'fish'? There are runs of: fish, open.",
        ),
        ("fish/002", "finished", "fish has no run '002'; there are: 001. Did you mean '001'?"),
        (
            "open",
            "finished",
            "open has no finished run; there are: 001. Continue one with: limpet resume open/001",
        ),
        (
            "open/001",
            "finished",
            "open/001 is not finished (no metrics.json). Continue it with: limpet resume open/001",
        ),
        ("fish/001", "unfinished", "fish/001 is finished; there is nothing to resume"),
        ("empty", "finished", "empty holds no run"),
        ("a.txt", "finished", "a.txt is a file; a run is a folder"),
        ("runs/fish/001/adapter", "finished", "is an adapter; the run it belongs to is wanted"),
    ],
)
def test_what_is_said_about_a_run_that_is_not_there(tmp_path, word, state, expected):
    make(tmp_path / "runs/fish/001/")
    (tmp_path / "runs/fish/001/adapter").mkdir()
    (tmp_path / "runs/fish/001/adapter/adapter.json").write_text("{}")
    make(tmp_path / "runs/open/001", finished=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(RunError) as caught:
        resolve_run(word, state=state)
    assert expected in str(caught.value)


def test_nothing_was_run_yet():
    with pytest.raises(RunError, match=r"no run at all in .* First: limpet fit quickstart"):
        resolve_run("fish")
