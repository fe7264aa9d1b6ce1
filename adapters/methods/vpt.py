"""VPT: learnable tokens in the layers of the image tower, text left as it is (Jia et al. 2022, arXiv 2203.12119)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..blocks import image_problem
from ..deep_prompts import DeepPrompts, count_problem, depth_of, depth_problem, random_prompts

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

PAPER_DEPTH = 12


@dataclass
class Config:
    """Settings of VPT for CLIP, as the MaPLe paper (Khattak et al. 2023, arXiv 2210.03117) runs it.

    Attributes:
        length: prompt tokens in every prompted layer.
        depth: layers that get prompts of their own, counted from the first; 1 is VPT-shallow. A number, a fraction of
            the tower, "all", or None for the paper's 12, cut to a smaller tower.
    """

    length: int = 8
    depth: Any = None


class VPT(DeepPrompts):
    """Prompts behind the patch tokens of the first layers; each layer's own replace what the layer before made of its.

    The learnable tensor is `prompts` (depth, length, W), W being the width of the image tower. The text classifier is
    zero-shot and computed once.
    """

    prompts: nn.Parameter

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs a native ViT image tower; any text tower will do."""
        return (
            image_problem(spec)
            or count_problem(config.length, "method.length")
            or depth_problem(config.depth, spec.vision_layers, "method.depth", "image", spec.name)
        )

    def build(self) -> None:
        """Draw the prompts."""
        config: Config = self.config
        spec = self.backbone.spec
        depth = depth_of(config.depth, PAPER_DEPTH, spec.vision_layers)
        self.note_depth(depth, PAPER_DEPTH, config.depth, "image")
        self.prompts = nn.Parameter(random_prompts(depth, config.length, spec.vision_width, self.dtype))

    def image_prompts(self) -> Sequence[Tensor]:
        """The learned prompts of every layer."""
        return self.prompts.unbind()
