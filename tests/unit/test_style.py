"""Ruff and mypy --strict over the folders as they are mounted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(command, folder):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )


def test_ruff():
    done = run(["ruff", "check", "--no-cache", "."], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_strict(tmp_path):
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "adapters", tmp_path / "limpet", ignore=ignore)
    shutil.copytree(ROOT / "datamodules", tmp_path / "limpet/datamodules", ignore=ignore)
    shutil.copytree(ROOT / "recipes", tmp_path / "limpet/recipes", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = run(
        ["mypy", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path / "cache"), "-p", "limpet"],
        tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
