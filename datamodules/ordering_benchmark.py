"""Published data sets of images with a number to order them by."""

from __future__ import annotations

from dataclasses import replace

from .benchmark import make_listing
from .benchmarks.finding import facts_of, find
from .configs import DataConfig, OrderingBenchmarkConfig
from .listing import Listing
from .ordered import OrderedDataModule
from .ordering import stratified


class OrderingBenchmarkDataModule(OrderedDataModule):
    """UTKFace (age) and Adience (group of age), in their own folders."""

    config: OrderingBenchmarkConfig

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.facts = facts_of(self.config.dataset, ordering=True)

    def listing(self) -> Listing:
        """Read the data set's files; without an official split, all values are on each side of the division."""
        folder, found = find(self.config.dataset, self.config.root, self.config.variant)
        listing = make_listing(folder, found, self.facts)
        words = self.config.instruction or f"Sort the images by {self.facts.ordering}."
        about = {"category": self.facts.ordering, "instruction": words}
        samples = [replace(sample, extra={**sample.extra, **about}) for sample in listing.samples]
        texts = {name: [words] for name in listing.class_names}
        return stratified(replace(listing, samples=samples, class_texts=texts), self.config)
