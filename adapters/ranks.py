"""Several devices: Lightning repeats the command line once for each; only the first process writes and speaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch

from .errors import RunError

_RUN_DIR = "LIMPET_RUN_DIR"


def rank() -> int:
    """Number of this process among those of one run; 0 where there is one."""
    return int(os.environ.get("LOCAL_RANK", "0") or 0)


def shared_run_dir(make: Callable[[], Path]) -> Path:
    """The run folder: made by the first process, which tells the others by an environment variable."""
    if rank() == 0:
        path = make()
        os.environ[_RUN_DIR] = str(path.resolve())
        return path
    if _RUN_DIR not in os.environ:
        raise RunError("Start one `limpet` command only: with trainer.devices it starts the other processes itself.")
    return Path(os.environ[_RUN_DIR])


def leave_group() -> None:
    """End the group of processes after training, so that the first one evaluates all images by itself."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class LateLoader(lightning.LightningDataModule):
    """Makes the training loader when the group of processes exists, so that each gets its share of the images.

    Args:
        make: makes the loader.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> Any:
        """The loader."""
        return self.make()
