"""TaskRes: a learned residual for each class beside its frozen text feature (Yu et al. 2023, arXiv 2211.10277)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Adapter, Batch

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet


@dataclass
class Config:
    """Settings of TaskRes.

    Attributes:
        alpha: factor of the residual; 0.5 in the paper, 1 for Flowers102.
    """

    alpha: float = 0.5


class TaskRes(Adapter):
    """Weight of a class: norm(t + alpha x), t the mean of its raw prompt features, x its residual, zero at first.

    The learnable tensor is `residual` (C, D). It is measured against raw text features, whose norm is far from 1. A class
    that was not trained has no residual: its column is zero-shot.
    """

    residual: nn.Parameter

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """The residuals are trained."""
        return True

    @classmethod
    def zero_shot_columns(cls, config: Config, spec: BackboneSpec) -> bool:
        """A new class has no residual."""
        return True

    @classmethod
    def per_class(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """A residual each."""
        return ("residual",)

    def build(self) -> None:
        """Create the residuals."""
        self.residual = nn.Parameter(torch.zeros(len(self.classes), self.backbone.embed_dim, dtype=self.dtype))

    def data_sized(self) -> tuple[str, ...]:
        """Classes may have been added before saving."""
        return ("residual",)

    def compute_class_weights(self) -> Tensor:
        """Text features with their residuals (C, D), unit norm."""
        place = {name: i for i, name in enumerate(self._trained)}
        rows = [place.get(name, len(place)) for name in self.classes.names]
        residual = torch.cat([self.residual, self.residual.new_zeros(1, self.residual.shape[1])])[rows]
        return F.normalize(self.raw_text_weights() + self.config.alpha * residual, dim=-1)

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Start a new class from its text: residual zero."""
        new = self.untrained(classes)
        zeros = self.residual.new_zeros(len(new), self.residual.shape[1])
        self.replace_tensor("residual", torch.cat([self.residual.detach(), zeros]))
        self._trained = (*self._trained, *new)
        super().add_classes(classes, batches)
