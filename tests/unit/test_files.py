"""Files that are written beside their place: what killed processes leave there."""

import os
import subprocess
import sys

import pytest
from limpet import files


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path, dead):
    target, other = tmp_path / "onnx", tmp_path / "onnx-2"
    own, others = files.beside(target), files.beside(other)
    left = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{dead}-"))
    kept = others.with_name(others.name.replace(f"-{os.getpid()}-", f"-{dead}-"))
    for folder in (own, left, kept):
        folder.mkdir()
        (folder / "model.onnx").write_text("half")
    assert files.beside(target) not in (own, left)
    assert sorted(tmp_path.iterdir()) == sorted([own, kept])
    files.write_text(other, "whole")  # files, too
    assert sorted(tmp_path.iterdir()) == sorted([own, other])


@pytest.mark.parametrize(("days", "stays"), [(0, True), (-2, False), (2, False)])
def test_of_another_machine_nothing_is_known_for_a_day(tmp_path, dead, days, stays, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    target = tmp_path / "predictions.csv"
    left = files.beside(target)
    monkeypatch.undo()
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead}-"))
    left.write_text("half")
    when = left.stat().st_mtime + days * 86400
    os.utime(left, (when, when))
    files.beside(target)
    assert left.exists() == stays


def test_names_may_be_as_long_as_the_system_allows(tmp_path):
    target = tmp_path / ("n" * 250)
    files.write_text(target, "whole")
    assert target.read_text() == "whole" and list(tmp_path.iterdir()) == [target]
