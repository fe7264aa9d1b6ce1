"""CoCoOp: a learnable context shifted by each image's own feature (Zhou et al. 2022, arXiv 2203.05557)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Adapter, Batch
from ..deep_prompts import count_problem, random_prompts
from ..errors import LimpetError
from ..precision import full_precision
from ..prompting import PromptEncoder, init_words, support

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

# Token rows of one text pass where `backbone.text_memory` sets none: a batch has images times classes prompts, so
# without a bound a batch of 256 would not fit. Training keeps about 0.3 MB a row on ViT-B/16: 2.5 GB.
TOKENS = 8192


@dataclass
class Config:
    """Settings of CoCoOp; the defaults are the paper's.

    Attributes:
        context_length: number of learnable vectors M; with `init` the phrase decides.
        init: words whose embeddings start the context; None: N(0, 0.02^2).
        reduction: the meta-net's hidden layer is so many times narrower than the image feature.
    """

    context_length: int = 4
    init: str | None = "a photo of a"
    reduction: int = 16


class CoCoOp(Adapter):
    """Text features of [SOT][context + meta_net(image)][class name][.][EOT], for every image anew.

    The meta-net, linear -> ReLU -> linear, turns a normalised image feature into one vector that is added to every
    context vector. Learnable: `context` (M, W) and `meta_net`. Image features are frozen and can be cached.
    """

    context: nn.Parameter
    meta_net: nn.Sequential

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs a text tower that can be entered with embeddings."""
        return (
            support(spec)
            or (None if config.init else count_problem(config.context_length, "method.context_length"))
            or count_problem(config.reduction, "method.reduction")
        )

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """The context and the meta-net are trained."""
        return True

    def build(self) -> None:
        """Start the context from words, and the meta-net as PyTorch starts linear layers."""
        config: Config = self.config
        spec = self.backbone.spec
        if config.init:
            context = init_words(self.backbone, config.init).to(self.dtype)
        else:
            context = random_prompts(1, config.context_length, spec.text_width, self.dtype)[0]
        self.context = nn.Parameter(context)
        hidden = max(1, spec.embed_dim // config.reduction)
        layers: list[tuple[str, nn.Module]] = [
            ("linear1", nn.Linear(spec.embed_dim, hidden, dtype=self.dtype)),
            ("relu", nn.ReLU()),
            ("linear2", nn.Linear(hidden, spec.text_width, dtype=self.dtype)),
        ]
        self.meta_net = nn.Sequential(OrderedDict(layers))

    def compute_class_weights(self) -> Tensor:
        """There are none: every image has its own.

        Raises:
            LimpetError: always.
        """
        raise LimpetError(
            "CoCoOp has no class weights that hold for all images: its prompts depend on the image."
        )

    def check_texts(self) -> None:
        """Lay the prompts out, which refuses texts that do not fit."""
        self._encoder()

    def learned_tokens(self, label: str) -> dict[str, Tensor]:
        """The context before it is shifted by an image."""
        return {"context": self.context}

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, C): the logit scale times the cosine between an image and the texts in its own context."""
        images = self.encode_image(batch)
        contexts = self.context + self.meta_net(images)[:, None]
        encoder = self._encoder()
        # The encoder bounds its own activations; without gradients its results need not be kept together either.
        if torch.compiler.is_compiling():  # an export: one pass, for a number of images that is left open
            texts = F.normalize(encoder(contexts).to(self.dtype), dim=-1)
            return self.backbone.logit_scale * (images[:, None] * texts).sum(-1)
        together = len(images) if torch.is_grad_enabled() else max(1, TOKENS // encoder.tokens)
        parts = []
        for part, context in zip(torch.split(images, together), torch.split(contexts, together), strict=True):
            texts = F.normalize(encoder(context).to(self.dtype), dim=-1)
            with full_precision(images.device):
                parts.append(torch.einsum("bd,bcd->bc", part, texts))
        return self.backbone.logit_scale * torch.cat(parts)

    def _encoder(self) -> PromptEncoder:
        if "encoder" not in self._derived:
            texts = [self.classes.text(name) for name in self.classes.names]
            memory = self.backbone.text_memory or TOKENS
            self._derived["encoder"] = PromptEncoder(self.backbone, texts, len(self.context), memory=memory)
        return cast(PromptEncoder, self._derived["encoder"])
