"""Teachers: the adapter as it was when a session began, or the original CLIP; neither moves with the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch
    from ..classes import ClassSet


class _Asked(nn.Module):
    """The adapter and the modules that share its tensors, so that a call replaces the tensors in all of them."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.others = nn.ModuleList(adapter.sharing())

    def forward(self, question: Callable[[Adapter], Tensor]) -> Tensor:
        return question(self.adapter)


class Teacher:
    """What a student is held near; all answers are without gradient and in evaluation mode."""

    def image_features(self, batch: Batch) -> Tensor:
        """Unit-norm image features (B, D)."""
        raise NotImplementedError

    def text_features(self, texts: Sequence[Any]) -> Tensor:
        """Unit-norm text features (N, D) of texts, or of tuples of token ids."""
        raise NotImplementedError

    def class_weights(self) -> Tensor:
        """Unit-norm text classifier (C, D) of the classes the adapter is answering about."""
        raise NotImplementedError


class TaskStart(Teacher):
    """A clone of the adapter's tensors, run on the same backbone by `torch.func.functional_call`.

    Args:
        adapter: the student; its tensors are copied now, and share no memory with it from then on.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.state = {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}
        self._asked = _Asked(adapter)
        self._derived: dict[str, Any] = {}
        self._classes: ClassSet | None = None

    def image_features(self, batch: Batch) -> Tensor:
        """With the tensors of the task's start."""
        return self._ask(lambda adapter: adapter.encode_image(batch))

    def text_features(self, texts: Sequence[Any]) -> Tensor:
        """With the tensors of the task's start."""
        return self._ask(lambda adapter: adapter.encode_text(texts))

    def class_weights(self) -> Tensor:
        """With the tensors of the task's start."""
        return self._ask(lambda adapter: adapter.compute_class_weights())

    def _ask(self, question: Callable[[Adapter], Tensor]) -> Tensor:
        """Evaluate with the cloned tensors in the student's place; what it derives is kept apart from the student's."""
        adapter, was_training = self.adapter, self.adapter.training
        if self._classes is not adapter.classes:
            self._classes, self._derived = adapter.classes, {}
        students, adapter._derived = adapter._derived, self._derived
        if was_training:
            adapter.eval()
        try:
            with torch.no_grad():
                tensors = {f"adapter.{name}": tensor for name, tensor in self.state.items()}
                answer = functional_call(self._asked, tensors, (question,), tie_weights=True)
            return F.normalize(answer.detach(), dim=-1)
        finally:
            if was_training:
                adapter.train()
            self._derived, adapter._derived = adapter._derived, students


class Original(Teacher):
    """The frozen CLIP beside which the adapter was trained.

    Args:
        adapter: whose backbone it is; where its texts stand in a learned prompt, the teacher reads them in the first
            template of the classes.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def image_features(self, batch: Batch) -> Tensor:
        """Frozen features."""
        with torch.no_grad():
            return F.normalize(self.adapter.image_feature(batch), dim=-1)

    def text_features(self, texts: Sequence[Any]) -> Tensor:
        """Frozen features."""
        adapter = self.adapter
        if adapter.prompted:
            template = adapter.classes.templates[0]
            texts = [template.replace("{}", text) if isinstance(text, str) else text for text in texts]
        return F.normalize(adapter.backbone.encode_text(list(texts)).to(adapter.dtype), dim=-1)

    def class_weights(self) -> Tensor:
        """Zero-shot weights."""
        with torch.no_grad():
            return self.adapter.zero_shot_weights()


def make_teacher(which: str, adapter: Adapter) -> Teacher:
    """The teacher of a task: "task_start" or "original"."""
    return Original(adapter) if which == "original" else TaskStart(adapter)
