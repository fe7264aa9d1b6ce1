"""Content keys of images, remembered by path and stamp (size, times, place on the disk): unchanged files are read once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from .errors import exhausted
from .feature_store import cache_dir, warn_once

_SETTLED_NS = 2 * 10**9
_CHUNK = 400
_TOGETHER = 64  # images that a thread is given at once: each task costs 2 kB, and there may be millions of images


class HasFile(Protocol):
    """A sample as far as its key is concerned."""

    @property
    def path(self) -> str:
        """Unique id of the sample."""
        ...

    @property
    def file(self) -> Path | None:
        """The image file; None where the image is drawn."""
        ...


S = TypeVar("S", bound=HasFile)


def image_keys(samples: Sequence[S], compute: Callable[[S], str], kind: str = "") -> list[str | None]:
    """Return the content key of each sample; None where its file cannot be read.

    Args:
        samples: The samples.
        compute: Makes the key of one sample (the SHA-256 of its file's bytes, usually).
        kind: Tells apart data modules that would make different keys from the same file.
    """
    keys: list[str | None] = [None] * len(samples)
    stamps: dict[int, tuple[str, int, str]] = {}
    todo: list[int] = []
    # A file changed a moment ago may change again within one tick of its clock: it is not remembered yet.
    settled, recent = time.time_ns() - _SETTLED_NS, set[int]()
    for number, sample in enumerate(samples):
        if sample.file is None:
            todo.append(number)
            continue
        try:
            stat = sample.file.stat()
        except (OSError, ValueError):
            continue
        # Unpacking or moving files may keep the time they were written at, but not when and where they came to lie there.
        when = f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"
        stamps[number] = (f"{kind}\0{sample.file.absolute()}\0{sample.path}", stat.st_size, when)
        if stat.st_mtime_ns >= settled:
            recent.add(number)
    known = _recall([stamp[0] for stamp in stamps.values()])
    for number, (name, *stamp) in stamps.items():
        found = known.get(name)
        if found and list(found[:2]) == stamp:
            keys[number] = found[2]
        else:
            todo.append(number)

    def key(number: int) -> str | None:
        try:
            return compute(samples[number])
        except (OSError, ValueError) as error:  # the error of an unreadable image is a ValueError
            if exhausted(error):  # says nothing about the image
                raise
            return None

    length = max(1, min(_TOGETHER, len(todo) // 16))
    parts = [todo[start : start + length] for start in range(0, len(todo), length)]
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        for part, values in zip(parts, pool.map(lambda part: [key(n) for n in part], parts), strict=True):
            for number, value in zip(part, values, strict=True):
                keys[number] = value
    _remember([(*stamps[n], keys[n]) for n in todo if n in stamps and keys[n] and n not in recent])
    return keys


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(folder / "keys.sqlite", timeout=10)) as connection, connection:
        # Earlier versions kept a number in the third column, which equals no stamp: their rows are written anew.
        connection.execute("create table if not exists keys (name text primary key, size integer, modified, key text)")
        yield connection


def _recall(names: list[str]) -> dict[str, tuple[int, str, str]]:
    found: dict[str, tuple[int, str, str]] = {}
    if not names:
        return found
    try:
        with _database() as connection:
            for start in range(0, len(names), _CHUNK):
                chunk = names[start : start + _CHUNK]
                marks = ",".join("?" * len(chunk))
                query = f"select name, size, modified, key from keys where name in ({marks})"
                found.update(
                    {name: (size, when, key) for name, size, when, key in connection.execute(query, chunk)}
                )
    except (sqlite3.Error, OSError, UnicodeError) as error:
        _do_without(error)
        return {}
    return found


def _remember(rows: list[tuple[str, int, str, str | None]]) -> None:
    if not rows:
        return
    try:
        with _database() as connection:
            connection.executemany("insert or replace into keys values (?, ?, ?, ?)", rows)
    except (sqlite3.Error, OSError, UnicodeError) as error:
        _do_without(error)


def _do_without(error: Exception) -> None:
    """Remembering is a convenience: without it, files are hashed again. A damaged database is started anew."""
    if type(error) is not sqlite3.DatabaseError:  # a lock, a full disk: where it matters, the store says so
        return
    path = cache_dir() / "keys.sqlite"
    with suppress(OSError):
        path.unlink(missing_ok=True)
    warn_once(f"The list of known images {path} is damaged ({error}); images are hashed once more.")
