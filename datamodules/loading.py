"""From samples to batches: decoding, transforms, order; the same with any number of worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from .errors import DataError, nearest
from .fewshot import digest
from .images import UnreadableImage, read_image
from .listing import Sample
from .regions import KEYS, Regions

Transform = Callable[[Image.Image], Tensor]
Item = dict[str, Any]


def read_sample(sample: Sample) -> Image.Image:
    """Decode the file of a sample.

    Raises:
        UnreadableImage: the file cannot be decoded.
    """
    if sample.file is None:
        raise UnreadableImage(sample.path, "it has no file")
    return read_image(sample.file)


def plain_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


class ImageDataset(Dataset[Item]):
    """Samples as items {"path", "index", "label", "image": Tensor (3, H, W)} and the extras in `keys`.

    A random transform gives the same result for the same (seed, epoch or view, sample.index), whatever came
    before and in whichever process. With `views` V epoch e serves view e mod V, the fixed views that cached features
    are made of; 0 draws a fresh one in every epoch. An image that cannot be decoded gives {"path", "index", "unreadable":
    reason}; `collate` drops it and lists it under the batch key `unreadable`, which `ImageLoader` takes out
    again and hands to `note`.

    Attributes:
        samples: the samples, in order.
        epoch: changes the random transforms; set it (or call the sampler's `set_epoch`) before each epoch.
        unreadable: sentences about images that could not be decoded, shared with the data module.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform | None = None,
        *,
        reader: Callable[[Sample], Image.Image] = read_sample,
        seed: int = 1,
        random_transform: bool = False,
        view: int | None = None,
        views: int = 0,
        keys: Sequence[str] = (),
        strict: bool = False,
        unreadable: list[str] | None = None,
    ) -> None:
        self.samples = list(samples)
        self.transform = transform or plain_tensor
        self.reader = reader
        self.seed = seed
        self.random_transform = random_transform
        self.view = view
        self.views = views
        self.keys = tuple(keys)
        self.strict = strict
        self.unreadable = [] if unreadable is None else unreadable
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Item:
        sample = self.samples[position]
        item: Item = {"path": sample.path, "index": sample.index}
        try:
            image = self.reader(sample)
        except UnreadableImage as error:
            return {**item, "unreadable": error.reason}
        item["label"] = sample.label
        item["image"] = self._transformed(image, sample.index)
        regions = Regions(sample, image, partial(self._transformed, index=sample.index))
        for key in self.keys:
            item[key] = regions(key) if key in KEYS else _extra(sample, key)
        return item

    def _transformed(self, image: Image.Image, index: int) -> Tensor:
        if not self.random_transform:
            return self.transform(image)
        view = self.epoch % self.views if self.view is None and self.views else self.view
        kind, number = ("epoch", self.epoch) if view is None else ("view", view)
        seed = int.from_bytes(digest(self.seed, kind, number, index)[:8], "big")
        python_state, torch_state = random.getstate(), torch.get_rng_state()
        try:
            random.seed(seed)
            torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed would reset the GPU's too
            return self.transform(image)
        finally:
            random.setstate(python_state)
            torch.set_rng_state(torch_state)

    def note(self, failures: Sequence[str]) -> None:
        """Remember images that could not be decoded.

        Raises:
            DataError: there are some and the data is strict.
        """
        if failures and self.strict:
            raise DataError(f"{failures[0]} (data.strict stops here; without it the image is left out)")
        self.unreadable += [failure for failure in failures if failure not in self.unreadable]


def _extra(sample: Sample, key: str) -> Any:
    facts = {**sample.extra, "group": sample.group, "domain": sample.domain}
    if key not in facts:
        raise DataError(
            f"The method needs '{key}' of every image, and {sample.path} has none; the data has "
            f"{', '.join(sorted(facts))}.{nearest(key, facts)}"
        )
    return facts[key]


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """Make a batch: images stacked to (B, 3, H, W), numbers to tensors (B,), all else to lists.

    Items that could not be decoded are left out and described under "unreadable" (a list of sentences,
    often empty); a batch of nothing else has that key alone.
    """
    failures = [f"{item['path']}: {item['unreadable']}" for item in items if "unreadable" in item]
    good = [item for item in items if "unreadable" not in item]
    batch: dict[str, Any] = {"unreadable": failures}
    for key in good[0] if good else ():
        values = [item[key] for item in good]
        if all(isinstance(value, Tensor) and value.shape == values[0].shape for value in values):
            batch[key] = torch.stack(values)
        elif all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            batch[key] = torch.tensor(values, dtype=torch.float32)
        else:
            batch[key] = values
    return batch


def process() -> tuple[int, int]:
    """Number of this process among those that train together, and how many they are; (0, 1) without a group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EpochSampler(DistributedSampler[Any]):
    """An order that depends on (seed, epoch) alone, dealt out to processes where there are several.

    The processes' batches of a step are together the batch that one process would take of their joined size; no image is
    dealt out twice. `set_epoch`, which Lightning calls before each epoch, also sets the data set's epoch.

    Args:
        dataset: the images.
        seed: of the order.
        shuffle: whether the order is random.
        batch_size: of one process.
        drop_last: whether the images of a short last batch are left out, where there are other batches.

    Attributes:
        drop_last: whether some can be left out: there are enough images for a batch of every process.
        spare: whether this process has no image of its own, and reads one of another's, so that it takes a step.
    """

    def __init__(self, dataset: ImageDataset, seed: int, shuffle: bool, batch_size: int = 1, drop_last: bool = False) -> None:
        rank, ranks = process()
        super().__init__(dataset, num_replicas=ranks, rank=rank, shuffle=shuffle)
        self._images = dataset
        self._order_seed = seed
        together, images = batch_size * ranks, len(dataset)
        self.drop_last = drop_last and images >= together
        self._dealt = images - images % together if self.drop_last else images
        self.spare = 0 < images <= rank

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the random transforms, of an epoch."""
        super().set_epoch(epoch)
        self._images.epoch = epoch

    def __len__(self) -> int:
        return 1 if self.spare else len(range(self.rank, self._dealt, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._images)))
        if self.shuffle:
            random.Random(digest(self._order_seed, "order", self.epoch)).shuffle(order)
        return iter(order[:1] if self.spare else order[self.rank : self._dealt : self.num_replicas])


def _in_own_words(batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; a DataError of a worker, which torch wraps into its traceback, says what it said there."""
    try:
        yield from batches
    except DataError as error:
        _, wrapped, said = str(error).rpartition(f"\n{DataError.__module__}.DataError: ")
        if not wrapped:
            raise
        raise DataError(said.strip()) from error


class ImageLoader(DataLoader[Item]):
    """A loader that notes unreadable images in the main process and skips batches of nothing else.

    Among several processes a batch is repeated for each that was skipped, or where a process has no image of its own: those
    that wait for one another must take as many steps. It says so (`repeated`), and does not count.
    """

    def __iter__(self) -> Any:
        dataset, owed = self.dataset, 0
        last: Any = None
        for batch in _in_own_words(super().__iter__()):
            if isinstance(batch, Mapping) and "unreadable" in batch and isinstance(dataset, ImageDataset):
                dataset.note(batch["unreadable"])
                batch = {key: value for key, value in batch.items() if key != "unreadable"}
                if not batch:
                    owed += process()[1] > 1
                    continue
            last = batch
            yield {**batch, "repeated": True} if getattr(self.sampler, "spare", False) else batch
        if owed and last is None:
            raise DataError(f"None of the images that process {process()[0] + 1} of {process()[1]} was to read can be decoded.")
        for _ in range(owed):
            yield {**last, "repeated": True}
