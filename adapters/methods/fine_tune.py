"""Fine-tuning of the towers themselves, whole or in part, by cross-entropy or by FLYP's contrastive loss over class prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import tower_adapter
from ..adapter import Batch
from ..errors import nearest
from ..tower_adapter import TowerAdapter, tower_problem
from ..tower_parts import copied, parts_problem

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

LOSSES = ("cross_entropy", "contrastive")
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
        if config.loss == "contrastive" and config.label_smoothing:
            return "method.label_smoothing is for cross-entropy; the contrastive loss has no classes to smooth over."
        return parts_problem(cls.towers(config), config.layers, config.parts, spec)

    def build(self) -> None:
        """Copy the chosen weights; everything else stays shared with the backbone."""
        clip, first = copied(self)
        self.attach(clip, dict(clip.named_parameters()), first)
        size = sum(p.numel() * p.element_size() for p in self.learnable()) / 1e6
        self.notes.append(f"The artefact holds the trained weights of the towers: {size:.1f} MB.")
        self._end: dict[str, Tensor] | None = None

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
        logits = self.scaled_cosines(self.encode_image(batch), features, self.answer_scale)
        targets = torch.arange(len(texts), device=logits.device)
        floor = torch.tensor([float(texts.count(text)) for text in texts], device=logits.device).log().mean()
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2 - floor

