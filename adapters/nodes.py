"""What a recipe file or a command line says, kept as text with its place.

YAML readers turn `no` into False, `007` into 7 and `12:30` into 750 before anyone can ask what was meant.
Here a scalar stays the text that was written; whoever knows the type of the field decides what it means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import RecipeError
from .files import is_text

COMMAND_LINE = "command line"
_TOO_MANY = 1_000_000  # nodes; only nested aliases get there
_QUOTES = "'\""
_CLOSING = {"[": "]", "{": "}"}
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None}
_WORDS |= dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
_INTEGER = re.compile(r"[-+]?[0-9]+")
LARGEST = 2**63 - 1  # what NumPy and PyTorch can hold
_DEEPEST = 50  # sections and lists in one another
_DIGITS = 1000  # more are not even read: Python refuses above some thousands
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


def _need_text(text: str, origin: str) -> None:
    """Refuse what cannot be written to a file."""
    if not is_text(text):
        raise RecipeError(f"{origin}: {text!a} is not valid text (UTF-8): write it anew, or rename what it stands for.")


@dataclass(frozen=True)
class Scalar:
    """One value as written: `text`, whether it stood without quotes (`plain`), and where (`origin`)."""

    text: str
    plain: bool
    origin: str

    def __post_init__(self) -> None:
        _need_text(self.text, self.origin)

    @property
    def is_null(self) -> bool:
        """True for an empty value, `~` and `null` written without quotes."""
        return self.plain and _WORDS.get(self.text.lower(), True) is None

    @property
    def value(self) -> Any:
        """The text read as YAML 1.2 would: number, true/false (also yes/no), null, else the text itself."""
        if not self.plain:
            return self.text
        if self.text.lower() in _WORDS:
            return _WORDS[self.text.lower()]
        if _INTEGER.fullmatch(self.text):
            if len(self.text) > _DIGITS or abs(int(self.text)) > LARGEST:
                shown = self.text if len(self.text) < 30 else f"{self.text[:20]}... ({len(self.text)} digits)"
                raise RecipeError(f"{self.origin}: the whole number {shown} is too large; the largest is {LARGEST}.")
            return int(self.text)
        if _FLOAT.fullmatch(self.text):
            return float(re.sub(r"\.(?=inf|nan)", "", self.text.lower()))
        return self.text


@dataclass(frozen=True)
class Items:
    """A list of nodes."""

    items: tuple[Node, ...]
    origin: str


@dataclass
class Section:
    """Keys and their nodes; `keys` says where each key was written."""

    items: dict[str, Node] = field(default_factory=dict)
    origin: str = ""
    keys: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, node: Node, origin: str) -> None:
        """Set one key and remember its place."""
        _need_text(key, origin)
        self.items[key] = node
        self.keys[key] = origin


Node = Scalar | Items | Section


def plain_data(node: Node, literal: bool = False) -> Any:
    """Turn a node into Python data; with `literal`, every scalar stays the text that was written."""
    if isinstance(node, Scalar):
        return node.text if literal else node.value
    if isinstance(node, Items):
        return [plain_data(item, literal) for item in node.items]
    return {key: plain_data(value, literal) for key, value in node.items.items()}


def describe(node: Node) -> str:
    """Name a node's kind in a sentence: "a list", "a section" or the quoted text."""
    if isinstance(node, Scalar):
        return f"'{node.text}'" if node.text else "empty"
    return "a list" if isinstance(node, Items) else "a section with keys"


def read_file(path: Path, shown: str) -> Section:
    """Read one YAML file as a `Section`; `shown` is its name in origins and errors.

    Raises:
        RecipeError: with file and line where the file cannot be read as a section of keys.
    """
    if path.is_dir():
        raise RecipeError(f"{shown} is a folder; a recipe is a YAML file.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"There is no file {shown}.") from None
    except UnicodeDecodeError as err:
        raise RecipeError(f"{shown} is not a UTF-8 text file (byte {err.start}); save it as UTF-8.") from None
    except OSError as err:
        raise RecipeError(f"{shown} cannot be read: {err.strerror}.") from None
    return read_text(text, shown)


def read_text(text: str, shown: str) -> Section:
    """Read YAML text whose top level is a section of keys; an empty text is an empty section."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        node = _Reader(shown).node(root) if root is not None else Section({}, shown)
    except yaml.MarkedYAMLError as err:
        raise RecipeError(_syntax_error(err, shown)) from None
    except yaml.YAMLError as err:  # control characters
        raise RecipeError(f"{shown} is not a YAML text: {str(err).splitlines()[0]}.") from None
    except RecursionError:
        raise RecipeError(f"{shown} is nested too deeply to be a recipe.") from None
    if isinstance(node, Scalar) and node.is_null:
        return Section({}, shown)
    if not isinstance(node, Section):
        raise RecipeError(f"{node.origin}: a recipe is made of 'key: value' lines; found {describe(node)}.")
    return node


def _syntax_error(err: yaml.MarkedYAMLError, shown: str) -> str:
    mark = err.problem_mark or err.context_mark
    line = f":{mark.line + 1}" if mark is not None else ""
    problem = err.problem or err.context or "it cannot be read"
    hint = " Put a text that contains { } [ ] , : or # between double quotes."
    if "'\\t'" in problem:
        problem, hint = "a tab is used for indentation", " YAML indents with spaces."
    elif "single document" in (err.context or ""):
        problem, hint = "a second document begins ('---')", " A recipe is one document."
    elif "undefined alias" in problem:
        hint = " Put a text that begins with * between double quotes."
    return f"{shown}{line}: this is not valid YAML: {problem}.{hint}"


class _Reader:
    """Turns composed YAML nodes into ours."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.count = 0
        self.open: set[int] = set()

    def place(self, node: yaml.Node) -> str:
        return f"{self.shown}:{node.start_mark.line + 1}"

    def node(self, node: yaml.Node) -> Node:
        self.count += 1
        origin = self.place(node)
        if self.count > _TOO_MANY or id(node) in self.open:
            raise RecipeError(f"{origin}: aliases refer to each other too often to be a recipe.")
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise RecipeError(f"{origin}: the tag '{node.tag}' has no meaning in a recipe; remove it.")
        if isinstance(node, yaml.ScalarNode):
            return Scalar(node.value, node.style is None, origin)
        self.open.add(id(node))
        result: Node
        if isinstance(node, yaml.SequenceNode):
            result = Items(tuple(self.node(item) for item in node.value), origin)
        else:
            result = self.section(node, origin)
        self.open.discard(id(node))
        return result

    def section(self, node: yaml.Node, origin: str) -> Section:
        section = Section({}, origin)
        for key, value in node.value:
            place = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(
                    f"{place}: a key must be a word. Put a text with braces between double quotes."
                )
            if key.value == "<<" and key.style is None:
                raise RecipeError(
                    f"{place}: YAML's '<<' is not used here; 'extends: [...]' brings in other recipes."
                )
            if key.value in section.items:
                first = section.keys[key.value]
                raise RecipeError(f"{place}: the key '{key.value}' is already given at {first}; keep one.")
            section.put(key.value, self.node(value), place)
        return section


def parse_value(text: str, origin: str = COMMAND_LINE, depth: int = 0) -> Node:
    """Read the value of a command-line override: `[a, b]`, `{k: v}`, a quoted text, or the text as it is."""
    text = text.strip()
    if text[:1] in _CLOSING and _closes(text):
        if depth == _DEEPEST:
            raise RecipeError(f"{origin}: brackets stand in brackets more than {_DEEPEST} deep; no setting is as deep.")
        parts = split(text[1:-1], ",", origin)
        if parts and not parts[-1].strip():
            parts.pop()  # [a, b,] and []
        if text[0] == "[":
            return Items(tuple(parse_value(part, origin, depth + 1) for part in parts), origin)
        section = Section({}, origin)
        for part in parts:
            key, colon, value = _key_value(part, origin)
            if not colon:
                raise RecipeError(f"{origin}: '{part.strip()}' in '{text}' is not 'key: value'.")
            name = parse_value(key, origin, depth + 1)
            if not isinstance(name, Scalar) or name.text in section.items:
                raise RecipeError(f"{origin}: '{key.strip()}' in '{text}' is not a key, or is given twice.")
            section.put(name.text, parse_value(value, origin, depth + 1), origin)
        return section
    if len(text) > 1 and text[0] in _QUOTES and text[-1] == text[0]:
        try:
            loaded = yaml.safe_load(text)
        except yaml.YAMLError:
            loaded = None
        if isinstance(loaded, str):
            return Scalar(loaded, False, origin)
    return Scalar(text, True, origin)


def split(text: str, separator: str, origin: str = COMMAND_LINE) -> list[str]:
    """Split at a separator that stands outside brackets and quotes.

    A quote counts only where a value begins, so the apostrophe of "Grevy's zebra" is a letter.
    """
    parts, start, open_, quote = [], 0, [], ""
    begins = True  # the next character would begin a value
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
            continue
        if begins and c in _QUOTES and c in text[i + 1 :]:
            quote = c
        elif c in _CLOSING:
            open_.append(_CLOSING[c])
        elif open_ and c == open_[-1]:
            open_.pop()
        elif c == separator and not open_:
            parts.append(text[start:i])
            start = i + 1
        begins = c in "[{,:=" or (begins and c.isspace())
    if quote or open_:
        missing = quote or open_[-1]
        raise RecipeError(f"{origin}: '{text}' has no closing {missing}")
    return [*parts, text[start:]]


def _key_value(text: str, origin: str) -> tuple[str, str, str]:
    """Split `key: value` at the first colon that ends a key: `12:30: [a]` has the key 12:30."""
    parts = split(text, ":", origin)
    ends = (i for i, part in enumerate(parts[1:], 1) if not part or part[0].isspace() or part[0] in "[{'\"")
    at = next(ends, 1)
    return ":".join(parts[:at]), ":" if len(parts) > 1 else "", ":".join(parts[at:])


def _closes(text: str) -> bool:
    """True where the bracket that opens `text` is closed by its last character."""
    if len(text) < 2 or text[-1] != _CLOSING[text[0]]:
        return False
    try:
        split(text[1:-1], ",")
    except RecipeError:
        return False
    return True


def merge(base: Section, over: Section) -> Section:
    """Lay one section over another: sections merge key by key, everything else replaces."""
    result = Section(dict(base.items), over.origin or base.origin, dict(base.keys))
    for key, node in over.items.items():
        old = result.items.get(key)
        both = isinstance(old, Section) and isinstance(node, Section)
        merged = merge(old, node) if isinstance(old, Section) and isinstance(node, Section) else node
        result.put(
            key, merged, result.keys[key] if both and key in result.keys else over.keys.get(key, over.origin)
        )
    return result


def nested(dotted: str, node: Node, origin: str) -> Section:
    """The section in which one dotted key holds a node: `nested("a.b", n)` is {a: {b: n}}."""
    keys = dotted.split(".")
    if len(keys) > _DEEPEST:
        raise RecipeError(f"{origin}: the key '{dotted[:40]}...' has {len(keys)} parts; no setting is as deep.")
    for key in reversed(keys):
        node = Section({key: node}, origin, {key: origin})
    assert isinstance(node, Section)
    return node


def as_section(data: Mapping[str, Any], origin: str) -> Section:
    """Make a section of Python texts and mappings (for values that a command-line word stands for)."""
    section = Section({}, origin)
    for key, value in data.items():
        node = as_section(value, origin) if isinstance(value, Mapping) else Scalar(str(value), False, origin)
        section.put(key, node, origin)
    return section


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key; a mapping without keys is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else str(key)
        found |= flat(value, dotted) if isinstance(value, Mapping) and value else {dotted: value}
    return found
