"""Write a recipe as YAML that reads back as exactly the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from .nodes import Items, Node, Scalar, Section

_SAFE = re.compile(
    r"([A-Za-z_./]|\d+-[a-z])[\w./-]*( [\w./-]+)*", re.ASCII
)  # words that no reader takes for anything else
_WIDTH = 100


def escape(text: str) -> str:
    """Keep `${` in a text from being read as a reference."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", text)


def scalar(value: Any) -> str:
    """One value as YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        text = repr(value)
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)
    text = str(value)
    if _SAFE.fullmatch(text) and isinstance(Scalar(text, True, "").value, str):
        return text
    return yaml.dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def flow(value: Any) -> str:
    """A value on one line: lists as `[a, b]`, mappings as `{k: v}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    return scalar(value)


def written(node: Node) -> Any:
    """A node as data whose scalars read back as the same text: numbers, booleans and null stay bare."""
    if isinstance(node, Items):
        return [written(item) for item in node.items]
    if isinstance(node, Section):
        return {key: written(value) for key, value in node.items.items()}
    return _Verbatim(node.text) if not isinstance(node.value, str) and node.text else node.value


class _Verbatim(float):
    """A number, boolean or null in its own spelling (`007`, `no`): its field's type is not known yet."""

    text: str

    def __new__(cls, text: str) -> _Verbatim:
        self = super().__new__(cls, 0.0)
        self.text = text
        return self

    def __repr__(self) -> str:
        return self.text


def lines(data: Mapping[str, Any], origins: Mapping[str, str] | None = None, path: str = "") -> list[str]:
    """A mapping as block YAML, one key a line.

    Args:
        data: Nested mappings, lists and scalars.
        origins: Dotted key -> place; given, each line ends with a comment that says where its value is from.
        path: The dotted name of `data`.
    """
    result = []
    indent = "  " * (path.count(".") + 1 if path else 0)
    for key, value in data.items():
        dotted = f"{path}.{key}" if path else str(key)
        head = f"{indent}{scalar(key)}:"
        one_line = f"{head} {flow(value)}"
        known = origins is None or dotted in origins
        if isinstance(value, Mapping) and value and not (known and origins is not None):
            result += [head, *lines(value, origins, dotted)]
            continue
        comment = "" if origins is None else origins.get(dotted, "default")
        if isinstance(value, list) and len(one_line) > _WIDTH:
            result.append(f"{head:<44}  # {comment}" if comment else head)
            result += [f"{indent}  - {flow(item)}" for item in value]
        else:
            result.append(f"{one_line:<44}  # {comment}" if comment else one_line)
    return result
