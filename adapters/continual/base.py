"""The face of every regulariser: what is done against forgetting, around a method that does not know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import LimpetError

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch
    from .configs import ContinualConfig


@dataclass(frozen=True)
class Task:
    """What a regulariser may know when a session begins.

    Attributes:
        number: of the session, from 0.
        names: text names of the classes so far, those of the session included.
        seed: of the run.
        batches: the session's training images in order, without augmentation.
        fixed_images: whether an image enters every epoch as it is in `batches`, so that what a teacher says about it can
            be remembered.
        exemplars: gives a batch of kept images of earlier sessions at a step and how to ask about it; None: there are none.
    """

    number: int
    names: tuple[str, ...]
    seed: int
    batches: Callable[[], Iterable[Batch]]
    fixed_images: bool = False
    exemplars: Callable[[int], tuple[Batch, Any]] | None = None


class Regulariser:
    """Plain training, and the base of all others.

    Lifecycle in every session: `start` -> for every step `loss`, and `stepped` after the optimiser -> `finish`.
    """

    sees_all = False  # whether the loss chooses among all classes so far, whatever `stream.candidates` says
    memory = 0  # images of earlier sessions to keep

    def __init__(self, config: ContinualConfig) -> None:
        self.config: Any = config

    def problem(self, adapter: Adapter) -> str | None:
        """Why this adapter cannot be trained so, as a sentence, or None."""
        return None

    def start(self, adapter: Adapter, task: Task) -> None:
        """A session begins; `adapter` is as the last one left it."""

    def loss(self, adapter: Adapter, batch: Batch, step: int) -> Tensor:
        """Training loss (a scalar) of one batch."""
        return adapter.loss(batch)

    def stepped(self, adapter: Adapter, step: int) -> None:
        """Called after optimiser step `step`, counted from 0."""

    def finish(self, adapter: Adapter) -> None:
        """Called when the session's training is over."""

    def state_dict(self) -> dict[str, Any]:
        """What changes within a session, for the checkpoint: tensors and plain numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""


def learns_by_gradient(adapter: Adapter) -> bool:
    """Whether gradient training is part of the adapter's method."""
    return adapter.trainable(adapter.config, adapter.backbone.spec)


def encoder_problem(adapter: Adapter, name: str) -> str | None:
    """Why an adapter cannot be held near a teacher's features, or None: it trains nothing, or not through its encoders."""
    method = adapter.variant(adapter.config)
    if not learns_by_gradient(adapter):
        return f"continual={name} acts on gradients, and '{method}' is not trained by any: use continual=none."
    rows = adapter.per_class(adapter.config, adapter.backbone.spec)
    if rows:
        return (
            f"continual={name} keeps what the encoders say about other texts, and '{method}' learns a row for each class "
            f"({', '.join(rows)}), which says nothing about them: use continual=replay or none."
        )
    if not any(gradient_paths(adapter)):
        return (
            f"continual={name} acts through encode_image and encode_text, and neither carries a gradient to what '{method}' "
            "learns: use continual=replay or none."
        )
    return None


def gradient_paths(adapter: Adapter) -> tuple[bool, bool]:
    """Whether image features and text features carry gradients to what is learned."""
    backbone = adapter.backbone
    if adapter.needs(adapter.config, backbone.spec) == "images":
        batch: dict[str, Any] = {"image": torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=backbone.device)}
    else:
        batch = {"feature": torch.ones(1, backbone.embed_dim, device=backbone.device)}
    questions: list[Callable[[], Tensor]] = [lambda: adapter.encode_image(batch), lambda: adapter.encode_text(["a photo"])]
    found = []
    with torch.enable_grad():
        for ask in questions:
            try:
                found.append(bool(ask().requires_grad))
            except LimpetError:  # the method has no such features
                found.append(False)
    return found[0], found[1]


def scale_of(adapter: Adapter) -> float:
    """Factor of the adapter's cosines; student and teacher share it."""
    fixed = getattr(adapter.config, "logit_scale", None)
    return adapter.backbone.logit_scale if fixed is None else float(fixed)


@contextmanager
def once(adapter: Adapter) -> Iterator[None]:
    """Within the context, features of one batch and the class weights are computed once, whoever asks for them."""
    images: dict[tuple[int, bool], tuple[Any, Tensor]] = {}
    weights: dict[tuple[Any, bool], Tensor] = {}
    encode_image, class_weights = adapter.encode_image, adapter.class_weights

    def image(batch: Batch) -> Tensor:
        key = (id(batch), torch.is_grad_enabled())
        if key not in images:
            images[key] = (batch, encode_image(batch))  # the batch is kept, so that its id is not given to another
        return images[key][1]

    def classes() -> Tensor:
        key = (adapter.classes.names, torch.is_grad_enabled())
        if key not in weights:
            weights[key] = class_weights()
        return weights[key]

    adapter.__dict__["encode_image"], adapter.__dict__["class_weights"] = image, classes
    try:
        yield
    finally:
        del adapter.__dict__["encode_image"], adapter.__dict__["class_weights"]
