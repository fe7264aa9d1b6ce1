"""Progress of training: a Rich bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress(Callback):
    """Epoch, loss and time left. Nothing is shown of a training that takes less than two seconds.

    Args:
        console: where to write.
        patience: seconds before the bar, or between two plain lines.
    """

    def __init__(self, console: Console, patience: float = 2.0) -> None:
        self.console, self.patience = console, patience
        self._bar: Progress | None = None
        self._task: Any = None
        self._last = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        """Move the bar, or print a line now and then."""
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        steps = trainer.estimated_stepping_batches
        loss = trainer.callback_metrics.get("loss")
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}" + ("" if loss is None else f"  loss {loss:.3f}")
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, description=text)
        elif now - self._last > self.patience:
            self._last = now
            if self.console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, console=self.console, transient=True)
                self._task = self._bar.add_task(text, total=steps)
                self._bar.start()
            else:
                self.patience = min(self.patience * 2, 60.0)
                self.console.print(f"{text}  step {trainer.global_step}/{steps}", highlight=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Remove the bar."""
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._stop()
