"""The one LightningModule: trains any adapter with any Trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from .adapter import Adapter, Batch
from .errors import LimpetError, RunError
from .gathering import share
from .optim import build_optimiser, build_schedule, unreached
from .recipe import OptimConfig

if TYPE_CHECKING:
    from .continual import Regulariser


def seed_step(seed: int) -> None:
    """Seed PyTorch's generators that are in use.

    `torch.manual_seed` also does so for devices nobody has touched: each call is kept, with a traceback, until they are. In a short
    step that is a good part of the time, and in a long training memory that grows.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
        torch.xpu.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


class AdaptationModule(lightning.LightningModule):
    """Gradient training of an adapter; the frozen backbone is neither registered nor saved.

    Randomness inside a step (dropout, sampled vocabulary) is seeded from (seed, step), so a resumed run repeats an
    uninterrupted one.

    Args:
        adapter: an adapter after `setup` (and `fit_closed_form`, where it has one).
        optim: optimiser and schedule; the default is CoOp's.
        seed: base of the per-step seeds.
        regulariser: what is done against forgetting, after its `start`; None: plain training.
    """

    def __init__(
        self, adapter: Adapter, optim: OptimConfig | None = None, seed: int = 1, regulariser: Regulariser | None = None
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.optim = optim or OptimConfig()
        self.seed = seed
        self.regulariser = regulariser
        self._checked = False

    def setup(self, stage: str) -> None:
        """Take the frozen backbone to the device of the Trainer."""
        self.adapter.backbone.to(self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        if not self._checked:
            self._check(batch)
        seed_step((self.seed * 1_000_003 + self.global_step) % 2**63)
        if self.regulariser is None:
            loss = self.adapter.loss(batch)
        else:
            loss = self.regulariser.loss(self.adapter, batch, self.global_step)
        if not torch.isfinite(loss):
            raise RunError(
                f"The loss became {loss.item()} at step {self.global_step}: lower optim.lr, or use trainer.precision=32-true."
            )
        if not self.adapter.joins_batches:
            loss = loss * share(0 if batch.get("repeated") else len(batch["path"]), loss.device)
        # The mean over the devices, where there are several. Lightning rounds mean numbers of images: a step counts as a step.
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return loss

    def _check(self, batch: Batch) -> None:
        wanted = self.adapter.batch_keys(self.adapter.config, self.adapter.backbone.spec)
        missing = [key for key in wanted if key not in batch]
        if missing:
            raise LimpetError(f"'{self.adapter.name}' needs '{missing[0]}' in every batch; the data give: {', '.join(batch)}.")
        self._checked = True

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Tell the regulariser, after the optimiser."""
        if self.regulariser is not None:
            self.regulariser.stepped(self.adapter, self.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a regulariser changes within a session."""
        if self.regulariser is not None:
            checkpoint["regulariser"] = self.regulariser.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        if self.regulariser is not None:
            self.regulariser.load_state_dict(checkpoint.get("regulariser", {}))

    def on_train_epoch_end(self) -> None:
        """Tell the adapter, before any checkpoint is written."""
        self.adapter.epoch_ended(self.current_epoch, self._epochs(to_the_last_step=True))

    def _epochs(self, to_the_last_step: bool = False) -> int:
        """Number of epochs of the plan, or of those until a Trainer's `max_steps`, where it sets that alone or it counts.

        Raises:
            RunError: the Trainer sets neither.
        """
        planned = int(self.trainer.max_epochs or 1)
        if planned > 0 and not (to_the_last_step and self.trainer.max_steps > 0):
            return planned
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise RunError("The Trainer has no end: give it max_epochs or max_steps, which the learning rate's schedule needs.")
        if self.trainer.train_dataloader is None:
            self.trainer.fit_loop.setup_data()  # before that the number of batches is not known
        batches = self.trainer.num_training_batches  # infinite where the loader has no length
        each = math.ceil(batches / self.trainer.accumulate_grad_batches) if math.isfinite(batches) else math.inf
        return max(1, math.ceil(steps / max(1, each)))

    def configure_optimizers(self) -> Any:
        """Optimiser and, per epoch or step, its schedule."""
        names = [name for name, parameter in self.adapter.named_parameters() if parameter.requires_grad]
        optimiser = build_optimiser(self.adapter.learnable(), self.optim, names)
        by_step, epochs = self.optim.interval == "step", self._epochs()
        total = int(self.trainer.estimated_stepping_batches) if by_step else epochs
        schedule, short = build_schedule(optimiser, self.optim, total), unreached(self.optim, total)
        self.adapter.notes += [short] if short and short not in self.adapter.notes else []
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step" if by_step else "epoch"}}
