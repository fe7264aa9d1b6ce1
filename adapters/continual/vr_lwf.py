"""VR-LwF: LwF on a replayed vocabulary (Ding et al. 2022, arXiv 2207.09248; as LwF-VR in ZSCL's code, arXiv 2303.06628)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .base import Task
from .distilled import Distilled, some_of
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..adapter import Adapter


class VRLwF(Distilled):
    """The reference texts are random ones: no old image and no caption is needed to keep what CLIP knew.

    Where the student's own text features are needed, a step takes `student_count` of the texts.
    """

    vocabulary: Vocabulary

    def start(self, adapter: Adapter, task: Task) -> None:
        """Draw the vocabulary of the session."""
        super().start(adapter, task)
        self.vocabulary = Vocabulary(self.config, adapter.backbone, task.names, task.seed)
        self._drawn: tuple[int, list[object]] = (-1, [])

    def texts(self, step: int) -> tuple[int, list[object]]:
        """The texts of a step, and a number that changes when they do."""
        number = step if self.config.resample == "step" else 0
        if self._drawn[0] != number:
            self._drawn = (number, list(self.vocabulary.draw(self.task.number, number)))
        return self._drawn

    def teacher_texts(self, adapter: Adapter, step: int) -> Tensor:
        """The teacher's features of the vocabulary, once for as long as it stays the same."""
        number, texts = self.texts(step)
        return self.remembered(number, lambda: self.teacher.text_features(texts))

    def student_texts(self, adapter: Adapter, step: int) -> tuple[Tensor, Tensor]:
        """The student's features of some of the texts."""
        _, texts = self.texts(step)
        chosen = some_of(texts, self.config.student_count, self.task.seed * 7_919 + self.task.number * 104_729 + step)
        return adapter.encode_text([texts[i] for i in chosen]), self.teacher_texts(adapter, step)[chosen]  # type: ignore[misc]
