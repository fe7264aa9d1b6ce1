"""Training images with their cached frozen features beside them, for methods that compare the two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .features import CachedFeatures


class ImagesWithFeatures:
    """Batches of images of one data module, each with `feature` (B, D), raw, of the very view that it shows.

    Exact only for fixed views (`data.augment.views`, or no augmentation): epoch e shows view e mod V of both.

    Args:
        loader: the data module's own training batches.
        features: the same data module's features, of the same seed and augmentation.
    """

    def __init__(self, loader: Any, features: CachedFeatures) -> None:
        self.loader, self.features = loader, features
        self.place = {(s.path, int(s.index)): n for n, s in enumerate(features.samples["train"])}

    @property
    def sampler(self) -> Any:
        """The loader's own, which Lightning tells the epoch."""
        return self.loader.sampler

    @property
    def batch_sampler(self) -> Any:
        """The loader's own."""
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = self.features.rows("train", self.loader.dataset.epoch % self.features.view_count)
        for batch in self.loader:
            pairs = zip(batch["path"], batch["index"].tolist(), strict=True)
            at = np.array([self.place[pair] for pair in pairs], np.int64)
            yield {**batch, "feature": torch.from_numpy(rows.take(at))}
