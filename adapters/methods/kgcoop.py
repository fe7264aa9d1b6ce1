"""KgCoOp: CoOp whose prompts are kept near the hand-written ones (Yao et al. 2023, arXiv 2303.13283)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..prompt_context import ContextConfig, LearnedContext


@dataclass
class Config(ContextConfig):
    """Settings of KgCoOp; the defaults are the published ones.

    Attributes:
        context_length: number of learnable vectors M, where `init` is None.
        init: words whose embeddings start the context; the count of their tokens replaces `context_length`.
        position: where the class name stands: "end", "middle" or "front".
        weight: weight of the distance to the frozen text features of `classes.templates` (lambda in the paper).
    """

    context_length: int = 4
    init: str | None = "a photo of a"
    weight: float = 8.0


class KgCoOp(LearnedContext):
    """Cross-entropy + weight * (1 - mean over classes of cos(learned text feature, frozen text feature)).

    The frozen features are those of the class prompts in the recipe's templates, the words that zero-shot CLIP reads.
    Answers are CoOp's: the regulariser works in training alone.
    """

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy and the distance of the learned classifier from the frozen one."""
        weights = self.class_weights()
        logits = self.scaled_cosines(self.encode_image(batch), weights)
        loss: Tensor = F.cross_entropy(logits, batch["label"]) + self.config.weight * self.distance(weights)
        return loss

    def distance(self, weights: Tensor) -> Tensor:
        """1 - mean cosine of classifier rows (C, D), unit norm, and the frozen ones."""
        return 1 - (weights * self.zero_shot_weights()).sum(-1).mean()
