"""CoOp: learnable context vectors in place of the words of a prompt (Zhou et al. 2022, arXiv 2109.01134)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Adapter, NewClass
from ..errors import NeedsImages, RecipeError
from ..prompting import POSITIONS, PromptEncoder, init_words, support

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet


@dataclass
class Config:
    """Settings of CoOp; the defaults are the paper's few-shot setting (M=16, random, end, unified).

    Attributes:
        context_length: number of learnable vectors M.
        init: words whose embeddings start the context ("a photo of a"); their count then replaces `context_length`
            and the context is unified, as in the reference. None: N(0, 0.02^2).
        position: where the class name stands: "end", "middle" or "front".
        class_specific: a context of its own for every class (CSC).
    """

    context_length: int = 16
    init: str | None = None
    position: str = "end"
    class_specific: bool = False


class CoOp(Adapter):
    """Text features of [SOT][context][class name][.][EOT] with a learnable context; everything else is frozen.

    The learnable tensor is `context`: (M, W), or (C, M, W) when class-specific; W is the width of the text tower.
    """

    context: nn.Parameter

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs a text tower that can be entered with embeddings."""
        return support(spec)

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """The context is trained."""
        return True

    @classmethod
    def new_class(cls, config: Config, spec: BackboneSpec) -> NewClass:
        """A shared context serves any class name; a class-specific one has to be trained."""
        return "images" if cls._specific(config) else "text"

    @classmethod
    def per_class(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """The context, when it is class-specific."""
        return ("context",) if cls._specific(config) else ()

    @staticmethod
    def _specific(config: Config) -> bool:
        return config.class_specific and not config.init

    def build(self) -> None:
        """Create the context from words or from N(0, 0.02^2)."""
        config: Config = self.config
        if config.position not in POSITIONS:
            raise RecipeError(f"method.position is '{config.position}'; it must be one of {', '.join(POSITIONS)}.")
        if config.init:
            context = init_words(self.backbone, config.init).to(self.dtype)
        else:
            if config.context_length < 1:
                raise RecipeError(f"method.context_length is {config.context_length}; it must be at least 1.")
            rows = (len(self.classes),) if self._specific(config) else ()
            context = torch.empty(*rows, config.context_length, self.backbone.spec.text_width, dtype=self.dtype)
            nn.init.normal_(context, std=0.02)
        self.context = nn.Parameter(context.detach().clone())

    def compute_class_weights(self) -> Tensor:
        """Text features (C, D) of the learned prompts, unit norm."""
        context: Tensor = self.context
        specific = self._specific(self.config)
        if specific and self.classes.names != self._trained:
            context = context[[self._trained.index(name) for name in self.classes.names]]
        return F.normalize(self._encoder()(context, class_specific=specific), dim=-1)

    def _encoder(self) -> PromptEncoder:
        if "encoder" not in self._derived:
            texts: Sequence[str] = [self.classes.text(name) for name in self.classes.names]
            length = self.context.shape[-2]
            self._derived["encoder"] = PromptEncoder(
                self.backbone, texts, length, position=self.config.position, memory=self.backbone.text_memory
            )
        encoder: PromptEncoder = self._derived["encoder"]
        return encoder

    def check_classes(self, classes: ClassSet) -> None:
        """A class-specific context knows only the classes it was trained on."""
        missing = [name for name in classes.names if name not in self._trained]
        if self._specific(self.config) and missing:
            raise NeedsImages(
                f"CoOp with class-specific contexts has none for '{missing[0]}': it needs images of the new classes. "
                "Train again with them, or use method.class_specific=false."
            )

    def add_classes(self, classes: ClassSet, batches: Any = None) -> None:
        """A shared context takes the new names as they are."""
        self.check_classes(classes)
        super().add_classes(classes, batches)
