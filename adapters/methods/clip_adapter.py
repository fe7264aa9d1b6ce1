"""CLIP-Adapter: a bottleneck behind the image tower, blended with its feature (Gao et al. 2021, arXiv 2110.04544)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Adapter, Batch
from ..errors import RecipeError

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec


@dataclass
class Config:
    """Settings of CLIP-Adapter.

    Attributes:
        ratio: share of the adapted feature, in [0, 1]; fixed at 0.2 in the released code.
        reduction: width of the bottleneck is D / reduction.
    """

    ratio: float = 0.2
    reduction: int = 4


class ClipAdapter(Adapter):
    """f' = ratio relu(W2 relu(W1 f)) + (1 - ratio) f on the raw image feature f; no biases, text features stay.

    The learnable tensors are `down` (D / reduction, D) and `up` (D, D / reduction). Both layers end in a ReLU, the second
    too, as released. The first step is not zero-shot CLIP: the layers start from PyTorch's random default.
    """

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """Both layers are trained."""
        return True

    def build(self) -> None:
        """Create the two layers."""
        config: Config = self.config
        width = self.backbone.embed_dim
        if not 0 <= config.ratio <= 1:
            raise RecipeError(f"method.ratio is {config.ratio}; it must lie in [0, 1].")
        if not 1 <= config.reduction <= width:
            raise RecipeError(f"method.reduction is {config.reduction}; it must lie between 1 and {width}.")
        hidden = width // config.reduction
        self.down = nn.Parameter(torch.empty(hidden, width, dtype=self.dtype))
        self.up = nn.Parameter(torch.empty(width, hidden, dtype=self.dtype))
        for weight in (self.down, self.up):
            nn.init.kaiming_uniform_(weight, a=5**0.5)

    def adapted(self, features: Tensor) -> Tensor:
        """The bottleneck's answer to raw features (B, D), at least zero in every entry."""
        return F.relu(F.linear(F.relu(F.linear(features, self.down)), self.up))

    def encode_image(self, batch: Batch) -> Tensor:
        """Blended features (B, D), unit norm; where the bottleneck answers zero alone, zero."""
        raw, ratio = self.image_feature(batch), self.config.ratio
        return F.normalize(ratio * self.adapted(raw) + (1 - ratio) * raw, dim=-1)
