"""Nearest mean: a class is the mean of its images' features blended with its text, without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Adapter, Batch, NewClass
from ..errors import NeedsImages, RecipeError

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet

FALLBACK = 0.5  # share of the images where there is nothing to choose it on


@dataclass
class Config:
    """Settings of nearest mean.

    Attributes:
        share: weight of the image mean against the text, in [0, 1]; None: chosen on the validation images.
        steps: number of steps from 0 to 1 that are tried.
    """

    share: float | None = None
    steps: int = 20


class NearestMean(Adapter):
    """logits = scale f norm((1 - share) t + share norm(m)): text feature t, mean m of the class's normalised features.

    Every augmented view is a sample of its own. Sums are kept in float64, so a class can be added exactly.
    """

    count: Tensor
    total: Tensor
    share: Tensor

    @classmethod
    def new_class(cls, config: Config, spec: BackboneSpec) -> NewClass:
        """A mean comes from images; a bare text feature is too far from all images to compete with means."""
        return "images"

    @classmethod
    def per_class(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """Number and sum of the samples of each class."""
        return ("count", "total")

    def build(self) -> None:
        """Register empty sums."""
        config: Config = self.config
        if config.share is not None and not 0 <= config.share <= 1:
            raise RecipeError(f"method.share is {config.share}; it must lie in [0, 1].")
        if config.steps < 1:
            raise RecipeError(f"method.steps is {config.steps}; it must be at least 1.")
        self.register_buffer("count", torch.zeros(len(self.classes), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(len(self.classes), self.backbone.embed_dim, dtype=torch.float64))
        self.register_buffer("share", torch.tensor(FALLBACK if config.share is None else config.share, dtype=torch.float64))

    def data_sized(self) -> tuple[str, ...]:
        """Classes may have been added before saving."""
        return ("count", "total")

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Sum up the training samples."""
        self._absorb(batches, self.classes)
        absent = [name for name, n in zip(self._trained, self.count.tolist(), strict=True) if not n]
        if absent:
            self.notes.append(f"Without a training image, {', '.join(absent)} is answered from its text alone.")

    def _absorb(self, batches: Iterable[Batch], classes: ClassSet) -> None:
        row = {name: i for i, name in enumerate(self._trained)}
        target = torch.tensor([row.get(name, -1) for name in classes.names])
        for batch in batches:
            views = F.normalize(batch["views"].to(self.total), dim=-1)
            labels = target[batch["label"].cpu()].to(views.device)
            self.total.index_add_(0, labels, views.sum(1))
            self.count.index_add_(0, labels, torch.full_like(labels, views.shape[1], dtype=torch.float64))
        self._derived = {}

    def means(self) -> Tensor:
        """Image mean of each class asked about, unit norm (C, D), float64; zeros where there is no image."""
        rows = self.trained_rows()
        return F.normalize(self.total[rows], dim=-1)

    def compute_class_weights(self) -> Tensor:
        """Blend of text and image mean."""
        means, share = self.means(), float(self.share)
        blend = (1 - share) * self.zero_shot_weights().double() + share * means
        return F.normalize(torch.where((means == 0).all(1, keepdim=True), self.zero_shot_weights().double(), blend)).to(self.dtype)

    @torch.no_grad()
    def search(self, batches: Sequence[Batch]) -> Tensor:
        """Accuracy in [0, 1] for every share of the grid, from two products with the features."""
        text, means = self.zero_shot_weights().double(), self.means()
        means = torch.where((means == 0).all(1, keepdim=True), text, means)
        shares = self.grid().to(text)[:, None]
        length = ((1 - shares) ** 2 + shares**2 + 2 * shares * (1 - shares) * (text * means).sum(-1)).sqrt()
        right, seen = torch.zeros(len(shares), dtype=torch.float64), 0
        for batch in batches:
            features = self.encode_image(batch).double()
            labels = batch["label"].to(features.device)
            near = (1 - shares)[..., None] * (features @ text.T) + shares[..., None] * (features @ means.T)
            right += ((near / length.clamp_min(1e-12)[:, None]).argmax(-1) == labels).sum(1).cpu()
            seen += len(labels)
        return right / max(seen, 1)

    def grid(self) -> Tensor:
        """Shares that are tried."""
        return torch.linspace(0, 1, self.config.steps + 1, dtype=torch.float64)

    def select(self, batches: Sequence[Batch]) -> None:
        """Choose the share of the images by accuracy; of equals the smallest, nearest to zero-shot, wins."""
        if self.config.share is None and batches:
            self.share.fill_(float(self.grid()[int(self.search(batches).argmax())]))
        elif self.config.share is None:
            self.notes.append(f"There are no validation images to choose the share on; {FALLBACK} was used.")
        self.selected = {"share": float(self.share)}
        self._derived = {}

    def check_classes(self, classes: ClassSet) -> None:
        """Only classes with a mean can be answered about."""
        missing = self.untrained(classes)
        if missing:
            raise NeedsImages(f"Nearest mean has no mean of '{missing[0]}': it needs images of the new classes.")

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Sum up the samples of the new classes; those of the others do not change."""
        new = self.untrained(classes)
        if new and batches is None:
            self.check_classes(classes)
        given = list(batches or ())
        labels = {int(label) for batch in given for label in batch["label"]}
        bare = [name for name in new if classes.index(name) not in labels]
        if bare:
            raise NeedsImages(f"Nearest mean needs images of '{bare[0]}' to add it; none were given.")
        self._trained = (*self._trained, *new)
        self.count = torch.cat([self.count, self.count.new_zeros(len(new))])
        self.total = torch.cat([self.total, self.total.new_zeros(len(new), self.total.shape[1])])
        super().add_classes(classes, given)
        self._absorb(given, classes)
