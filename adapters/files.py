"""Files that are whole or absent: written beside, then renamed."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import RunError

_UNFINISHED = ".unfinished"
_DAY = 86400.0


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old content or all of the new.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    part = beside(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        remove(part)
        raise RunError(f"Could not write {path}: {error.strerror or error}. Free some space or choose another folder.") from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically; what is no valid text in the name of a file is replaced."""
    try:
        written = content.encode("utf-8")
    except UnicodeEncodeError:
        written = printable(content).encode("utf-8")
    write_bytes(path, written)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, readable and with keys in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if printable(text) != text:  # names of files that are no valid text stay what they are only in ASCII
        text = json.dumps(content, indent=2)
    write_text(path, text + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV atomically; the columns are those of the first row unless given."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(columns or (rows[0] if rows else ())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def clear(run_dir: Path) -> None:
    """Remove what processes that were killed while writing left in a run's folder."""
    for below in ("*", "log/*", "adapter/*", "sessions/**/*"):
        for path in (*run_dir.glob(f"{below}.part"), *run_dir.glob(f"{below}{_UNFINISHED}")):
            remove(path)


def beside(target: Path) -> Path:
    """A hidden name beside `target` to write it under before it is renamed.

    What processes that were killed left under such names of this target is removed first.
    """
    machine = f"{zlib.crc32(platform.node().encode()):08x}"
    head = f".{target.name[:40]}."  # file systems allow 255 bytes
    for path in _siblings(target.parent):
        mark = path.name[len(head) : -len(_UNFINISHED)]
        named = path.name.startswith(head) and path.name.endswith(_UNFINISHED) and "." not in mark
        if named and _left(path, mark, machine):
            remove(path)
    return target.with_name(f"{head}{machine}-{os.getpid()}-{uuid.uuid4().hex[:8]}{_UNFINISHED}")


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _siblings(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _left(path: Path, mark: str, machine: str) -> bool:
    """Whether the process that wrote there is gone: known of this machine's processes, supposed of others after a day."""
    writer, _, rest = mark.partition("-")
    process = rest.partition("-")[0]
    if writer == machine and process.isdecimal() and os.name == "posix":  # elsewhere, asking would end the process
        return not _runs(int(process))
    try:
        return abs(time.time() - path.stat().st_mtime) > _DAY  # abs: a clock set back must not keep it for ever
    except OSError:
        return False


def _runs(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8; the names of files and the words of a shell may hold any bytes."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(path: str) -> str:
    """A path whose bytes are no valid text (possible on Linux) as text that can be written."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
