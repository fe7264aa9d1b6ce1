"""The base class of methods that order images: a score for each image under an instruction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .adapter import Adapter, Batch
from .gathering import gathered_lists, processes

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec


class OrderingAdapter(Adapter):
    """An adapter whose classes are categories, their texts instructions, and whose answer is one score an image.

    Scores are turned into units of the values by `slope * score + offset`, one of each for every category, since one may
    be counted and another measured in metres; where `fitted` is false, scores only order. All three are saved.
    """

    task: ClassVar[str] = "ordering"
    joins_batches: ClassVar[bool] = True
    follows_instructions: ClassVar[bool] = True  # whether other words can give another order
    slope: Tensor
    offset: Tensor
    fitted: Tensor

    @classmethod
    def per_class(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Units are those of a category."""
        return ("slope", "offset", "fitted")

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Training batches are lists with values and an instruction."""
        return ("value", "instruction")

    def build(self) -> None:
        """Register slopes and offsets (C,)."""
        count = len(self._trained)
        self.register_buffer("slope", torch.ones(count, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("fitted", torch.zeros(count, dtype=torch.bool))

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Scores (B,): the greater, the more of what the instruction asks for."""

    def logits(self, batch: Batch) -> Tensor:
        """The scores as a column (B, 1)."""
        return self.scores(batch)[:, None]

    def rows(self, batch: Batch) -> Tensor:
        """For each image, the row of its category among those trained on (B,); -1 where it is none of them."""
        place = {name: i for i, name in enumerate(self._trained)}
        row_of = torch.tensor([place.get(name, -1) for name in self.classes.names], device=self.slope.device)
        if "label" in batch:
            return row_of[batch["label"].to(row_of.device)]
        return row_of[:1].expand(len(batch["value"]))  # a list of the first category

    def units(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) in the units of the values of their categories, float64, and where (B,) there are such units.

        Args:
            scores: (B,).
            rows: (B,), as `rows` gives them; a score of another category, or of one that nothing was fitted for, stays.
        """
        rows = rows.to(scores.device)
        known = (rows >= 0) & self.fitted.to(scores.device)[rows]
        scaled = scores.double() * self.slope.to(scores.device)[rows] + self.offset.to(scores.device)[rows]
        return torch.where(known, scaled, scores.double()), known

    def row_of(self, instruction: str) -> int:
        """The row of the one category that was trained with this instruction, else -1."""
        if not self.follows_instructions and len(self._trained) == 1:
            return 0
        named = [name for name in self.classes.names if instruction in self.classes.texts[name] and name in self._trained]
        return self._trained.index(named[0]) if len(named) == 1 else -1

    def instructions(self, batch: Batch) -> list[str]:
        """The instruction of every image of a batch: its own, else that of its category."""
        if "instruction" in batch:
            return list(batch["instruction"])
        return [self.classes.text(self.classes.names[int(i)]) for i in batch["label"]]

    def together(self, batch: Batch) -> bool:
        """Whether several processes train, and all order by the same now, so that pairs across their lists count, too."""
        if processes() == 1:
            return False
        own = sorted(set(zip(self.instructions(batch), batch["label"].tolist(), strict=True)))
        return all(other == own for other in gathered_lists(own))

    def learned_instructions(self) -> list[str]:
        """The instructions this adapter was fitted with."""
        return [text for name in self.classes.names for text in self.classes.texts[name]]

    def fit_units(self, scores: Tensor, values: Tensor, rows: Tensor) -> None:
        """Fit slopes and offsets by least squares; a slope that would turn an order round is not taken.

        Args:
            scores: (N,).
            values: (N,).
            rows: (N,), of the categories.
        """
        for row in range(len(self.slope)):
            x, y = scores[rows == row].double(), values[rows == row].double()
            spread = ((x - x.mean()) ** 2).sum()
            slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if len(x) and float(spread) > 0 else 0.0
            if slope > 0:
                self.slope[row], self.offset[row], self.fitted[row] = slope, float(y.mean() - slope * x.mean()), True

    @torch.no_grad()
    def fit_units_on(self, batches: Sequence[Batch]) -> None:
        """Fit slope and offset on held-out batches, where there are any."""
        if batches:
            scores = torch.cat([self.scores(batch) for batch in batches])
            values = torch.cat([batch["value"].to(scores.device) for batch in batches])
            self.fit_units(scores, values, torch.cat([self.rows(batch).to(scores.device) for batch in batches]))
