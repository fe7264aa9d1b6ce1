"""Batches of cached features: whole batches by index, so that no Python runs per image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .errors import LimpetError
from .feature_store import Rows

Batch = dict[str, Any]


class Features(Protocol):
    """Where batches come from, as far as they need to know."""

    datamodule: Any
    key: str
    shape: tuple[int, ...]
    samples: Mapping[str, list[Any]]

    def rows(self, split: str, view: int | None = None) -> Rows:
        """Rows of one view of a split."""
        ...


def as_it_is(batch: Any) -> Any:
    """Collate function of a loader whose dataset gives whole batches (PyTorch's own would walk every path)."""
    return batch


def repeated(batch: Any) -> Any:
    """The same where a process has no image of its own: the batch is another's, and does not count."""
    return {**batch, "repeated": True}


class FeatureBatches(Dataset[Batch]):
    """Whole batches: item (epoch, positions) of a split, from view epoch mod `views` (0: the plain view)."""

    def __init__(self, source: Features, split: str, views: int) -> None:
        self.source, self.split, self.views = source, split, views
        samples = source.samples[split]
        self.labels = torch.tensor([int(s.label) for s in samples], dtype=torch.long)
        self.indices = torch.tensor([int(s.index) for s in samples], dtype=torch.long)
        self.paths = np.array([s.path for s in samples], dtype=object)
        self.extras = {
            key: [_extra(s, key) for s in samples] for key in getattr(source.datamodule, "keys", ())
        }

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: Any) -> Batch:
        epoch, positions, *a_list = item
        rows = self.source.rows(self.split, epoch % self.views if self.views else None)
        at = torch.from_numpy(positions)
        batch: Batch = {
            self.source.key: torch.from_numpy(rows.take(positions)).reshape(-1, *self.source.shape),
            "label": self.labels[at],
            "index": self.indices[at],
            "path": self.paths[positions].tolist(),
        }
        for key, values in self.extras.items():
            chosen = [values[n] for n in positions]
            numbers = all(isinstance(value, int | float) for value in chosen)
            batch[key] = torch.tensor(chosen) if numbers else chosen
        if a_list:
            category, instruction = a_list
            own = batch["label"] == category  # an image of another category counts as having none
            batch["value"] = torch.where(own, batch["value"], torch.zeros_like(batch["value"]))
            batch["label"] = torch.full_like(batch["label"], category)
            batch["instruction"] = [instruction] * len(own)
        return batch


class TrainBatches(Sampler[Any]):
    """Batches of the data module's own sampler; images dropped as unreadable leave gaps, as they do there."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool, kept: np.ndarray[Any, Any]) -> None:
        self.sampler, self.batch_size, self.drop_last, self.epoch = sampler, batch_size, drop_last, 0
        self.place = np.full(max(len(sampler), int(kept.max(initial=-1)) + 1), -1, np.int64)
        self.place[kept] = np.arange(len(kept))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and with it the view, of `epoch`."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        order = np.fromiter(self.sampler, np.int64)
        for number in range(len(self)):
            places = self.place[order[number * self.batch_size : (number + 1) * self.batch_size]]
            yield self.epoch, places[places >= 0]


class ListBatches(Sampler[Any]):
    """The data module's own lists of images to be ordered; images dropped as unreadable leave gaps."""

    def __init__(self, lists: Any, kept: np.ndarray[Any, Any]) -> None:
        self.lists = lists
        self.place = np.full(len(lists.images), -1, np.int64)
        self.place[kept] = np.arange(len(kept))

    def set_epoch(self, epoch: int) -> None:
        """Choose the lists of `epoch`."""
        self.lists.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.lists)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray[Any, Any], int, str]]:
        for members in self.lists:
            places = self.place[[position for position, _, _ in members]]
            _, category, instruction = members[0]
            yield self.lists.epoch, places[places >= 0], category, instruction


class InOrder(Sampler[Any]):
    """Positions 0..n-1 in pieces of `batch_size`."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __len__(self) -> int:
        return (self.count + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        for start in range(0, self.count, self.batch_size):
            yield 0, np.arange(start, min(start + self.batch_size, self.count))


def _extra(sample: Any, key: str) -> Any:
    """A declared further key of a sample.

    Raises:
        LimpetError: If the data does not have it.
    """
    facts = {**sample.extra, "group": sample.group, "domain": sample.domain}
    if key not in facts:
        known = ", ".join(sorted(facts))
        raise LimpetError(
            f"The method needs {key!r} of every image, and {sample.path} has none; there is {known}."
        )
    return facts[key]
