"""Every command and every piece of Python of the README runs, in order, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    """(language, text) of every fenced block in bash or Python."""
    return [(kind, text) for kind, text in BLOCK.findall(README.read_text("utf-8")) if kind in ("bash", "python")]


def commands(text):
    """The limpet commands of a bash block: what makes environments and installs is not repeated inside the suite."""
    text = re.sub(r"\\\n", " ", text)
    for line in text.splitlines():
        for part in re.split(r"&&|;", line.partition(" #")[0]):
            words = shlex.split(part, comments=True)
            words = words[1:] if words[:1] == ["$"] else words
            if words and Path(words[0]).name == "limpet":
                yield words[1:]


@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch, draw):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "my_images", species=4, images=12)
    environment = {**os.environ, "COLUMNS": "80"}
    namespace = {"__name__": "__main__"}
    ran = 0
    for kind, text in blocks():
        if kind == "python":
            exec(compile(text, f"{README.name}: {text.splitlines()[0]}", "exec"), namespace)
            ran += 1
            continue
        for words in commands(text):
            done = subprocess.run([sys.executable, "-m", "limpet", *words], capture_output=True, text=True,
                                  env=environment, timeout=900)  # fmt: skip
            assert done.returncode == 0, f"limpet {shlex.join(words)}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran == 0 or any((tmp_path / "runs").iterdir())


def test_every_file_and_recipe_it_links_to_exists():
    text = README.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        assert (README.parent / target).exists(), target
