"""Answering with a fitted adapter: three lines of Python, no Lightning."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from . import artifact
from .calibration import Calibration
from .errors import ArtifactError, LimpetError, exhausted
from .image_sources import SEVERAL_FRAMES, ZipMember, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from .adapter import Adapter

Source: TypeAlias = "str | Path | Image | ZipMember"


Decoded: TypeAlias = "tuple[Tensor | str, str | None]"
"""The preprocessed image (3, H, W) or why it cannot be read, and a note on how it was read."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: The image's path as given; its position for an image given as an object.
        label: The most probable class; None where the image could not be read.
        probability: Its probability, in [0, 1].
        top: The most probable classes with their probabilities, best first.
        error: Why the image could not be read; None where it could.
        calibrated: The probability after temperature scaling, in [0, 1]; None where the adapter has no temperature.
        calibrated_top: The same for each class of `top`; empty where the adapter has no temperature.
        abstained: Whether the answer is less sure than the threshold asked for; `label` says what it would be.
        note: What to know of how the image was read (an animation's first frame); None for nothing.
        because: What speaks for the label, in words with a number, strongest first; empty where the method says nothing.
    """

    path: str
    label: str | None
    probability: float
    top: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None
    calibrated: float | None = None
    calibrated_top: list[float] = field(default_factory=list)
    abstained: bool = False
    note: str | None = None
    because: list[tuple[str, float]] = field(default_factory=list)

    @property
    def confidence(self) -> float:
        """What a threshold is compared with: the calibrated probability where there is one, else the plain one."""
        return self.probability if self.calibrated is None else self.calibrated


def load_adapter(path: str | Path, version: int | None, backbone: Any, device: str | None, plugins: bool) -> Adapter:
    """Load an adapter onto the device of `backbone`, else onto `device`, else onto a GPU where there is one."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if backbone is not None:
        place = str(backbone.device)
    return artifact.load(path, backbone, version=version, device=place, plugins=plugins).to(place)


def finite(scores: Tensor) -> Tensor:
    """Return scores of images, on the CPU, where all of them are numbers.

    Raises:
        ArtifactError: some are NaN or infinite, so that they order nothing and are no probabilities.
    """
    if not bool(scores.isfinite().all()):
        raise ArtifactError(
            "The adapter answers with scores that are NaN or infinite, which say nothing: its tensors or its settings in "
            f"{artifact.INFO} are damaged, or its training diverged. Copy the artefact again from its source, or fit again with a "
            "lower optim.lr."
        )
    return scores


class Classifier:
    """A fitted adapter with its backbone, ready to answer.

    Args:
        adapter: A fitted adapter, set up with its backbone and classes.

    Attributes:
        calibration: Temperature and thresholds fitted on the validation images; None where there were none.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter.eval()
        self.calibration: Calibration | None = None
        self.info: dict[str, Any] = {}  # what the artefact records about its fit
        self.history: list[dict[str, Any]] = []  # changes of the classes since it was loaded
        self.backbone = adapter.backbone
        self.transform = self.backbone.transform(train=False, resize_mode=adapter.resize_mode)

    @classmethod
    def load(
        cls,
        path: str | Path,
        version: int | None = None,
        backbone: Any = None,
        device: str | None = None,
        plugins: bool = True,
    ) -> Classifier:
        """Load the newest (or the given) version of a run's adapter, or an artefact folder.

        Args:
            path: A run folder or an artefact folder.
            version: A version number; the newest by default.
            backbone: A `FrozenClip` already loaded; the recorded one by default.
            device: Where to compute; a GPU where there is one by default.
            plugins: Whether a method from the user's own file may be imported.

        Raises:
            ArtifactError: If it is missing, damaged or does not fit the backbone.
        """
        adapter = load_adapter(path, version, backbone, device, plugins)
        if adapter.task != "classification":
            raise LimpetError(f"'{adapter.name}' does not classify images (its task is {adapter.task}).")
        classifier = cls(adapter)
        classifier.info = dict(artifact.load_info(path, version).get("info") or {})
        classifier.calibration = Calibration.from_dict(classifier.info.get("calibration"))
        return classifier

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return list(self.adapter.classes.names)

    @property
    def explains(self) -> bool:
        """Whether predictions say in words what speaks for them."""
        from .adapter import Adapter

        return type(self.adapter).evidence is not Adapter.evidence

    def text(self, name: str) -> str:
        """The words that stand for a class in prompts."""
        return str(self.adapter.classes.text(name))

    @torch.no_grad()  # not inference mode: what the adapter remembers is used with gradients by `limpet explain`
    def scores(self, images: Tensor) -> Tensor:
        """Return logits (B, C), float64 on the CPU, of preprocessed images (B, 3, H, W)."""
        return self._logits(self._batch(images))

    @torch.no_grad()
    def _logits(self, batch: dict[str, Any]) -> Tensor:
        return finite(self.adapter.logits(batch).double().cpu())

    @torch.no_grad()
    def because(self, images: Tensor, labels: Sequence[int]) -> list[list[tuple[str, float]]]:
        """What speaks for the classes `labels` of preprocessed images (B, 3, H, W), see `Prediction.because`."""
        return self.adapter.evidence(self._batch(images), labels) if self.explains else [[] for _ in labels]

    @torch.no_grad()
    def _batch(self, images: Tensor) -> dict[str, Any]:
        """What the adapter reads of preprocessed images."""
        images = images.to(self.backbone.device)
        count = len(images)
        batch: dict[str, Any] = {"path": [""] * count, "index": torch.arange(count)}
        if self.adapter.needs(self.adapter.config, self.backbone.spec) == "features":
            batch["feature"] = self.backbone.encode_image(images, normalize=False).float()
        else:
            batch["image"] = images
        return batch

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, C), float64 on the CPU, of preprocessed images (B, 3, H, W)."""
        return self.scores(images).softmax(dim=-1)

    def predict(
        self,
        images: Source | Iterable[Source],
        batch_size: int = 64,
        top: int = 1,
        threads: int = 4,
        threshold: float = 0.0,
    ) -> Iterator[Prediction]:
        """Answer for images one after the other, in order, holding only a few batches in memory.

        Args:
            images: Paths or PIL images: one, or any iterable of them (a generator, too).
            batch_size: Images per forward pass.
            top: How many classes to give in `Prediction.top`.
            threads: Threads that decode images.
            threshold: Answers less sure than this are marked `abstained`; `calibration.cut` chooses one.

        Yields:
            One `Prediction` per image; for one that cannot be read, `error` says why.
        """
        many = [images] if isinstance(images, str | Path | ZipMember) or hasattr(images, "convert") else images
        top = max(1, min(top, len(self.classes)))
        numbered = enumerate(many)  # type: ignore[arg-type]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            waiting: deque[tuple[str, Future[Decoded]]] = deque()

            def decode_ahead(count: int) -> None:
                for number, source in islice(numbered, max(0, count)):
                    name = str(source) if isinstance(source, str | Path | ZipMember) else str(number)
                    waiting.append((name, pool.submit(self._decode, source)))

            decode_ahead(2 * batch_size)
            while waiting:
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                decode_ahead(2 * batch_size - len(waiting))
                yield from self._answer([(name, *future.result()) for name, future in batch], top, threshold)

    def add_classes(
        self,
        names: Sequence[str],
        images: Mapping[str, Iterable[Source]] | None = None,
        texts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Answer about further classes from now on; `save` writes them down.

        Args:
            names: Names of the new classes.
            images: Paths or PIL images of each, for methods that learn from images; prepared as those of the fit.
            texts: Words that stand for a new class in prompts, where its name says little.

        Raises:
            NeedsImages: If the method needs images of the new classes and got none.
            LimpetError: If a class of that name exists, or its text does not fit into the method's prompts.
        """
        from .grow import shot_batches

        names = [names] if isinstance(names, str) else list(names)
        adapter, given = self.adapter, {k: list(v) for k, v in (images or {}).items()}
        classes = adapter.classes.extended(names, texts)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise LimpetError(f"Images were given for {unknown[0]!r}, which is not among the added classes.")
        self._check_words(word for name in names for word in classes.texts[name])
        batches = shot_batches(adapter, classes, given, self.info.get("augment"), self.info.get("seed", 1)) if given else None
        with torch.no_grad():
            adapter.add_classes(classes, batches)
        adapter.eval()
        counts = {name: sum(int((b["label"] == classes.index(name)).sum()) for b in batches or ()) for name in names}
        self.history.append({"added": counts})

    def remove_classes(self, names: Sequence[str]) -> None:
        """Stop answering about classes.

        Raises:
            LimpetError: If there is no such class, or none would be left.
        """
        names = [names] if isinstance(names, str) else list(names)
        self.adapter.remove_classes(names)
        self.history.append({"removed": names})

    def rename_classes(self, names: Mapping[str, str], reword: bool = False) -> None:
        """Change names, `{old: new}`. The answers stay, unless `reword` puts the new names into the prompts, too.

        Raises:
            LimpetError: If there is no such class, or two would have one name.
        """
        if reword:
            renamed = self.adapter.classes.renamed(names)
            self._check_words(word for new in names.values() for word in renamed.texts[new])
        self.adapter.rename_classes(names, reword)
        self.history.append({"renamed": dict(names)})

    @torch.no_grad()
    def _check_words(self, words: Iterable[str]) -> None:
        """Raise where the longest text does not fit into the method's prompts; it is tried on a class that exists."""
        longest = max(words, key=lambda text: len(self.backbone.token_ids(text)), default=None)
        if longest is not None:
            classes = self.adapter.classes.only(self.classes[:1])
            with self.adapter.answering(replace(classes, texts={classes.names[0]: (longest,)})):
                self.adapter.check_texts()

    def save(self, run_dir: str | Path) -> Path:
        """Write the adapter as the next version below `run_dir/adapter` and return its folder; older versions stay."""
        from .grow import record

        return artifact.save(self.adapter, run_dir, record(self.info, self.history, self.adapter.notes))

    def _decode(self, source: Any) -> Decoded:
        try:
            image = open_image(source)
            note = "the first of several frames or pages was used" if image.info.get(SEVERAL_FRAMES) else None
            return self.transform(image), note
        except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
            if exhausted(error):  # says nothing about the image
                raise
            return " ".join(str(getattr(error, "reason", "") or error).split()) or type(error).__name__, None

    def _answer(
        self, batch: Sequence[tuple[str, Tensor | str, str | None]], top: int, threshold: float
    ) -> Iterator[Prediction]:
        good = [image for _, image, _ in batch if isinstance(image, Tensor)]
        answers: Iterator[tuple[list[float], list[float], list[int], list[tuple[str, float]]]] = iter(())
        if good:
            given = self._batch(torch.stack(good))
            logits = self._logits(given)
            values, indices = logits.softmax(-1).topk(top, dim=-1)
            temperature = None if self.calibration is None else self.calibration.temperature
            scaled = [[]] * len(good) if temperature is None else (logits / temperature).softmax(-1).gather(1, indices).tolist()
            because: list[list[tuple[str, float]]] = [[]] * len(good)
            if self.explains:
                because = self.adapter.evidence(given, indices[:, 0].tolist())
            answers = zip(values.tolist(), scaled, indices.tolist(), because, strict=True)
        names = self.classes
        for path, image, note in batch:
            if isinstance(image, str):
                yield Prediction(path, None, 0.0, [], image)
                continue
            plain, calibrated, chosen, reasons = next(answers)
            best = [(names[index], value) for index, value in zip(chosen, plain, strict=True)]
            confidence = calibrated[0] if calibrated else best[0][1]
            yield Prediction(
                path, *best[0], best, None, calibrated[0] if calibrated else None, calibrated, confidence < threshold, note, reasons
            )
