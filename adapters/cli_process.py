"""The `limpet` command as a process: any output can be written to, and signals and closed pipes have their exit codes."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import runs


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Output that takes any text: what its encoding lacks becomes a ?, and where there is none (`>&-`) words are lost."""
    streams = sys.stdout, sys.stderr
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    kept = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream, errors in kept:
        if errors == "strict" or (errors == "surrogateescape" and stream.encoding.lower() != "utf-8"):
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in kept:
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                stream.reconfigure(errors=errors)
        sys.stdout, sys.stderr = streams


def close_output() -> int:
    """After `limpet recipes | head`: nobody reads any more, and that is no failure, unless it ends a run."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if _unfinished() is None:
        return 0
    after_interrupt()
    return 128 + 13  # as a program that SIGPIPE ends


def notice_signals(seen: list[int]) -> dict[int, Any]:
    """Remember that Ctrl-C was pressed or the process asked to end, whoever handles it; returns the handlers to restore."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    owner = os.getpid()

    def interrupted(number: int, frame: Any) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    def terminated(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process of a data loader, which inherited this
            os._exit(128 + number)
        seen.append(number)
        raise SystemExit(128 + number)

    previous = {}
    for number, usual, handler in (
        (signal.SIGINT, signal.default_int_handler, interrupted),
        (signal.SIGTERM, signal.SIG_DFL, terminated),
    ):
        if signal.getsignal(number) == usual:
            previous[int(number)] = signal.signal(number, handler)
    return previous


def _unfinished() -> Path | None:
    """The run that this command was at, where it has not finished."""
    run = runs.current()
    return run if run is not None and runs.is_run(run) and not runs.is_finished(run) else None


def after_interrupt() -> None:
    """Say how the run that was interrupted goes on; of several processes the first says it."""
    if f"{__package__}.ranks" in sys.modules and importlib.import_module(".ranks", __package__).rank():
        return
    run = _unfinished()
    if run is not None:
        complain(f"continue with: limpet resume {runs.short(run)}", "interrupted:")
    else:
        complain("nothing to resume.", "interrupted:")


def complain(message: str, head: str = "error:") -> None:
    """One sentence on stderr; the first word in red on a terminal."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"\033[1;31m{head}\033[0m {message}" if colour else f"{head} {message}", file=sys.stderr)
