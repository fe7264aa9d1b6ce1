"""A script: run a command line of Limpet, and let something go wrong at its N-th change below a folder.

    python faults.py FAULT FOLDER N WORDS...

A change is a file opened for writing, renamed or removed, or a folder made. FAULT is kill (SIGKILL just before that change),
full (from then on nothing can be written there: no space left), readonly (the same, but the file system is read-only),
wipe (the folder is emptied) or none. The last line printed is the number of changes.
"""

import contextlib
import errno
import os
import shutil
import signal
import sys
from pathlib import Path

CHANGES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault:
    """Counts changes and acts at one of them."""

    def __init__(self, kind, folder, at):
        self.kind, self.folder, self.at = kind, os.path.realpath(folder), at
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
            inside = os.path.realpath(os.fsdecode(arguments[0])).startswith(self.folder)
        finally:
            self.busy = False
        if inside:
            self.seen += 1
            self.act(os.fsdecode(arguments[0]), event)

    def act(self, path, event):
        """What goes wrong now, if anything."""
        if self.kind == "kill" and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind in ("full", "readonly") and self.seen >= self.at and event in ("open", "os.mkdir"):
            number = errno.ENOSPC if self.kind == "full" else errno.EROFS
            raise OSError(number, os.strerror(number), path)
        if self.kind == "wipe" and self.seen == self.at:
            self.busy = True
            for child in Path(self.folder).iterdir():
                with contextlib.suppress(OSError):
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
            self.busy = False


if __name__ == "__main__":
    fault = Fault(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.addaudithook(fault)
    from limpet.cli import main

    code = main(sys.argv[4:])
    print(f"\n{fault.seen}", flush=True)
    sys.exit(code)
