"""CLAP: a linear probe that starts from the text features and is held near them (Silva-Rodriguez et al. 2024, arXiv 2312.12730)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Adapter, Batch
from ..errors import RecipeError, nearest

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet

CONSTRAINTS = ("none", "l2")
MULTIPLIERS = ("confidence", "balanced", "constant", "corrected")
STARTS = ("zero_shot", "random")


@dataclass
class Config:
    """Settings of CLAP.

    Attributes:
        constraint: "l2" holds each class near its text feature (CLAP); "none" does not (ZS-LP).
        multipliers: strength for each class. "confidence": the mean zero-shot probability of its own training samples;
            "balanced": 1; "constant": the mean of these probabilities for all; "corrected": they, divided by their mean.
        adaptive: after each epoch, raise the multipliers by what they could not hold, an outer step of the augmented
            Lagrangian of Powell, Hestenes and Rockafellar: lambda <- max(lambda + rho h, 0), then rho <- h, where h is a
            class's squared distance from its text and rho starts at 0. False keeps them fixed, as the paper's results do.
        init: where the weights start, "zero_shot" or "random".
    """

    constraint: str = "l2"
    multipliers: str = "confidence"
    adaptive: bool = False
    init: str = "zero_shot"


class CLAP(Adapter):
    """logits = scale norm(f) norm(w_c); loss = cross-entropy + mean over classes of lambda_c |w_c - t_c|^2, w and t raw.

    The learnable tensor is `weight` (C, D). The multipliers lambda are found once, before training, and stay fixed unless
    they are `adaptive`.
    """

    weight: nn.Parameter
    multiplier: Tensor
    rho: Tensor

    @classmethod
    def variant(cls, config: Config) -> str:
        """Without the constraint it is ZS-LP."""
        return "clap" if config.constraint != "none" else "zs_lp"

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """The weights are trained."""
        return True

    @classmethod
    def zero_shot_columns(cls, config: Config, spec: BackboneSpec) -> bool:
        """A new class has its text feature as weight."""
        return True

    @classmethod
    def per_class(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """A weight and a multiplier each, with the strength of its next change."""
        return ("weight", "multiplier", "rho")

    def build(self) -> None:
        """Create the weights."""
        config: Config = self.config
        for key, known in (("constraint", CONSTRAINTS), ("multipliers", MULTIPLIERS), ("init", STARTS)):
            value = getattr(config, key)
            if value not in known:
                hint = nearest(str(value), known)
                raise RecipeError(f"method.{key} is '{value}'.{hint} It must be one of {', '.join(known)}.")
        if config.init == "zero_shot":
            weight = self.raw_text_weights().detach().clone()
        else:
            weight = torch.empty(len(self.classes), self.backbone.embed_dim, dtype=self.dtype)
            nn.init.kaiming_normal_(weight)
        self.weight = nn.Parameter(weight)
        self.register_buffer("multiplier", torch.zeros(len(self.classes), dtype=self.dtype))
        self.register_buffer("rho", torch.zeros(len(self.classes), dtype=self.dtype))

    def data_sized(self) -> tuple[str, ...]:
        """Classes may have been added before saving."""
        return ("weight", "multiplier", "rho")

    @torch.no_grad()
    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Find the multipliers: mean zero-shot probability of its class over all views of a class's training images."""
        weights = F.normalize(self.raw_text_weights(), dim=-1)
        total, count = torch.zeros_like(self.multiplier), torch.zeros_like(self.multiplier)
        for batch in batches:
            features = F.normalize(batch["views"].to(weights), dim=-1)
            probability = (self.backbone.logit_scale * features @ weights.T).softmax(-1)
            labels = batch["label"].to(weights.device)
            own = probability.gather(2, labels[:, None, None].expand(-1, features.shape[1], 1))[..., 0]
            total.index_add_(0, labels, own.sum(1))
            count.index_add_(0, labels, torch.full_like(own[:, 0], features.shape[1]))
        confidence = total / count.clamp_min(1)
        has = count > 0
        mean = confidence[has].mean() if bool(has.any()) else torch.ones_like(confidence[:1]).mean()
        confidence = torch.where(has, confidence, mean)  # a class without images stays near its text as others do
        kind = self.config.multipliers
        if kind == "balanced":
            confidence = torch.ones_like(confidence)
        elif kind == "constant":
            confidence = mean.expand_as(confidence)
        elif kind == "corrected":
            confidence = confidence / mean.clamp_min(1e-12)
        self.multiplier.copy_(confidence)

    def penalty(self) -> Tensor:
        """Mean over classes of lambda_c |w_c - t_c|^2."""
        return (self.multiplier * self.distance()).mean()

    def distance(self) -> Tensor:
        """Squared distance (C,) of each class's weight from its text feature, both raw."""
        return (self.weight - self.raw_text_weights()).square().sum(-1)

    @torch.no_grad()
    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """The outer step of `adaptive` multipliers."""
        if self.config.adaptive and self.config.constraint == "l2":
            distance = self.distance()
            self.multiplier.copy_((self.multiplier + self.rho * distance).clamp_min(0))
            self.rho.copy_(distance)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy and, with the constraint, the penalty."""
        entropy = super().loss(batch)
        return entropy + self.penalty() if self.config.constraint == "l2" else entropy

    def compute_class_weights(self) -> Tensor:
        """Learned weights (C, D), unit norm; a class without one has its text feature."""
        place = {name: i for i, name in enumerate(self._trained)}
        names = self.classes.names
        if names == self._trained:
            return F.normalize(self.weight, dim=-1)
        rows = [place.get(name, 0) for name in names]
        known = torch.tensor([name in place for name in names], device=self.weight.device)[:, None]
        return F.normalize(torch.where(known, self.weight[rows], self.raw_text_weights()), dim=-1)

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Start a new class from its text."""
        new = self.untrained(classes)
        super().add_classes(classes, batches)
        rows = [classes.index(name) for name in new]
        text = self.raw_text_weights()[rows]
        self.replace_tensor("weight", torch.cat([self.weight.detach(), text.to(self.weight)]))
        self.multiplier = torch.cat([self.multiplier, self.multiplier.mean().expand(len(new))])
        self.rho = torch.cat([self.rho, torch.zeros(len(new)).to(self.rho)])
        self._trained = (*self._trained, *new)
        self._derived = {}
