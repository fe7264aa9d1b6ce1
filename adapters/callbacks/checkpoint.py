"""Checkpoints at epoch ends: one to resume from, written atomically, and the best state on val in memory.

Both are Lightning `Checkpoint`s, which are called after the module's own epoch-end hook.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from ..adapter import Batch
from ..errors import RunError
from ..loggers import RunLog
from ..module import AdaptationModule
from ..tasks import task_of

PARTS = ("epoch", "global_step", "loops", "state_dict", "optimizer_states", "lr_schedulers", "callbacks")


def usable(path: Path, module: torch.nn.Module) -> Path | None:
    """The checkpoint to resume from, read as tensors and numbers only; None where there is none.

    Args:
        path: the file.
        module: what is trained; the checkpoint must hold its tensors.

    Raises:
        RunError: it is damaged, holds more than tensors and numbers, or is of another training.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        reason = _unfit(content, module.state_dict())
    except Exception as error:  # damaged files raise nearly anything
        plain = isinstance(error, pickle.UnpicklingError)
        reason = "it holds other objects than tensors and numbers" if plain else f"it is damaged ({type(error).__name__})"
    if reason:
        raise RunError(
            f"{path} cannot be resumed from: {reason}. Delete it and resume again, and this training starts at its first epoch."
        )
    return path


def _unfit(content: Any, own: Mapping[str, Tensor]) -> str:
    """Why a checkpoint does not belong to this training; empty where it does."""
    missing = [key for key in PARTS if not isinstance(content, dict) or key not in content]
    if missing:
        return f"it has no {', '.join(missing)}"
    kept = content["state_dict"]
    if set(kept) != set(own) or any(kept[name].shape != tensor.shape for name, tensor in own.items()):
        return "its tensors are those of another training"
    return ""


class ResumeCheckpoint(Checkpoint):
    """Write `last.ckpt` at the end of every epoch: beside it first, then renamed, so a good one is never half replaced.

    Args:
        path: the file.
        every: write every so many epochs (the last epoch always).
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path, self.every = path, every

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save where due."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            for logger in trainer.loggers:
                if isinstance(logger, RunLog):  # Lightning logs after this, which an interruption here would prevent
                    logger.log_metrics({"epoch": trainer.current_epoch, **trainer.callback_metrics}, trainer.global_step - 1)
                    logger.save()
            beside = self.path.with_suffix(".ckpt.part")
            trainer.save_checkpoint(beside, weights_only=False)
            if trainer.is_global_zero:
                os.replace(beside, self.path)


class KeepBest(Checkpoint):
    """Remember the adapter's state with the best accuracy (or Spearman) on val (`evaluate.select: val`); of equals the first is kept.

    Args:
        batches: held-out batches, evaluated at the end of every epoch.
        split: where they come from, "val" or "test" (as published); names the column of the log.
    """

    def __init__(self, batches: Sequence[Batch], split: str = "val") -> None:
        self.batches, self.split = batches, split
        self.accuracy = -2.0
        self.epoch = -1
        self.state: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Evaluate, and keep the state where it is better."""
        assert isinstance(pl_module, AdaptationModule)
        adapter = pl_module.adapter
        task = task_of(adapter)
        accuracy = float(task.evaluate(adapter, self.batches, adapter.classes).metrics().get(task.HEADLINE, 0.0))
        pl_module.log(f"{self.split}_{task.HEADLINE}", accuracy, rank_zero_only=True)
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, trainer.current_epoch
            self.state = {k: v.detach().cpu().clone() for k, v in adapter.state_dict().items()}

    def restore(self, module: AdaptationModule) -> None:
        """Put the best state back into the adapter."""
        if self.state:
            module.adapter.load_state_dict(self.state)
            module.adapter.selected["epoch"] = self.epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"accuracy": self.accuracy, "epoch": self.epoch, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.accuracy, self.epoch, self.state = state_dict["accuracy"], state_dict["epoch"], state_dict["state"]
        self.state = {k: torch.as_tensor(v) for k, v in self.state.items()}
