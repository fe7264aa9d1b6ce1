"""The data section of a recipe: one dataclass for each data module (standard library only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class AugmentConfig:
    """How training images are varied.

    Attributes:
        preset: natural | aerial | microscopy | mirror | none.
        views: number of augmented views kept of each training image (cached features); 0 means fresh
            augmentation at every epoch, and with preset none one plain view.
        scale: smallest and largest share of the image's area that a random crop keeps.
    """

    preset: str = "natural"
    views: int = 0
    scale: list[float] = field(default_factory=lambda: [0.08, 1.0])


@dataclass
class DataConfig:
    """What every data module understands.

    Attributes:
        name: the data module, one of `SCHEMAS`.
        root: folder of the images.
        shots: training images drawn for each class, or "all"; validation gets min(shots, 4).
        batch_size: images in a batch.
        num_workers: processes that decode images; results do not depend on it.
        strict: stop at the first unreadable or missing image instead of reporting it.
        sampling: "limpet" (independent of the order of files) or "dassl" (the order of the CoOp code base).
        split_seed: seed of automatic train/val/test splits; independent of the run's seed.
        augment: augmentation of training images.
        domain_column: column of the table that names the domain of an image (a stain, a camera).
        train_domains: domains that training and validation images are taken from; None for all.
        test_domains: domains that test images are taken from; None for all.
    """

    name: str = ""
    root: str | None = None
    shots: Any = 16
    batch_size: int = 32
    num_workers: int = 0
    strict: bool = False
    sampling: str = "limpet"
    split_seed: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    domain_column: str | None = None
    train_domains: list[str] | None = None
    test_domains: list[str] | None = None


@dataclass
class FolderConfig(DataConfig):
    """A folder with one sub-folder for each class, or a folder with a labels.csv.

    Attributes:
        classnames: file in the root with the columns folder, name and optionally label.
    """

    name: str = "folder"
    classnames: str = "classnames.csv"


@dataclass
class TableConfig(DataConfig):
    """A CSV or Parquet file with one row for each image.

    Attributes:
        table: the file; None for labels.csv in the root.
        classnames: file with text names of the classes, in the root or beside the table.
        path_column: column of the image's path, relative to the root or to the table's folder.
        label_column: column of the class; None takes `class` where the table has it, else `label`.
        split_column: column with train, val or test; used where it exists and is filled.
        group_column: column of what must not be split (patient, trajectory); used where it exists.
        caption_column: column of a caption, kept under `caption`.
        value_column: column of a number to order images by, kept under `value`.
        box_columns: columns of the left, top, right and bottom of a region; used where they exist.
        box_units: "pixels" of the image, "relative" (shares of its width and height), or "auto": relative where no
            number of the table is above 1.
        mask_column: column of a mask file, not 0 in the region; used where it exists.
        anomaly_column: column of 1 (anomalous) or 0; without it, images with a mask are anomalous.
        view_column: column that names an object seen in several images (views); None where each image is an object.
        weight_column: column of a view's weight; used with `view_column` where it exists.
    """

    name: str = "table"
    table: str | None = None
    classnames: str = "classnames.csv"
    path_column: str = "path"
    label_column: str | None = None
    split_column: str = "split"
    group_column: str = "group"
    caption_column: str = "caption"
    value_column: str = "value"
    box_columns: list[str] = field(default_factory=lambda: ["x0", "y0", "x1", "y1"])
    box_units: str = "auto"
    mask_column: str | None = "mask"
    anomaly_column: str | None = "anomaly"
    view_column: str | None = None
    weight_column: str = "weight"


@dataclass
class CoopSplitsConfig(DataConfig):
    """A data set of the CoOp benchmark with its split_zhou_*.json, read in place.

    Attributes:
        split_file: the JSON; None for the only split_zhou_*.json in the root.
        image_dir: folder that the paths in the JSON start from; None to find it below the root.
    """

    name: str = "coop_splits"
    split_file: str | None = None
    image_dir: str | None = None


@dataclass
class BenchmarkConfig(DataConfig):
    """A data set that papers report on, in the folders it is published in.

    Attributes:
        dataset: which; `datamodules/benchmarks/data_sets.json` lists them.
        templates: sentences around class names: "hand_crafted" (the data set's own), "ensemble" (seven general ones and
            the data set's own) or "recipe" (`classes.templates`).
        split_file: the field's split file (split_zhou_*.json); None for the usual one if it is there, else the official
            split; "official" for the official split.
        variant: which part of a data set in several (the npz of MedMNIST, the list of ImageNetV2); None for the usual.
        download: fetch what is missing, where torchvision can.
    """

    name: str = "benchmark"
    sampling: str = "dassl"
    dataset: str = ""
    templates: str = "hand_crafted"
    split_file: str | None = None
    variant: str | None = None
    download: bool = False


@dataclass
class ReefConfig(DataConfig):
    """Drawn fish, made on the fly; nothing is read or written.

    Attributes:
        look: clear | murky | deep | both (clear water, and murky water as the second domain).
        size: height and width of an image in pixels, 64 to 224.
        species: number of classes, 2 to the number of known species.
        train: images of each class and look in the training pool.
        val: the same for validation.
        test: the same for the test.
        drawing_seed: another seed gives another reef with the same species.
    """

    name: str = "reef"
    look: str = "clear"
    size: int = 64
    species: int = 16
    train: int = 40
    val: int = 10
    test: int = 30
    drawing_seed: int = 1


@dataclass
class ReefScenesConfig(DataConfig):
    """Drawn scenes with several fish and their boxes, made on the fly; one of the fish is asked about.

    Attributes:
        size: height and width of an image in pixels, 64 to 224.
        species: number of classes, 2 to the number of known species.
        fish: fish in a scene, each of another species, 2 to 8.
        train: scenes of each class in the training pool.
        val: the same for validation.
        test: the same for the test.
        drawing_seed: another seed gives other scenes with the same species.
    """

    name: str = "reef_scenes"
    size: int = 128
    species: int = 16
    fish: int = 4
    train: int = 10
    val: int = 5
    test: int = 15
    drawing_seed: int = 1


@dataclass
class ReefDefectsConfig(DataConfig):
    """Drawn fish, every second test image with a defect, made on the fly; nothing to learn from is without one.

    Attributes:
        size: height and width of an image in pixels, 64 to 224.
        species: number of objects, 1 to the number of known species.
        defect: sore | scratch | mixed.
        train: images of each species in the training pool, all without defects.
        val: the same for validation.
        test: the same for the test; every second one has a defect.
        drawing_seed: another seed gives other images.
    """

    name: str = "reef_defects"
    shots: Any = "all"
    size: int = 128
    species: int = 16
    defect: str = "sore"
    train: int = 0
    val: int = 0
    test: int = 20
    drawing_seed: int = 1


@dataclass
class ListConfig:
    """How images to be ordered are put into lists; a list is a training batch of one category and instruction.

    Attributes:
        lists: "every" (each image once in an epoch, lists in proportion to the size of a category) or "uniform"
            (each list from a category drawn uniformly, as in the reference of the ranking adapter).
        negatives: share of a list taken from other categories, with value 0; only for counts of several things.
    """

    lists: str = "every"
    negatives: float = 0.0


@dataclass
class OrderingConfig(ListConfig, DataConfig):
    """A CSV or Parquet file with a number for each image to order them by.

    Attributes:
        table: the file; None for labels.csv in the root.
        path_column: column of the image's path, relative to the root or to the table's folder.
        value_column: column of the number.
        category_column: column of a category within which images are ordered, if there is one; None for one order of all.
        instruction_column: column of an instruction for each image; used where it exists.
        split_column: column with train, val or test; used where it exists and is filled.
        group_column: column of what must not be split (person, patient); used where it exists.
        instruction: the instruction where there is no such column; {category} stands for the category.
        min_value: images with a smaller value are left out.
        max_value: images with a greater value are left out.
    """

    name: str = "ordering"
    shots: Any = "all"
    batch_size: int = 64
    table: str | None = None
    path_column: str = "path"
    value_column: str = "value"
    category_column: str | None = "category"
    instruction_column: str = "instruction"
    split_column: str = "split"
    group_column: str = "group"
    instruction: str | None = None
    min_value: float | None = None
    max_value: float | None = None


@dataclass
class OrderingBenchmarkConfig(ListConfig, DataConfig):
    """A published data set of images with a number to order them by (UTKFace, Adience).

    Attributes:
        dataset: utkface or adience.
        instruction: the instruction; None for "Sort the images by age."
        variant: the fold of Adience that is tested on, 0 to 4; None for 0.
    """

    name: str = "ordering_benchmark"
    shots: Any = "all"
    batch_size: int = 64
    dataset: str = ""
    instruction: str | None = None
    variant: str | None = None


@dataclass
class ReefOrderingConfig(ListConfig, DataConfig):
    """Drawn fish with an exact number to order them by, made on the fly.

    Attributes:
        attributes: any of count, size, stripes, murkiness; each is a category with an instruction of its own.
        size: height and width of an image in pixels, 64 to 224.
        train: training images of each attribute.
        val: the same for validation.
        test: the same for the test.
        drawing_seed: another seed gives other images.
    """

    name: str = "reef_ordering"
    shots: Any = "all"
    batch_size: int = 64
    attributes: list[str] = field(default_factory=lambda: ["count"])
    size: int = 64
    train: int = 600
    val: int = 100
    test: int = 300
    drawing_seed: int = 1


@dataclass
class PretrainingConfig(DataConfig):
    """Photographs with names, drawn shapes and drawn fish, for the pretraining of a small CLIP.

    Attributes:
        photos: zip or folder in the root with a sub-folder for each class, for training and validation.
        test_photos: the same for the test.
        photo_size: pixels that photographs are kept at in memory.
        size: height and width of a training image in pixels.
        photo_share, shape_share, fish_share: share of a batch from each source.
        fine_share: how often a photograph is called by the finer name of its file.
        shapes: drawn scenes of shapes.
        unnamed_share: share of them in a colour that no caption names, from 0 to 1.
        twins: whether they come in pairs that differ in one attribute, which the captions tell.
        fish: drawn scenes of fish.
        named_fish: the first so many reef species appear under their own names; the others are never named.
        smallest_crop: least share of a photograph's area that a random crop keeps.
        epoch_images: images that count as an epoch.
        drawing_seed: seed of the drawings.
    """

    name: str = "pretraining"
    shots: Any = "all"
    batch_size: int = 128
    photos: str = "train.zip"
    test_photos: str = "test.zip"
    photo_size: int = 32
    size: int = 64
    photo_share: float = 0.6
    shape_share: float = 0.25
    fish_share: float = 0.15
    fine_share: float = 0.4
    shapes: int = 24000
    unnamed_share: float = 0.0
    twins: bool = False
    fish: int = 10000
    named_fish: int = 8
    smallest_crop: float = 0.4
    epoch_images: int = 25600
    drawing_seed: int = 1


@dataclass
class ShapesConfig(DataConfig):
    """Drawn shapes, made on the fly, whose classes are combinations of colour and shape, or one attribute.

    Attributes:
        attribute: combination (colour and shape) | count | size | pattern | position | facing | colour | shape.
        combinations: of colour and shape: all | held_out (those kept from the pretraining of limpet-tiny) | seen.
        size: height and width of an image in pixels, 32 to 224.
        train: images of each class for training.
        val: the same for validation.
        test: the same for the test.
        drawing_seed: another seed gives other images.
    """

    name: str = "shapes"
    attribute: str = "combination"
    combinations: str = "all"
    size: int = 64
    train: int = 16
    val: int = 4
    test: int = 10
    drawing_seed: int = 1


@dataclass
class StreamConfig:
    """How data arrive in sessions, one after the other, each with images of its own.

    Attributes:
        by: what a session brings: "classes" (new ones), "domains" (the same classes elsewhere) or "tasks" (another
            data set); None for no stream.
        first: classes of the first session; 0 for as many as in the others.
        increment: classes of each further session.
        sessions: name of each session -> its classes (or domains), instead of `first` and `increment`.
        order: of classes, domains or tasks: "given" or "random".
        order_seed: seed of a random order, apart from the run's.
        candidates: classes the training loss chooses among: those of the "session", or all "seen" so far.
        tasks: name -> data section of each task, with `TaskData` beside its keys.
    """

    by: str | None = field(default=None, metadata={"choices": ("classes", "domains", "tasks")})
    first: int = field(default=0, metadata={"minimum": 0})
    increment: int | None = field(default=None, metadata={"minimum": 1})
    sessions: dict[str, list[str]] = field(default_factory=dict)
    order: str = field(default="given", metadata={"choices": ("given", "random")})
    order_seed: int = field(default=1, metadata={"minimum": 0})
    candidates: str = field(default="session", metadata={"choices": ("session", "seen")})
    tasks: dict[str, Any] = field(default_factory=dict)


SCHEMAS: dict[str, type[DataConfig]] = {schema().name: schema for schema in DataConfig.__subclasses__()}
