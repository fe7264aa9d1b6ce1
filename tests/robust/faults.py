"""Something goes wrong at one of the changes that a command line of Limpet makes below a folder.

A change is a file opened for writing, renamed or removed, or a folder made. Faults:

    kill       SIGKILL just before that change
    torn       SIGKILL in the middle of writing the file that is about to be renamed (or before a change of another kind)
    pause      SIGSTOP just before that change
    full       from then on nothing can be written there: no space left
    readonly   the same, but the file system is read-only
    wipe       the folder is emptied
    clock      from then on the clock is two days behind
    none       nothing
"""

import contextlib
import errno
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
BACK = 2 * 86400


class Fault:
    """Counts changes and acts at one of them.

    Args:
        kind: one of the above.
        folder: where changes count.
        at: number of the change, or "PATTERN:NUMBER" to count only those of which "EVENT PATH" has that pattern in it.
    """

    def __init__(self, kind, folder, at):
        self.kind, self.folder = kind, os.path.realpath(folder)
        self.pattern, _, number = at.rpartition(":")
        self.at = int(number)
        self.seen, self.busy = 0, False

    def __call__(self, event, arguments):
        """The hook that the interpreter calls."""
        if self.busy or event not in CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            if not (set(mode) & set("wxa+") if isinstance(mode, str) else (flags or 0) & WRITING):
                return
        self.busy = True
        try:
            path = os.path.realpath(os.fsdecode(arguments[0]))
        finally:
            self.busy = False
        if path.startswith(self.folder) and re.search(self.pattern, f"{event} {path}"):
            self.seen += 1
            self.act(os.fsdecode(arguments[0]), event)

    def act(self, path, event):
        """What goes wrong now, if anything."""
        if self.kind in ("kill", "torn") and self.seen == self.at:
            self.busy = True
            if self.kind == "torn" and event == "os.rename" and Path(path).is_file():
                os.truncate(path, Path(path).stat().st_size // 2)
            print(f"\n{event.removeprefix('os.')} {Path(path).name}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "pause" and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.kind in ("full", "readonly") and self.seen >= self.at and event in ("open", "os.mkdir"):
            number = errno.ENOSPC if self.kind == "full" else errno.EROFS
            raise OSError(number, os.strerror(number), path)
        if self.kind == "wipe" and self.seen == self.at:
            self.busy = True
            for child in Path(self.folder).iterdir():
                with contextlib.suppress(OSError):
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
            self.busy = False
        if self.kind == "clock" and self.seen == self.at:
            now, now_ns = time.time, time.time_ns
            time.time, time.time_ns = lambda: now() - BACK, lambda: now_ns() - BACK * 10**9


def run(place, out, environment, words, kind, folder, at):
    """In a process of its own: `limpet WORDS`. Its words go to two files; the last line of the first is the number of
    changes, or before a kill what would have been done next.
    """
    os.setsid()
    os.chdir(place)
    for number, path in enumerate(out, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    from limpet import feature_store
    from limpet.cli import main

    feature_store.FLUSH_SECONDS = 0.0  # every batch of features is a file of its own: more to interrupt
    fault = Fault(kind, folder, at)
    sys.addaudithook(fault)
    code = main(words)
    print(f"\n{fault.seen}", flush=True)
    sys.exit(code)
