"""What methods with one learned context share: the context itself and the text classifier made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import Adapter
from .errors import LimpetError, RecipeError
from .prompting import POSITIONS, PromptEncoder, init_words, support

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec
    from .backbone_tokens import Text


@dataclass
class ContextConfig:
    """Settings of a learned context.

    Attributes:
        context_length: number of learnable vectors M.
        init: words whose embeddings start the context ("a photo of a"). None: N(0, 0.02^2).
        position: where the class name stands: "end", "middle" or "front".
    """

    context_length: int = 16
    init: str | None = None
    position: str = "end"


class LearnedContext(Adapter):
    """Text features of [SOT][context][class name][.][EOT] with a learnable context; the towers are frozen.

    The learnable tensor is `context`, (M, W) unless `initial_context` says otherwise; W is the width of the text tower.
    """

    prompted = True
    context: nn.Parameter

    @classmethod
    def supports(cls, config: ContextConfig, spec: BackboneSpec) -> str | None:
        """Needs a text tower that can be entered with embeddings."""
        return support(spec)

    @classmethod
    def trainable(cls, config: ContextConfig, spec: BackboneSpec) -> bool:
        """The context is trained."""
        return True

    def build(self) -> None:
        """Create the context."""
        config: ContextConfig = self.config
        if config.position not in POSITIONS:
            raise RecipeError(f"method.position is '{config.position}'; it must be one of {', '.join(POSITIONS)}.")
        if config.context_length < 1:
            raise RecipeError(f"method.context_length is {config.context_length}; it must be at least 1.")
        spec = self.backbone.spec
        if not config.init and config.context_length > spec.context_length:  # before a tensor of that size is asked for
            raise RecipeError(
                f"method.context_length is {config.context_length}, and the text tower of {spec.name} reads {spec.context_length} "
                "tokens in all, the class name among them: lower it."
            )
        self.context = nn.Parameter(self.initial_context().detach().clone())

    def initial_context(self) -> Tensor:
        """Start of the context: the tokens of `init`, whose count then replaces `context_length`, or N(0, 0.02^2)."""
        if self.config.init:
            return init_words(self.backbone, self.config.init).to(self.dtype)
        return self.random_context()

    def random_context(self, *rows: int) -> Tensor:
        """N(0, 0.02^2) of shape (*rows, M, W)."""
        shape = (*rows, self.config.context_length, self.backbone.spec.text_width)
        return nn.init.normal_(torch.empty(*shape, dtype=self.dtype), std=0.02)

    def learned_tokens(self, label: str) -> dict[str, Tensor]:
        """The context; of one for each class, that of `label`."""
        context = self.context if self.context.ndim == 2 else self.context[self._trained.index(label)]
        return {"context": context}

    def encode_text(self, texts: Sequence[Text]) -> Tensor:
        """Text features (N, D), unit norm, of texts behind the learned context (in place of class names).

        Raises:
            LimpetError: every class has a context of its own, which says nothing about other texts.
        """
        if self.context.ndim > 2:
            raise LimpetError(f"'{self.name}' has a context for every class and none for other texts.")
        if not texts:
            return super().encode_text(texts)
        return F.normalize(self.encoder_of(texts)(self.context), dim=-1)

    def compute_class_weights(self) -> Tensor:
        """Text features (C, D) of the learned prompts, unit norm."""
        return F.normalize(self.encoder()(self.context), dim=-1)

    def encoder(self) -> PromptEncoder:
        """The prompt encoder of the classes asked about."""
        if "encoder" not in self._derived:
            self._derived["encoder"] = self.encoder_of([self.classes.text(name) for name in self.classes.names])
        encoder: PromptEncoder = self._derived["encoder"]
        return encoder

    def encoder_of(self, texts: Sequence[Text]) -> PromptEncoder:
        """A prompt encoder of other texts."""
        length, memory = self.context.shape[-2], self.backbone.text_rows
        return PromptEncoder(self.backbone, texts, length, position=self.config.position, memory=memory)
