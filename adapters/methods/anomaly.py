"""Zero-shot anomaly detection: patches that look like a damaged object, from value-value attention (AnoVL, arXiv 2308.15939)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import blocks
from ..adapter import Adapter, Batch, Needs
from ..errors import RecipeError, nearest
from ..foveal import grid_of
from ..layers import choose

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

STREAMS = ("value_value", "tokens")
SCORES = ("both", "class", "map")


@dataclass
class Config:
    """Settings of anomaly scores.

    Attributes:
        stream: where patch features come from: "value_value" (a stream of value-value attention beside the tower) or
            "tokens" (the tower's own patch tokens).
        blocks: which blocks the stream goes through (see `limpet.layers`); a run of blocks that ends with the last.
        normal: how the name of a normal object is worded; {} is the class.
        abnormal: how the name of an abnormal one is worded.
        scale: factor of cosines before the softmax over the two states.
        smooth: width in patches of the mean that smooths a map; 1 for none.
        image_score: "class" (the class token's probability), "map" (the map's maximum), or "both" (their mean).
    """

    stream: str = "value_value"
    blocks: Any = "all"
    normal: list[str] = field(default_factory=lambda: ["{}", "flawless {}", "perfect {}", "unblemished {}", "{} without defect"])
    abnormal: list[str] = field(default_factory=lambda: ["damaged {}", "broken {}", "{} with a flaw", "{} with a defect"])
    scale: float = 1.0
    smooth: int = 3
    image_score: str = "both"


class Anomaly(Adapter):
    """p(abnormal) = softmax over (normal, abnormal) of scale * cosine, for the class token and for every patch.

    A state's text feature is the mean over its wordings in `classes.templates`. Images without a label are compared with
    the states of the class that zero-shot CLIP takes them for.
    """

    task: ClassVar[str] = "anomaly"
    resize_mode: ClassVar[str | None] = "squash"  # a crop could cut defects off

    @classmethod
    def supports(cls, config: Any, spec: BackboneSpec) -> str | None:
        """Values need a native ViT; settings that mean nothing are refused here, too."""
        for key, known in (("stream", STREAMS), ("image_score", SCORES)):
            word = getattr(config, key)
            if word not in known:
                raise RecipeError(f"method.{key} is '{word}'.{nearest(word, known)} Known: {', '.join(known)}.")
        for key in ("normal", "abnormal"):
            wordings = getattr(config, key)
            if not wordings or any(text.count("{}") != 1 for text in wordings):
                raise RecipeError(f"method.{key} needs at least one wording, each with one {{}}, the place of the class.")
        if config.smooth < 1 or config.smooth % 2 == 0:
            raise RecipeError(f"method.smooth is {config.smooth}; it is an odd number of patches, 1 for none.")
        problem = blocks.image_problem(spec)
        if problem is None:
            chosen = choose(config.blocks, spec.vision_layers, "method.blocks").blocks
            if chosen != tuple(range(chosen[0], spec.vision_layers)):
                raise RecipeError(f"method.blocks is {config.blocks}; the stream goes through all blocks from one on to the last.")
        return problem

    @classmethod
    def needs(cls, config: Any, spec: BackboneSpec) -> Needs:
        """Whole images."""
        return "images"

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Whether an image is anomalous, and where."""
        return ("label", "anomalous", "defect")

    def reference(self) -> Anomaly:
        """The same with the tower's own patch tokens."""
        return Anomaly(replace(self.config, stream="tokens")).setup(self.backbone, self.classes)  # type: ignore[return-value]

    def states(self) -> Tensor:
        """Text features (C, 2, D), unit norm, of each class in the normal and in the abnormal state."""
        if "states" not in self._derived:
            found = []
            for name in self.classes.names:
                for wordings in (self.config.normal, self.config.abnormal):
                    words = [wording.replace("{}", self.classes.text(name)) for wording in wordings]
                    prompts = [template.replace("{}", word) for template in self.classes.templates for word in words]
                    found.append(F.normalize(self.encode_text(prompts), dim=-1).mean(0))
            stacked = F.normalize(torch.stack(found), dim=-1)
            self._derived["states"] = stacked.view(len(self.classes), 2, -1)
        states: Tensor = self._derived["states"]
        return states

    def check_texts(self) -> None:
        """Raise where a wording does not fit into the context."""
        self.states()

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (B, D) and patch features (B, P, D) of network input (B, 3, H, W), unit norm.

        The image feature is CLIP's own: the tower is only looked at.
        """
        x = blocks.embed_image(self.backbone, images)
        tower = self.backbone.model.visual.transformer.resblocks
        first = choose(self.config.blocks, len(tower), "method.blocks").first
        stream = _Stream(first)
        seams = blocks.Seams(enter=stream) if self.config.stream == "value_value" else blocks.PLAIN
        x = blocks.run(tower, x, seams=seams)
        local = x if stream.tokens is None else stream.tokens
        patches = blocks.project_tokens(self.backbone, local)[:, 1:]
        pooled = blocks.pool_image(self.backbone, x)
        return F.normalize(pooled.to(self.dtype), dim=-1), F.normalize(patches.to(self.dtype), dim=-1)

    def anomaly(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores (B,) of images and maps (B, rows, columns) of patches, both probabilities of the abnormal state."""
        feature, patches = self.features(batch["image"].to(self.backbone.device))
        label = batch["label"].to(feature.device) if "label" in batch else (feature @ self.class_weights().T).argmax(-1)
        states = self.states()[label]
        scale = self.config.scale
        whole = (scale * torch.einsum("bd,bsd->bs", feature, states)).softmax(-1)[:, 1]
        local = (scale * torch.einsum("bpd,bsd->bps", patches, states)).softmax(-1)[..., 1]
        maps = smoothed(local.view(len(local), *grid_of(self.backbone)), self.config.smooth)
        greatest = maps.flatten(1).amax(1)
        score = {"class": whole, "map": greatest, "both": (whole + greatest) / 2}[self.config.image_score]
        return score, maps

    def logits(self, batch: Batch) -> Tensor:
        """The scores as a column (B, 1)."""
        return self.anomaly(batch)[0][:, None]

    def select(self, batches: Sequence[Batch]) -> None:
        """Nothing is chosen; wordings that the backbone never saw are said so."""
        texts = [wording.replace("{}", "") for wording in (*self.config.normal, *self.config.abnormal)]
        unseen = list(dict.fromkeys(token for text in texts for token in self.backbone.unseen_tokens(text)))
        if unseen:
            self.notes = [f"{self.backbone.spec.name} never saw {', '.join(unseen)}: reword method.normal and method.abnormal."]


class _Stream:
    """Tokens that take from each block only its value-value attention: x <- x + VV(LN(tokens of the tower))."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.tokens: Tensor | None = None

    def __call__(self, layer: int, block: Any, x: Tensor) -> None:
        if layer >= self.first:
            local = x if self.tokens is None else self.tokens
            self.tokens = local + block.ls_1(blocks.value_attention(block.attn, block.ln_1(x)))


def smoothed(maps: Tensor, width: int) -> Tensor:
    """Maps (B, h, w) after a mean over width x width patches; the border is repeated outwards."""
    if width == 1:
        return maps
    padded = F.pad(maps[:, None], (width // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, width, stride=1)[:, 0]
