"""ZSCL: keep the original CLIP's answers on reference data, and weights near their path (Zheng et al. 2023, arXiv 2303.06628)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import RecipeError
from ..predict import find_images
from .base import Task
from .vr_lwf import VRLwF

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch


class ZSCL(VRLwF):
    """Distillation from the original CLIP, + l2 * sum (theta - theta_start)^2, and a running mean of weights.

    Every `ensemble_every` steps w <- (n w + theta) / (n + 1), w starting at the session's start; w is what remains. Tensors
    are averaged one by one, so of LoRA the factors are, not their product.
    """

    def start(self, adapter: Adapter, task: Task) -> None:
        """Remember the weights of the session's start, and find the reference images."""
        super().start(adapter, task)
        self._start = [p.detach().clone() for p in adapter.learnable()]
        self._mean = [p.detach().clone() for p in adapter.learnable()]
        self._count = 1
        self._files = [] if self.config.images is None else [Path(p) for p in find_images(self.config.images)]

    def references(self, adapter: Adapter, batch: Batch, step: int) -> Batch:
        """A few of the reference images, or the batch where none were given."""
        if not self._files:
            return batch
        generator = torch.Generator().manual_seed((self.task.seed * 15_485_863 + self.task.number * 32_452_843 + step) % 2**63)
        chosen = torch.randperm(len(self._files), generator=generator)[: self.config.reference_batch].tolist()
        images = importlib.import_module("limpet.datamodules.images")
        errors = importlib.import_module("limpet.datamodules.errors")
        transform = adapter.backbone.transform()
        try:
            pixels = torch.stack([transform(images.read_image(self._files[i])) for i in chosen])
        except (errors.DataError, images.UnreadableImage, OSError) as error:
            raise RecipeError(f"A reference image of continual.images={self.config.images} cannot be read: {error}") from None
        return {"image": pixels.to(adapter.backbone.device)}

    def loss(self, adapter: Adapter, batch: Batch, step: int) -> Tensor:
        """Task loss, distillation and distance from the start, the latter summed in float32 at least."""
        loss = super().loss(adapter, batch, step)
        if not self.config.l2:
            return loss
        for parameter, start in zip(adapter.learnable(), self._start, strict=True):
            difference = parameter - start.to(parameter)
            wide = difference if difference.dtype == torch.float64 else difference.float()
            loss = loss + float(self.config.l2) * wide.square().sum()
        return loss

    def stepped(self, adapter: Adapter, step: int) -> None:
        """Take a snapshot into the running mean where one is due."""
        every = self.config.ensemble_every
        if every and step % every == 0:
            with torch.no_grad():
                for mean, parameter in zip(self._mean, adapter.learnable(), strict=True):
                    mean.copy_((mean.to(parameter) * self._count + parameter) / (self._count + 1))
            self._count += 1

    def finish(self, adapter: Adapter) -> None:
        """Put the running mean in the place of the last weights."""
        if self.config.ensemble_every:
            with torch.no_grad():
                for mean, parameter in zip(self._mean, adapter.learnable(), strict=True):
                    parameter.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """The running mean."""
        return {"mean": self._mean, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the running mean up again."""
        self._mean, self._count = [torch.as_tensor(t) for t in state["mean"]], int(state["count"])
