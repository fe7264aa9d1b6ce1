"""LwF: Learning without Forgetting for CLIP (Li and Hoiem 2016, arXiv 1606.09282; as in ZSCL's code, arXiv 2303.06628)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .distilled import Distilled

if TYPE_CHECKING:
    from ..adapter import Adapter


class LwF(Distilled):
    """The reference texts are the classes that the session is trained on."""

    def teacher_texts(self, adapter: Adapter, step: int) -> Tensor:
        """The teacher's classifier of the session's classes."""
        return self.remembered(adapter.classes.names, self.teacher.class_weights)

    def student_texts(self, adapter: Adapter, step: int) -> tuple[Tensor, Tensor]:
        """The student's classifier, which the task loss has computed already."""
        return adapter.class_weights(), self.teacher_texts(adapter, step)
