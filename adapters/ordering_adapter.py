"""The base class of methods that order images: a score for each image under an instruction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .adapter import Adapter, Batch

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec


class OrderingAdapter(Adapter):
    """An adapter whose classes are categories, their texts instructions, and whose answer is one score an image.

    Scores are turned into units of the values by `slope * score + offset` (both are saved); where `in_units` is false
    they only order.
    """

    task: ClassVar[str] = "ordering"
    follows_instructions: ClassVar[bool] = True  # whether other words can give another order
    slope: Tensor
    offset: Tensor
    fitted: Tensor

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Training batches are lists with values and an instruction."""
        return ("value", "instruction")

    def build(self) -> None:
        """Register slope and offset."""
        self.register_buffer("slope", torch.ones((), dtype=torch.float64))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Scores (B,): the greater, the more of what the instruction asks for."""

    def logits(self, batch: Batch) -> Tensor:
        """The scores as a column (B, 1)."""
        return self.scores(batch)[:, None]

    @property
    def in_units(self) -> bool:
        """Whether `units` gives values in the units of the data."""
        return bool(self.fitted)

    def units(self, scores: Tensor) -> Tensor:
        """Scores (B,) in the units of the values, float64."""
        return scores.double() * self.slope.to(scores.device) + self.offset.to(scores.device)

    def instructions(self, batch: Batch) -> list[str]:
        """The instruction of every image of a batch: its own, else that of its category."""
        if "instruction" in batch:
            return list(batch["instruction"])
        return [self.classes.text(self.classes.names[int(i)]) for i in batch["label"]]

    def learned_instructions(self) -> list[str]:
        """The instructions this adapter was fitted with."""
        return [text for name in self.classes.names for text in self.classes.texts[name]]

    def fit_units(self, scores: Tensor, values: Tensor) -> None:
        """Fit slope and offset by least squares; a slope that would turn the order round is not taken."""
        x, y = scores.double(), values.double()
        spread = ((x - x.mean()) ** 2).sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if float(spread) > 0 else torch.zeros(())
        if float(slope) > 0:
            self.slope.copy_(slope)
            self.offset.copy_(y.mean() - slope * x.mean())
            self.fitted.fill_(True)

    @torch.no_grad()
    def fit_units_on(self, batches: Sequence[Batch]) -> None:
        """Fit slope and offset on held-out batches, where there are any."""
        if batches:
            scores = torch.cat([self.scores(batch) for batch in batches])
            self.fit_units(scores, torch.cat([batch["value"].to(scores.device) for batch in batches]))


def values_of(batches: Iterable[Batch]) -> Tensor:
    """All values of some batches (N,), float64."""
    return torch.cat([batch["value"].double().cpu() for batch in batches])
