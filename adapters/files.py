"""Files that are whole or absent: written beside, then renamed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds either its old content or all of the new.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunError(f"Could not write {path}: {error.strerror or error}. Free some space or choose another folder.") from error


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, readable and with keys in the order given."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV atomically; the columns are those of the first row unless given."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=list(columns or (rows[0] if rows else ())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def clear(run_dir: Path) -> None:
    """Remove what processes that were killed while writing left in a run's folder."""
    for path in (*run_dir.glob("*.part"), *run_dir.glob("log/*.part"), *run_dir.glob("sessions/**/*.part")):
        path.unlink(missing_ok=True)
    for folder in run_dir.glob("adapter/.unfinished-*"):
        shutil.rmtree(folder, ignore_errors=True)


def printable(path: str) -> str:
    """A path whose bytes are no valid text (possible on Linux) as text that can be written."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
