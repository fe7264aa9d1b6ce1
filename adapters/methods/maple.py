"""MaPLe: text prompts in several layers, and image prompts made from them (Khattak et al. 2023, arXiv 2210.03117)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..blocks import image_problem
from ..deep_prompts import DeepPrompts, count_problem, depth_of, depth_problem
from ..prompting import support

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

PAPER_DEPTH = 9


@dataclass
class Config:
    """Settings of MaPLe; the defaults are the paper's base-to-new setting.

    Attributes:
        length: prompt tokens in every prompted layer of each tower.
        depth: layers that get prompts of their own, counted from the first, in both towers. A number, a fraction of
            the shallower tower, "all", or None for the paper's 9, cut to a smaller tower.
        init: words whose first tokens start the text prompts of layer 0; the other words stay in the sentence.
            None, or fewer words than prompts: N(0, 0.02^2).
    """

    length: int = 2
    depth: Any = None
    init: str | None = "a photo of a"


class MaPLe(DeepPrompts):
    """The text prompts P_j of layer j are learned; the image prompts of layer j are F_j(P_j), F_j a learned linear map.

    Learnable: `text_vectors` (depth, n, text width) and `couplings`, one linear map a layer.
    """

    text_vectors: nn.Parameter
    couplings: nn.ModuleList

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs a native ViT and a native text transformer."""
        problem = image_problem(spec) or support(spec) or count_problem(config.length, "method.length")
        if problem:
            return problem
        tower = "image" if spec.vision_layers < spec.text_layers else "text"
        return depth_problem(config.depth, cls._layers(spec), "method.depth", tower, spec.name)

    @staticmethod
    def _layers(spec: BackboneSpec) -> int:
        return min(spec.text_layers, spec.vision_layers)

    def build(self) -> None:
        """Start the text prompts from words; draw the first map, and the deeper ones alike, as published."""
        config: Config = self.config
        spec = self.backbone.spec
        layers = self._layers(spec)
        depth = depth_of(config.depth, PAPER_DEPTH, layers)
        self.note_depth(depth, PAPER_DEPTH, config.depth, "image" if layers < spec.text_layers else "text")
        self.text_vectors = self.start_text_prompts(depth, config.length, config.init)
        first, deeper = (nn.Linear(spec.text_width, spec.vision_width, dtype=self.dtype) for _ in range(2))
        self.couplings = nn.ModuleList([first, *(copy.deepcopy(deeper) for _ in range(depth - 1))])

    def text_prompts(self) -> Sequence[Tensor]:
        """The learned text prompts of every layer."""
        return self.text_vectors.unbind()

    def image_prompts(self) -> Sequence[Tensor]:
        """The image prompts of every layer, from the text prompts of the same layer."""
        return [couple(vectors) for couple, vectors in zip(self.couplings, self.text_vectors.unbind(), strict=True)]
