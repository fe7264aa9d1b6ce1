"""Progress of work that may take longer than two seconds."""

from __future__ import annotations

import time
from typing import Any


class Progress:
    """A bar that appears only when the work lasts longer than two seconds; plain lines without a terminal."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        self.what, self.total, self.shown, self.done = what, total, shown, 0
        self._started = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count `count` more images as done."""
        self.done = min(self.done + count, self.total)
        now = time.monotonic()
        if not self.shown or now - self._started < 2:
            return
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal:
            if now - self._said > 15:
                self._said = now
                console.print(f"{self.what}: {self.done} of {self.total}", highlight=False)
            return
        if self._bar is None:
            from rich import progress

            self._bar = progress.Progress(
                "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        self._bar.update(self._task, completed=self.done)
