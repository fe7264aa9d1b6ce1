"""What LwF, VR-LwF and ZSCL share: reference images and texts, a teacher's answers, and where the gradient goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import Regulariser, Task, encoder_problem, gradient_paths, once, scale_of
from .distillation import similarity_loss
from .teacher import Teacher, make_teacher

if TYPE_CHECKING:
    from ..adapter import Adapter, Batch


class Distilled(Regulariser):
    """Task loss + image_weight * L_img + text_weight * L_txt (see `distillation`), on the batch's own images.

    Student and teacher share one forward pass of the student for task and distillation; teacher text features are computed
    once a session, and teacher image features, too, where training images do not vary.
    """

    teacher: Teacher
    task: Task

    def problem(self, adapter: Adapter) -> str | None:
        """Needs encoders that carry gradients."""
        return encoder_problem(adapter, self.config.name)

    def start(self, adapter: Adapter, task: Task) -> None:
        """Fix the teacher, what it says about the texts and, where possible, about the images."""
        self.task = task
        self.teacher = make_teacher(self.config.teacher, adapter)
        self.sides = self.text_sides(adapter)
        self._texts: dict[Any, Tensor] = {}
        self._place: dict[int, int] = {}
        self._rows = torch.zeros(0)
        if task.fixed_images and adapter.needs(adapter.config, adapter.backbone.spec) == "images":
            self._remember(adapter, task)

    def _remember(self, adapter: Adapter, task: Task) -> None:
        rows = []
        for batch in task.batches():
            for index in batch["index"].tolist():
                self._place[int(index)] = len(self._place)
            rows.append(self.teacher.image_features(_moved(batch, adapter)))
        self._rows = torch.cat(rows) if rows else self._rows

    def text_sides(self, adapter: Adapter) -> tuple[str, ...]:
        """Whose text features the student's logits use: "teacher", "student" or both.

        The published form uses the teacher's alone. Where only texts are trained that would leave no gradient at all.
        """
        wanted = self.config.text_features
        if wanted == "auto":
            images, texts = gradient_paths(adapter)
            wanted = {(True, False): "teacher", (False, True): "student"}.get((images, texts), "both")
        return ("teacher", "student") if wanted == "both" else (wanted,)

    def references(self, adapter: Adapter, batch: Batch, step: int) -> Batch:
        """Images that the distillation looks at: those of the batch."""
        return batch

    def teacher_images(self, reference: Batch) -> Tensor:
        """The teacher's image features, remembered where they can be."""
        indices = reference["index"].tolist() if self._place and "index" in reference else []
        if indices and all(int(i) in self._place for i in indices):
            return self._rows[[self._place[int(i)] for i in indices]]
        return self.teacher.image_features(reference)

    def teacher_texts(self, adapter: Adapter, step: int) -> Tensor:
        """The teacher's text features (M, D)."""
        raise NotImplementedError

    def student_texts(self, adapter: Adapter, step: int) -> tuple[Tensor, Tensor]:
        """The student's text features (m, D), and the teacher's of the same texts."""
        raise NotImplementedError

    def remembered(self, key: Any, compute: Any) -> Tensor:
        """What the teacher says about some texts; only what was asked for last is kept."""
        if key not in self._texts:
            self._texts = {key: compute()}
        return self._texts[key]

    def loss(self, adapter: Adapter, batch: Batch, step: int) -> Tensor:
        """Task loss and distillation."""
        reference = self.references(adapter, batch, step)
        images = self.teacher_images(reference)  # the teacher first: nothing of the student's step is shared with it
        with once(adapter):
            loss = adapter.loss(batch)
            return loss + self.penalty(adapter, reference, images, step)

    def penalty(self, adapter: Adapter, reference: Batch, teacher_images: Tensor, step: int) -> Tensor:
        """The distillation term: the mean over the text sides."""
        config, scale = self.config, scale_of(adapter)
        student_images = adapter.encode_image(reference)
        losses = []
        for side in self.sides:
            if side == "teacher":
                texts = known = self.teacher_texts(adapter, step)
            else:
                texts, known = self.student_texts(adapter, step)
            taught = scale * teacher_images @ known.T
            losses.append(
                similarity_loss(
                    taught, scale * student_images @ texts.T, config.temperature, config.image_weight, config.text_weight
                )
            )
        return torch.stack(losses).mean()


def _moved(batch: Batch, adapter: Adapter) -> dict[str, Any]:
    device = adapter.backbone.device
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def some_of(texts: Sequence[Any], count: int, seed: int) -> list[int]:
    """Positions of at most `count` texts, drawn without replacement; in order."""
    if len(texts) <= count:
        return list(range(len(texts)))
    generator = torch.Generator().manual_seed(seed % 2**63)
    return sorted(torch.randperm(len(texts), generator=generator)[:count].tolist())
