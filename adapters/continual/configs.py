"""The continual section of a recipe: one dataclass for each regulariser (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from ..sections import choice, number

TEACHERS = ("task_start", "original")
TEXT_FEATURES = ("auto", "teacher", "student", "both")
VOCABULARIES = ("auto", "random_words", "random_bpe", "class_names", "captions")
RESAMPLE = ("task", "step")
MEMORY = ("herding", "random")


@dataclass
class ContinualConfig:
    """What keeps a method from forgetting while it is trained on new images; `none` is plain training."""

    name: str = "none"


@dataclass
class DistilConfig:
    """What the distilling regularisers have in common.

    Attributes:
        teacher: the adapter at the start of the task, or the original CLIP.
        temperature: of both softmaxes.
        image_weight: of the term whose rows are images.
        text_weight: of the term whose rows are texts.
        text_features: of the student's logits: the "teacher"'s (no gradient reaches the text side), the "student"'s own,
            "both" (the mean of the two losses), or "auto": what the gradient needs.
    """

    teacher: str = choice("task_start", *TEACHERS)
    temperature: float = number(2.0, 1e-3)
    image_weight: float = number(1.0, 0)
    text_weight: float = number(1.0, 0)
    text_features: str = choice("auto", *TEXT_FEATURES)


@dataclass
class VocabularyConfig:
    """Texts that stand for what the model knew before.

    Attributes:
        source: "random_words" (that the backbone knows), "random_bpe" (token ids), "class_names" of the stream so far, or
            "captions" from a file; "auto": random words for limpet-tiny, which knows few tokens, else random ids.
        count: number of texts.
        length: words (or ids) of a random text.
        resample: draw anew for every "task" or every "step".
        captions: text file with one caption a line.
        student_count: texts of a step where the student's own text features are needed; drawn from `count`.
    """

    source: str = choice("auto", *VOCABULARIES)
    count: int = number(1000, 1)
    length: int = number(10, 1)
    resample: str = choice("task", *RESAMPLE)
    captions: str | None = None
    student_count: int = number(128, 1)


@dataclass
class LwFConfig(DistilConfig, ContinualConfig):
    """Learning without Forgetting: the teacher's answers about the present task's classes."""

    name: str = "lwf"


@dataclass
class VRLwFConfig(VocabularyConfig, DistilConfig, ContinualConfig):
    """LwF with a replayed vocabulary: the teacher's similarities to random texts."""

    name: str = "vr_lwf"
    teacher: str = choice("original", *TEACHERS)


@dataclass
class ZSCLConfig(VocabularyConfig, DistilConfig, ContinualConfig):
    """ZSCL: the original CLIP's similarities between reference images and texts, weight ensemble, L2.

    Attributes:
        images: folder of reference images without labels; None for the images of the task.
        reference_batch: reference images in a step.
        ensemble_every: steps between two snapshots of the running mean of weights; 0 for none.
        l2: weight of the squared distance of the trained tensors from the start of the task.
    """

    name: str = "zscl"
    teacher: str = choice("original", *TEACHERS)
    images: str | None = None
    reference_batch: int = number(32, 1)
    ensemble_every: int = number(10, 0)
    l2: float = number(1.0, 0)


@dataclass
class ReplayConfig(ContinualConfig):
    """Experience replay: kept images of earlier sessions beside the new ones.

    Attributes:
        memory: images kept in all.
        memory_choice: "herding" or "random".
        weight: of the loss on kept images.
    """

    name: str = "replay"
    memory: int = number(200, 1)
    memory_choice: str = choice("herding", *MEMORY)
    weight: float = number(1.0, 0)


SCHEMAS: dict[str, type[ContinualConfig]] = {
    cls().name: cls for cls in (ContinualConfig, LwFConfig, VRLwFConfig, ZSCLConfig, ReplayConfig)
}
