"""Learnable prompts in several layers of both towers: how deep they go, how they start, and what they answer.

Vision prompts and text prompts of one method differ only in where the vectors come from, so the towers are
entered here and a method says which vectors belong to which layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import Adapter, Batch, Needs
from .blocks import image_features
from .prompting import PromptEncoder, init_words

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec
    from .backbone_tokens import Text

STD = 0.02  # of random prompts, in every paper of this family


def depth_problem(depth: Any, layers: int, key: str, tower: str, name: str) -> str | None:
    """Say why a prompt depth cannot be had, or None.

    Args:
        depth: number of layers, a fraction of the tower between 0 and 1, "all", or None for the paper's.
        layers: layers of the tower.
        key: the recipe's key, for the sentence.
        tower: "image" or "text", for the sentence.
        name: of the backbone, for the sentence.
    """
    if depth is None or depth == "all":
        return None
    if isinstance(depth, bool) or not isinstance(depth, (int, float)):
        return (
            f"{key} is {depth!r}; it can be a number of layers, a fraction of the tower such as 0.75, all, or null "
            "for the paper's own depth."
        )
    if _is_share(depth):
        fits = 0 < depth <= 1
    else:
        fits = 1 <= depth <= layers
    if fits:
        return None
    return (
        f"{key} is {depth}, but the {tower} tower of {name} has {layers} layers: give 1 to {layers}, a fraction of "
        "the tower such as 0.75, all, or null for the paper's depth, which is cut to the tower."
    )


def depth_of(depth: Any, paper: int, layers: int) -> int:
    """Number of layers that get prompts of their own; the paper's where none is given, cut to the tower."""
    if depth is None:
        return min(paper, layers)
    if depth == "all":
        return layers
    if _is_share(depth):
        return max(1, round(float(depth) * layers))
    return int(depth)


def _is_share(depth: Any) -> bool:
    """Whether a depth is a share of the tower; 1.0 is all of it, 1 is one layer."""
    return isinstance(depth, float) and (depth <= 1 or not depth.is_integer())


MOST = 10_000  # prompt tokens; no tower reads as many


def count_problem(count: int, key: str, least: int = 1) -> str | None:
    """Say why a number of prompt tokens cannot be had, or None."""
    if count > MOST:
        return f"{key} is {count}; the most it can be is {MOST}."
    return None if count >= least else f"{key} is {count}; it must be at least {least}."


def random_prompts(layers: int, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """Prompt vectors (layers, count, width), drawn from N(0, 0.02^2)."""
    return STD * torch.randn(layers, count, width, dtype=dtype)


class DeepPrompts(Adapter):
    """Base of methods that put learnable vectors into the layers of one or both towers.

    A subclass says which vectors: `image_prompts` and `text_prompts`, entry i belonging to layer i. Both towers
    stay frozen. Text features are computed at every training step and once in evaluation.
    """

    phrase: str = ""  # words the text prompts started from; those beyond the prompts stay in the sentence

    @classmethod
    def needs(cls, config: Any, spec: BackboneSpec) -> Needs:
        """Images: the image tower is entered."""
        return "images"

    @classmethod
    def trainable(cls, config: Any, spec: BackboneSpec) -> bool:
        """The prompts are trained."""
        return True

    def image_prompts(self) -> Sequence[Tensor]:
        """Vectors (n, W) behind the patches, one entry a layer from layer 0 on; none leaves the tower as it is."""
        return ()

    def text_prompts(self) -> Sequence[Tensor]:
        """Vectors (n, W) before the class text, one entry a layer from layer 0 on; none means zero-shot weights."""
        return ()

    def encode_image(self, batch: Batch) -> Tensor:
        """Image features (B, D), unit norm, with the image prompts in place."""
        prompts = self.image_prompts()
        if not prompts:
            return super().encode_image(batch)
        return F.normalize(image_features(self.backbone, batch["image"], prompts).to(self.dtype), dim=-1)

    def encode_text(self, texts: Sequence[Text]) -> Tensor:
        """Text features (N, D), unit norm, with the text prompts in place."""
        prompts = self.text_prompts()
        if not prompts or not texts:
            return super().encode_text(texts)
        encoder = self.encoder_of(texts, prompts[0].shape[-2])
        return F.normalize(encoder(prompts[0], prompts[1:]).to(self.dtype), dim=-1)

    def compute_class_weights(self) -> Tensor:
        """Text features (C, D), unit norm, with the text prompts in place."""
        prompts = self.text_prompts()
        if not prompts:
            return self.zero_shot_weights()
        encoder = self.text_encoder(prompts[0].shape[-2])
        return F.normalize(encoder(prompts[0], prompts[1:]).to(self.dtype), dim=-1)

    def learned_tokens(self, label: str) -> dict[str, Tensor]:
        """The text prompts of layer 0; those of deeper layers do not stand among words."""
        prompts = self.text_prompts()
        return {"text prompt": prompts[0]} if prompts else {}

    def text_encoder(self, count: int) -> PromptEncoder:
        """The encoder of the present classes' texts behind `count` prompt tokens."""
        if "encoder" not in self._derived:
            self._derived["encoder"] = self.encoder_of([self.classes.text(name) for name in self.classes.names], count)
        return cast(PromptEncoder, self._derived["encoder"])

    def encoder_of(self, texts: Sequence[Text], count: int) -> PromptEncoder:
        """An encoder of other texts behind `count` prompt tokens."""
        return PromptEncoder(self.backbone, texts, count, phrase=self.phrase, memory=self.backbone.text_rows)

    def start_text_prompts(self, layers: int, count: int, words: str | None) -> nn.Parameter:
        """Text prompts (layers, count, W): the first layer from words, the others random.

        As published, words start the first layer only where they have enough tokens; `phrase` then keeps them, since
        those beyond `count` stay in the sentence as fixed words.
        """
        prompts = random_prompts(layers, count, self.backbone.spec.text_width, self.dtype)
        if words and len(self.backbone.token_ids(words)) >= count:
            prompts[0] = init_words(self.backbone, words, count).to(prompts)
            self.phrase = words
        elif words:
            self.notes.append(
                f"The words '{words}' have fewer tokens than the {count} text prompts, which therefore start at random."
            )
        return nn.Parameter(prompts)

    def note_depth(self, depth: int, paper: int, given: Any, towers: str) -> None:
        """Note where the paper's depth was cut to a smaller tower."""
        if given is None and depth < paper:
            self.notes.append(
                f"Prompts enter all {depth} layers of the {towers} tower of {self.backbone.spec.name}; "
                f"the paper's depth is {paper}."
            )
