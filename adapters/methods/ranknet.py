"""RankNet: a linear read-out of frozen features, trained on pairs (Burges et al. 2005); a baseline for ordering."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Batch
from ..gathering import gathered
from ..ordering_adapter import OrderingAdapter

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec


@dataclass
class Config:
    """Settings of RankNet.

    Attributes:
        standardise: bring each feature to mean 0 and sd 1 over the training images first.
    """

    standardise: bool = True


class RankNet(OrderingAdapter):
    """score = w f, with loss log(1 + exp(s_j - s_i)) over all pairs of a list with y_i > y_j. The instruction is not read.

    Units of the values come from a straight line through the validation images.
    """

    follows_instructions: ClassVar[bool] = False
    mean: Tensor
    spread: Tensor

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """The read-out is trained."""
        return True

    def build(self) -> None:
        """A read-out of zeros: all images are equal at first."""
        super().build()
        width = self.backbone.embed_dim
        self.weight = nn.Parameter(torch.zeros(width, dtype=self.dtype))
        self.register_buffer("mean", torch.zeros(width, dtype=self.dtype))
        self.register_buffer("spread", torch.ones(width, dtype=self.dtype))

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Mean and sd of the training features."""
        if not self.config.standardise:
            return
        features = torch.cat([self.encode_image(batch) for batch in batches]).double()
        self.mean.copy_(features.mean(0))
        self.spread.copy_(features.std(0, unbiased=False).clamp(min=1e-6))

    def scores(self, batch: Batch) -> Tensor:
        """Scores (B,)."""
        return (self.encode_image(batch) - self.mean) / self.spread @ self.weight

    def loss(self, batch: Batch) -> Tensor:
        """Mean logistic loss over the strictly ordered pairs of the list; 0 where there are none."""
        scores, values = self.scores(batch), batch["value"].to(self.weight)
        if self.together(batch):
            scores, values = gathered(scores), gathered(values)
        above = values[:, None] > values[None]
        losses = F.softplus(scores[None] - scores[:, None])[above]
        return losses.mean() if len(losses) else scores.sum() * 0

    def select(self, batches: Sequence[Batch]) -> None:
        """Fit the units on the validation images."""
        self.fit_units_on(batches)
