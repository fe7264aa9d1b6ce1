"""A script: installs the lowest versions that pyproject.toml allows into an environment of its own and runs the tests there.

python tests/lower_bounds.py [--python python3.11] [--folder .venv-lowest] [--extra test,onnx] [PYTEST ARGUMENTS]

`uv` resolves to the lowest versions, where it is installed; else pip gets each bound's series (>=2.6,<2.7). Without pytest arguments
all tests run; `tests/unit/test_recipe_compose.py -q` is a first look.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def bounds(extras: str) -> list[str]:
    """Lower bounds as pins, of the dependencies and of extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in extras.split(",") for r in project["optional-dependencies"][extra])]
    pins = []
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        lowest = re.search(r">=\s*([\w.]+)", requirement)
        assert name is not None
        pins.append(f"{name[0]}>={lowest[1]},<{_next(lowest[1])}" if lowest else requirement)
    return pins


def _next(version: str) -> str:
    """The series behind a bound: its first release may have been withdrawn, as setuptools 77.0.0 was."""
    *head, last = [int(part) for part in version.split(".")]
    return f"{last}.1" if not head else ".".join(map(str, [*head, last + 1]))


def run(*command: str | Path) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-lowest")
    parser.add_argument("--extra", default="test,onnx")
    given, pytest_words = parser.parse_known_args()
    python = given.folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pins = bounds(given.extra)
    uv = shutil.which("uv")
    if uv:
        run(uv, "venv", "--python", given.python, given.folder)
        run(uv, "pip", "install", "--python", python, "--resolution", "lowest-direct", "-e", f".[{given.extra}]")
    else:
        run(given.python, "-m", "venv", given.folder)
        run(python, "-m", "pip", "install", "--quiet", "-e", ".", *pins)
    listed = "import importlib.metadata as m, sys; [print(n, m.version(n)) for n in sys.argv[1:]]"
    run(python, "-c", listed, *(re.split(r"[=<>!\s]", pin)[0] for pin in pins))
    return subprocess.run([str(python), "-m", "pytest", *pytest_words], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
