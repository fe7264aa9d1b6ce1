"""What every kind of export is given, and what it hands back."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LimpetError
from .export_parity import answers, compare, in_batches

if TYPE_CHECKING:
    from .adapter import Adapter
    from .backbone import FrozenClip


class CannotExport(LimpetError):
    """A method, or a backbone, that a kind of export cannot hold; the message offers the nearest that can."""


@dataclass
class Job:
    """An adapter that is to be exported.

    Attributes:
        adapter: fitted, in evaluation mode, float32 on the CPU.
        artefact: the folder it was loaded from.
        content: its `adapter.json`.
        images: preprocessed images (N, 3, H, W) that the comparison is made on.
        beside: whether class weights lie beside the exported model, not in it.
    """

    adapter: Adapter
    artefact: Path
    content: Mapping[str, Any]
    images: Tensor
    beside: bool = False

    @property
    def backbone(self) -> FrozenClip:
        """The frozen CLIP."""
        return self.adapter.backbone

    @property
    def method(self) -> str:
        """Name of the method in sentences."""
        return self.adapter.variant(self.adapter.config)

    @property
    def classifies(self) -> bool:
        """Whether the adapter answers with one of its classes."""
        return self.adapter.task == "classification"

    @cached_property
    def expected(self) -> Tensor:
        """The adapter's own scores (N, C)."""
        return answers(self.adapter, self.images)

    @cached_property
    def frozen_tower(self) -> bool:
        """Whether image features are those of the frozen backbone."""
        first = self.images[:4]
        with torch.no_grad():
            own = self.adapter.encode_image({"image": first})
            plain = F.normalize(self.backbone.encode_image(first, normalize=False).to(own), dim=-1)
        return bool(torch.allclose(own, plain, rtol=0, atol=1e-6))

    @cached_property
    def head(self) -> Head:
        """The linear classifier behind the image features.

        Raises:
            CannotExport: the scores are not linear in the image features.
        """
        if not self.classifies:
            raise CannotExport(f"'{self.method}' gives scores to order images by, so it has no class weights. {self.nearest()}")
        try:
            with torch.no_grad():
                weights, bias, unit = self.adapter.linear_head()
        except LimpetError as error:
            raise CannotExport(f"{error} {self.nearest('onnx')}") from None
        head = Head(weights.detach(), bias.detach(), unit)
        parity = compare(self.expected, in_batches(lambda part: head.scores(self.features(part, unit)), self.images))
        if not parity.holds:
            raise CannotExport(
                f"The scores of '{self.method}' are not a product of image features and class weights (they would differ by "
                f"{parity.difference:.2g}), so there is no table of weights that gives them. {self.nearest('onnx')}"
            )
        return head

    def features(self, images: Tensor, unit: bool = True) -> Tensor:
        """The adapter's image features (B, D), of unit norm, or raw for a classifier that reads them so."""
        with torch.no_grad():
            return self.adapter.encode_image({"image": images}) if unit else self.adapter.image_feature({"image": images})

    @torch.no_grad()
    def text_weights(self, encode: Callable[[Tensor], Any]) -> Tensor:
        """Class weights (C, D) from a function of token ids to text features: prompts normalised, averaged, normalised."""
        rows = []
        for name in self.adapter.classes.names:
            found = encode(self.backbone.tokenize(self.adapter.classes.prompts(name)))
            features = F.normalize(found[0] if isinstance(found, tuple) else found, dim=-1)
            rows.append(F.normalize(features.mean(0), dim=-1))
        return torch.stack(rows)

    def nearest(self, *targets: str) -> str:
        """A sentence that offers other kinds of export."""
        if not self.classifies:
            return "Use --to adapter or --to hub-folder, which Limpet loads again."
        known = {
            "onnx": "--to onnx, which holds the image tower with the whole adapter",
            "weights": "--to weights, its class weights, which go with the plain backbone",
            "merged": "--to merged, the towers as plain open_clip weights",
        }
        return f"Nearest: {'; or '.join(known[target] for target in targets)}."


@dataclass(frozen=True)
class Head:
    """logits = weights f + bias, f the image features (B, D): of unit norm where `unit`, else as the tower gives them."""

    weights: Tensor
    bias: Tensor
    unit: bool

    def scores(self, features: Tensor) -> Tensor:
        """Scores (B, C), float64."""
        return features.double() @ self.weights.double().T + self.bias.double()


@dataclass
class Written:
    """What an export hands back for the comparison and the card.

    Attributes:
        answer: scores (B, C) of preprocessed images (B, 3, H, W), from the written files.
        about: sentences that say what the files are.
        loading: Python code that loads them and answers for photo.jpg, run in the exported folder.
        packages: distributions that the code needs.
        facts: further entries of `export.json`.
        front: entries for the card's YAML head.
    """

    answer: Callable[[Tensor], Tensor]
    about: Sequence[str]
    loading: str
    packages: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    front: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters and their libraries report on their own progress, which says nothing to a user of Limpet."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
