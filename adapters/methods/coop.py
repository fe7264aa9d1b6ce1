"""CoOp: learnable context vectors in place of the words of a prompt (Zhou et al. 2022, arXiv 2109.01134)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..adapter import NewClass
from ..errors import NeedsImages
from ..prompt_context import ContextConfig, LearnedContext

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet


@dataclass
class Config(ContextConfig):
    """Settings of CoOp; the defaults are the paper's few-shot setting (M=16, random, end, unified).

    Attributes:
        context_length: number of learnable vectors M.
        init: words whose embeddings start the context ("a photo of a"); the count of their tokens then replaces
            `context_length` and the context is unified, as in the reference. None: N(0, 0.02^2).
        position: where the class name stands: "end", "middle" or "front".
        class_specific: a context of its own for every class (CSC).
    """

    class_specific: bool = False


class CoOp(LearnedContext):
    """Text features of [SOT][context][class name][.][EOT] with a learnable context; everything else is frozen.

    The learnable tensor is `context`: (M, W), or (C, M, W) when class-specific; W is the width of the text tower.
    """

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

    def initial_context(self) -> Tensor:
        """One context, or one for every class."""
        return self.random_context(len(self.classes)) if self._specific(self.config) else super().initial_context()

    def compute_class_weights(self) -> Tensor:
        """Text features (C, D) of the learned prompts, unit norm."""
        if not self._specific(self.config):
            return super().compute_class_weights()
        context: Tensor = self.context
        if self.classes.names != self._trained:
            context = context[self.trained_rows()]
        return F.normalize(self.encoder()(context, class_specific=True), dim=-1)

    def check_classes(self, classes: ClassSet) -> None:
        """A class-specific context knows only the classes it was trained on."""
        missing = self.untrained(classes)
        if self._specific(self.config) and missing:
            raise NeedsImages(
                f"CoOp with class-specific contexts has none for '{missing[0]}': it needs images of the new classes. "
                "Train again with them, or use method.class_specific=false."
            )

    def add_classes(self, classes: ClassSet, batches: Any = None) -> None:
        """A shared context takes the new names as they are."""
        self.check_classes(classes)
        super().add_classes(classes, batches)
