"""Where the tokens of prompts lie: tokenised once, arranged around the context, packed into chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import FrozenClip
from .backbone_tokens import Text
from .errors import BackboneError
from .packed_text import Layout


@dataclass(frozen=True)
class Chunk:
    """Some classes' rests, packed. Rows of the context that lie in the rests are written in at each call.

    Attributes:
        layout: of the rests.
        ids: token ids (T,), 0 where a context row goes.
        rows: packed rows that hold context.
        slots: which context row each of them holds.
        owners: the class each of them belongs to.
    """

    layout: Layout
    ids: Tensor
    rows: Tensor
    slots: Tensor
    owners: Tensor


@dataclass(frozen=True)
class Plan:
    """All classes of one arrangement of the context.

    Attributes:
        shared: context tokens in the shared beginning.
        common: ids (k,) behind them that all prompts have in common (fixed words), also in the beginning.
        chunks: the classes, shortest rests first.
        back: packed place of every class (C,).
    """

    shared: int
    common: Tensor
    chunks: tuple[Chunk, ...]
    back: Tensor


class PromptLayout:
    """The prompts of some texts with places for a context.

    Only whole prompts are tokenised, with stand-ins for the context, since only they show how words join: a
    name that ends in punctuation takes the full stop into its last token, for example.

    Args:
        backbone: whose tokenizer is used and on whose device the plans live.
        texts: one text for each class, or its token ids.
        length: number of context tokens, M.
        position: "end", "middle" or "front".
        opening: the words before the class text; their first M tokens make room for the context.

    Raises:
        BackboneError: an opening of fewer tokens than the context, or prompts longer than the tower reads.
    """

    def __init__(
        self, backbone: FrozenClip, texts: Sequence[Text], length: int, position: str, opening: str
    ) -> None:
        self.backbone = backbone
        self.length = length
        self.first = {"end": length, "middle": length // 2, "front": 0}[position]
        self.start = backbone.tokenizer.start
        if len(backbone.token_ids(opening)) < length:
            raise BackboneError(
                f"The phrase {opening!r} has fewer tokens than the context ({length}): lower the context "
                "length."
            )
        tower, limit = backbone.text, backbone.spec.context_length
        self.sequences: list[list[int]] = []
        self.names: list[int] = []
        for text in texts:
            words = text.replace("_", " ") if isinstance(text, str) else text
            if isinstance(words, str):
                prompt = f"{opening} {words}.".strip()
                row, needed = backbone.tokenizer.sequence(prompt), backbone.tokenizer.length(prompt)
            else:
                *head, end = backbone.tokenizer.sequence(opening)
                row = [*head, *words, *backbone.token_ids("."), end]
                needed = len(row)
            if needed > limit:
                raise BackboneError(
                    f"The prompt of {words!r} has {needed} tokens ({length} of context), but the text "
                    f"tower of {backbone.spec.name} reads {limit}: shorten the text or the context."
                )
            if tower is not None and tower.cuttable:
                row = row[: tower.end(row) + 1]
            self.sequences.append(row)
            self.names.append(0 if position == "end" else len(backbone.token_ids(words)))
        self._plans: dict[tuple[bool, int | None, torch.device], Plan] = {}

    def __len__(self) -> int:
        return len(self.sequences)

    def opening_ids(self) -> list[int]:
        """Return the ids before the context: the start of text."""
        return self.sequences[0][: self.start]

    def plan(self, class_specific: bool, memory: int | None) -> Plan:
        """Return the packed plan for a shared or a class-specific context, in chunks of `memory` tokens."""
        key = (class_specific, memory, self.backbone.device)
        if key not in self._plans:
            self._plans[key] = self._made(class_specific, memory)
        return self._plans[key]

    def padded(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return padded ids (C, L) of whole prompts and the places (C, M) of their context."""
        limit, device = self.backbone.spec.context_length, self.backbone.device
        padding = self.backbone.tokenize([""])[0, -1:].tolist()
        rows, places = [], []
        for index in chosen:
            row = [*self.opening_ids(), *self._arranged(index)]
            places.append([i for i, token in enumerate(row) if token < 0])
            word = self.sequences[index][
                self.start
            ]  # some word, where the context goes: padding may be masked
            rows.append([token if token >= 0 else word for token in row] + padding * (limit - len(row)))
        return torch.tensor(rows, device=device), torch.tensor(places, device=device, dtype=torch.long)

    def _arranged(self, index: int) -> list[int]:
        """Return the ids behind the start of one prompt; -1 - i stands for context row i."""
        tail, name = self.sequences[index][self.start + self.length :], self.names[index]
        slots = [-1 - slot for slot in range(self.length)]
        return [*slots[: self.first], *tail[:name], *slots[self.first :], *tail[name:]]

    def _made(self, class_specific: bool, memory: int | None) -> Plan:
        shared = 0 if class_specific else self.first
        rests = [self._arranged(index)[shared:] for index in range(len(self))]
        common = _common_start(rests)
        rests = [rest[len(common) :] for rest in rests]
        order = sorted(range(len(rests)), key=lambda i: len(rests[i]))
        beginning = self.start + shared + len(common)
        chunks, begin, used = [], 0, beginning
        for place, index in enumerate(order):
            if memory is not None and place > begin and used + len(rests[index]) > memory:
                chunks.append(self._chunk(rests, order[begin:place], beginning))
                begin, used = place, beginning
            used += len(rests[index])
        chunks.append(self._chunk(rests, order[begin:], beginning))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        device = self.backbone.device
        return Plan(shared, torch.tensor(common, dtype=torch.long, device=device), tuple(chunks), back.to(device))

    def _chunk(self, rests: list[list[int]], classes: list[int], start: int) -> Chunk:
        device = self.backbone.device
        lengths = [len(rests[i]) for i in classes]
        flat = torch.tensor([token for i in classes for token in rests[i]])
        owners = torch.repeat_interleave(torch.tensor(classes), torch.tensor(lengths))
        rows = (flat < 0).nonzero().squeeze(1)
        return Chunk(
            Layout.of(lengths, start, device),
            flat.clamp(min=0).to(device),
            rows.to(device),
            (-1 - flat[rows]).to(device),
            owners[rows].to(device),
        )


def _common_start(rests: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids that all rests begin with, leaving each at least its last token and every context row."""
    first, shortest = rests[0], min(map(len, rests))
    count = 0
    while count < shortest - 1 and first[count] >= 0 and all(rest[count] == first[count] for rest in rests):
        count += 1
    return list(first[:count])
