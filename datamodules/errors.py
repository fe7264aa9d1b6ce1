"""The error of data that cannot be used; its message is a sentence for the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DataError(ValueError):
    """Data that is missing or cannot be used; says what was looked for, where, what was found, what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word closest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def printable(name: str) -> str:
    """A file's name whose bytes are no valid text (possible on Linux) as text that can be written."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def some(items: Sequence[str], most: int = 8) -> str:
    """Join items with commas; a long list is cut and its remainder counted ("a, b and 12 more")."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 image" or "3 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
