"""One process at a time works on a run: it holds a file that the operating system lets go of, however the process ends."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RunError
from .files import remove
from .ranks import rank

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_BEHIND = 1 << 20  # Windows keeps others from reading a locked byte: it lies behind the words about who holds it


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Work on a run alone. The further processes of a run on several devices belong to its first one, which holds it for them.

    Where the file system knows no locks, or cannot be written, nothing is held.

    Raises:
        RunError: another process works on the run.
    """
    path = run_dir / LOCK
    file = _take(path) if rank() == 0 else None
    try:
        yield
    finally:
        if file is not None:
            _release(file, path)


def _take(path: Path) -> int | None:
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # a disk that cannot be written, which the run's own files will say
            return None
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            os.close(file)
            raise RunError(f"{path.parent} is being worked on by another process{holder}: wait for it, or stop it.") from None
        except OSError:
            os.close(file)
            remove(path)
            return None
        if _is(file, path):
            with suppress(OSError):  # a full disk
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()} {int(time.time())} {platform.node()}".encode())
            return file
        os.close(file)  # who held it before has removed it since it was opened


def _lock(file: int) -> None:
    """Lock an open file; unlike flock's, this lock is not handed on to workers that read images, and ends with this process."""
    if sys.platform == "win32":
        os.lseek(file, _BEHIND, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is(file: int, path: Path) -> bool:
    """Whether an open file is the one of that path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _holder(file: int) -> str:
    """Who holds a lock, in brackets; empty where it has not said so yet."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        process, since, machine = os.read(file, 400).decode("utf-8", "replace").split(" ", 2)
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
        return f" (pid {int(process)} on {machine}, since {begun})"
    except (OSError, ValueError, OverflowError):
        return ""


def _release(file: int, path: Path) -> None:
    if os.name == "posix":  # removed while it is held: whoever opened it meanwhile sees that, and opens a new one
        remove(path)
        os.close(file)
    else:  # Windows removes no open file
        os.close(file)
        remove(path)
