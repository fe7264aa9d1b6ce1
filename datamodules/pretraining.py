"""Pretraining of a small CLIP: photographs with names, drawn shapes and drawn fish, mixed in fixed shares of each batch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .base import DataModule
from .configs import PretrainingConfig
from .errors import DataError
from .fewshot import digest
from .images import read_image
from .listing import Listing, Sample
from .loading import process
from .pretraining_sources import Caption, Photo, Source, fish_source, photo_source, read_photos, shape_source

VAL_IMAGES = 10  # of each class of the photographs, but no more than a fifth of them


class PretrainingDataModule(DataModule):
    """Image-text pairs from several sources; validation and test are the classification of photographs.

    A training batch has `image` (B, 3, S, S) as network input, `caption` (B texts), `other_caption` (a second one of each
    image, drawn anew), `label` (of photographs; -1 elsewhere), `path`, `index`, and `positives` (B, B) bool: caption j is true
    of image i.
    """

    config: PretrainingConfig
    unlabelled_training = True

    def __init__(self, config: PretrainingConfig, seed: int) -> None:
        super().__init__(config, seed)
        shares = (config.photo_share, config.shape_share, config.fish_share)
        if min(shares) < 0 or sum(shares) <= 0:
            raise DataError(f"data.photo_share, shape_share and fish_share are {shares}: shares of a batch, none below 0.")
        if not 0 <= config.unnamed_share <= 1:
            raise DataError(f"data.unnamed_share is {config.unnamed_share}: a share of the scenes of shapes, from 0 to 1.")
        if config.epoch_images < config.batch_size:
            raise DataError(
                f"data.epoch_images is {config.epoch_images}, less than a batch of {config.batch_size}: an epoch has none."
            )
        self._photos: list[Photo] = []
        self._sources: list[tuple[Source, float]] | None = None

    def listing(self) -> Listing:
        """The photographs: those for training and the first few of each class for validation, and those of the test."""
        config = self.config
        root = Path(config.root or ".")
        train, test = read_photos(root / config.photos), read_photos(root / config.test_photos)
        names = sorted({photo.label for photo in train})
        unknown = sorted({photo.label for photo in test} - set(names))
        if unknown:
            raise DataError(f"{root / config.test_photos} has the class '{unknown[0]}', which {root / config.photos} has not.")
        self._photos = [*train, *test]
        samples, splits = [], []
        total = Counter(photo.label for photo in train)
        kept = {name: min(VAL_IMAGES, total[name] // 5) for name in names}
        for number, photo in enumerate(self._photos):
            label = names.index(photo.label)
            split = "test" if number >= len(train) else "val" if kept[photo.label] > 0 else "train"
            kept[photo.label] -= split == "val"
            samples.append(Sample(f"{split}/{photo.path}", label, extra={"number": number}))
            splits.append(split)
        return Listing(names, {name: [name] for name in names}, samples, list(splits))

    @property
    def reader(self) -> Callable[[Sample], Image.Image]:
        """Decodes a photograph held in memory."""
        return partial(_open, photos=self._photos)

    def content_key(self, sample: Sample) -> str:
        """SHA-256 (hex) of the photograph's file."""
        import hashlib

        return hashlib.sha256(self._photos[sample.extra["number"]].data).hexdigest()

    def sources(self) -> list[tuple[Source, float]]:
        """Each source with its share of a batch; drawn and decoded once."""
        self.setup()
        if self._sources is None:
            config = self.config
            training = [self._photos[sample.extra["number"]] for sample in self.samples["train"]]
            made: list[tuple[Callable[[], Source], float]] = [
                (lambda: photo_source(training, config.photo_size, config.fine_share), config.photo_share),
                (
                    lambda: shape_source(config.shapes, config.size, config.drawing_seed, config.unnamed_share, config.twins),
                    config.shape_share,
                ),
                (lambda: fish_source(config.fish, config.size, config.drawing_seed, config.named_fish), config.fish_share),
            ]
            total = sum(share for _, share in made)
            self._sources = [(make(), share / total) for make, share in made if share]
        return self._sources

    def train_dataloader(self) -> Any:
        """Mixed batches; an epoch has `data.epoch_images` images."""
        return MixedLoader(self.sources(), self._transforms["evaluate"], self.config, self.seed)


def _open(sample: Sample, photos: Sequence[Photo]) -> Image.Image:
    photo = photos[sample.extra["number"]]
    return read_image(photo.path, photo.data)


class _Drawn(NamedTuple):
    """What a batch holds, without its pictures: seed of their random changes, images by source, facts, and captions twice."""

    seed: int
    numbers: list[tuple[Source, list[int]]]
    facts: list[frozenset[str]]
    captions: list[Caption]
    others: list[Caption]


class MixedLoader:
    """Batches with a fixed number of images from each source, each source in an order of its own.

    What an epoch holds depends on (seed, epoch) alone, so a resumed run goes on as the uninterrupted one would. Several
    processes take turns with the batches; `positives` then has a column for every caption of all of them at that step.
    """

    def __init__(self, sources: list[tuple[Source, float]], transform: Any, config: PretrainingConfig, seed: int) -> None:
        self._sources, self._config, self._seed, self.epoch = sources, config, seed, 0
        counts = [round(share * config.batch_size) for _, share in sources]
        counts[0] += config.batch_size - sum(counts)
        self._counts = counts
        self._shift, self._scale = _affine(transform, config.size)
        self.rank, self.ranks = process()
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the images, captions and random changes of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, self._config.epoch_images // (self._config.batch_size * self.ranks))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step in range(len(self)):
            yield self.batch(self.epoch * len(self) + step)

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of this process at a step, counted from the start of training."""
        together = [self._drawn(step * self.ranks + rank) for rank in range(self.ranks)]
        seed, numbers, facts, captions, others = together[self.rank]
        generator = torch.Generator().manual_seed(seed)
        images = []
        for source, own in numbers:
            raw = torch.from_numpy(source.images[own]).float() / 255
            images.append(vary(raw, self._config, generator, source.name == "photographs"))
        paths = [f"{source.name}/{number}" for source, own in numbers for number in own]
        every = [claims for drawn in together for _, claims in drawn.captions]
        image = torch.cat(images) * self._scale + self._shift
        return {
            "image": image, "caption": [text for text, _ in captions], "other_caption": [text for text, _ in others], "path": paths,
            "positives": torch.tensor([[claims <= true for claims in every] for true in facts]),
            "label": torch.full((len(paths),), -1), "index": torch.arange(len(paths)),
        }  # fmt: skip

    def _drawn(self, number: int) -> _Drawn:
        rng = random.Random(digest("pretraining batch", self._seed, number))
        seed = rng.getrandbits(60)
        numbers = [
            (source, self._numbers(source, number, count)) for (source, _), count in zip(self._sources, self._counts, strict=True)
        ]
        facts = [source.facts[image] for source, own in numbers for image in own]
        captions = [source.caption(image, rng) for source, own in numbers for image in own]
        others = [source.caption(image, rng) for source, own in numbers for image in own]
        return _Drawn(seed, numbers, facts, captions, others)

    def _numbers(self, source: Source, step: int, count: int) -> list[int]:
        """The next `count` images of a source; each pass over it has an order of its own."""
        found: list[int] = []
        place = step * count
        while len(found) < count:
            turn, start = divmod(place + len(found), len(source))
            order = _order(self._seed, source.name, turn, len(source), source.together)
            found += order[start : start + count - len(found)].tolist()
        return found


_orders: dict[tuple[int, str, int, int, int], Any] = {}


def _order(seed: int, name: str, turn: int, length: int, together: int) -> Any:
    """Numbers from 0 to below `length` in random order, each `together` after each other as they are."""
    key = (seed, name, turn, length, together)
    if key not in _orders:
        for old in [k for k in _orders if k[:2] == key[:2] and k[2] < turn - 1]:
            del _orders[old]
        groups = np.random.default_rng(list(digest("pretraining order", *key[:4]))).permutation(-(-length // together))
        order = (groups[:, None] * together + np.arange(together)).ravel()
        _orders[key] = order[order < length]
    return _orders[key]


def _affine(transform: Any, size: int) -> tuple[Tensor, Tensor]:
    """Shift and scale (3, 1, 1) that a transform applies to pixels in [0, 1]: read off a black and a white image."""
    if transform is None:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    black, white = (transform(Image.new("RGB", (size, size), colour)).mean((1, 2)) for colour in ("black", "white"))
    return black[:, None, None], (white - black)[:, None, None]


def vary(images: Tensor, config: PretrainingConfig, generator: torch.Generator, photographs: bool) -> Tensor:
    """Bring images (B, 3, s, s) in [0, 1] to size; photographs are cropped, mirrored and changed in colour at random.

    Drawings are only changed in brightness and shifted a little: their captions tell sides, colours and sizes.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    smallest = config.smallest_crop if photographs else 0.85
    side = uniform(smallest, 1.0).sqrt()
    ratio = uniform(-0.15, 0.15).exp() if photographs else torch.ones(count)
    width, height = (side * ratio).clamp(max=1.0), (side / ratio).clamp(max=1.0)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if photographs else torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, [count, 3, config.size, config.size], align_corners=False)
    images = F.grid_sample(images, grid, mode="bicubic" if photographs else "bilinear", padding_mode="reflection", align_corners=False)
    strength = 0.25 if photographs else 0.1
    mean = images.mean((2, 3), keepdim=True)
    images = (images - mean) * uniform(1 - strength, 1 + strength, 1, 1, 1) + mean * uniform(1 - strength, 1 + strength, 1, 1, 1)
    if photographs:  # towards grey, or away from it
        grey = images.mean(1, keepdim=True)
        images = grey + (images - grey) * uniform(0.6, 1.3, 1, 1, 1)
    return images.clamp(0, 1)
