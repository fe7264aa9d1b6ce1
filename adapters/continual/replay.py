"""Replay: kept images of earlier sessions are trained on beside the new ones (Chaudhry et al. 2019, arXiv 1902.10486)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .base import Regulariser, Task, learns_by_gradient

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch
    from .configs import ContinualConfig


class Replay(Regulariser):
    """(L(new images) + weight * L(kept images)) / (1 + weight), over all classes so far."""

    sees_all = True

    def __init__(self, config: ContinualConfig) -> None:
        super().__init__(config)
        self.memory = int(self.config.memory)

    def problem(self, adapter: Adapter) -> str | None:
        """Needs a loss to be minimised."""
        if learns_by_gradient(adapter):
            return None
        return (
            f"continual=replay trains on kept images, and '{adapter.variant(adapter.config)}' is not trained by gradients: it "
            "keeps what it needs of earlier sessions itself. Use continual=none."
        )

    def start(self, adapter: Adapter, task: Task) -> None:
        """Take the kept images."""
        self.task = task

    def loss(self, adapter: Adapter, batch: Batch, step: int) -> Tensor:
        """Loss on the batch, and on as many kept images."""
        loss = adapter.loss(batch)
        if self.task.exemplars is None:
            return loss
        weight = float(self.config.weight)
        kept, classes = self.task.exemplars(step)
        moved: dict[str, Any] = {k: v.to(adapter.backbone.device) if isinstance(v, Tensor) else v for k, v in kept.items()}
        if classes is None:
            return (loss + weight * adapter.loss(moved)) / (1 + weight)
        with adapter.answering(classes):
            return (loss + weight * adapter.loss(moved)) / (1 + weight)
