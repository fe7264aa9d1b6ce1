"""ProGrad: CoOp whose gradient never points against zero-shot knowledge (Zhu et al. 2023, arXiv 2205.14865)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..errors import RecipeError
from ..prompt_context import ContextConfig, LearnedContext
from ..prompting import init_words


@dataclass
class Config(ContextConfig):
    """Settings of ProGrad; the defaults are the published ones.

    Attributes:
        context_length: number of learnable vectors M.
        init: words in the last places of the context; the places before them start at zero. None: N(0, 0.02^2).
        position: where the class name stands: "end", "middle" or "front".
        strength: how much of the opposing part of a gradient is removed (lambda in the paper); 1 makes it orthogonal.
        temperature: T of the softened answers; their loss is scaled by T^2.
    """

    init: str | None = "a photo of a"
    strength: float = 1.0
    temperature: float = 1.0


class ProGrad(LearnedContext):
    """g = grad of cross-entropy, h = grad of the cross-entropy to zero-shot CLIP's answers.

    Where g . h < 0 a step along -g would unlearn what CLIP knows, and g - strength (g . h) h / (h . h) takes its place;
    each learnable tensor is treated on its own. Zero-shot answers come from the recipe's templates.
    """

    def initial_context(self) -> Tensor:
        """Zeros, then the words of `init`."""
        config: Config = self.config
        if not config.init:
            return self.random_context()
        words = init_words(self.backbone, config.init).to(self.dtype)
        if len(words) > config.context_length:
            raise RecipeError(
                f"method.init has {len(words)} tokens and method.context_length is {config.context_length}: "
                "raise the context length or shorten the phrase."
            )
        context = torch.zeros(config.context_length, words.shape[1], dtype=self.dtype, device=words.device)
        context[-len(words) :] = words
        return context

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy to the labels, and cross-entropy to the softened zero-shot answers times T^2."""
        T = self.config.temperature
        features = self.encode_image(batch)
        logits = self.scaled_cosines(features, self.class_weights())
        with torch.no_grad():
            teacher = (self.scaled_cosines(features, self.zero_shot_weights()) / T).softmax(-1)
        return F.cross_entropy(logits, batch["label"]), F.cross_entropy(logits / T, teacher) * T**2

    def loss(self, batch: Batch) -> Tensor:
        """A scalar whose value is the cross-entropy and whose gradient is the projected one.

        Both gradients are taken here and tied to the parameters by sum (p - stop(p)) . gradient, which is zero. So any
        Trainer, optimiser, accumulation or loss scaling works as for an ordinary loss, and no hook around `backward` is
        needed; with several devices each projects its own gradient before they are averaged.
        """
        entropy, general = self.losses(batch)
        learnable = self.learnable()
        if not (torch.is_grad_enabled() and entropy.requires_grad):
            return entropy
        with torch.autocast(entropy.device.type, enabled=False):
            wanted = torch.autograd.grad(entropy, learnable, retain_graph=True)
            known = torch.autograd.grad(general, learnable)
            tied = [
                ((p - p.detach()) * gradient).sum()
                for p, gradient in zip(learnable, self.projected(wanted, known), strict=True)
            ]
            return entropy.detach() + torch.stack(tied).sum()

    def projected(self, wanted: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
        """Gradients `wanted`, each without `strength` of its part against the direction of its `known` one."""
        result = []
        for g, h in zip(wanted, known, strict=True):
            along, square = (g * h).sum(), (h * h).sum()
            opposed = (along < 0) & (square > 0)
            part = torch.where(opposed, along / square.clamp_min(torch.finfo(h.dtype).tiny), torch.zeros_like(along))
            result.append(g - self.config.strength * part * h)
        return result
