"""From a recipe's name and the words after it to one merged tree per grid cell.

`extends` is followed first (earlier ones are overruled by later ones, all by the file itself), then the words
of the command line. `method=x`, `data=x`, `trainer=x` change what a file extends before anything is merged.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .emit import flow
from .errors import RecipeError, nearest
from .nodes import (
    COMMAND_LINE,
    Items,
    Node,
    Scalar,
    Section,
    as_section,
    describe,
    merge,
    nested,
    parse_value,
    plain_data,
    read_file,
    split,
)
from .recipe_grid import KEYS, read_cases, read_grid, words

SWAPPED = ("method", "data", "trainer", "continual")  # sections whose parent a bare word replaces
_CELLS = 10_000  # of a grid: reading more takes minutes, and running them months
_PARENTS = 200  # recipes that one extends, directly or through others
SHORTHANDS = {"backbone": "name", "data.augment": "preset"}  # a scalar for the section means this key of it


@dataclass(frozen=True)
class Layer:
    """One file's own keys; `families` are the sections ("method", ...) it was brought in for."""

    shown: str
    tree: Section
    families: frozenset[str] = frozenset()
    path: Path | None = None


@dataclass(frozen=True)
class Composed:
    """One grid cell, merged but not yet checked."""

    name: str
    tree: Section
    notes: tuple[str, ...]
    overrides: tuple[str, ...]
    cell: dict[str, Any]


def packaged_folder() -> Path:
    """The folder of the recipes that come with Limpet."""
    package = importlib.import_module(".recipes", __package__)
    return Path(next(iter(package.__path__)))


def packaged_names() -> list[str]:
    """Names of the packaged recipes, like `quickstart` and `method/coop`."""
    folder = packaged_folder()
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def find_recipe(name: str, near: Path | None = None) -> tuple[Path, str]:
    """Find a recipe: an existing file, NAME.yaml beside it, then the packaged ones.

    Args:
        name: What the user wrote.
        near: The folder of the file that extends it; the working folder if None.

    Returns:
        The file, and its name in origins and errors.

    Raises:
        RecipeError: if there is none; names the nearest packaged recipe.
    """
    packaged = packaged_folder()
    start = near if near is not None else Path()
    if not name.strip():
        raise RecipeError("The name of the recipe is empty. `limpet recipes` lists the packaged ones.")
    given = start / Path(name).expanduser()
    candidates = [given, given.with_name(given.name + ".yaml")] if given.name else [given]
    if ".." not in Path(name).parts:
        candidates += [packaged / name, packaged / f"{name}.yaml"]
    for path in candidates:
        if path.is_file():
            return path, _shown(path, packaged)
    if given.is_dir():
        raise RecipeError(f"{name} is a folder; a recipe is a YAML file. For images in it: data.root={name}")
    if name.endswith((".yaml", ".yml")):
        known = [f"{n}.yaml" for n in packaged_names()]
        raise RecipeError(
            f"There is no recipe file {name} (looked in {start.resolve()}).{nearest(name, known)}"
        )
    hint = nearest(name, packaged_names())
    raise RecipeError(f"There is no recipe '{name}'.{hint} `limpet recipes` lists the packaged ones.")


def _shown(path: Path, packaged: Path) -> str:
    """A file's name in messages: short for packaged files and those under the working folder."""
    for folder in (packaged, Path.cwd()):
        try:
            return path.resolve().relative_to(folder.resolve()).as_posix()
        except ValueError:
            continue
    return str(path)


def _layers(
    path: Path, shown: str, families: frozenset[str], open_: tuple[Path, ...] = (), read: list[Path] | None = None
) -> Iterator[Layer]:
    """Yield what a file extends, then the file; one that extends nothing lies on the base. `read` gathers all files."""
    read = [] if read is None else read
    if len(read) > _PARENTS:
        raise RecipeError(f"{shown}: the recipe extends more than {_PARENTS} others, directly or through these. Name fewer.")
    read.append(path)
    tree = read_file(path, shown)
    parents = tree.items.pop("extends", Items((), shown))
    if isinstance(parents, Scalar):
        parents = Items(() if parents.is_null else (parents,), parents.origin)
    if isinstance(parents, Section):
        raise RecipeError(f"{parents.origin}: 'extends' is a list of recipe names, like [base, method/coop].")
    chain = (*open_, path.resolve())
    base = packaged_folder() / "base.yaml"
    if not parents.items and not open_ and path.resolve() != base.resolve():
        yield Layer("base.yaml", _expand_shorthands(read_file(base, "base.yaml")), path=base.resolve())
    for parent in parents.items:
        if not isinstance(parent, Scalar):
            raise RecipeError(
                f"{parent.origin}: 'extends' is a list of recipe names; found {describe(parent)}."
            )
        try:
            found, found_shown = find_recipe(parent.text, path.parent)
        except RecipeError as err:
            raise RecipeError(f"{parent.origin}: {err}") from None
        if found.resolve() in chain:
            circle = " -> ".join([*(p.name for p in chain[chain.index(found.resolve()) :]), found.name])
            raise RecipeError(f"{parent.origin}: the recipes extend each other in a circle ({circle}).")
        folder = Path(parent.text).parent.name
        yield from _layers(found, found_shown, families | ({folder} & set(SWAPPED)), chain, read)
    yield Layer(shown, _expand_shorthands(tree), families, path.resolve())


def _expand_shorthands(tree: Section) -> Section:
    """Replace a scalar given for a section by the key it stands for; an empty section by no keys."""
    for dotted, key in SHORTHANDS.items():
        *above, last = dotted.split(".")
        holder: Node | None = tree
        for step in above:
            holder = holder.items.get(step) if isinstance(holder, Section) else None
        if isinstance(holder, Section):
            node = holder.items.get(last)
            if isinstance(node, Scalar) and not node.is_null:
                holder.items[last] = Section({key: node}, node.origin, {key: node.origin})
    for key in SWAPPED:
        node = tree.items.get(key)
        if isinstance(node, Scalar) and not node.is_null:
            raise RecipeError(
                f"{node.origin}: '{key}' is a section. Write '{key}: {{name: {node.text}}}', "
                f"or add '{key}/{node.text}' to 'extends'."
            )
    return tree


def _swap(layers: list[Layer], section: str, word: str, new: list[Layer]) -> tuple[list[Layer], list[str]]:
    """Replace the parents of a section by `new`, those of `section/word`; drop the recipe's own keys under it."""
    at = next((i for i, layer in enumerate(layers) if section in layer.families), len(layers) - 1)
    before = [layer for layer in layers[:at] if section not in layer.families]
    after = [layer for layer in layers[at:] if section not in layer.families]
    before, notes = _drop(before, section, word)
    after, more = _drop(after, section, word)
    return [*before, *new, *after], [*notes, *more]


def _stays(layers: list[Layer], swapped: Sequence[str]) -> list[str]:
    """Say which of the recipe's own values overrule those of a parent that the command line brought in."""
    notes = []
    for i, layer in enumerate(layers):
        for key, node in _leaves(layer.tree) if layer.families & set(swapped) else ():
            own = next((dict(_leaves(x.tree)).get(key) for x in reversed(layers[i:]) if not x.families), None)
            if own is not None and plain_data(own) != plain_data(node):
                notes.append(
                    f"{key}: {flow(plain_data(own))} ({own.origin}) stays in force over the "
                    f"{flow(plain_data(node))} of {layer.shown}"
                )
    return notes


def _drop(layers: list[Layer], section: str, word: str) -> tuple[list[Layer], list[str]]:
    kept, notes = [], []
    for layer in layers:
        own = layer.tree.items.get(section)
        if own is not None and not layer.families and Path(layer.shown).stem != "base":
            items = {k: v for k, v in layer.tree.items.items() if k != section}
            layer = replace(layer, tree=Section(items, layer.tree.origin, layer.tree.keys))
            gone = [f"{section}.{key} ({node.origin})" for key, node in _leaves(own)]
            if gone:
                notes.append(f"{section}={word} drops the recipe's own {', '.join(gone)}")
        kept.append(layer)
    return kept, notes


def _parents_for(section: str, word: str, near: Path) -> list[Layer]:
    """The layers that `method=word` brings in: a recipe, or a method named by file or module."""
    family = frozenset({section})
    if section == "method" and ":" in word:  # ./my.py:MyAdapter or package.module:MyAdapter
        tree = as_section({"method": {"name": word}}, COMMAND_LINE)
        return [Layer(COMMAND_LINE, tree, family)]
    for name, folder in ((f"{section}/{word}", None), (f"{section}/{word}", near), (word, None)):
        if name == word and not word.endswith((".yaml", ".yml")):
            continue
        try:
            path, shown = find_recipe(name, folder)
        except RecipeError:
            continue
        return list(_layers(path, shown, family, (path.resolve(),)))
    if section == "method" and (Path(__file__).parent / "methods" / f"{word}.py").is_file():
        return [Layer(COMMAND_LINE, as_section({"method": {"name": word}}, COMMAND_LINE), family)]
    known = sorted(n.partition("/")[2] for n in packaged_names() if n.startswith(f"{section}/"))
    hint = nearest(word, known)
    if section == "data" and Path(word).expanduser().is_dir():
        hint = f" For the folder of that name write data.root={word}."
    raise RecipeError(f"{COMMAND_LINE}: there is no {section} '{word}'.{hint} Known: {', '.join(known)}.")


def _leaves(node: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    if isinstance(node, Section):
        for key, value in node.items.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node


def parse_override(word: str) -> tuple[str, str]:
    """Split `key=value`; the key is dotted.

    Raises:
        RecipeError: if the word is not of that form.
    """
    key, equals, value = word.partition("=")
    key = key.strip()
    if not equals:
        raise RecipeError(f"'{word}' is not an override of the form key=value, like data.shots=16.")
    if key.startswith("-"):
        raise RecipeError(f"Overrides are written without dashes: {key.lstrip('-')}={value}")
    if not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"'{word}': '{key}' is not a key, like data.shots.")
    if key.split(".")[0] == "extends":
        raise RecipeError(
            "'extends' belongs into a recipe file; on the command line write method=, data= or trainer=."
        )
    return key, value.strip()


def grid(overrides: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Expand overrides to one list of (key, value) per grid cell; the last key varies fastest."""
    columns: list[list[tuple[str, str]]] = []
    for word in overrides:
        key, value = parse_override(word)
        if any(column[0][0] == key for column in columns):
            raise RecipeError(f"{key} is given twice on the command line; keep one.")
        values = [v.strip() for v in split(value, ",")]
        if len(values) > 1 and not all(values):
            raise RecipeError(
                f"'{word}': a comma makes a grid, and one of its values is empty. A list is [a,b]."
            )
        if len(set(values)) < len(values):
            raise RecipeError(f"'{word}': a comma makes a grid, and one of its values is there twice.")
        columns.append([(key, v) for v in values])
    count = math.prod(map(len, columns))
    if count > _CELLS:
        varied = ", ".join(f"{len(column):,} values of {column[0][0]}" for column in columns if len(column) > 1)
        raise RecipeError(f"This grid has {count:,} cells ({varied}), more than the {_CELLS:,} of the largest one. Vary fewer values.")
    return [list(cell) for cell in itertools.product(*columns)]


def compose(name: str, overrides: Sequence[str] = ()) -> list[Composed]:
    """Find, extend and override a recipe.

    Returns:
        One merged tree per grid cell.

    Raises:
        RecipeError: for files that cannot be found or read and words that are not overrides.
    """
    path, shown = find_recipe(name)
    layers = list(_layers(path, shown, frozenset()))
    own = {key: node for layer in layers for key, node in layer.tree.items.items() if key in KEYS}
    layers = [replace(x, tree=_without(x.tree, KEYS)) for x in layers]
    cases = read_cases(own.get("cases"))
    cells = grid(words(read_grid(own.get("grid")), overrides))
    varied = {key for key in (k for k, _ in cells[0]) if len({dict(cell)[key] for cell in cells}) > 1}
    parents = functools.cache(functools.partial(_parents_for, near=path.parent))  # read once for all cells
    result = []
    for cell in cells:
        fitting = [case.settings for case in cases if case.fits(dict(cell))]
        tree, notes = _apply(layers, cell, parents, fitting)
        values = {k: _grid_value(v) for k, v in cell if k in varied}
        result.append(Composed(path.stem, tree, tuple(notes), tuple(f"{k}={v}" for k, v in cell), values))
    return result


def _grid_value(text: str) -> Any:
    return plain_data(parse_value(text))


def _without(tree: Section, keys: Sequence[str]) -> Section:
    return Section({k: v for k, v in tree.items.items() if k not in keys}, tree.origin, tree.keys)


def _apply(
    layers: list[Layer],
    cell: Sequence[tuple[str, str]],
    parents: Callable[[str, str], list[Layer]],
    settings: Sequence[Section] = (),
) -> tuple[Section, list[str]]:
    """Merge the layers of a cell, then the recipe's settings for it, then the cell's own values.

    `parents` gives the layers that a word like `method=coop` brings in.
    """
    notes: list[str] = []
    over = Section({}, COMMAND_LINE)
    for own in settings:
        over = merge(over, own)
    for key, value in cell:
        node = parse_value(value)
        if isinstance(node, Scalar) and node.is_null and key in (*SWAPPED, *SHORTHANDS):
            hint = " Write data.augment=none for no augmentation." if key == "data.augment" else ""
            raise RecipeError(f"{COMMAND_LINE}: {key}={value} names nothing.{hint}")
        if isinstance(node, Scalar) and key in SWAPPED:
            layers, more = _swap(layers, key, node.text, parents(key, node.text))
        elif isinstance(node, Scalar) and key == "backbone":
            layers, more = _drop(layers, key, node.text)
        else:
            more = []
        notes += more
    notes += _stays(layers, [key for key, _ in cell if key in SWAPPED])
    for key, value in cell:
        node = parse_value(value)
        if key not in SWAPPED or not isinstance(node, Scalar):
            over = merge(over, _expand_shorthands(nested(key, node, COMMAND_LINE)))
    tree, seen = Section({}, layers[-1].shown), set()
    for layer in layers:
        if layer.path is None or layer.path not in seen:  # a file that several others extend counts once
            tree = _merge_sections(tree, layer.tree)
            seen.add(layer.path)
    return _merge_sections(tree, over), notes


def _merge_sections(tree: Section, over: Section) -> Section:
    """Merge, where a section left empty (`optim:` with its keys commented out) changes nothing."""
    items = {
        k: v
        for k, v in over.items.items()
        if not (isinstance(v, Scalar) and v.is_null and isinstance(tree.items.get(k), Section))
    }
    return merge(tree, Section(items, over.origin, over.keys))
