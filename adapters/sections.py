"""The sections of a recipe and their defaults, as dataclasses (the data section lives with the data modules).

A field's `choices` (in its metadata) are the words it accepts, `minimum` is the least number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PROTOCOLS = ("all", "base_to_new", "cross_dataset")
PRECISIONS = ("fp32", "bf16", "fp16")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
TRAINING_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
LOGGERS = ("csv", "tensorboard")
OPTIMISERS = ("sgd", "adam", "adamw", "muon")
SCHEDULES = ("cosine", "constant", "warmup_cosine")


def choice(default: str | None, *choices: str) -> Any:
    """A dataclass field that holds one of a few words."""
    return field(default=default, metadata={"choices": choices})


def number(default: float | None, minimum: float, maximum: float | None = None) -> Any:
    """A dataclass field that holds a number not below `minimum` and not above `maximum`."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass
class BackboneConfig:
    """The frozen CLIP: an open_clip name with its weights, or the embedded `limpet-tiny`."""

    name: str = "limpet-tiny"
    pretrained: str | None = None  # an open_clip tag, or a local weights file
    activation: str | None = choice(None, "gelu", "quick_gelu")  # None: what the name and tag imply
    precision: str = choice("fp32", *PRECISIONS)
    text_memory: int | None = number(None, 1)  # tokens encoded at once; None = what 2 GB hold
    architecture: dict[str, Any] | None = None  # an open_clip model configuration, in place of a known name


@dataclass
class ClassesConfig:
    """Which classes take part, what they are called, and the sentences around their names."""

    include: list[str] | None = None  # None: every class of the data
    first: int | None = number(None, 1)  # keep only the first so many
    base: list[str] | None = None  # base_to_new: None = the first half
    new: list[str] | None = None
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    texts: dict[str, list[str]] = field(default_factory=dict)  # class name -> its text names


@dataclass
class OptimConfig:
    """The optimiser and its learning-rate schedule."""

    name: str = choice("sgd", *OPTIMISERS)
    lr: float = number(0.002, 0)
    rest_lr: float | None = number(None, 0)  # muon: of what is not a matrix; None: lr
    momentum: float = number(0.9, 0)
    weight_decay: float = number(5e-4, 0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = number(1e-8, 0)
    amsgrad: bool = False
    decay: str = choice("all", "all", "matrices")  # matrices: no decay of biases, norms and single numbers
    schedule: str = choice("cosine", *SCHEDULES)
    interval: str = choice("epoch", "epoch", "step")
    warmup: int = number(1, 0)  # epochs or steps, as `interval` says
    warmup_lr: float = number(1e-5, 0)
    min_lr: float = number(0.0, 0)
    restart: int = number(0, 0)  # epochs or steps, as `interval` says; 0 for never


@dataclass
class TrainerConfig:
    """How long and on what to train; passed on to Lightning's Trainer."""

    epochs: int = number(50, 0)
    max_steps: int = number(-1, -1)  # -1: no limit
    accelerator: str = choice("auto", *ACCELERATORS)
    devices: int = number(1, 1)
    num_nodes: int = number(1, 1)
    strategy: str = "auto"
    precision: str = choice("32-true", *TRAINING_PRECISIONS)
    gradient_clip: float | None = number(None, 0)
    log_every: int = number(10, 1)  # steps
    loggers: list[Any] = field(default_factory=list)  # beside log/metrics.csv: tensorboard, a dotted path, {path: arguments}
    threads: int | None = number(None, 1, 4096)  # None: PyTorch's own choice; OpenMP crashes at millions


POOLINGS = ("class", "mean", "max", "rmac", "multi_crop")


@dataclass
class RetrievalConfig:
    """What is looked for among what, and how an image becomes a vector (`evaluate.task: retrieval`).

    Attributes:
        by: what is relevant: images of the same class, or an image's own captions.
        gallery: where images are looked for: the other test images, or the training images.
        pooling: any of `POOLINGS`; each gives a row.
        whitening: also measure after PCA with whitening, fitted on the training images.
        dimensions: of the whitened features; None: all that vary.
        ridge: added to each variance, as a share of their mean.
        similarity: of unit vectors, or of vectors as they are.
        k: of R@k.
        clusters: groups of k-means; None: as many as classes.
        crop_share: height and width of a crop of multi_crop, as a share of the image's.
    """

    by: str = choice("labels", "labels", "pairs")
    gallery: str = choice("test", "test", "train")
    pooling: list[str] = field(default_factory=lambda: ["class"])
    whitening: bool = True
    dimensions: int | None = number(None, 1)
    ridge: float = number(1e-3, 0)
    similarity: str = choice("cosine", "cosine", "inner")
    k: list[int] = field(default_factory=lambda: [1, 5, 10])
    clusters: int | None = number(None, 2)
    crop_share: float = number(0.7, 0.1)


@dataclass
class WordingConfig:
    """Other words for the classes; what is left out stays as in the section `classes`.

    Attributes:
        templates: sentences around a class's text.
        texts: class name -> its texts.
        file: more of them, {class: [text, ...]} in a JSON or YAML file.
    """

    templates: list[str] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    file: str | None = None


@dataclass
class EvaluateConfig:
    """Which weights are evaluated, how many images at a time, on which further data, and what else is measured.

    Attributes:
        select: weights of the last epoch, of the best one on val, or of the best one on the test set.
        batch_size: images at a time.
        others: name -> data section of another data set, with `OtherImages` beside its keys.
        shift: name -> data section of other images of the trained classes, with `ShiftedImages` beside its keys.
        wordings: name -> `WordingConfig`; the first is what the others are compared with.
        task: "retrieval" measures that, too; None: only the method's own task.
        retrieval: how retrieval is measured.
    """

    select: str = choice("last", "last", "val", "test_as_published")
    batch_size: int = number(256, 1)
    others: dict[str, Any] = field(default_factory=dict)
    shift: dict[str, Any] = field(default_factory=dict)
    wordings: dict[str, Any] = field(default_factory=dict)
    task: str | None = choice(None, "retrieval")
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)


@dataclass
class OtherImages:
    """What an entry of `evaluate.others` holds besides the keys of a data section."""

    images: str = choice("test", "test", "all")  # the test split, or every image of the data


@dataclass
class ShiftedImages(OtherImages):
    """What an entry of `evaluate.shift` holds besides the keys of a data section."""

    candidates: str = choice("named", "named", "all")  # trained classes that the data name, or all trained ones


@dataclass
class TaskData:
    """What a task of a stream may set besides the keys of a data section."""

    lr: float | None = number(None, 0)  # its learning rate; None: that of `optim`


@dataclass
class RunConfig:
    """Where run folders go: `<dir>/<name>/<nnn>`."""

    dir: str = "runs"
    name: str | None = None  # None: the recipe's file name
