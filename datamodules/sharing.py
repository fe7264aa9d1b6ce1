"""Runs on the same images in one process (a grid) list them once: see `sharing`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import DataModule
    from .listing import Listing

# keys of a data section that say what is done with the listed images, not which these are
_OF_A_RUN = ("shots", "batch_size", "num_workers", "strict", "sampling", "augment")
_memory: dict[str, Listing] | None = None
_decoded: dict[str, str | None] | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """While open, a source with the same settings is listed once, and an image checked once.

    Files that change meanwhile are not noticed: for one command, not for a process that lives on.
    """
    global _memory, _decoded
    before = _memory, _decoded
    _memory, _decoded = {}, {}
    try:
        yield
    finally:
        _memory, _decoded = before


def shared(data: DataModule, make: Callable[[DataModule], Listing]) -> Listing:
    """The listing of a data module, remembered while `sharing`; it must not be changed."""
    if _memory is None:
        return make(data)
    section: dict[str, Any] = dataclasses.asdict(data.config)
    about = {key: value for key, value in section.items() if key not in _OF_A_RUN}
    key = f"{type(data).__module__}.{type(data).__qualname__} {json.dumps(about, sort_keys=True, default=str)}"
    if key not in _memory:
        _memory[key] = make(data)
    return _memory[key]


def checked(file: str, check: Callable[[], str | None]) -> str | None:
    """The reason why a file cannot be decoded, or None, remembered while `sharing`."""
    if _decoded is None:
        return check()
    if file not in _decoded:
        _decoded[file] = check()
    return _decoded[file]
