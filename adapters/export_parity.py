"""The proof of an export: answers of what was written beside those of the adapter, on the same batches of images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import LimpetError

if TYPE_CHECKING:
    from .adapter import Adapter

COUNT = 32  # images that are drawn for the comparison
BATCH = 16  # both sides see the same batches: the last bits depend on what an image is computed together with
RELATIVE, SMALLEST = 1e-5, 10.0


@dataclass(frozen=True)
class Parity:
    """How far answers lie apart.

    Attributes:
        difference: largest absolute difference of two scores.
        scale: largest absolute score.
        images: how many were compared.
        same: for how many of them the best class is the same one.
    """

    difference: float
    scale: float
    images: int
    same: int

    @property
    def limit(self) -> float:
        """Largest difference that is taken for rounding: 1e-5 of the largest score, and of 10 where all are smaller.

        Float32 rounding through the layers of a tower stays below it; a wrong weight or activation lies far above.
        """
        return RELATIVE * max(SMALLEST, self.scale)

    @property
    def holds(self) -> bool:
        """Whether the two are the same but for rounding (NaN is not)."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} on {self.images} images (limit {self.limit:.1e}; "
            f"scores up to {self.scale:.3g}), same best class for {self.same} of {self.images}"
        )


def compare(expected: Tensor, found: Tensor) -> Parity:
    """Compare scores (N, C)."""
    if expected.shape != found.shape:
        raise LimpetError(f"The export gives scores of shape {tuple(found.shape)}, the adapter {tuple(expected.shape)}.")
    expected, found = expected.double(), found.double()
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    return Parity(float((expected - found).abs().max()), float(expected.abs().max()), len(expected), same)


def batch_of(adapter: Adapter, images: Tensor) -> dict[str, Any]:
    """What `adapter` reads of preprocessed images (B, 3, H, W); the number of images is left open for exporters."""
    batch: dict[str, Any] = {"image": images}
    if adapter.needs(adapter.config, adapter.backbone.spec) == "patches":
        from .tokens import image_token_features

        block = adapter.token_block(adapter.config, adapter.backbone.spec)
        batch["tokens"] = image_token_features(adapter.backbone, images, block)
    return batch


@torch.no_grad()
def answers(adapter: Adapter, images: Tensor) -> Tensor:
    """Scores (N, C) of an adapter for preprocessed images; one that orders images answers about its first instruction."""

    def answer(part: Tensor) -> Tensor:
        batch = batch_of(adapter, part) | {"path": [""] * len(part), "index": torch.arange(len(part))}
        if adapter.task == "ordering":
            batch["instruction"] = [adapter.classes.text(adapter.classes.names[0])] * len(part)
        return adapter.logits(batch)

    return in_batches(answer, images)


def in_batches(answer: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply a function to batches of images and join what it gives."""
    return torch.cat([answer(part) for part in torch.split(images, BATCH)])


def proof_images(adapter: Adapter, paths: Sequence[str] = ()) -> Tensor:
    """Preprocessed images (N, 3, H, W): the given files, else drawn fish of all kinds."""
    mode = "squash" if adapter.task == "ordering" else None
    transform = adapter.backbone.transform(resize_mode=mode)
    if paths:
        read = importlib.import_module(".datamodules.images", __package__).read_image
        return torch.stack([transform(read(Path(path))) for path in paths])
    drawing = importlib.import_module(".datamodules.reef_drawing", __package__)
    size = max(64, adapter.backbone.image_size)
    scenes = (drawing.draw_scene(number % 16, number, size=size) for number in range(COUNT))
    return torch.stack([transform(scene.image) for scene in scenes])
