"""Ranking-aware adapter: scores and pairs from tokens fused with an instruction (Yu et al. 2025, arXiv 2412.06760)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..adapter import Batch, Needs
from ..errors import RecipeError
from ..gathering import gathered
from ..ordering_adapter import OrderingAdapter
from ..pair_attention import Summary
from ..ranking_network import RankingNetwork, ordered, smooth_log
from ..tokens import (
    block_number,
    block_problem,
    image_projection,
    image_token_features,
    text_token_features,
    text_tokens_problem,
    token_shape,
)

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

WEIGHTS = {"rank": 1.0, "regression": 0.2, "bce": 1.0}


@dataclass
class Config:
    """Settings of the ranking-aware adapter; the defaults are the released ones, its defects mended.

    Attributes:
        block: read tokens behind this block of a native ViT: a whole number (-1 is the last), or a share of the depth
            (0.5 is halfway up). None reads them behind all blocks, in the joint space, as published. Counts and sizes
            can be lost on the way up, where the tower gathers what the whole image shows.
        layers: of the cross-modal fusion, and of the encoder behind it.
        heads: attention heads of the fusion.
        post_heads: attention heads of the encoder behind it.
        pair_heads: attention heads of the relational attention.
        learned_tokens: learnable tokens in front of the instruction.
        queries: relational queries.
        dropout: of the encoder behind the fusion.
        losses: any of "rank", "regression" and "bce" (whether the value is not 0); weights 1, 0.2 and 1.
        single_head: pair logits are differences of scores; there is no pair branch.
        scale_values: learn (value - mean) / sd of the category's training values instead of the values themselves.
        reference: as released, for comparisons only: scalar learnable tokens (which have no effect), values as they
            are, and trained embeddings, final text norm and image projection.
        keep_pair_branch: save the pair branch, which only training needs, in the artefact.
        images_at_once: longer lists are fused in pieces of so many images whose activations are computed again in
            the backward pass: the same result in less memory.
        pairs_at_once: likewise for pairs.
    """

    block: Any = None
    layers: int = 2
    heads: int = 8
    post_heads: int = 8
    pair_heads: int = 8
    learned_tokens: int = 32
    queries: int = 16
    dropout: float = 0.1
    losses: list[str] = field(default_factory=lambda: ["regression", "rank"])
    single_head: bool = False
    scale_values: bool = True
    reference: bool = False
    keep_pair_branch: bool = False
    images_at_once: int = 64
    pairs_at_once: int = 4096


class Ranking(OrderingAdapter):
    """Frozen image tokens attend to the instruction; one head gives a score, another, in training, compares pairs."""

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs tokens of both towers, and a width that the heads divide."""
        problem = text_tokens_problem(spec) or block_problem(spec, config.block)
        if problem:
            return problem
        if config.reference and config.block is not None:
            return "method.block is ours; the release, method.reference, reads the tokens behind all blocks. Leave it null."
        for key in ("heads", "post_heads", "pair_heads"):
            if spec.embed_dim % getattr(config, key):
                return f"method.{key} is {getattr(config, key)}, which does not divide the width {spec.embed_dim} of {spec.name}."
        return None

    @classmethod
    def variant(cls, config: Config) -> str:
        """With tokens of a block it is the early variant."""
        return "ranking" if config.block is None else "ranking_early"

    @classmethod
    def needs(cls, config: Config, spec: BackboneSpec) -> Needs:
        """Patch tokens, unless the projection behind them is trained as in the release."""
        return "images" if config.reference and spec.image_tower == "vit" else "patches"

    @classmethod
    def token_block(cls, config: Config, spec: BackboneSpec) -> int | None:
        """The block that the configuration names."""
        return block_number(spec, config.block)

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """Everything but the towers is trained."""
        return True

    def build(self) -> None:
        """Create the network and, where the towers' widths differ from the joint space's, projections to it."""
        super().build()
        config: Config = self.config
        unknown = [name for name in config.losses if name not in WEIGHTS]
        if unknown or not config.losses:
            raise RecipeError(f"method.losses is {config.losses}; it names some of {', '.join(WEIGHTS)}.")
        width = self.backbone.embed_dim
        self.network = RankingNetwork(
            width, config.layers, config.heads, config.post_heads, config.pair_heads, config.learned_tokens, config.queries,
            config.dropout, self.backbone.spec.activation == "quick_gelu", config.reference,
            "rank" in config.losses and not config.single_head,
        ).to(self.dtype)  # fmt: skip
        image_width = token_shape(self.backbone, self.token_block(config, self.backbone.spec))[1]
        text_width = self.backbone.spec.text_width
        self.image_projection = _projection(image_width, width, self.dtype)
        self.text_projection = _projection(text_width, width, self.dtype)
        tower, visual = self.backbone.text, image_projection(self.backbone)
        self.embedding = self.positions = self.text_norm = self.patch_projection = None
        if config.reference and tower is not None:
            self.embedding = nn.Parameter(tower.embedding.weight.detach().to(self.dtype, copy=True))
            self.positions = nn.Parameter(tower.positions.detach().to(self.dtype, copy=True))
            self.text_norm = copy.deepcopy(tower.norm).to(self.dtype).requires_grad_(True)
            if visual is not None:
                self.patch_projection = nn.Parameter(visual.detach().to(self.dtype, copy=True))
        self.fitted.fill_(True)

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Scale of each category's values, from the training images."""
        if not self.config.scale_values or self.config.reference:
            return
        pairs = [(self.rows(batch).cpu(), batch["value"].double().cpu()) for batch in batches]
        rows, values = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        for row in sorted(set(rows.tolist()) - {-1}):
            own = values[rows == row]
            self.offset[row] = own.mean()
            self.slope[row] = float(own.std(unbiased=False)) or 1.0  # all alike: nothing to scale

    def image_tokens(self, batch: Batch) -> Tensor:
        """Frozen image tokens (B, P, D) of a batch, projected to the joint space where they are not there yet."""
        if "tokens" in batch:
            tokens = cast(Tensor, batch["tokens"]).to(self.backbone.device, self.dtype)
        elif self.patch_projection is not None:
            tokens = self.backbone.image_patches(batch["image"]).to(self.dtype) @ self.patch_projection
        else:
            block = self.token_block(self.config, self.backbone.spec)
            tokens = image_token_features(self.backbone, batch["image"], block).to(self.dtype)
        return cast(Tensor, self.image_projection(tokens))

    def text_tokens(self, batch: Batch) -> Tensor:
        """Text tokens (1, L, D), or (B, L, D) where instructions differ, behind the learnable ones."""
        texts = self.instructions(batch)
        distinct = list(dict.fromkeys(texts))
        if self.embedding is not None:
            tokens = text_token_features(self.backbone, distinct, self.embedding, self.positions, self.text_norm)
        else:
            tokens = torch.cat([self._frozen(text) for text in distinct])
        tokens = self.network.text(self.text_projection(tokens))
        return tokens if len(distinct) == 1 else tokens[[distinct.index(text) for text in texts]]

    def _frozen(self, text: str) -> Tensor:
        known: dict[str, Tensor] = self._derived.setdefault("text_tokens", {})
        if text not in known:
            with torch.no_grad():
                known[text] = text_token_features(self.backbone, [text]).to(self.dtype)
        return known[text]

    def scores(self, batch: Batch) -> Tensor:
        """Scores (B,) of the regression head, in the units of `scale_values`; larger means more."""
        return self._summaries(self.image_tokens(batch), self.text_tokens(batch), pairs=False)[0]

    def _summaries(self, tokens: Tensor, text: Tensor, pairs: bool) -> tuple[Tensor, Summary | None]:
        """Scores (B,) and, with `pairs`, what the pair branch needs of each image; long lists in pieces."""
        size = self.config.images_at_once
        if len(tokens) <= size:
            return self._summary(tokens, text, pairs)
        parts = []
        for start in range(0, len(tokens), size):
            rows = slice(start, start + size)
            words = text if len(text) == 1 else text[rows]
            parts.append(_again(self._summary, tokens[rows], words, pairs))
        scores = torch.cat([part[0] for part in parts])
        if not pairs:
            return scores, None
        return scores, (torch.cat([p[1][0] for p in parts]), torch.cat([p[1][1] for p in parts]))

    def _summary(self, tokens: Tensor, text: Tensor, pairs: bool) -> tuple[Tensor, Summary | None]:
        fused = self.network.fuse(tokens, text)
        pair = self.network.pair
        return self.network.score(fused), pair.attention.summary(fused) if pairs and pair is not None else None

    def pair_logits(self, batch: Batch) -> Tensor:
        """Pair logits (B, B) of a batch: positive where the row's image has more than the column's."""
        scores, summary = self._summaries(self.image_tokens(batch), self.text_tokens(batch), pairs=True)
        if summary is None or self.network.pair is None:
            return scores[:, None] - scores[None]
        return cast(Tensor, self.network.pair(summary, summary))

    def loss(self, batch: Batch) -> Tensor:
        """1.0 rank + 0.2 regression (+ 1.0 bce), over all ordered pairs and all images of the list."""
        return sum((WEIGHTS[name] * value for name, value in self.losses(batch).items()), torch.zeros(()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The configured losses by name, without their weights; of all processes' lists where they are of one instruction."""
        values = batch["value"].to(self.backbone.device, self.dtype)
        wanted = self.config.losses
        scores, summary = self._summaries(self.image_tokens(batch), self.text_tokens(batch), pairs="rank" in wanted)
        rows = self.rows(batch)
        if self.together(batch):
            scores, values, rows = gathered(scores), gathered(values), gathered(rows)
            summary = None if summary is None else (gathered(summary[0]), gathered(summary[1]))
        found: dict[str, Tensor] = {}
        if "regression" in wanted:
            targets = (values - self.offset.to(values)[rows]) / self.slope.to(values)[rows]
            found["regression"] = smooth_log(scores, targets)
        if "rank" in wanted and bool((values != values[0]).any()):  # a list of equals has no order to learn
            found["rank"] = self._rank_loss(scores, summary, values)
        if "bce" in wanted:
            found["bce"] = F.binary_cross_entropy_with_logits(scores, (values != 0).to(scores.dtype))
        return found

    def _rank_loss(self, scores: Tensor, summary: Summary | None, values: Tensor) -> Tensor:
        pair, count = self.network.pair, len(values)
        if summary is None or pair is None:
            return F.binary_cross_entropy_with_logits(scores[:, None] - scores[None], ordered(values).to(scores.dtype))

        def rows_loss(lse: Tensor, pooled: Tensor, rows: Tensor) -> Tensor:
            logits = pair((lse, pooled), summary)
            targets = ordered(rows, values).to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")

        size = max(1, self.config.pairs_at_once // count)
        pieces = [slice(start, start + size) for start in range(0, count, size)]
        step = rows_loss if len(pieces) == 1 else lambda *given: _again(rows_loss, *given)
        total = torch.stack([step(summary[0][at], summary[1][at], values[at]) for at in pieces]).sum()
        return total / count**2

    def artifact_state(self) -> dict[str, Tensor]:
        """What is saved: everything but the pair branch, unless `keep_pair_branch`."""
        state = self.state_dict()
        return state if self.config.keep_pair_branch else {k: v for k, v in state.items() if not k.startswith("network.pair.")}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load saved tensors; without those of the pair branch there is none any more."""
        if not any(name.startswith("network.pair.") for name in state_dict):
            self.network.pair = None
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _projection(have: int, want: int, dtype: torch.dtype) -> nn.Module:
    """A trainable projection that keeps lengths at the start; nothing where the widths agree."""
    if have == want:
        return nn.Identity()
    layer = nn.Linear(have, want, bias=False, dtype=dtype)
    nn.init.orthogonal_(layer.weight)
    return layer


def _again(function: Any, *given: Any) -> Any:
    """Call a function whose activations are computed again in the backward pass."""
    return checkpoint(function, *given, use_reentrant=False) if torch.is_grad_enabled() else function(*given)
