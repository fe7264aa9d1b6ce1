"""`evaluate.others` and `evaluate.shift`: data sections of further data sets, read from a recipe."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from .errors import RecipeError, nearest
from .nodes import Node, Scalar, Section, describe, merge
from .sections import OtherImages, ShiftedImages
from .validate import build

KINDS: dict[str, type[OtherImages]] = {"others": OtherImages, "shift": ShiftedImages}
_SHARED = ("batch_size", "num_workers", "strict", "sampling", "split_seed")  # kept with another data module, too


def take_out(tree: Section) -> tuple[Section, dict[str, Section]]:
    """The recipe without its further data sections, and these by kind.

    Raises:
        RecipeError: one of them is not a section of keys.
    """
    evaluate = tree.items.get("evaluate")
    if not isinstance(evaluate, Section):
        return tree, {}
    taken = {kind: _section(evaluate.items[kind], f"evaluate.{kind}") for kind in KINDS if kind in evaluate.items}
    rest = Section({k: v for k, v in evaluate.items.items() if k not in KINDS}, evaluate.origin, evaluate.keys)
    return Section({**tree.items, "evaluate": rest}, tree.origin, tree.keys), taken


def read(
    kind: str, entries: Section, data: Section, schemas: Mapping[str, type], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Fill the data sections of one kind.

    Args:
        kind: "others" or "shift".
        entries: name -> what was written.
        data: the recipe's own data section, which entries with the same `name` (or none) start from.
        schemas: dataclass of each data module.
        around: the rest of the recipe, for `${...}`.

    Raises:
        RecipeError: "file:line: what is wrong".
    """
    result: dict[str, Any] = {}
    for name, node in entries.items.items():
        path = f"evaluate.{kind}.{name}"
        place = entries.keys.get(name, node.origin)
        if not name.strip():
            raise RecipeError(f"{place}: an entry of evaluate.{kind} has an empty name.")
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


def _section(node: Node, path: str) -> Section:
    if isinstance(node, Scalar) and node.is_null:
        return Section({}, node.origin)
    if not isinstance(node, Section):
        raise RecipeError(f"{node.origin}: '{path}' is a section of keys; found {describe(node)}.")
    return node


@functools.cache
def _schema(schema: type, kind: str) -> type:
    """A data section's dataclass with the keys of `OtherImages` or `ShiftedImages` behind its own."""
    own = KINDS[kind]
    more: list[tuple[str, Any, Any]] = [
        (f.name, str, dataclasses.field(default=f.default, metadata=f.metadata)) for f in dataclasses.fields(own)
    ]
    return dataclasses.make_dataclass(f"{schema.__name__}Of{kind.capitalize()}", more, bases=(schema,))
