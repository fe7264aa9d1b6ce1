"""Putting images in order with a fitted adapter: a few lines of Python, no Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import LimpetError, exhausted
from .image_sources import ZipMember, open_image
from .inference import finite, load_adapter

if TYPE_CHECKING:
    from .ordering_adapter import OrderingAdapter

FAR = 0.8  # cosine of two instructions below which the note calls them far apart


@dataclass(frozen=True)
class Ranked:
    """The place of one image.

    Attributes:
        path: the image's path as given; its position for an image given as an object.
        rank: 1 for the greatest score; 0 where the image could not be read.
        score: the score, in the units of the training values where `in_units`; else only its order means something.
        in_units: whether the score is in the units of the values of the instruction's category.
        error: why the image could not be read; None where it could.
    """

    path: str
    rank: int
    score: float
    in_units: bool = False
    error: str | None = None


class Ranker:
    """A fitted ordering adapter with its backbone.

    Args:
        adapter: fitted, set up with its backbone and categories.
    """

    def __init__(self, adapter: OrderingAdapter) -> None:
        if adapter.task != "ordering":
            raise LimpetError(f"'{adapter.name}' does not order images; use limpet.inference.Classifier.")
        self.adapter = adapter.eval()
        self.backbone = adapter.backbone
        self.transform = self.backbone.transform(train=False, resize_mode="squash")

    @classmethod
    def load(
        cls,
        path: str | Path,
        version: int | None = None,
        backbone: Any = None,
        device: str | None = None,
        plugins: bool = True,
    ) -> Ranker:
        """Load the newest (or the given) version of a run's adapter, or an artefact folder; see `Classifier.load`.

        Raises:
            ArtifactError: it is missing, damaged or does not fit the backbone.
            LimpetError: it does not order images.
        """
        adapter = load_adapter(path, version, backbone, device, plugins)
        return cls(cast("OrderingAdapter", adapter))

    @property
    def instructions(self) -> list[str]:
        """The instructions that the adapter was fitted with."""
        return self.adapter.learned_instructions()

    def choose(self, instruction: str | None) -> str:
        """The instruction to use: the given one, else the only one there is.

        Raises:
            LimpetError: none was given and there are several.
        """
        known = self.instructions
        if instruction is None:
            if len(known) > 1:
                shown = "; ".join(f'"{text}"' for text in known[:6]) + ("; ..." if len(known) > 6 else "")
                raise LimpetError(f"The adapter knows {len(known)} instructions: choose one with --instruction. Known: {shown}.")
            return known[0]
        words = " ".join(instruction.split())
        if not words:
            raise LimpetError("The instruction is empty; say what to order by.")
        return next((text for text in known if text.lower().rstrip(".") == words.lower().rstrip(".")), words)

    @torch.inference_mode()
    def scores(self, images: Tensor, instructions: Sequence[str]) -> Tensor:
        """Scores (K, B), float64 on the CPU, of preprocessed images (B, 3, H, W) under K instructions."""
        from .tokens import image_token_features

        images = images.to(self.backbone.device)
        count = len(images)
        batch: dict[str, Any] = {"path": [""] * count, "index": torch.arange(count)}
        needs = self.adapter.needs(self.adapter.config, self.backbone.spec)
        if needs == "features":
            batch["feature"] = self.backbone.encode_image(images, normalize=False)
        elif needs == "patches":
            block = self.adapter.token_block(self.adapter.config, self.backbone.spec)
            batch["tokens"] = image_token_features(self.backbone, images, block)
        else:
            batch["image"] = images
        rows = [self.adapter.scores({**batch, "instruction": [text] * count}) for text in instructions]
        return finite(torch.stack(rows).double().cpu())

    def rank(
        self, images: Iterable[Any], instruction: str | None = None, batch_size: int = 64, threads: int = 4
    ) -> list[Ranked]:
        """Order images, greatest first; those that cannot be read come last, with `error`.

        Args:
            images: paths or PIL images.
            instruction: what to order by; default: the one the adapter was fitted with.
            batch_size: images per forward pass.
            threads: threads that decode images.
        """
        return self.rank_with([self.choose(instruction)], images, batch_size, threads)[0]

    def rank_with(
        self, instructions: Sequence[str], images: Iterable[Any], batch_size: int = 64, threads: int = 4, progress: Any = None
    ) -> list[list[Ranked]]:
        """Order images under several instructions at once; each image is read and encoded once."""
        names: list[str] = []
        errors: list[str | None] = []
        columns: list[Tensor] = []
        for batch in self._decoded(images, batch_size, threads):
            names += [name for name, _ in batch]
            errors += [image if isinstance(image, str) else None for _, image in batch]
            good = [image for _, image in batch if isinstance(image, Tensor)]
            if good:
                columns.append(self.scores(torch.stack(good), instructions))
            if progress is not None:
                progress.advance(len(batch))
        scores = torch.cat(columns, 1) if columns else torch.zeros(len(instructions), 0)
        return [self._ordered(names, errors, row, text) for row, text in zip(scores, instructions, strict=True)]

    def _ordered(
        self, names: Sequence[str], errors: Sequence[str | None], scores: Tensor, instruction: str
    ) -> list[Ranked]:
        scaled, known = self.adapter.units(scores, torch.full((len(scores),), self.adapter.row_of(instruction)))
        readable = [name for name, error in zip(names, errors, strict=True) if error is None]
        order = torch.argsort(scores, descending=True, stable=True).tolist()
        found = [Ranked(readable[n], rank, float(scaled[n]), bool(known[n])) for rank, n in enumerate(order, start=1)]
        broken = [(name, error) for name, error in zip(names, errors, strict=True) if error is not None]
        return found + [Ranked(name, 0, 0.0, error=error) for name, error in broken]

    def _decoded(self, images: Iterable[Any], batch_size: int, threads: int) -> Iterator[list[tuple[str, Tensor | str]]]:
        numbered = iter(enumerate(images))
        with ThreadPoolExecutor(max(1, threads)) as pool:
            while chunk := list(islice(numbered, batch_size)):
                names = [str(source) if isinstance(source, str | Path | ZipMember) else str(n) for n, source in chunk]
                yield list(zip(names, pool.map(self._decode, [source for _, source in chunk]), strict=True))

    def _decode(self, source: Any) -> Tensor | str:
        """The preprocessed image (3, H, W), or a sentence where it cannot be read."""
        try:
            prepared: Tensor = self.transform(open_image(source))
            return prepared
        except (OSError, ValueError, SyntaxError, MemoryError, EOFError) as error:
            if exhausted(error):  # says nothing about the image
                raise
            return " ".join(str(error).split()) or type(error).__name__

    def nearest(self, instruction: str) -> tuple[str, float]:
        """The trained instruction whose text feature is nearest, and the cosine."""
        features = F.normalize(self.backbone.encode_text([instruction, *self.instructions]).double(), dim=-1)
        cosine = features[1:] @ features[0]
        best = int(cosine.argmax())
        return self.instructions[best], float(cosine[best])

    def note(self, instruction: str, agreement: float | None = None) -> str | None:
        """What a reader should know of an instruction the adapter was not fitted with; None for one it was.

        Args:
            instruction: as used.
            agreement: Spearman correlation of the orders under it and under the nearest trained instruction.
        """
        if instruction in self.instructions:
            return None
        if not self.adapter.follows_instructions:
            return f"'{self.adapter.name}' does not read instructions: this is the order it was trained for."
        known, cosine = self.nearest(instruction)
        far = "far from" if cosine < FAR else "not among"
        parts = [
            f"This instruction is {far} those trained on (nearest: \"{known}\", cosine {cosine:.2f}); nothing was measured for it."
        ]
        unseen = self.backbone.unseen_tokens(instruction)
        if unseen:
            parts.append(f"{self.backbone.spec.name} never saw the word{'s' if len(unseen) > 1 else ''} {', '.join(unseen[:6])}.")
        if agreement is not None:
            parts.append(f"The order agrees with that of the nearest one to Spearman {agreement:.2f}.")
            if agreement > 0.9:
                parts.append("So the other words change little: it may be the trained order that you see.")
        return " ".join(parts)


