"""Answering with a fitted adapter: three lines of Python, no Lightning."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from . import artifact

if TYPE_CHECKING:
    from PIL.Image import Image

    from .adapter import Adapter

Source: TypeAlias = "str | Path | Image"


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: The image's path as given; its position for an image given as an object.
        label: The most probable class; None where the image could not be read.
        probability: Its probability, in [0, 1].
        top: The most probable classes with their probabilities, best first.
        error: Why the image could not be read; None where it could.
    """

    path: str
    label: str | None
    probability: float
    top: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None


class Classifier:
    """A fitted adapter with its backbone, ready to answer.

    Args:
        adapter: A fitted adapter, set up with its backbone and classes.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter.eval()
        self.backbone = adapter.backbone
        self.transform = self.backbone.transform(train=False)

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
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if backbone is not None:
            place = str(backbone.device)
        adapter = artifact.load(path, backbone, version=version, device=place, plugins=plugins)
        return cls(adapter.to(place))

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the probabilities."""
        return list(self.adapter.classes.names)

    def text(self, name: str) -> str:
        """The words that stand for a class in prompts."""
        return str(self.adapter.classes.text(name))

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities (B, C), float64 on the CPU, of preprocessed images (B, 3, H, W)."""
        images = images.to(self.backbone.device)
        count = len(images)
        batch: dict[str, Any] = {"path": [""] * count, "index": torch.arange(count)}
        if self.adapter.needs(self.adapter.config, self.backbone.spec) == "features":
            batch["feature"] = self.backbone.encode_image(images, normalize=False).float()
        else:
            batch["image"] = images
        return self.adapter.logits(batch).double().softmax(dim=-1).cpu()

    def predict(
        self, images: Source | Iterable[Source], batch_size: int = 64, top: int = 1, threads: int = 4
    ) -> Iterator[Prediction]:
        """Answer for images one after the other, in order, holding only a few batches in memory.

        Args:
            images: Paths or PIL images: one, or any iterable of them (a generator, too).
            batch_size: Images per forward pass.
            top: How many classes to give in `Prediction.top`.
            threads: Threads that decode images.

        Yields:
            One `Prediction` per image; for one that cannot be read, `error` says why.
        """
        many = [images] if isinstance(images, str | Path) or hasattr(images, "convert") else images
        top = max(1, min(top, len(self.classes)))
        numbered = enumerate(many)  # type: ignore[arg-type]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            waiting: deque[tuple[str, Future[Tensor | str]]] = deque()

            def decode_ahead(count: int) -> None:
                for number, source in islice(numbered, max(0, count)):
                    name = str(source) if isinstance(source, str | Path) else str(number)
                    waiting.append((name, pool.submit(self._decode, source)))

            decode_ahead(2 * batch_size)
            while waiting:
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                decode_ahead(2 * batch_size - len(waiting))
                yield from self._answer([(name, future.result()) for name, future in batch], top)

    def add_classes(self, classes: Any, batches: Iterable[Any] | None = None) -> None:
        """Add classes to the adapter, as its method allows.

        Raises:
            NeedsImages: If the method needs images of the new classes and got none.
        """
        self.adapter.add_classes(classes, batches)

    def _decode(self, source: Any) -> Tensor | str:
        """Return the preprocessed image (3, H, W), or a sentence where it cannot be read."""
        try:
            image = source
            if isinstance(source, str | Path):
                image = importlib.import_module(".datamodules.images", __package__).read_image(Path(source))
            prepared: Tensor = self.transform(image.convert("RGB"))
            return prepared
        except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
            return " ".join(str(error).split()) or type(error).__name__

    def _answer(self, batch: Sequence[tuple[str, Tensor | str]], top: int) -> Iterator[Prediction]:
        good = [image for _, image in batch if isinstance(image, Tensor)]
        answers: Iterator[tuple[list[float], list[int]]] = iter(())
        if good:
            values, indices = self.probabilities(torch.stack(good)).topk(top, dim=-1)
            answers = zip(values.tolist(), indices.tolist(), strict=True)
        names = self.classes
        for path, image in batch:
            if isinstance(image, str):
                yield Prediction(path, None, 0.0, [], image)
                continue
            numbers, chosen = next(answers)
            best = [(names[index], value) for index, value in zip(chosen, numbers, strict=True)]
            yield Prediction(path, best[0][0], best[0][1], best)
