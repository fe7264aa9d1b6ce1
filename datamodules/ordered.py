"""What data modules of images to be ordered share: values, instructions, and training batches that are lists."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import Sampler

from .base import DataModule
from .configs import DataConfig
from .errors import DataError, nearest
from .fewshot import digest
from .listing import SPLITS, Sample
from .loading import ImageDataset, ImageLoader, Item, collate, process

LISTS = ("every", "uniform")
ListItem = tuple[int, int, str]
"""Position of an image, the label of the list's category, and the list's instruction."""


class OrderedDataModule(DataModule):
    """Images with a value; classes are categories, and the text names of a category are its instructions.

    `Sample.extra` holds `value` (a float), `category` and `instruction`. A training batch is a list: images of one
    category under one instruction (and, with `negatives`, images of others with value 0).
    """

    resize_mode: ClassVar[str] = "squash"  # a crop would change how many there are

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.keys = ("value", "instruction")
        lists = getattr(config, "lists", "every")
        if lists not in LISTS:
            raise DataError(f"data.lists is '{lists}'; known are {', '.join(LISTS)}.{nearest(lists, LISTS)}")
        share = getattr(config, "negatives", 0.0)
        if not 0 <= share < 1:
            raise DataError(f"data.negatives is {share}; it is a share of a list, from 0 to below 1.")

    def manifest(self) -> dict[str, Any]:
        """The split, with the value and instruction of every image; the hash covers them."""
        manifest = super().manifest()
        for split in SPLITS:
            samples = sorted(self.samples[split], key=lambda s: s.path)
            manifest["splits"][split]["values"] = [s.extra["value"] for s in samples]
        texts = {name: list(self.class_texts[name]) for name in self.class_names}
        content = [manifest["hash"], texts, [manifest["splits"][split]["values"] for split in SPLITS]]
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return {**manifest, "instructions": texts, "hash": hashlib.sha256(text.encode()).hexdigest()}

    def train_dataloader(self) -> ImageLoader:
        """Lists of augmented training images, in the order of (seed, epoch)."""
        dataset = ListDataset(
            self.samples["train"],
            self._transforms["train"],
            reader=self.reader,
            seed=self.seed,
            random_transform=True,
            keys=self.keys,
            strict=self.config.strict,
            unreadable=self.unreadable,
        )
        return ImageLoader(
            dataset,
            batch_sampler=ListSampler(dataset, self._instructions(), self.config, self.seed),
            num_workers=self.config.num_workers,
            collate_fn=collate,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _instructions(self) -> list[list[str]]:
        return [list(self.class_texts[name]) for name in self.class_names]


class ListDataset(ImageDataset):
    """Samples asked for by (position, label of the list's category, instruction)."""

    def __getitem__(self, item: Any) -> Item:
        """One image as it counts in a list: 0 where it is of another category."""
        if not isinstance(item, tuple):
            return super().__getitem__(item)
        position, category, instruction = item
        found = super().__getitem__(position)
        if "image" in found:
            found.update(instruction=instruction)
            if self.samples[position].label != category:
                found.update(value=0.0, label=category)
        return found


class ListSampler(Sampler[list[ListItem]]):
    """Lists of images, each of one category; their order and contents follow from (seed, epoch).

    Args:
        dataset: the training images; its epoch is set along.
        instructions: for each label the instructions a list may be given.
        config: `batch_size` (length of a list), `lists` and `negatives`.
        seed: seed of the run.
    """

    def __init__(
        self, dataset: ImageDataset, instructions: Sequence[Sequence[str]], config: Any, seed: int
    ) -> None:
        self.images, self.instructions, self.seed, self.epoch = dataset, instructions, seed, 0
        self.size, self.kind, self.share = int(config.batch_size), str(config.lists), float(config.negatives)
        self.members: dict[int, list[int]] = defaultdict(list)
        for position, sample in enumerate(dataset.samples):
            self.members[sample.label].append(position)
        self.positives = max(1, int(self.size * (1 - self.share)))
        self.rank, self.ranks = process()
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the lists, and the random transforms, of an epoch."""
        self.epoch = self.images.epoch = epoch

    def _count(self) -> int:
        if self.kind == "uniform":
            return max(1, len(self.images) // self.size)
        return sum(math.ceil(len(m) / self.positives) for m in self.members.values())

    def __len__(self) -> int:
        return self._count() // self.ranks

    def __iter__(self) -> Iterator[list[ListItem]]:
        """Lists of this process; of several processes each gets as many, and none twice: some are left out of an epoch."""
        lists = self._lists(random.Random(digest(self.seed, "lists", self.epoch)))
        return iter(lists[self.rank : len(self) * self.ranks : self.ranks])

    def _lists(self, rng: random.Random) -> list[list[ListItem]]:
        chosen: list[tuple[int, list[int]]] = []
        if self.kind == "uniform":
            labels = sorted(self.members)
            for _ in range(self._count()):
                label = rng.choice(labels)
                members = self.members[label]
                chosen.append((label, rng.sample(members, min(self.positives, len(members)))))
        else:
            for label in sorted(self.members):
                order = rng.sample(self.members[label], len(self.members[label]))
                pieces = math.ceil(len(order) / self.positives)
                chosen += [(label, order[i::pieces]) for i in range(pieces)]  # lengths differ by one at most
            rng.shuffle(chosen)
        return [self._list(label, positions, rng) for label, positions in chosen]

    def _list(self, label: int, positions: list[int], rng: random.Random) -> list[ListItem]:
        instruction = rng.choice(self.instructions[label])
        wanted = round(len(positions) * self.share / (1 - self.share))
        if wanted:
            own = {_image(self.images.samples[i]) for i in self.members[label]}
            others = [i for i, s in enumerate(self.images.samples) if s.label != label and _image(s) not in own]
            positions = [*positions, *rng.sample(others, min(wanted, len(others)))]
            rng.shuffle(positions)
        return [(position, label, instruction) for position in positions]


def _image(sample: Sample) -> Any:
    """What is the same for two samples that show one image."""
    return sample.path if sample.file is None else sample.file
