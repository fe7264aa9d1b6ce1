"""IVLP: independent prompts in the layers of both towers (Khattak et al. 2023, arXiv 2210.03117 and 2307.06948)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..adapter import Needs
from ..blocks import image_problem
from ..deep_prompts import DeepPrompts, count_problem, depth_of, depth_problem, random_prompts
from ..prompting import support

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

PAPER_DEPTH = 12


@dataclass
class Config:
    """Settings of IVLP; the defaults are the MaPLe paper's.

    Attributes:
        text_length: text prompt tokens in every prompted layer.
        image_length: the same in the image tower; 0 leaves that tower alone (deep language prompting).
        text_depth: text layers that get prompts of their own, counted from the first. A number, a fraction of the
            tower, "all", or None for the paper's 12, cut to a smaller tower.
        image_depth: the same in the image tower.
        init: words whose first tokens start the text prompts of layer 0; the other words stay in the sentence.
            None, or fewer words than prompts: N(0, 0.02^2).
    """

    text_length: int = 2
    image_length: int = 2
    text_depth: Any = None
    image_depth: Any = None
    init: str | None = "a photo of a"


class IVLP(DeepPrompts):
    """Prompts behind the patches and before the class text, without coupling between the towers.

    Learnable: `text_vectors` (text depth, n, text width) and `image_vectors` (image depth, n, vision width).
    """

    text_vectors: nn.Parameter
    image_vectors: nn.Parameter | None

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs a native text transformer and, for image prompts, a native ViT."""
        text = (
            support(spec)
            or count_problem(config.text_length, "method.text_length")
            or count_problem(config.image_length, "method.image_length", 0)
            or depth_problem(config.text_depth, spec.text_layers, "method.text_depth", "text", spec.name)
        )
        if text or not config.image_length:
            return text
        return image_problem(spec) or depth_problem(
            config.image_depth, spec.vision_layers, "method.image_depth", "image", spec.name
        )

    @classmethod
    def needs(cls, config: Config, spec: BackboneSpec) -> Needs:
        """Images; without image prompts, frozen features."""
        return "images" if config.image_length else "features"

    def build(self) -> None:
        """Start the text prompts from words and draw the others."""
        config: Config = self.config
        spec = self.backbone.spec
        depth = depth_of(config.text_depth, PAPER_DEPTH, spec.text_layers)
        self.note_depth(depth, PAPER_DEPTH, config.text_depth, "text")
        self.text_vectors = self.start_text_prompts(depth, config.text_length, config.init)
        self.image_vectors = None
        if config.image_length:
            depth = depth_of(config.image_depth, PAPER_DEPTH, spec.vision_layers)
            self.note_depth(depth, PAPER_DEPTH, config.image_depth, "image")
            vectors = random_prompts(depth, config.image_length, spec.vision_width, self.dtype)
            self.image_vectors = nn.Parameter(vectors)

    def text_prompts(self) -> Sequence[Tensor]:
        """The learned text prompts of every layer."""
        return self.text_vectors.unbind()

    def image_prompts(self) -> Sequence[Tensor]:
        """The learned image prompts of every layer."""
        return () if self.image_vectors is None else self.image_vectors.unbind()
