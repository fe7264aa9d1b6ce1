"""Frozen features of a data module: computed once per image and backbone, then served as batches.

`CachedFeatures` wraps a data module and keeps its split, order and keys; a batch holds `feature` (B, D), raw,
in the place of `image`. Rows live in memory maps of the store (`feature_store.py`), so a batch is an index
operation and data sets larger than memory work. With `layer="tokens"` a batch holds `tokens` (B, P, W) instead,
the patch tokens of the image tower (see `tokens.py`).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .backbone_introspect import settings_of
from .errors import LimpetError
from .feature_batches import Batch, FeatureBatches, InOrder, ListBatches, TrainBatches, as_it_is, repeated
from .feature_store import FeatureStore, Rows, cache_dir, cache_size, clear_cache, trim
from .image_keys import image_keys
from .progress import Progress
from .tokens import image_token_features, token_shape

__all__ = ["CachedFeatures", "as_read", "cache_dir", "cache_size", "clear_cache", "compute_for"]

_LEAST = 16  # images in a forward pass: products of fewer rows may take another path, and round otherwise
_FORMAT = 2  # of the cached values; raised whenever the same image would give another feature


def as_read(adapter: Any, data: Any, augment: Any, seed: int, views: int) -> Any:
    """A data module as an adapter reads it: frozen features or tokens in place of images where these are all it needs."""
    spec = adapter.backbone.spec
    needs = adapter.needs(adapter.config, spec)
    if needs == "images":
        return data
    layer, block = "tokens" if needs == "patches" else "output", adapter.token_block(adapter.config, spec)
    return CachedFeatures(data, adapter.backbone, augment, seed, views=views, layer=layer, block=block)


def compute_for(loader: Any, epochs: int) -> None:
    """Compute the cached features that so many epochs of a training loader read, if it reads any."""
    features = getattr(loader, "features", None) or getattr(getattr(loader, "dataset", None), "source", None)
    if isinstance(features, CachedFeatures):
        for view in range(min(epochs, features.view_count)):
            features.rows("train", view)


class CachedFeatures:
    """A data module whose images are replaced by frozen features.

    Features are computed when a split is first asked for, streaming in batches, and are kept on disk. An image
    that cannot be read is dropped from `samples` and listed in `unreadable`, the same way for every view.

    Args:
        datamodule: Any `limpet.datamodules` data module. Its transforms are set here.
        backbone: The frozen CLIP.
        augment: The `data.augment` section (`preset`, `views`, `scale`), or None for none.
        seed: Seed of the augmented views.
        views: Number of augmented views per training image; 0 counts as 1. Without augmentation there is one
            view, the plain image.
        progress: Whether to show progress where computing takes longer than two seconds.
        batch_size: Images per forward pass of the backbone.
        layer: "output" for features, "tokens" for patch tokens.
        block: With "tokens": those behind this block of the image tower; None for those behind all of them.
    """

    def __init__(
        self,
        datamodule: Any,
        backbone: Any,
        augment: Any = None,
        seed: int = 1,
        views: int = 0,
        *,
        progress: bool = True,
        batch_size: int = 64,
        layer: str = "output",
        block: int | None = None,
    ) -> None:
        datamodule.setup()
        regional = set(getattr(datamodule, "offers", ())) & set(getattr(datamodule, "keys", ()))
        if regional:  # a feature is of the whole image: regions cut from the picture have no place beside it
            datamodule = copy.copy(datamodule)
            datamodule.keys = tuple(key for key in datamodule.keys if key not in regional)
        self.datamodule, self.backbone, self.augment, self.seed = datamodule, backbone, augment, seed
        self.plain = augment is None or augment.preset == "none"
        self.view_count = 1 if self.plain else max(int(views), 1)
        self.progress, self.batch_size, self.layer = progress, batch_size, layer
        self.block = block
        self.key = "tokens" if layer == "tokens" else "feature"
        self.shape: tuple[int, ...] = (
            token_shape(backbone, block) if layer == "tokens" else (int(backbone.embed_dim),)
        )
        self.samples: Mapping[str, list[Any]] = _Samples(self)
        self._parent: CachedFeatures | None = None
        self._kept: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}  # positions in datamodule.samples
        self._rows: dict[tuple[str, int | None], Rows] = {}
        self._stores: dict[bool, FeatureStore] = {}
        datamodule.set_transforms(
            backbone.transform(train=True, augment=augment, **self._resize),
            backbone.transform(train=False, **self._resize),
        )

    # -- what the data module says --------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The data section of the recipe."""
        return self.datamodule.config

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self.datamodule.class_names)

    @property
    def class_texts(self) -> dict[str, list[str]]:
        """Names of each class to be used in prompts."""
        return dict(self.datamodule.class_texts)

    @property
    def report(self) -> list[str]:
        """What the data module has to say about the data."""
        return list(self.datamodule.report)

    @property
    def unreadable(self) -> list[str]:
        """Images that could not be read, as far as they have been tried."""
        return list(self.datamodule.unreadable)

    def setup(self, stage: str | None = None) -> None:
        """Nothing is left to do; features are computed when first asked for."""

    def manifest(self) -> dict[str, Any]:
        """The split, as the data module describes it."""
        manifest: dict[str, Any] = self.datamodule.manifest()
        return manifest

    def restrict(self, names: Sequence[str]) -> CachedFeatures:
        """Return the same split with only the classes `names`, labels in that order, on the same features."""
        return self._on(self.datamodule.restrict(names))

    def within(self, names: Sequence[str]) -> CachedFeatures:
        """Return the same split with labels counted in `names`, which hold all its classes, on the same features."""
        return self._on(self.datamodule.within(names))

    def _on(self, datamodule: Any) -> CachedFeatures:
        """Another view of the same images, on the same features."""
        child = CachedFeatures(
            datamodule, self.backbone, self.augment, self.seed, self.view_count,
            progress=self.progress, batch_size=self.batch_size, layer=self.layer, block=self.block,
        )  # fmt: skip
        child._parent = self
        return child

    @property
    def _resize(self) -> dict[str, str]:
        """How images come to the network's size, where the data ask for another way than the model."""
        mode = getattr(self.datamodule, "resize_mode", None)
        return {} if mode is None else {"resize_mode": mode}

    # -- features -------------------------------------------------------------------------------------------

    def features(self, split: str) -> Tensor:
        """Return the plain view of a split: (N, D), raw (not normalised), in the order of `samples`."""
        return torch.from_numpy(self.rows(split).take())

    def views(self, split: str) -> Tensor:
        """Return the augmented views of a split: (V, N, D), raw; the plain view alone without augmentation."""
        if self.plain:
            return self.features(split)[None]
        return torch.from_numpy(np.stack([self.rows(split, v).take() for v in range(self.view_count)]))

    def rows(self, split: str, view: int | None = None) -> Rows:
        """Return the rows of one view of a split (None: the plain view), without reading them into memory."""
        view = None if self.plain else view
        if (split, view) not in self._rows:
            if split not in self._kept:
                self._kept[split], self._rows[split, None] = self._find(split, None)
            kept = self._kept[split]
            if view is not None:
                also_kept, rows = self._find(split, view)
                if not np.array_equal(kept, also_kept):
                    lost = self.datamodule.samples[split][np.setxor1d(kept, also_kept)[0]].path
                    raise LimpetError(
                        f"The image {lost} could be read at first and then not any more (or the other way round). "
                        "Are the files being changed? Start again when they are in place."
                    )
                self._rows[split, view] = rows
        return self._rows[split, view]

    def kept(self, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions in the data module's split of the images that could be read."""
        self.rows(split)
        return self._kept[split]

    def _find(self, split: str, view: int | None) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Rows]:
        """Return positions of readable images of a split and their rows, computing what is not cached."""
        samples = self.datamodule.samples[split]
        if self._parent is not None:
            rows = self._parent.rows(split, view)
            place = {(s.path, s.index): n for n, s in enumerate(self._parent.samples[split])}
            at = np.array([place.get((s.path, s.index), -1) for s in samples], np.int64)
            kept = np.flatnonzero(at >= 0)
            return kept, rows.select(at[kept])
        store = self._store(view is not None)
        kind = f"{type(self.datamodule).__module__}.{type(self.datamodule).__qualname__}"
        contents = image_keys(samples, self.datamodule.content_key, kind)
        keys = [_row_key(content, sample, view) for content, sample in zip(contents, samples, strict=True)]
        readable = np.array([n for n, key in enumerate(keys) if key is not None], np.int64)
        present = [key for key in keys if key is not None]
        rows = store.lookup(present)
        missing = {present[i]: int(readable[i]) for i in np.flatnonzero(~rows.found)}
        if missing:
            self._compute(split, view, store, missing)
            rows = store.lookup(present)
            trim(in_use=store.folder)
        lost = set(range(len(samples))) - set(readable[rows.found].tolist())
        self._note(split, [samples[n].path for n in sorted(lost)])
        return readable[rows.found], rows.select(np.flatnonzero(rows.found))

    def _note(self, split: str, paths: Sequence[str]) -> None:
        """Make the data module list images that it has not listed yet (or stop at them, where it is strict)."""
        listed = self.datamodule.unreadable
        new = [p for p in paths if not any(entry == p or entry.startswith(f"{p}: ") for entry in listed)]
        self.datamodule.dataset(split).note([f"{path}: its file cannot be read" for path in new])

    def _compute(self, split: str, view: int | None, store: FeatureStore, missing: dict[bytes, int]) -> None:
        """Encode the images at the positions `missing` (row key -> position) into the store."""
        samples = self.datamodule.samples[split]
        key_of = {(samples[n].path, int(samples[n].index)): key for key, n in missing.items()}
        dataset = self.datamodule.dataset(split, augment=view is not None, view=view)
        loader: DataLoader[Any] = DataLoader(
            Subset(dataset, sorted(missing.values())),
            batch_size=self.batch_size,
            num_workers=int(getattr(self.config, "num_workers", 0)),
            collate_fn=self.datamodule.test_dataloader().collate_fn,  # leaves out what cannot be decoded
        )
        what = f"Computing features: {split}" + (
            "" if view is None else f", view {view + 1} of {self.view_count}"
        )
        with Progress(what, len(missing), self.progress) as progress, torch.inference_mode():
            for batch in loader:
                dataset.note(batch.get("unreadable", ()))
                if "image" in batch:
                    encoded = self._encode(batch["image"].to(self.backbone.device)).flatten(1)
                    indices = [int(i) for i in batch["index"]]
                    keys = [key_of[pair] for pair in zip(batch["path"], indices, strict=True)]
                    store.add(keys, encoded.to("cpu", getattr(torch, str(store.dtype))).numpy())
                progress.advance(self.batch_size)
        store.flush()

    def _encode(self, images: Tensor) -> Tensor:
        """Encode a batch; a small one is filled up, so that an image's feature does not depend on which others were missing."""
        count = len(images)
        if count < _LEAST:
            images = torch.cat([images, images[-1:].expand(_LEAST - count, *images.shape[1:])])
        if self.layer == "tokens":
            return image_token_features(self.backbone, images, self.block)[:count]
        encoded: Tensor = self.backbone.encode_image(images, normalize=False)
        return encoded[:count]

    def _store(self, augmented: bool) -> FeatureStore:
        """The store of plain or augmented features: everything they depend on besides the image."""
        if augmented not in self._stores:
            spec = self.backbone.spec
            space: dict[str, Any] = {
                "format": _FORMAT,
                "fingerprint": self.backbone.fingerprint,
                # what the same weights can be run with; heads and epsilons are not in their shapes
                "model": {
                    **{k: v for k, v in settings_of(self.backbone.model).items() if k.startswith("image.")},
                    **{k: getattr(spec, k, None) for k in ("activation", "precision", "image_size")},
                },
                "preprocessing": spec.preprocessing,
                "layer": self.layer if self.block is None else f"{self.layer} of block {self.block}",
                "normalised": False,
                "device": torch.device(self.backbone.device).type,  # rounding differs
                "augment": None,
            }
            space.update(self._resize)
            if augmented:
                scale = [float(x) for x in getattr(self.augment, "scale", ())]
                seeds = [self.seed, getattr(self.datamodule, "seed", None)]
                space["augment"] = {"preset": self.augment.preset, "scale": scale, "seeds": seeds}
            # float32 also for half precision backbones: no rounding on top of theirs
            dtype = "float64" if self.backbone.dtype == torch.float64 else "float32"
            self._stores[augmented] = FeatureStore(space, math.prod(self.shape), dtype)
        return self._stores[augmented]

    # -- batches --------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in the data module's own training order; epoch e serves view e mod V."""
        reference = self.datamodule.train_dataloader()
        batches: Any
        if hasattr(reference.batch_sampler, "instructions"):  # lists of images to be ordered
            batches = ListBatches(reference.batch_sampler, self.kept("train"))
        else:
            batches = TrainBatches(
                reference.sampler, reference.batch_size, reference.drop_last, self.kept("train")
            )
        return DataLoader(
            FeatureBatches(self, "train", self.view_count),
            batch_size=None,
            sampler=batches,
            collate_fn=repeated if getattr(reference.sampler, "spare", False) else as_it_is,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Plain view of the validation split, in order."""
        return self._in_order("val", None)

    def test_dataloader(self) -> DataLoader[Any]:
        """Plain view of the test split, in order."""
        return self._in_order("test", None)

    def closed_form_batches(self, split: str = "train", batch_size: int = 256) -> Iterator[Batch]:
        """Yield batches in order with `feature` (B, D), plain, and `views` (B, V, D), augmented; both raw."""
        source = FeatureBatches(self, split, 0)
        every = [self.rows(split, view) for view in range(self.view_count)]
        for _, positions in InOrder(len(self.kept(split)), batch_size):
            batch = source[0, positions]
            views = torch.from_numpy(np.stack([rows.take(positions) for rows in every], axis=1))
            batch["views"] = views.reshape(*views.shape[:2], *self.shape)
            yield batch

    def _in_order(self, split: str, batch_size: int | None) -> DataLoader[Any]:
        size = batch_size or getattr(self.datamodule, "evaluation_batch", None) or 256
        order = InOrder(len(self.kept(split)), size)
        return DataLoader(FeatureBatches(self, split, 0), batch_size=None, sampler=order, collate_fn=as_it_is)


class _Samples(Mapping[str, list[Any]]):
    """Samples of each split without the unreadable ones, which are known once the features are."""

    def __init__(self, source: CachedFeatures) -> None:
        self.source = source

    def __getitem__(self, split: str) -> list[Any]:
        samples = self.source.datamodule.samples[split]
        return [samples[n] for n in self.source.kept(split)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.datamodule.samples)

    def __len__(self) -> int:
        return len(self.source.datamodule.samples)


def _row_key(content: str | None, sample: Any, view: int | None) -> bytes | None:
    """Key of one row; an augmented view also depends on the sample's index, from which its randomness comes."""
    if content is None:
        return None
    about = content if view is None else f"{content}|{sample.index}|{view}"
    return hashlib.sha256(about.encode()).digest()
