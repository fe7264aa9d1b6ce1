"""Check a merged recipe against the dataclasses of its sections, and fill them.

OmegaConf holds the values while they are checked and resolves `${other.key}`. Lists and tables of
texts (class names, templates, domains) never pass through it: they stay as written, be it `no` or `${x}`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import RecipeError, nearest
from .nodes import LARGEST, Items, Node, Scalar, Section, describe, plain_data

T = typing.TypeVar("T")
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def build(cls: type[T], section: Section, path: str = "", around: Mapping[str, Any] | None = None) -> T:
    """Fill a dataclass from a section.

    Args:
        cls: The dataclass; its fields are the allowed keys.
        section: What was written.
        path: The section's dotted name, "" for the whole recipe.
        around: The rest of the recipe, for `${...}`.

    Raises:
        RecipeError: "file:line: what is wrong" for the first key that does not fit.
    """
    root = OmegaConf.create(dict(around or {}))
    holder: DictConfig
    if path:
        root[path] = OmegaConf.structured(cls)
        holder = root[path]
    else:
        root = holder = OmegaConf.structured(cls)
    filler = _Filler(root)
    filler.fill(holder, cls, section, path)
    filler.resolve()
    try:
        result = OmegaConf.to_object(holder)
    except OmegaConfBaseException as err:
        raise RecipeError(f"{section.origin}: {_first_line(err)}") from None
    except (ValueError, TypeError) as err:  # a check of the dataclass itself
        raise RecipeError(f"{section.origin}: {err}") from None
    for dotted, value in filler.literals.items():
        *above, last = dotted[len(path) + 1 if path else 0 :].split(".")
        target: Any = result
        for step in above:
            target = getattr(target, step)
        setattr(target, last, value)
    _check_metadata(result, path, filler.origins)
    return typing.cast(T, result)


class Parts:
    """Fills recipes section by section, each distinct section once: the cells of a grid share most of them."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def build(self, fields: Sequence[tuple[str, Any, Any]], section: Section) -> Any:
        """What `build` gives for a dataclass of these fields (name, type, default), and its errors.

        All sections are filled at once where a `${...}` may lead from one to another, or one has a mistake: of several
        mistakes the first in the file is named.
        """
        if not _refers(section) and section.items.keys() <= {name for name, *_ in fields}:
            try:
                return self._apart(fields, section)
            except RecipeError:
                pass
        return build(dataclasses.make_dataclass("Root", fields), section)

    def _apart(self, fields: Sequence[tuple[str, Any, Any]], section: Section) -> Any:
        parts = {}
        for field in fields:
            name = field[0]
            own = {name: section.items[name]} if name in section.items else {}
            key = (name, field[1], _content(Section(own)))
            if key not in self._made:
                holder = dataclasses.make_dataclass("Part", [field])
                self._made[key] = getattr(build(holder, Section(own, section.origin, section.keys)), name)
            parts[name] = copy.deepcopy(self._made[key])
        return types.SimpleNamespace(**parts)


def _content(node: Node) -> Any:
    """What a node says, hashable, without its places."""
    if isinstance(node, Scalar):
        return node.text, node.plain
    if isinstance(node, Items):
        return tuple(map(_content, node.items))
    return tuple((key, _content(value)) for key, value in node.items.items())


def _refers(node: Node) -> bool:
    """Whether any text in a node has a `${`."""
    if isinstance(node, Scalar):
        return "${" in node.text
    return any(map(_refers, node.items if isinstance(node, Items) else node.items.values()))


class _Filler:
    """Sets the keys of one structured config; remembers texts kept aside and where each key was written."""

    def __init__(self, root: DictConfig) -> None:
        self.root = root
        self.literals: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.references: dict[str, str] = {}  # dotted key -> the `${...}` text

    def fill(self, config: Any, cls: type, section: Section, path: str) -> None:
        hints = typing.get_type_hints(cls)
        known = [f.name for f in dataclasses.fields(cls)]
        for key, node in section.items.items():
            origin = section.keys.get(key, node.origin)
            dotted = f"{path}.{key}" if path else key
            if key not in known:
                raise RecipeError(unknown_key(origin, key, path, known))
            self.origins[dotted] = origin
            kind = hints[key]
            if dataclasses.is_dataclass(kind):
                if isinstance(node, Section):
                    self.fill(config[key], typing.cast(type, kind), node, dotted)
                elif not (isinstance(node, Scalar) and node.is_null):
                    raise RecipeError(f"{origin}: '{dotted}' is a section of keys; found {describe(node)}.")
            elif is_literal(kind):
                self.literals[dotted] = _literal(kind, node, dotted)
            else:
                self._set(config, key, kind, node, dotted)

    def _set(self, config: Any, key: str, kind: Any, node: Node, dotted: str) -> None:
        plain, optional = _without_none(kind)
        wanted = f"{dotted} must be {kind_name(kind)}"
        if plain is str:
            if not isinstance(node, Scalar):
                hint = " (put it between quotes if it is a text)" if isinstance(node, Items | Section) else ""
                raise RecipeError(f"{node.origin}: {wanted}; found {describe(node)}{hint}.")
            value: Any = None if node.is_null else node.text
        else:
            value = plain_data(node)
            if isinstance(node, Section):
                self.origins.update({f"{dotted}.{k}": place for k, place in node.keys.items()})
        if value is None and not optional and plain is not Any:
            raise RecipeError(f"{node.origin}: {wanted}, but it is empty.")
        if value == "???":
            raise RecipeError(f"{node.origin}: {dotted} is still '???'; give its value.")
        if plain is bool and type(value) in (int, float) and value not in (0, 1):  # OmegaConf takes 7 for true
            raise RecipeError(f"{node.origin}: {wanted}; found {describe(node)}.")
        if plain is float and type(value) is int:
            value = float(value)
        elif plain == list[float] and isinstance(value, list):
            value = [float(v) if type(v) is int else v for v in value]
        try:
            OmegaConf.update(config, key, value, merge=False)  # converts "5" to 5, which an assignment will refuse one day
        except OmegaConfBaseException as err:
            if isinstance(node, Scalar) and "${" in node.text:
                raise RecipeError(f"{node.origin}: {dotted}: {_first_line(err)}") from None
            raise RecipeError(f"{node.origin}: {wanted}; found {describe(node)}.") from None
        entries = (
            {f"{dotted}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {dotted: value}
        )
        for name, text in entries.items():
            if isinstance(text, str) and "${" in text:
                self.references[name] = text
                self.origins.setdefault(name, node.origin)

    def resolve(self) -> None:
        """Check every `${...}`: it must lead to a value."""
        for dotted, text in self.references.items():
            for aside in self.literals:
                if "${" + aside + "}" in text:
                    raise RecipeError(
                        f"{self.origins[dotted]}: {dotted}: '{text}' refers to a list of texts."
                    )
            try:
                OmegaConf.select(self.root, dotted, throw_on_resolution_failure=True)
            except (OmegaConfBaseException, RecursionError) as err:
                reason = "it refers to itself" if isinstance(err, RecursionError) else _first_line(err)
                raise RecipeError(
                    f"{self.origins[dotted]}: {dotted}: '{text}' cannot be resolved: {reason}"
                ) from None


def unknown_key(origin: str, key: str, path: str, known: list[str]) -> str:
    """The sentence for a key that a section does not have."""
    where = f"'{path}'" if path else "a recipe"
    hint = nearest(key, known)
    if hint:
        return f"{origin}: Key '{key}' is not in {where}.{hint.replace('mean ', 'mean: ')}"
    listed = ", ".join(known) if known else "none"
    return f"{origin}: Key '{key}' is not in {where}. Its keys: {listed}."


def is_literal(kind: Any) -> bool:
    """True for lists of texts and tables of (lists of) texts."""
    plain, _ = _without_none(kind)
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if origin in (list, dict):
        return arguments[-1] is str or (origin is dict and is_literal(arguments[-1]))
    return False


def _literal(kind: Any, node: Node, dotted: str) -> Any:
    """The texts of a node, exactly as written."""
    plain, optional = _without_none(kind)
    if isinstance(node, Scalar) and node.is_null and optional:
        return None
    if plain is str:
        if not isinstance(node, Scalar):
            shown = plain_data(node, literal=True)
            raise RecipeError(
                f"{node.origin}: in {dotted}, {shown} is not a text; put the text between quotes."
            )
        if not node.text.strip():
            hint = " (a '#' begins a comment, unless the text is between quotes)" if node.plain else ""
            raise RecipeError(f"{node.origin}: {dotted} has an empty text{hint}.")
        return node.text
    inner = typing.get_args(plain)[-1]
    if typing.get_origin(plain) is list:
        if isinstance(node, Scalar) and not node.is_null:
            return [_literal(inner, node, dotted)]  # one text stands for a list of one
        if isinstance(node, Items):
            return [_literal(inner, item, dotted) for item in node.items]
    elif isinstance(node, Section):
        return {key: _literal(inner, value, f"{dotted}.{key}") for key, value in node.items.items()}
    elif isinstance(node, Scalar) and node.is_null:
        return {}
    raise RecipeError(f"{node.origin}: {dotted} must be {kind_name(kind)}; found {describe(node)}.")


def kind_name(kind: Any) -> str:
    """Name a field's type in a sentence."""
    plain, optional = _without_none(kind)
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if origin is list:
        name = f"a list of {kind_name(arguments[0]).split(' ', 1)[-1]}s"
    elif origin is dict:
        name = f"keys with {kind_name(arguments[-1])} each"
    elif origin is typing.Literal:
        name = "one of " + ", ".join(map(str, arguments))
    elif origin in (typing.Union, types.UnionType):
        name = " or ".join(kind_name(a) for a in arguments if a is not types.NoneType)
    else:
        name = _KINDS.get(plain, "a value")
    return f"{name} or null" if optional else name


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        arguments = [a for a in typing.get_args(kind) if a is not types.NoneType]
        if len(arguments) < len(typing.get_args(kind)) and len(arguments) == 1:
            return arguments[0], True
        return kind, len(arguments) < len(typing.get_args(kind))
    return kind, kind is types.NoneType


def _check_metadata(instance: Any, path: str, origins: Mapping[str, str]) -> None:
    """Check `choices`, `minimum` and `maximum` of the fields of a filled dataclass."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        dotted = f"{path}.{field.name}" if path else field.name
        origin = origins.get(dotted, "default")
        if dataclasses.is_dataclass(value):
            _check_metadata(value, dotted, origins)
        choices, minimum, maximum = (field.metadata.get(key) for key in ("choices", "minimum", "maximum"))
        if choices and value is not None and value not in choices:
            raise RecipeError(
                f"{origin}: {dotted} is '{value}', not one of {', '.join(map(str, choices))}."
                f"{nearest(str(value), map(str, choices))}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"{origin}: {dotted} is {value}; it must be a finite number.")
        if minimum is not None and isinstance(value, int | float) and value < minimum:
            raise RecipeError(f"{origin}: {dotted} is {value}; the least it can be is {minimum}.")
        if isinstance(value, int) and value > (LARGEST if maximum is None else maximum):
            raise RecipeError(f"{origin}: {dotted} is {value}; the most it can be is {LARGEST if maximum is None else maximum}.")


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0].rstrip(".") + "." if lines else type(err).__name__
