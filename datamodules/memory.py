"""Exemplar memory: a fixed number of training images of earlier sessions, shared equally by their classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import DataError
from .fewshot import digest

CHOICES = ("herding", "random")


def herding(features: Tensor, count: int) -> list[int]:
    """Positions whose running mean stays closest to the mean of all, best first (iCaRL, arXiv 1611.07725, algorithm 4).

    Args:
        features: (N, D); rows are brought to unit norm.
        count: how many to choose, at most N.
    """
    rows = F.normalize(features.double(), dim=-1)
    mean, total = rows.mean(0), torch.zeros_like(rows[0])
    chosen: list[int] = []
    free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for k in range(1, min(count, len(rows)) + 1):
        distance = (mean - (total + rows) / k).norm(dim=1).masked_fill(~free, float("inf"))
        best = int(distance.argmin())
        chosen.append(best)
        free[best] = False
        total += rows[best]
    return chosen


class ExemplarMemory:
    """Paths of kept training images, best first, by session and class.

    The budget is divided equally among all (session, class) pairs so far; when a session is added, every list is cut
    from its end, so an exemplar never comes back.

    Args:
        budget: images in all, at least 1.
        choice: "herding" or "random".
        seed: of a random choice.
    """

    def __init__(self, budget: int, choice: str = "herding", seed: int = 1) -> None:
        if budget < 1 or choice not in CHOICES:
            raise DataError(f"A memory keeps at least one image, chosen by {' or '.join(CHOICES)}: not {budget} by '{choice}'.")
        self.budget, self.choice, self.seed = budget, choice, seed
        self.kept: dict[int, dict[str, list[str]]] = {}

    def __len__(self) -> int:
        return sum(len(paths) for classes in self.kept.values() for paths in classes.values())

    def add(self, session: int, data: Any, features: Tensor | None = None) -> None:
        """Take exemplars of a session and make room for them.

        Args:
            session: its number, from 0.
            data: a data module; its training samples are chosen from.
            features: (N, D), one row a training sample in order; needed for herding.
        """
        samples = list(data.samples["train"])
        own: dict[str, list[str]] = {}
        for label, name in enumerate(data.class_names):
            positions = [i for i, sample in enumerate(samples) if sample.label == label]
            if not positions:
                continue
            if self.choice == "herding":
                if features is None:
                    raise DataError("Herding needs the features of the training images.")
                order = herding(features[positions], self.budget)
            else:
                order = list(range(len(positions)))
                random.Random(digest(self.seed, "memory", session, name)).shuffle(order)
            own[name] = [samples[positions[i]].path for i in order]
        self.kept[session] = own
        lists = [paths for classes in self.kept.values() for paths in classes.values()]
        share, more = divmod(self.budget, max(len(lists), 1))
        for number, paths in enumerate(lists):  # a remainder goes to the first classes
            del paths[share + (number < more) :]

    def paths(self, session: int) -> list[str]:
        """Paths kept of a session."""
        return [path for paths in self.kept.get(session, {}).values() for path in paths]

    def state(self) -> dict[str, dict[str, list[str]]]:
        """JSON-able content."""
        return {str(session): {name: list(paths) for name, paths in own.items()} for session, own in self.kept.items()}

    def restore(self, state: dict[str, dict[str, Sequence[str]]]) -> None:
        """Take over what `state` gave."""
        self.kept = {int(session): {name: list(paths) for name, paths in own.items()} for session, own in state.items()}
