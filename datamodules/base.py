"""The face of every data module: classes, splits, few-shot draw, manifest and loaders."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from lightning import LightningDataModule
from PIL import Image

from .checks import check_config, parse_shots, undecodable
from .configs import DataConfig
from .errors import DataError, counted, nearest, printable, some
from .fewshot import MAX_VAL_SHOTS, draw, draw_dassl, short_classes
from .images import UnreadableImage, refuse_exhaustion
from .listing import SPLITS, Listing, Sample, default_text
from .loading import EpochSampler, ImageDataset, ImageLoader, Transform, collate, read_sample
from .sharing import shared
from .splitting import make_pools

__all__ = ["DataModule", "EpochSampler", "ImageDataset", "ImageLoader", "Listing", "Sample", "collate"]


def numbered(data: DataModule) -> Listing:
    """What a source offers, each sample with its index.

    Raises:
        DataError: the source cannot be used, or lists an image twice.
    """
    listing = data.listing()
    for name in listing.class_names:
        if printable(name) != name:
            raise DataError(
                f"The name of the class '{printable(name)}' is not UTF-8: rename its folder (from latin-1: convmv -f latin1 -t utf8)."
            )
    order = {path: i for i, path in enumerate(sorted(sample.path for sample in listing.samples))}
    if len(order) < len(listing.samples):
        often = Counter(sample.path for sample in listing.samples)
        raise DataError(f"The data lists an image twice: {some([path for path, count in often.items() if count > 1], 4)}.")
    return replace(listing, samples=[replace(sample, index=order[sample.path]) for sample in listing.samples])


class DataModule(LightningDataModule):
    """Images with names, split and drawn; subclasses give `listing`.

    After `setup()`:

    Attributes:
        class_names: the data's own names, in label order.
        class_texts: text names of each class, for prompts.
        samples: {"train", "val", "test": samples}; train and val hold the few-shot draw.
        report: sentences for the plan.
        unreadable: "path: reason" of each image that could not be decoded; grows while batches are made.
        keys: names in `Sample.extra` that items carry besides path, index, label and image; set it before
            loading.
        offers: further such names that items carry where a method asks for them (see `ask_for`).
        progress: called with (what, done, total) while many images are checked, or None.
        evaluation_batch: images in a batch of val and test; None for `batch_size` of the config.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = int(seed)
        self._shots = parse_shots(config.shots)
        check_config(config)
        self.class_names: list[str] = []
        self.class_texts: dict[str, list[str]] = {}
        self.samples: dict[str, list[Sample]] = {}
        self._report: list[str] = []
        self.unreadable: list[str] = []
        self.keys: tuple[str, ...] = ()
        self.offers: tuple[str, ...] = ()
        self.progress: Callable[[str, int, int], None] | None = None
        self.evaluation_batch: int | None = None
        self._transforms: dict[str, Transform | None] = {
            "train": None,
            "evaluate": None,
        }  # shared by restrict()
        self._pools: dict[str, list[Sample]] = {}  # before any shots are drawn
        self._ready = False

    @abstractmethod
    def listing(self) -> Listing:
        """List everything the source offers.

        Raises:
            DataError: the source is missing or cannot be understood.
        """

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """What turns a sample into an RGB image (it must survive pickling: workers get it)."""
        return read_sample

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of what the image is made from: the bytes of its file.

        Raises:
            UnreadableImage: the file cannot be read.
        """
        if sample.file is None:
            raise UnreadableImage(sample.path, "it has no file")
        try:
            with sample.file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            refuse_exhaustion(error, sample.file)
            raise UnreadableImage(sample.path, error.strerror or "it cannot be opened") from None

    def setup(self, stage: str | None = None) -> None:
        """List, split and draw; does nothing the second time.

        Raises:
            DataError: the data cannot be used.
        """
        if self._ready:
            return
        listing = shared(self, numbered)
        if self.config.strict and listing.strict_faults:
            raise DataError(f"{listing.strict_faults[0]} (data.strict stops here)")
        self.class_names = list(listing.class_names)
        self.class_texts = {name: list(texts) for name, texts in listing.class_texts.items()}
        self.offers = listing.offers or self.offers
        pools = make_pools(listing, self.config)
        self._report = [*listing.report, *pools.report]
        self._pools = pools.samples
        self.samples = {"test": sorted(pools.samples["test"], key=lambda s: s.index)}
        self.samples |= self._draw(pools.samples)
        self._ready = True

    def _draw(self, pools: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
        """Draw train and val; an unreadable image is taken out of its pool and the draw repeated."""
        pools = {split: pools[split] for split in ("train", "val")}
        checked: set[str] = set()
        while True:
            drawn = self._draw_once(pools)
            new = [s for split in drawn.values() for s in split if s.path not in checked]
            bad = self._check_images(new) if self._shots is not None else set()
            checked |= {sample.path for sample in new}
            if not bad:
                return drawn
            pools = {split: [s for s in pool if s.path not in bad] for split, pool in pools.items()}

    def _draw_once(self, pools: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
        rng = random.Random(self.seed)
        drawn = {}
        for split, pool in pools.items():
            shots = (
                self._shots if split == "train" or self._shots is None else min(self._shots, MAX_VAL_SHOTS)
            )
            labels = [sample.label for sample in pool]
            if self.config.sampling == "dassl":
                positions = draw_dassl(labels, shots, rng)
            else:
                positions = draw(
                    labels,
                    [s.path for s in pool],
                    self.class_names,
                    shots,
                    seed=self.seed,
                    split=split,
                )
            drawn[split] = [pool[i] for i in positions]
        return drawn

    def _check_images(self, samples: Sequence[Sample]) -> set[str]:
        """Decode images to see that they can be; returns the paths of those that cannot."""
        failures = undecodable(samples, self.progress)
        if failures and self.config.strict:
            raise DataError(f"{next(iter(failures.values()))} (data.strict stops here)")
        self.unreadable += [failure for failure in failures.values() if failure not in self.unreadable]
        return set(failures)

    @property
    def report(self) -> list[str]:
        """Sentences about what was found, and about the images of the present classes."""
        told = list(self._report)
        if self._shots is not None:
            labels = [sample.label for sample in self.samples.get("train", [])]
            told += short_classes(labels, self.class_names, self._shots, "training")
        untested = sorted(set(range(len(self.class_names))) - {s.label for s in self.samples.get("test", [])})
        if untested and self.samples.get("test"):
            told.append(f"No test images of {some([self.class_names[i] for i in untested])}.")
        if self.unreadable:
            were = "was" if len(self.unreadable) == 1 else "were"
            images = counted(len(self.unreadable), "image")
            told.append(f"{images} cannot be read and {were} left out of the draw: {some(self.unreadable, 4)}.")
        return told

    def set_transforms(self, train: Transform, evaluate: Transform) -> None:
        """Give the transforms from PIL RGB to Tensor (3, H, W): a random one for training and a plain one."""
        self._transforms.update(train=train, evaluate=evaluate)

    def ask_for(self, keys: Sequence[str]) -> None:
        """Let items carry those of `keys` that the data offer."""
        self.keys = (*self.keys, *(key for key in keys if key in self.offers and key not in self.keys))

    def restrict(self, names: Sequence[str]) -> Self:
        """The same split with only these classes, labelled 0, 1, ... in the order of `names`.

        Transforms and the record of unreadable images stay shared with this data module.

        Raises:
            DataError: a name is not a class or comes twice.
        """
        self.setup()
        for name in names:
            if name not in self.class_texts:
                raise DataError(f"'{name}' is not a class of the data.{nearest(name, self.class_names)}")
        if len(set(names)) < len(names):
            raise DataError(
                f"A class is named twice: {some(sorted(n for n in set(names) if list(names).count(n) > 1))}."
            )
        label = {name: i for i, name in enumerate(self.class_names)}
        number = {label[name]: i for i, name in enumerate(names)}
        part = copy.copy(self)
        part.class_names = list(names)
        part.class_texts = {name: list(self.class_texts[name]) for name in names}
        part.samples, part._pools = (
            {split: [replace(s, label=number[s.label]) for s in samples if s.label in number] for split, samples in kind.items()}
            for kind in (self.samples, self._pools)
        )
        return part

    def within(self, names: Sequence[str]) -> Self:
        """The same images with labels counted in `names`, which hold every class of the data and may hold more.

        Raises:
            DataError: a class of the data is missing.
        """
        place = {name: i for i, name in enumerate(names)}
        missing = [name for name in self.class_names if name not in place]
        if missing:
            raise DataError(f"The images of '{missing[0]}' have no label among {some(list(names))}.")
        part = self.restrict(self.class_names)
        number = [place[name] for name in self.class_names]
        part.class_names = list(names)
        part.class_texts = {name: list(self.class_texts.get(name, [default_text(name)])) for name in names}
        part.samples, part._pools = (
            {split: [replace(s, label=number[s.label]) for s in samples] for split, samples in kind.items()}
            for kind in (self.samples, self._pools)
        )
        return part

    def of_domains(self, domains: Sequence[str]) -> Self:
        """The images of some domains, on the side of the split they are on anyway, with shots drawn among them."""
        self.setup()
        part = copy.copy(self)
        pools = {split: [s for s in pool if s.domain in domains] for split, pool in self._pools.items()}
        part.samples = {"test": sorted(pools["test"], key=lambda s: s.index), **self._draw(pools)}
        return part

    def training_on(self, paths: Sequence[str]) -> Self:
        """Only these training images, in this order; no validation or test images."""
        place = {sample.path: sample for sample in self.samples["train"]}
        part = copy.copy(self)
        part.samples = {"train": [place[path] for path in paths], "val": [], "test": []}
        return part

    def manifest(self) -> dict[str, Any]:
        """What was drawn, as JSON-able data.

        Returns:
            {"format", "data", "classes", "shots", "seed", "split_seed", "sampling", "splits": {split:
            {"paths", "labels", and "groups" and "domains" where there are any}}, "hash"}. The hash is a
            SHA-256 of classes and splits; the order of listing and the location of the root do not enter
            it.
        """
        self.setup()
        splits: dict[str, dict[str, list[Any]]] = {}
        for split in SPLITS:
            samples = sorted(self.samples[split], key=lambda s: s.path)
            splits[split] = {"paths": [s.path for s in samples], "labels": [s.label for s in samples]}
            if any(s.group is not None for s in samples):
                splits[split]["groups"] = [s.group for s in samples]
            if any(s.domain is not None for s in samples):
                splits[split]["domains"] = [s.domain for s in samples]
        content = {"classes": self.class_names, "splits": splits}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return {
            "format": 1,
            "data": self.config.name,
            "shots": "all" if self._shots is None else self._shots,
            "seed": self.seed,
            "split_seed": self.config.split_seed,
            "sampling": self.config.sampling,
            **content,
            "hash": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
        }

    def dataset(self, split: str, augment: bool = False, view: int | None = None) -> ImageDataset:
        """The samples of a split as a torch data set.

        Args:
            split: train, val or test.
            augment: use the training transform; its randomness comes from (seed, epoch, sample.index).
            view: with `augment`, a fixed augmented view instead of the epoch's.

        Raises:
            DataError: unknown split.
        """
        self.setup()
        if split not in self.samples:
            raise DataError(
                f"'{split}' is not a split; they are {', '.join(SPLITS)}.{nearest(split, SPLITS)}"
            )
        return ImageDataset(
            self.samples[split],
            self._transforms["train" if augment else "evaluate"],
            reader=self.reader,
            seed=self.seed,
            random_transform=augment,
            view=view,
            views=self.config.augment.views if augment else 0,
            keys=self.keys,
            strict=self.config.strict,
            unreadable=self.unreadable,
        )

    def loader(
        self,
        split: str,
        augment: bool = False,
        *,
        view: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        batch_size: int | None = None,
    ) -> ImageLoader:
        """Batches of a split (see `collate`); records unreadable images, leaves global generators alone."""
        dataset = self.dataset(split, augment, view=view)
        size = batch_size or self.config.batch_size
        sampler = EpochSampler(dataset, self.seed, shuffle, size, drop_last)
        return ImageLoader(
            dataset,
            batch_size=size,
            sampler=sampler,
            num_workers=self.config.num_workers,
            collate_fn=collate,
            drop_last=sampler.drop_last,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> ImageLoader:
        """Augmented training batches in the order of (seed, epoch); a short last one goes if others exist."""
        return self.loader("train", augment=True, shuffle=True, drop_last=True)

    def val_dataloader(self) -> ImageLoader:
        """Plain validation batches in order."""
        return self.loader("val", batch_size=self.evaluation_batch)

    def test_dataloader(self) -> ImageLoader:
        """Plain test batches in order."""
        return self.loader("test", batch_size=self.evaluation_batch)
