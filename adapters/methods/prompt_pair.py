"""Antonym prompts: is the image nearer to "many" or to "few"? Zero-shot ordering (after CLIP-IQA, arXiv 2207.12396)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..ordering_adapter import OrderingAdapter

TEMPLATE = "a photo of {}."
_OPENING = re.compile(r"^(please )?(sort|order|rank|arrange)\b.*?\bby (the |its |their )?", re.IGNORECASE)


@dataclass
class Config:
    """Settings of the pair of prompts.

    Attributes:
        low: what an image with a small value shows; null makes it from the instruction.
        high: what an image with a great value shows; null makes it from the instruction.
    """

    low: str | None = None
    high: str | None = None


class PromptPair(OrderingAdapter):
    """score = scale (cos(image, high) - cos(image, low)), the log-odds of the two prompts. Nothing is trained."""

    def prompts(self, instruction: str) -> tuple[str, str]:
        """The prompts for little and for much of what an instruction asks for."""
        low, high = poles(instruction)
        return self.config.low or low, self.config.high or high

    def direction(self, instruction: str) -> Tensor:
        """Difference (D,) of the two prompts' unit features."""
        known: dict[str, Tensor] = self._derived.setdefault("direction", {})
        if instruction not in known:
            low, high = F.normalize(self.encode_text(self.prompts(instruction)), dim=-1)
            known[instruction] = high - low
        return known[instruction]

    def scores(self, batch: Batch) -> Tensor:
        """Scores (B,)."""
        directions = torch.stack([self.direction(text) for text in self.instructions(batch)])
        return self.backbone.logit_scale * (self.encode_image(batch) * directions).sum(-1)

    def select(self, batches: Sequence[Batch]) -> None:
        """Fit the units on the validation images, and say which prompts are compared."""
        self.fit_units_on(batches)
        shown = [self.prompts(text) for text in self.learned_instructions()[:1]]
        self.selected = {key: text for pair in shown for key, text in zip(("low", "high"), pair, strict=True)}


def poles(instruction: str) -> tuple[str, str]:
    """Prompts for few and many, or low and high, made from an instruction such as "Sort images by the number of cats."."""
    about = _OPENING.sub("", " ".join(instruction.split())).rstrip(".!?") or instruction
    number = re.search(r"\b(?:numbers?|counts?|amount) of (.+)", about, re.IGNORECASE)
    how = re.match(r"how (\w+) (.+?) (is|are|looks?)$", about, re.IGNORECASE)
    if number:
        words = (f"few {number[1]}", f"many {number[1]}")
    elif how:
        words = (f"{how[2]} that {how[3]} not {how[1]}", f"{how[2]} that {how[3]} very {how[1]}")
    else:
        words = (f"low {about}", f"high {about}")
    return TEMPLATE.format(words[0]), TEMPLATE.format(words[1])
