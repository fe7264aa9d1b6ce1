"""Retrieval with an adapter: images by images, images by text and texts by image, on class labels or on pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from .errors import LimpetError, NeedsImages
from .pooling import PATCHES, MultiCrop, check_pooling, pooled, pooled_patches
from .progress import Progress
from .retrieval_metrics import RankingTally
from .whitening import Whitening, unit

if TYPE_CHECKING:
    from .adapter import Adapter
    from .classes import ClassSet
    from .sections import RetrievalConfig

_QUERIES = 256  # ranked at once


@dataclass
class Embedded:
    """Images of a split as vectors.

    Attributes:
        vectors: (N, D) float64, as `pooled` gives them.
        labels: (N,).
        paths: N of them.
    """

    vectors: NDArray[np.float64]
    labels: NDArray[np.int64]
    paths: list[str]


def retrieve(adapter: Adapter, data: Any, classes: ClassSet, config: RetrievalConfig, seed: int = 1) -> dict[str, Any]:
    """Measure retrieval on the test images.

    Args:
        adapter: an adapter that classifies.
        data: a data module (of images, not of features) whose labels count in `classes`; its transforms are set.
        classes: the classes of the data.
        config: the section `evaluate.retrieval`.
        seed: of k-means.

    Returns:
        {"image_to_image": {pooling: {"plain": metrics, "whitened": metrics}}, "image_to_text": metrics, "text_to_image":
        metrics, "groups": {pooling: {"plain": {"ari", "nmi"}, ...}}, "notes": sentences}; on pairs without the first and the
        third.

    Raises:
        LimpetError: poolings that do not fit the adapter; no captions for pairs; no training images to whiten with.
    """
    for kind in config.pooling:
        check_pooling(adapter, kind)
    if adapter.task != "classification":
        raise LimpetError(f"Retrieval compares images and texts in one space, and '{adapter.name}' orders images instead.")
    adapter.eval()
    found: dict[str, Any] = {"by": config.by, "gallery": config.gallery, "similarity": config.similarity, "notes": []}
    with adapter.answering(classes):
        if config.by == "pairs":
            return found | _pairs(adapter, data, config)
        tables: dict[str, Any] = {"image_to_image": {}, "groups": {}}
        tests = embed_all(adapter, data, "test", config.pooling, config.crop_share)
        trains = embed_all(adapter, data, "train", config.pooling, config.crop_share) if _needs_train(config) else {}
        for kind in config.pooling:
            test, fitted_on = tests[kind], trains.get(kind)
            for name, form in _forms(config, fitted_on):
                query = form(test.vectors)
                others = form(fitted_on.vectors) if config.gallery == "train" and fitted_on else None
                labels = fitted_on.labels if others is not None and fitted_on else None
                tables["image_to_image"].setdefault(kind, {})[name] = by_labels(query, test.labels, config.k, others, labels)
                tables["groups"].setdefault(kind, {})[name] = groups(query, test.labels, config.clusters or len(classes), seed)
        return found | tables | _class_texts(adapter, data, config)


def _needs_train(config: RetrievalConfig) -> bool:
    return config.whitening or config.gallery == "train"


def _forms(config: RetrievalConfig, train: Embedded | None) -> Iterator[tuple[str, Any]]:
    """(name, vectors -> vectors as they are compared): as they are and, if asked for, whitened."""
    cosine = config.similarity == "cosine"

    def plain(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        return unit(vectors) if cosine else vectors

    yield "plain", plain
    if config.whitening and train is not None:
        whitening = Whitening.fit(plain(train.vectors), config.dimensions, config.ridge)
        yield "whitened", lambda vectors: plain(whitening(plain(vectors)))


def embed_all(adapter: Adapter, data: Any, split: str, kinds: Sequence[str], crop_share: float = 0.7) -> dict[str, Embedded]:
    """The images of a split as vectors of several poolings; those of the patches share one pass over the images."""
    patches = [kind for kind in kinds if kind in PATCHES]
    found: dict[str, Embedded] = {}
    for together in [[kind] for kind in kinds if kind not in PATCHES] + ([patches] if patches else []):
        found |= _one_pass(adapter, data, split, together, crop_share)
    return found


def _one_pass(adapter: Adapter, data: Any, split: str, kinds: Sequence[str], crop_share: float) -> dict[str, Embedded]:
    """Several poolings of the patches, or a single other one."""
    first, of_patches = kinds[0], kinds[0] in PATCHES
    vectors: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in kinds}
    labels, paths = [], []
    for batch in batches(adapter, data, split, "patches" if of_patches else first, crop_share):
        values = pooled_patches(adapter, batch, kinds) if of_patches else {first: pooled(adapter, batch, first)}
        for kind, value in values.items():
            vectors[kind].append(value.double().cpu().numpy())
        labels.append(batch["label"].cpu().numpy())
        paths += list(batch["path"])
    if not labels:
        return {kind: Embedded(np.zeros((0, 1)), np.zeros(0, np.int64), []) for kind in kinds}
    return {kind: Embedded(np.concatenate(parts), np.concatenate(labels), paths) for kind, parts in vectors.items()}


def embed(adapter: Adapter, data: Any, split: str, kind: str, crop_share: float = 0.7) -> Embedded:
    """The images of a split as vectors of one pooling, in the order of the data; unreadable ones are left out and noted."""
    return embed_all(adapter, data, split, [kind], crop_share)[kind]


def batches(adapter: Adapter, data: Any, split: str, kind: str, crop_share: float = 0.7) -> Iterator[Mapping[str, Any]]:
    """Batches of a split as a pooling reads them: cached features where the class token will do, else images."""
    if kind == "class" and adapter.needs(adapter.config, adapter.backbone.spec) == "features":
        from .features import CachedFeatures

        yield from CachedFeatures(data, adapter.backbone).closed_form_batches(split)
        return
    dataset = data.dataset(split)
    if kind == "multi_crop":
        dataset.transform = MultiCrop(dataset.transform, crop_share)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=64, num_workers=data.config.num_workers, collate_fn=data.test_dataloader().collate_fn
    )
    with Progress(f"Encoding images: {split}, {kind}", len(dataset)) as progress:
        for batch in loader:
            dataset.note(batch.get("unreadable", ()))
            if "image" in batch:
                yield batch
            progress.advance(loader.batch_size or 1)


def by_labels(
    query: NDArray[np.float64], labels: NDArray[np.int64], ks: Sequence[int],
    gallery: NDArray[np.float64] | None = None, gallery_labels: NDArray[np.int64] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Rank a gallery for each query image; images of its class are relevant.

    Args:
        query: (Q, D) as compared by inner product.
        labels: (Q,).
        ks: values of k.
        gallery: (N, D); None for the queries themselves, each without itself.
        gallery_labels: (N,).
    """
    tally = RankingTally(ks)
    own = gallery is None or gallery_labels is None
    items, item_labels = (query, labels) if gallery is None or gallery_labels is None else (gallery, gallery_labels)
    for start in range(0, len(query), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(query)))
        excluded = rows[:, None] == np.arange(len(items)) if own else None
        tally.add(query[rows] @ items.T, labels[rows, None] == item_labels, excluded)
    return tally.result()


def groups(vectors: NDArray[np.float64], labels: NDArray[np.int64], count: int, seed: int = 1) -> dict[str, float]:
    """Group images by k-means and compare with their classes: adjusted Rand index (0: chance) and normalised information."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if len(vectors) < 2:
        return {}
    members = KMeans(min(count, len(vectors)), n_init=10, random_state=seed % 2**32).fit_predict(vectors)
    ari, nmi = adjusted_rand_score(labels, members), normalized_mutual_info_score(labels, members)
    return {"ari": float(ari), "nmi": float(nmi)}


@torch.no_grad()
def _class_texts(adapter: Adapter, data: Any, config: RetrievalConfig) -> dict[str, Any]:
    """Classes for each image and images for each class, by the adapter's own scores."""
    needs = adapter.needs(adapter.config, adapter.backbone.spec)
    kind = "class" if needs == "features" else "image"
    scores, labels = [], []
    try:
        for batch in batches(adapter, data, "test", kind):
            moved = {k: v.to(adapter.backbone.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            scores.append(adapter.logits(moved).double().cpu().numpy())
            labels.append(batch["label"].cpu().numpy())
    except NeedsImages as error:
        return {"notes": [f"between images and texts: {error}"]}
    if not scores:
        return {}
    matrix, label = np.concatenate(scores), np.concatenate(labels)
    return _both_ways(matrix, label[:, None] == np.arange(matrix.shape[1]), config.k)


def _both_ways(scores: NDArray[np.float64], relevant: NDArray[np.bool_], ks: Sequence[int]) -> dict[str, Any]:
    """Texts for each image and images for each text, from scores (images, texts)."""
    to_text, to_image = RankingTally(ks), RankingTally(ks)
    to_text.add(scores, relevant)
    to_image.add(scores.T, relevant.T)
    return {"image_to_text": to_text.result(), "text_to_image": to_image.result()}


@torch.no_grad()
def _pairs(adapter: Adapter, data: Any, config: RetrievalConfig) -> dict[str, Any]:
    """Captions for each image and images for each caption; an image may have several, and images may share one."""
    test = embed(adapter, data, "test", "class")
    captions = {sample.path: captions_of(sample) for sample in data.samples["test"]}
    texts = list(dict.fromkeys(text for path in test.paths for text in captions[path]))
    if not texts:
        raise LimpetError(
            "evaluate.retrieval.by=pairs compares images with their captions, and no test image has any. Give a table with a "
            "column of captions (data=table, data.caption_column=NAME), a row for each caption."
        )
    place = {text: i for i, text in enumerate(texts)}
    relevant = np.zeros((len(test.paths), len(texts)), bool)
    for row, path in enumerate(test.paths):
        relevant[row, [place[text] for text in captions[path]]] = True
    words = adapter.encode_text(texts).double().cpu()
    images = torch.from_numpy(test.vectors)
    if config.similarity == "cosine":
        images, words = F.normalize(images, dim=-1), F.normalize(words, dim=-1)
    return {"captions": len(texts), **_both_ways((images @ words.T).numpy(), relevant, config.k)}


def captions_of(sample: Any) -> list[str]:
    """The captions of an image, each once."""
    listed = sample.extra.get("captions")
    if not isinstance(listed, list):  # not from a table of captions
        listed = [str(sample.extra.get("caption", ""))]
    return list(dict.fromkeys(text.strip() for text in listed if text.strip()))
