"""Text features of prompts with learnable context, exact and without redundant work.

`PromptEncoder` turns class texts and a context (token embeddings that an adapter owns) into text features.
Where the tower is causal and read at the end of the text only the tokens that matter are computed (see
`packed_text`); one that reads in both directions, or at the end of the padding, takes whole padded prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .backbone import FrozenClip
from .backbone_spec import BackboneSpec
from .backbone_tokens import Text
from .blocks import attention_problem
from .errors import BackboneError, LimpetError
from .packed_text import encode
from .plain_text import encode_padded
from .prompt_layout import Chunk, PromptLayout

POSITIONS = ("end", "middle", "front")


def support(spec: BackboneSpec) -> str | None:
    """Say in a sentence why a text tower takes no learned prompts, or None; needs no weights."""
    if spec.multimodal:
        return (
            f"The text feature of {spec.name} is read from a token of its own behind the padding, as in CoCa models; "
            "prompt learning needs a CLIP text tower."
        )
    if spec.text_tower != "transformer":
        return (
            f"The text tower of {spec.name} is a Hugging Face model; prompt learning needs one of "
            "open_clip's own text transformers."
        )
    if spec.causal_text and spec.text_pool == "first":
        return (
            f"The text tower of {spec.name} reads its feature from the first token, which sees none of the others: "
            "no prompt would change it."
        )
    if spec.text_pool == "none":
        return (
            f"The text tower of {spec.name} gives a feature for each token and none for the whole text, so there is "
            "nothing to compare an image with."
        )
    return None


def init_words(backbone: FrozenClip, phrase: str, count: int | None = None) -> Tensor:
    """Return the token embeddings of a phrase, as a start for a context.

    Args:
        backbone: whose token table is read.
        phrase: words such as "a photo of a".
        count: how many tokens, from the first on; default: all. The others stay in the prompt as fixed ones when
            the phrase is also given to `PromptEncoder`. (The reference code counts words, one token each.)

    Returns:
        Embeddings (count, W), without positions; a copy without gradient.

    Raises:
        BackboneError: the phrase has fewer tokens than asked for.
    """
    ids = backbone.token_ids(phrase.replace("_", " "))
    count = len(ids) if count is None else count
    if count > len(ids) or count == 0:
        raise BackboneError(
            f"The phrase {phrase!r} has {len(ids)} tokens, but {count} context tokens are to start from it: "
            "lower the context length or give a longer phrase."
        )
    return backbone.embed_tokens(ids[:count]).detach().clone()


class PromptEncoder:
    """Text features of `[start][context][fixed words][text].[end]` for fixed texts and a changing context.

    Args:
        backbone: whose text tower is used.
        texts: one text for each class; underscores count as spaces, and a full stop is glued on.
        context_length: number of learnable tokens, M.
        position: where the class text stands, behind the context ("end"), between its halves ("middle"; the
            shorter half first) or before it ("front").
        fixed_text: words that stay between context and class text.
        memory: budget of token rows for one pass. More are cut into chunks whose activations are recomputed
            in the backward pass: the same result in a fixed amount of memory. None: everything at once.
        phrase: the words the context was started from, where it replaces only their first M tokens: the
            others stay in the prompt. In place of `fixed_text`.

    Attributes:
        tokens: token rows computed by one call with a shared context (of one image, for per-image contexts).
        packed: whether the exact short way is taken; False for towers that read in both directions or
            behind the text, and for attention other than CLIP's.

    Raises:
        BackboneError: a text tower without prompts (CoCa, Hugging Face), or prompts longer than the tower
            reads.
    """

    def __init__(
        self,
        backbone: FrozenClip,
        texts: Sequence[Text],
        context_length: int,
        position: str = "end",
        *,
        fixed_text: str = "",
        memory: int | None = None,
        phrase: str = "",
    ) -> None:
        problem = support(backbone.spec)
        if problem:
            raise BackboneError(problem)
        if position not in POSITIONS:
            raise LimpetError(
                f"The class text stands at {position!r}; it can stand at {', '.join(POSITIONS)}."
            )
        if (fixed_text or phrase) and position != "end":
            raise LimpetError(
                "Fixed words between context and class text are possible at position 'end' only."
            )
        if not texts:
            raise LimpetError("There are no class texts to encode.")
        tower = backbone.text
        if tower is None:
            raise BackboneError(f"The text tower of {backbone.spec.name} is not a native transformer.")
        self.backbone = backbone
        self.texts = tuple(texts)
        self.context_length = context_length
        self.position = position
        self.memory = memory
        self.packed = tower.cuttable and not any(map(attention_problem, tower.blocks))
        opening = phrase or " ".join([*["X"] * context_length, *([fixed_text] if fixed_text else [])])
        self._layout = PromptLayout(backbone, self.texts, context_length, position, opening)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def tokens(self) -> int:
        """Token rows computed by one call with a shared context."""
        return self.count(False)

    def count(self, class_specific: bool) -> int:
        """Return the token rows computed by one call, for a shared or a class-specific context."""
        if not self.packed:
            return len(self) * self.backbone.spec.context_length
        return sum(chunk.layout.tokens for chunk in self._layout.plan(class_specific, self.memory).chunks)

    def __call__(self, context: Tensor, deep: Sequence[Tensor] = (), class_specific: bool = False) -> Tensor:
        """Encode all texts with a context.

        Args:
            context: (M, W), shared; (C, M, W) with `class_specific`; or (G, M, W), one for each image.
            deep: vectors (n, W) or (G, n, W), n <= M, that overwrite the first n context places before block
                1, 2, ...
            class_specific: whether the first dimension of a 3-d context runs over classes.

        Returns:
            Text features, not normalised: (C, D), or (G, C, D) for per-image contexts.

        Raises:
            LimpetError: shapes that do not fit the encoder.
        """
        self._check(context, deep, class_specific)
        groups = context[None] if context.ndim == 2 or class_specific else context
        step = self._forward_packed if self.packed else self._forward_plain
        features = step(groups, tuple(deep), class_specific)
        features = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
        return features if context.ndim == 3 and not class_specific else features[0]

    def _check(self, context: Tensor, deep: Sequence[Tensor], class_specific: bool) -> None:
        width = self.backbone.spec.text_width
        want = (len(self), self.context_length, width) if class_specific else (self.context_length, width)
        have = tuple(context.shape) if class_specific else tuple(context.shape[-2:])
        if have != want or context.ndim not in (2, 3):
            raise LimpetError(f"The context has shape {tuple(context.shape)}; it should end in {want}.")
        if deep and self.position != "end":
            raise LimpetError("Deep text prompts are possible with the class text at the end only.")
        layers = self.backbone.spec.text_layers
        if len(deep) > layers - 1:
            raise BackboneError(
                f"Text prompts were given for {len(deep) + 1} layers, but the text tower of "
                f"{self.backbone.spec.name} has {layers}: lower the prompt depth."
            )
        for vectors in deep:
            if vectors.shape[-2] > self.context_length or vectors.shape[-1] != width:
                raise LimpetError(
                    f"A deep prompt has shape {tuple(vectors.shape)}; it can hold at most "
                    f"{self.context_length} tokens of width {width}, as the context does."
                )

    def _forward_packed(self, groups: Tensor, deep: tuple[Tensor, ...], class_specific: bool) -> Tensor:
        plan = self._layout.plan(class_specific, self.memory)
        tower = self.backbone.text
        assert tower is not None
        start = self.backbone.embed_tokens(self._layout.opening_ids())
        common = self.backbone.embed_tokens(plan.common)

        def one(chunk: Chunk, groups: Tensor, *deep: Tensor) -> Tensor:
            context = groups.to(start.dtype)
            if class_specific:
                beginning = torch.cat([start, common])[None]
                held = context[0][chunk.owners, chunk.slots]
            else:
                size = context.shape[0]  # not len(): an export keeps the number of images open
                parts = (start.expand(size, -1, -1), context[:, : plan.shared])
                beginning = torch.cat([*parts, common.expand(size, -1, -1)], 1)
                held = context[:, chunk.slots]
            rests = self.backbone.embed_tokens(chunk.ids)
            if len(chunk.rows):
                rests = rests if held.ndim == 2 else rests.expand(context.shape[0], -1, -1)
                rests = rests.index_copy(-2, chunk.rows, held)
            return encode(tower, chunk.layout, beginning, rests, deep)

        images = None  # how many per-image contexts one pass takes
        if self.memory is not None and not class_specific and not torch.compiler.is_compiling():
            images = max(1, self.memory // max(chunk.layout.tokens for chunk in plan.chunks))
        parts = [
            torch.cat(
                [
                    self._recomputed(one, chunk, part, more, len(plan.chunks) * batches)
                    for chunk in plan.chunks
                ],
                1,
            )
            for part, more, batches in _split(groups, deep, images)
        ]
        return torch.cat(parts)[:, plan.back]

    def _forward_plain(self, groups: Tensor, deep: tuple[Tensor, ...], class_specific: bool) -> Tensor:
        length = self.backbone.spec.context_length
        size = len(self) if self.memory is None else max(1, self.memory // length)
        classes = [range(i, min(i + size, len(self))) for i in range(0, len(self), size)]
        many = self.memory is not None and len(groups) * len(self) * length > self.memory

        def one(chosen: range, groups: Tensor, *deep: Tensor) -> Tensor:
            ids, slots = self._layout.padded(chosen)
            context = (
                groups[0][list(chosen)] if class_specific else groups[:, None].expand(-1, len(chosen), -1, -1)
            )
            return encode_padded(self.backbone, ids, slots, context, deep=deep, start=self._layout.start)

        images = 1 if many and not class_specific else None
        parts = [
            torch.cat(
                [self._recomputed(one, part_of, part, more, len(classes) * batches) for part_of in classes], 1
            )
            for part, more, batches in _split(groups, deep, images)
        ]
        return torch.cat(parts)

    @staticmethod
    def _recomputed(
        step: Callable[..., Tensor], what: object, groups: Tensor, deep: tuple[Tensor, ...], passes: int
    ) -> Tensor:
        """Run one pass; where there are several, keep its input only and recompute it going backward."""
        if passes == 1 or not torch.is_grad_enabled():
            return step(what, groups, *deep)
        result: Tensor = checkpoint(step, what, groups, *deep, use_reentrant=False, preserve_rng_state=False)
        return result


def _split(
    groups: Tensor, deep: tuple[Tensor, ...], size: int | None
) -> list[tuple[Tensor, tuple[Tensor, ...], int]]:
    """Cut per-image contexts (and deep prompts that are per image) into parts of `size` images."""
    if size is None or size >= len(groups):
        return [(groups, deep, 1)]
    count = len(groups)
    starts = range(0, count, size)
    return [
        (
            groups[i : i + size],
            tuple(d[i : i + size] if d.ndim == 3 and len(d) == count else d for d in deep),
            len(starts),
        )
        for i in starts
    ]
