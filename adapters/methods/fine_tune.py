"""Fine-tuning of the towers themselves, whole or in part, by cross-entropy or by FLYP's contrastive loss over class prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import tower_adapter
from ..adapter import Batch
from ..errors import RecipeError, nearest
from ..layers import per_tower
from ..tower_adapter import TowerAdapter, block_prefix, tower_problem

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

LOSSES = ("cross_entropy", "contrastive")
PARTS = {  # what of a native tower, by the parameter's name
    "attention": r"\.attn\.",
    "mlp": r"\.mlp\.",
    "norms": r"(^|\.)(ln_\w+|ls_\d)\.",
    "projection": r"(^|\.)(proj|text_projection)(\.|$)",
    "embeddings": r"(^|\.)(class_embedding|positional_embedding|token_embedding|conv1)(\.|$)",
}


@dataclass
class Config(tower_adapter.Config):
    """Settings of fine-tuning; the defaults are WiSE-FT's, without its separate linear head.

    Attributes:
        parts: "all", or some of attention, mlp, norms, projection, embeddings. What lies below the first block goes with
            that block in `layers`, what lies above the last block with that one.
        loss: "cross_entropy" over all classes, or "contrastive": image against the prompt of its class, both ways, within
            the batch (FLYP).
    """

    towers: str = "image"
    parts: list[str] = field(default_factory=lambda: ["all"])
    loss: str = "cross_entropy"


class FineTune(TowerAdapter):
    """The chosen weights of the towers are trained; the classifier is made of the class prompts.

    The saved state holds every trained weight, so it is as large as what is trained.
    """

    keeps_towers = True

    @classmethod
    def variant(cls, config: Config) -> str:
        """FLYP is the contrastive variant."""
        return "flyp" if config.loss == "contrastive" else "fine_tune"

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Any tower as a whole; parts and layers of open_clip's own transformers."""
        if tower_problem(config):
            return tower_problem(config)
        if config.loss not in LOSSES:
            return f"method.loss is '{config.loss}'.{nearest(config.loss, LOSSES)} It is one of {', '.join(LOSSES)}."
        odd = [part for part in config.parts if part not in PARTS and part != "all"]
        if odd or not config.parts:
            return f"method.parts is {list(config.parts)}: it is [all], or some of {', '.join(PARTS)}."
        if spec.precision in ("bf16", "fp16"):
            return (
                f"Weights in {spec.precision} are too coarse to be trained: use backbone.precision=fp32, "
                "and trainer.precision=bf16-mixed for speed."
            )
        native = {"image": spec.image_tower == "vit", "text": spec.text_tower == "transformer"}
        foreign = [tower for tower in cls.towers(config) if not native[tower]]
        if foreign and (config.layers != "all" or "all" not in config.parts):
            return (
                f"The {foreign[0]} tower of {spec.name} is not one of open_clip's own transformers: it can be fine-tuned as a "
                "whole only, with method.layers=all and method.parts=[all]."
            )
        if "text" in cls.towers(config) and spec.multimodal:
            return f"{spec.name} is a CoCa model, whose text tower is read behind the padding; use method.towers=image."
        return None

    def build(self) -> None:
        """Copy the chosen weights; everything else stays shared with the backbone."""
        config: Config = self.config
        towers = self.towers(config)
        names, first = [], 0
        for tower in towers:
            found, lowest = self._names(tower)
            names += found
            first = lowest if tower == "image" else first
        if not names:
            raise RecipeError(f"method.parts {list(config.parts)} and method.layers {config.layers} leave nothing to train.")
        clip = self.backbone.editable(towers, names)
        self.attach(clip, dict(clip.named_parameters()), first)
        size = sum(p.numel() * p.element_size() for p in self.learnable()) / 1e6
        self.notes.append(f"The artefact holds the trained weights of the towers: {size:.1f} MB.")
        self._end: dict[str, Tensor] | None = None

    def _names(self, tower: str) -> tuple[list[str], int]:
        """Parameters of a tower that the configuration chooses, and the lowest of its blocks that has one."""
        config: Config = self.config
        model, spec = self.backbone.model, self.backbone.spec
        prefix = block_prefix(model, tower)
        everything = [n for n, _ in model.named_parameters() if _tower(n) == tower]
        if (spec.image_tower != "vit") if tower == "image" else (spec.text_tower != "transformer"):
            return everything, 0
        blocks: Any = model.get_submodule(prefix)
        layers = per_tower(config.layers, tower, len(blocks))
        self.notes += [layers.note] if layers.note and layers.note not in self.notes else []
        chosen = {name: _block(name, prefix, len(blocks)) for name in everything}
        patterns = [""] if "all" in config.parts else [PARTS[part] for part in config.parts]
        kept = [n for n, i in chosen.items() if i in layers.blocks and any(re.search(p, n) for p in patterns)]
        return kept, min((chosen[name] for name in kept), default=0)

    def train(self, mode: bool = True) -> FineTune:
        """Norms with statistics stay frozen in either mode; training goes on from where the weights are."""
        super().train(mode)
        if mode:
            self._end = None
        return self

    def load_state_dict(self, *given: Any, **options: Any) -> Any:
        """Load; shares of an interpolation count from what was loaded."""
        self._end = None
        return super().load_state_dict(*given, **options)

    def interpolated(self, share: float) -> None:
        """Every trained weight becomes (1 - a) theta_0 + a theta_1."""
        clip, frozen = self._clip, dict(self.backbone.model.named_parameters())
        if self._end is None:
            self._end = {name: p.detach().clone() for name, p in clip.named_parameters()}
        with torch.no_grad():
            for name, parameter in clip.named_parameters():
                start, end = frozen[name].to(parameter), self._end[name].to(parameter)
                parameter.copy_(end if share == 1 else start + share * (end - start))
        self._derived = {key: value for key, value in self._derived.items() if key != "class_weights"}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy, or the contrastive loss of CLIP's pre-training with one prompt of each image's class.

        Images of one class are each other's negatives there, as published. Where k images have the same prompt the published
        loss cannot fall below log k for them; that constant is taken off, so that 0 is reached and gradients are the same.
        """
        if self.config.loss == "cross_entropy":
            return super().loss(batch)
        prompts = [self.classes.prompts(self.classes.names[label]) for label in batch["label"].tolist()]
        drawn = torch.rand(len(prompts)).tolist()  # one of the templates for each image
        texts = [choices[int(at * len(choices))] for choices, at in zip(prompts, drawn, strict=True)]
        once = list(dict.fromkeys(texts))
        features = self.encode_text(once)[[once.index(text) for text in texts]]
        logits = self.scale * self.encode_image(batch) @ features.T
        targets = torch.arange(len(texts), device=logits.device)
        floor = torch.tensor([float(texts.count(text)) for text in texts], device=logits.device).log().mean()
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2 - floor


def _tower(name: str) -> str:
    if name in ("logit_scale", "logit_bias"):
        return ""
    return "image" if name.startswith("visual.") else "text"


def _block(name: str, prefix: str, depth: int) -> int:
    """Block that a parameter belongs to; those below the blocks count as the first, those above as the last."""
    if name.startswith(f"{prefix}."):
        return int(name[len(prefix) + 1 :].partition(".")[0])
    below = re.search(PARTS["embeddings"], name) or ".ln_pre." in f".{name}"
    return 0 if below else depth - 1
