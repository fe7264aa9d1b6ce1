"""`grid` and `cases` of a recipe: the cells that it stands for, and what differs between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .emit import flow
from .errors import RecipeError
from .nodes import Items, Node, Scalar, Section, describe, merge, nested, plain_data

KEYS = ("grid", "cases")


@dataclass(frozen=True)
class Case:
    """Settings for the cells in which every key of `when` has one of its values."""

    when: Mapping[str, tuple[str, ...]]
    settings: Section

    def fits(self, cell: Mapping[str, str]) -> bool:
        """Whether a cell is one of them; `cell` holds the texts of what varies and of what the command line sets."""
        return all(cell.get(key) in values for key, values in self.when.items())


def read_grid(node: Node | None) -> dict[str, list[str]]:
    """Key -> the words for its values.

    Raises:
        RecipeError: it is not a section of lists.
    """
    return {key: list(_texts(value, f"grid.{key}")) for key, value in _section(node, "grid").items.items()}


def read_cases(node: Node | None) -> list[Case]:
    """The cases, in order; of two that set one key the later counts.

    Raises:
        RecipeError: it is not a list of {when: {key: values}, set: {key: value}}.
    """
    if node is None or (isinstance(node, Scalar) and node.is_null):
        return []
    if not isinstance(node, Items):
        raise RecipeError(f"{node.origin}: 'cases' is a list of {{when: ..., set: ...}}; found {describe(node)}.")
    cases = []
    for item in node.items:
        if not isinstance(item, Section) or set(item.items) != {"when", "set"}:
            raise RecipeError(f"{item.origin}: a case has the keys when and set, and no others.")
        when = {k: tuple(_texts(v, f"when.{k}")) for k, v in _section(item.items["when"], "when").items.items()}
        settings = Section({}, item.origin)
        for key, value in _section(item.items["set"], "set").items.items():
            settings = merge(settings, nested(key, value, item.items["set"].origin))
        cases.append(Case(when, settings))
    return cases


def words(own: Mapping[str, Sequence[str]], overrides: Sequence[str]) -> list[str]:
    """The recipe's grid as words before those of the command line, which replace it key by key."""
    given = {word.partition("=")[0].strip(): word for word in overrides}
    first = [given.get(key, f"{key}={','.join(values)}") for key, values in own.items()]
    return [*first, *(word for word in overrides if word not in first)]


def _section(node: Node | None, name: str) -> Section:
    if node is None or (isinstance(node, Scalar) and node.is_null):
        return Section({}, "")
    if not isinstance(node, Section):
        raise RecipeError(f"{node.origin}: '{name}' is a section of keys; found {describe(node)}.")
    return node


def _texts(node: Node, name: str) -> list[str]:
    """One value or a list of them, as they would be written on the command line."""
    values = node.items if isinstance(node, Items) else (node,)
    if not values:
        raise RecipeError(f"{node.origin}: '{name}' is an empty list.")
    found = []
    for value in values:
        if isinstance(value, Section) or (isinstance(value, Scalar) and "," in value.text):
            raise RecipeError(f"{value.origin}: '{name}' holds {describe(value)}; plain words and numbers can vary.")
        found.append(value.text if isinstance(value, Scalar) else flow(plain_data(value)))
    return found
