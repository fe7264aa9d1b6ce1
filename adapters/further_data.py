"""Tables of sections, read from a recipe: data sets of `evaluate.others`, `evaluate.shift` and `stream.tasks`, and wordings."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import RecipeError, nearest
from .nodes import Items, Node, Scalar, Section, describe, merge
from .sections import OtherImages, ShiftedImages, TaskData, WordingConfig
from .validate import build

KINDS: dict[str, type[OtherImages | TaskData]] = {"others": OtherImages, "shift": ShiftedImages, "tasks": TaskData}
PLACES = {"others": "evaluate", "shift": "evaluate", "tasks": "stream"}
WORDINGS = "wordings"
_SHARED = ("batch_size", "num_workers", "strict", "sampling", "split_seed")  # kept with another data module, too


def take_out(tree: Section) -> tuple[Section, dict[str, Section]]:
    """The recipe without its further data sections and wordings, and these by kind.

    Raises:
        RecipeError: one of them is not a section of keys.
    """
    taken: dict[str, Section] = {}
    items = dict(tree.items)
    for kind, place in (*PLACES.items(), (WORDINGS, "evaluate")):
        holder = items.get(place)
        if isinstance(holder, Section) and kind in holder.items:
            taken[kind] = _section(holder.items[kind], f"{place}.{kind}")
            rest = {k: v for k, v in holder.items.items() if k != kind}
            items[place] = Section(rest, holder.origin, holder.keys)
    return Section(items, tree.origin, tree.keys), taken


def read(
    kind: str, entries: Section, data: Section, schemas: Mapping[str, type], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill the data sections of one kind.

    Args:
        kind: "others", "shift" or "tasks".
        entries: name -> what was written.
        data: the recipe's own data section, which entries with the same `name` (or none) start from.
        schemas: dataclass of each data module.
        around: the rest of the recipe, for `${...}`.

    Raises:
        RecipeError: "file:line: what is wrong".
    """
    result: dict[str, Any] = {}
    for name, node, path, place in _entries(entries, f"{PLACES[kind]}.{kind}"):
        section = _section(node, path)
        main, own = data.items.get("name"), section.items.get("name", data.items.get("name"))
        word = own.text if isinstance(own, Scalar) else ""
        if word not in schemas:
            raise RecipeError(
                f"{place}: {path}.name is '{word}', which is no data.{nearest(word, schemas)} "
                f"Known: {', '.join(sorted(schemas))}."
            )
        start = data
        if isinstance(main, Scalar) and main.text != word:
            start = Section({k: v for k, v in data.items.items() if k in _SHARED}, data.origin, data.keys)
        result[name] = build(_schema(schemas[word], kind), merge(start, section), path, around)
    return result


def read_wordings(entries: Section, around: Mapping[str, Any]) -> dict[str, WordingConfig]:
    """Fill `evaluate.wordings`; a text or a list of texts stands for the templates.

    Raises:
        RecipeError: "file:line: what is wrong".
    """
    result: dict[str, WordingConfig] = {}
    for name, node, path, place in _entries(entries, f"evaluate.{WORDINGS}"):
        short = isinstance(node, Items) or (isinstance(node, Scalar) and not node.is_null)
        section = Section({"templates": node}, node.origin, {"templates": place}) if short else _section(node, path)
        result[name] = build(WordingConfig, section, path, around)
        bad = next((t for t in result[name].templates if t.count("{}") != 1), None)
        if bad is not None:
            raise RecipeError(f"{place}: the template '{bad}' of {path} needs one {{}}, where the class name goes.")
    return result


def _entries(entries: Section, table: str) -> Iterator[tuple[str, Node, str, str]]:
    """Name, content, key path and place of each entry of a table of sections."""
    for name, node in entries.items.items():
        place = entries.keys.get(name, node.origin)
        if not name.strip():
            raise RecipeError(f"{place}: an entry of {table} has an empty name.")
        yield name, node, f"{table}.{name}", str(place)


def _section(node: Node, path: str) -> Section:
    if isinstance(node, Scalar) and node.is_null:
        return Section({}, node.origin)
    if not isinstance(node, Section):
        raise RecipeError(f"{node.origin}: '{path}' is a section of keys; found {describe(node)}.")
    return node


@functools.cache
def _schema(schema: type, kind: str) -> type:
    """A data section's dataclass with the keys of `KINDS` behind its own."""
    own = KINDS[kind]
    hints = typing.get_type_hints(own)
    more: list[tuple[str, Any, Any]] = [
        (f.name, hints[f.name], dataclasses.field(default=f.default, metadata=f.metadata)) for f in dataclasses.fields(own)
    ]
    return dataclasses.make_dataclass(f"{schema.__name__}Of{kind.capitalize()}", more, bases=(schema,))
