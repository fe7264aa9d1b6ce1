"""Names and first lines of recipes and methods, read from their files; nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path

from .compose import packaged_folder, packaged_names
from .nodes import Scalar, Section, read_file


def recipes() -> list[tuple[str, str]]:
    """(name, first comment line) of each packaged recipe: those to run first, then the building blocks."""
    folder = packaged_folder()
    names = sorted(packaged_names(), key=lambda n: ("/" in n, n == "base", n != "quickstart", n))
    return [(name, _first_comment(folder / f"{name}.yaml")) for name in names]


def _first_comment(path: Path) -> str:
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
        if line.strip():
            break
    return ""


def methods() -> list[tuple[str, str, list[str]]]:
    """(name, first docstring line, recipes) of each method, read from the files of the methods folder."""
    used = _recipes_of_methods()
    result = []
    for path in sorted((Path(__file__).parent / "methods").glob("*.py")):
        if not path.stem.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            result.append((path.stem, doc.split("\n", 1)[0], used.get(path.stem, [])))
    return result


def _recipes_of_methods() -> dict[str, list[str]]:
    used: dict[str, list[str]] = {}
    for name in packaged_names():
        if name.startswith("method/"):
            section = read_file(packaged_folder() / f"{name}.yaml", name).items.get("method")
            method = section.items.get("name") if isinstance(section, Section) else None
            if isinstance(method, Scalar):
                used.setdefault(method.text, []).append(name.partition("/")[2])
    return used
