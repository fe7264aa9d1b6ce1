"""Text features of prompts with learnable context, exact and without redundant work.

`PromptEncoder` turns class texts and a context (token embeddings that an adapter owns) into text features.
Where the tower is causal only the tokens that matter are computed (see `packed_text`); a tower that reads in
both directions takes whole padded prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .backbone import FrozenClip
from .backbone_spec import BackboneSpec
from .blocks import attention_problem
from .errors import BackboneError, LimpetError
from .packed_text import Layout, encode
from .plain_text import encode_padded

POSITIONS = ("end", "middle", "front")


def support(spec: BackboneSpec) -> str | None:
    """Say in a sentence why a text tower takes no learned prompts, or None; needs no weights."""
    if spec.multimodal:
        return (
            f"{spec.name} is a CoCa model, whose text feature is read from a token behind the padding; "
            "prompt learning needs a CLIP text tower."
        )
    if spec.text_tower != "transformer":
        return (
            f"The text tower of {spec.name} is a Hugging Face model; prompt learning needs one of "
            "open_clip's own text transformers."
        )
    return None


def init_words(backbone: FrozenClip, phrase: str, count: int | None = None) -> Tensor:
    """Return the token embeddings of a phrase, as a start for a context.

    Args:
        backbone: whose token table is read.
        phrase: words such as "a photo of a".
        count: how many tokens; default: the number of words. A word of several tokens therefore leaves tokens
            over, which stay in the prompt as fixed ones when the phrase is also given to `PromptEncoder`.

    Returns:
        Embeddings (count, W), without positions; a copy without gradient.

    Raises:
        BackboneError: the phrase has fewer tokens than asked for.
    """
    ids = backbone.token_ids(phrase.replace("_", " "))
    count = len(phrase.split()) if count is None else count
    if count > len(ids) or count == 0:
        raise BackboneError(
            f"The phrase {phrase!r} has {len(ids)} tokens, but {count} context tokens are to start from it: "
            "lower the context length or give a longer phrase."
        )
    return backbone.embed_tokens(ids[:count]).detach().clone()


@dataclass(frozen=True)
class _Chunk:
    """Some classes' rests, packed. Rows of the context that lie in the rests are written in at each call."""

    layout: Layout
    ids: Tensor  # (T,), 0 where a context row goes
    rows: Tensor  # packed rows that hold context
    slots: Tensor  # which context row each of them holds
    owners: Tensor  # the class each of them belongs to


@dataclass(frozen=True)
class _Plan:
    """All classes of one arrangement of the context."""

    shared: int  # context tokens in the shared beginning
    chunks: tuple[_Chunk, ...]
    back: Tensor  # packed place of every class (C,)


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
        packed: whether the exact short way is taken; False for towers that read in both directions.

    Raises:
        BackboneError: a text tower without prompts (CoCa, Hugging Face), or prompts longer than the tower
            reads.
    """

    def __init__(
        self,
        backbone: FrozenClip,
        texts: Sequence[str],
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
        self.packed = tower.mask is not None and not any(map(attention_problem, tower.blocks))
        self._start = backbone.tokenizer.start
        self._sequences, self._name_lengths = self._tokenized(fixed_text, phrase)
        self._plans: dict[bool, _Plan] = {}

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
        return sum(chunk.layout.tokens for chunk in self._plan(class_specific).chunks)

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

    def _tokenized(self, fixed_text: str, phrase: str) -> tuple[list[list[int]], list[int]]:
        """Tokenise whole prompts with stand-ins for the context; only whole prompts show how words join.

        A name that ends in punctuation takes the full stop into its last token, for example.
        """
        backbone, length = self.backbone, self.context_length
        opening = phrase or " ".join([*["X"] * length, *([fixed_text] if fixed_text else [])])
        if len(backbone.token_ids(opening)) < length:
            raise BackboneError(
                f"The phrase {phrase!r} has fewer tokens than the context ({length}): lower the context "
                "length."
            )
        tower, limit = backbone.text, backbone.spec.context_length
        assert tower is not None
        sequences, names = [], []
        for text in self.texts:
            words = text.replace("_", " ")
            row = backbone.tokenizer.sequence(f"{opening} {words}.".strip())
            if tower.mask is not None:
                row = row[: tower.end(row) + 1]
            if len(row) > limit:
                raise BackboneError(
                    f"The prompt of {words!r} has {len(row)} tokens ({length} of context), but the text "
                    f"tower of {backbone.spec.name} reads {limit}: shorten the text or the context."
                )
            sequences.append(row)
            names.append(0 if self.position == "end" else len(backbone.token_ids(words)))
        return sequences, names

    def _arranged(self, index: int, class_specific: bool) -> tuple[int, list[int]]:
        """Return (context tokens in the shared beginning, rest); -1 - slot marks context in a rest."""
        row, length = self._sequences[index], self.context_length
        tail, name = row[self._start + length :], self._name_lengths[index]
        slots = [-1 - slot for slot in range(length)]
        first = {"end": length, "middle": length // 2, "front": 0}[self.position]
        body = [*slots[:first], *tail[:name], *slots[first:], *tail[name:]]
        shared = 0 if class_specific else first
        return shared, body[shared:]

    def _plan(self, class_specific: bool) -> _Plan:
        if class_specific in self._plans:
            return self._plans[class_specific]
        arranged = [self._arranged(i, class_specific) for i in range(len(self))]
        shared = arranged[0][0]
        rests = [rest for _, rest in arranged]
        order = sorted(range(len(rests)), key=lambda i: len(rests[i]))
        beginning = self._start + shared
        chunks, start, used = [], 0, beginning
        for place, index in enumerate([*order, -1]):
            length = len(rests[index]) if index >= 0 else 0
            full = self.memory is not None and used + length > self.memory
            if place > start and (index < 0 or full):
                chunks.append(
                    self._chunk([rests[i] for i in order[start:place]], order[start:place], beginning)
                )
                start, used = place, beginning
            used += length
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        plan = _Plan(shared, tuple(chunks), back)
        self._plans[class_specific] = plan
        return plan

    def _chunk(self, rests: list[list[int]], classes: list[int], start: int) -> _Chunk:
        device = self.backbone.device
        flat = torch.tensor([token for rest in rests for token in rest])
        owners = torch.repeat_interleave(torch.tensor(classes), torch.tensor([len(rest) for rest in rests]))
        rows = (flat < 0).nonzero().squeeze(1)
        return _Chunk(
            Layout.of([len(rest) for rest in rests], start, device),
            flat.clamp(min=0).to(device),
            rows.to(device),
            (-1 - flat[rows]).to(device),
            owners[rows].to(device),
        )

    def _forward_packed(self, groups: Tensor, deep: tuple[Tensor, ...], class_specific: bool) -> Tensor:
        plan = self._plan(class_specific)
        tower = self.backbone.text
        assert tower is not None
        start = self.backbone.embed_tokens(self._sequences[0][: self._start])

        def one(chunk: _Chunk, groups: Tensor, *deep: Tensor) -> Tensor:
            context = groups.to(start.dtype)
            if class_specific:
                beginning = start[None]
                held = context[0][chunk.owners, chunk.slots]
            else:
                beginning = torch.cat([start.expand(len(context), -1, -1), context[:, : plan.shared]], 1)
                held = context[:, chunk.slots]
            rests = self.backbone.embed_tokens(chunk.ids)
            if len(chunk.rows):
                rests = rests if held.ndim == 2 else rests.expand(len(context), -1, -1)
                rests = rests.index_copy(-2, chunk.rows, held)
            return encode(tower, chunk.layout, beginning, rests, deep)

        budget = (
            None if self.memory is None else max(1, self.memory // max(c.layout.tokens for c in plan.chunks))
        )
        if class_specific:
            budget = None
        parts = [
            torch.cat(
                [
                    self._recomputed(one, chunk, part, more, len(plan.chunks) * batches)
                    for chunk in plan.chunks
                ],
                1,
            )
            for part, more, batches in _split(groups, deep, budget)
        ]
        return torch.cat(parts)[:, plan.back.to(groups.device)]

    def _forward_plain(self, groups: Tensor, deep: tuple[Tensor, ...], class_specific: bool) -> Tensor:
        length = self.backbone.spec.context_length
        size = len(self) if self.memory is None else max(1, self.memory // length)
        classes = [range(i, min(i + size, len(self))) for i in range(0, len(self), size)]
        single = self.memory is not None and len(groups) * len(self) * length > self.memory

        def one(chosen: range, groups: Tensor, *deep: Tensor) -> Tensor:
            ids, slots = self._whole(chosen)
            context = (
                groups[0][list(chosen)] if class_specific else groups[:, None].expand(-1, len(chosen), -1, -1)
            )
            return encode_padded(self.backbone, ids, slots, context, deep=deep, start=self._start)

        budget = 1 if single and not class_specific else None
        parts = [
            torch.cat(
                [self._recomputed(one, part_of, part, more, len(classes) * batches) for part_of in classes], 1
            )
            for part, more, batches in _split(groups, deep, budget)
        ]
        return torch.cat(parts)

    def _whole(self, chosen: range) -> tuple[Tensor, Tensor]:
        """Return padded ids (C, L) of whole prompts and the places (C, M) of their context."""
        blank = self.backbone.tokenize([""])[0].tolist()
        rows, places = [], []
        for index in chosen:
            _, rest = self._arranged(index, True)
            row = [*self._sequences[index][: self._start], *rest]
            places.append([i for i, token in enumerate(row) if token < 0])
            rows.append(
                [max(token, 0) for token in row] + blank[-1:] * (self.backbone.spec.context_length - len(row))
            )
        device = self.backbone.device
        return torch.tensor(rows, device=device), torch.tensor(places, device=device, dtype=torch.long)

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
    count = len(groups)
    if size is None or size >= count:
        return [(groups, deep, 1)]
    starts = range(0, count, size)
    return [
        (
            groups[i : i + size],
            tuple(d[i : i + size] if d.ndim == 3 and len(d) == count else d for d in deep),
            len(starts),
        )
        for i in starts
    ]
