"""The base class of every adaptation method, and how a method is found by its name."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import plugins
from .errors import LimpetError, RecipeError, nearest
from .precision import full_precision

if TYPE_CHECKING:
    from .backbone import FrozenClip
    from .backbone_spec import BackboneSpec
    from .backbone_tokens import Text
    from .classes import ClassSet

Batch = Mapping[str, Any]
Needs = Literal["features", "patches", "images"]
NewClass = Literal["text", "text_neighbours", "images"]


class _Reference:
    """Holds the backbone so that neither `state_dict` nor `deepcopy` follows it."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return self


class Adapter(nn.Module):
    """Something small that is trained, or computed, beside a frozen CLIP.

    A method is one file in `methods/` with a dataclass `Config` and one subclass of this. Lifecycle: `setup` ->
    `fit_closed_form` (training batches) -> gradient training if `trainable` -> `select` (validation batches) -> frozen.
    Parameters and persistent buffers are all that is saved; the backbone is only referred to.

    Attributes:
        config: the method's own `Config`.
        classes: the classes that `logits` answers about, column by column.
        selected: what `select` chose (plain numbers and strings), for the record.
        notes: sentences for the reader of the results.
    """

    task: ClassVar[str] = "classification"
    resize_mode: ClassVar[str | None] = None  # how images come to the network's size, where not as the backbone asks
    keeps_towers: ClassVar[bool] = False  # whether the saved state holds trained towers (large)
    selects_again: ClassVar[bool] = True  # whether `select` works after `add_classes`
    joins_batches: ClassVar[bool] = False  # whether the loss is one of all processes' images (see gathering.py), not a mean of its own
    prompted: ClassVar[bool] = False  # whether `encode_text` puts a text into a learned prompt

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = type(self).__module__.rpartition(".")[2]
        self.selected: dict[str, Any] = {}
        self.notes: list[str] = []
        self._backbone = _Reference(None)
        self._classes: ClassSet | None = None
        self._trained: tuple[str, ...] = ()  # the classes that tensors of `per_class` have a row for, in their order
        self._derived: dict[str, Any] = {}  # follows from the classes and the state; never saved
        self.support_paths: list[str] = []  # of methods that keep training images: the path of each

    # Declared properties: answered from the configuration and the backbone's description, before weights load.

    @classmethod
    def supports(cls, config: Any, spec: BackboneSpec) -> str | None:
        """Why this method cannot work on such a backbone, as a sentence; None where it can."""
        return None

    @classmethod
    def variant(cls, config: Any) -> str:
        """Name of this configuration in tables: that of its recipe in recipes/method."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def needs(cls, config: Any, spec: BackboneSpec) -> Needs:
        """What of an image the method reads: frozen "features" or "patches" (both cacheable) or "images"."""
        return "features"

    @classmethod
    def token_block(cls, config: Any, spec: BackboneSpec) -> int | None:
        """With `needs` "patches": the block of the image tower whose tokens are read; None: behind all of them."""
        return None

    @classmethod
    def reads_features_too(cls, config: Any, spec: BackboneSpec) -> bool:
        """Whether training on "images" also compares with their frozen features, `image_feature`.

        Where the recipe fixes the views of an image, batches then hold cached features beside the images.
        """
        return False

    @classmethod
    def trainable(cls, config: Any, spec: BackboneSpec) -> bool:
        """Whether gradient training is part of the method."""
        return False

    @classmethod
    def new_class(cls, config: Any, spec: BackboneSpec) -> NewClass:
        """What a class that was not trained on needs: its "text", "text_neighbours", or "images"."""
        return "text"

    @classmethod
    def zero_shot_columns(cls, config: Any, spec: BackboneSpec) -> bool:
        """Whether the column of a class that was not trained on is plain zero-shot CLIP (tables mark it)."""
        return False

    @classmethod
    def per_class(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Names of saved tensors with an entry per class."""
        return ()

    @classmethod
    def refits_on_add(cls, config: Any, spec: BackboneSpec) -> bool:
        """Whether adding a class may change the logits of the others."""
        return False

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Keys, beside path, index and image or feature, that a training batch must carry."""
        return ("label",)

    # State

    @property
    def backbone(self) -> FrozenClip:
        """The frozen CLIP this adapter sits beside."""
        if self._backbone.target is None:
            raise LimpetError(f"The adapter '{self.name}' has no backbone yet: call setup(backbone, classes) first.")
        return cast("FrozenClip", self._backbone.target)

    @property
    def classes(self) -> ClassSet:
        """The classes that `logits` answers about."""
        if self._classes is None:
            raise LimpetError(f"The adapter '{self.name}' has no classes yet: call setup(backbone, classes) first.")
        return self._classes

    @property
    def dtype(self) -> torch.dtype:
        """Precision of learnable tensors: float64 on a float64 backbone, else float32 (half masters lose updates)."""
        return torch.float64 if self.backbone.dtype == torch.float64 else torch.float32

    def untrained(self, classes: ClassSet) -> list[str]:
        """Names of the classes that the tensors of `per_class` have no row for."""
        known = set(self._trained)
        return [name for name in classes.names if name not in known]

    def trained_rows(self, classes: ClassSet | None = None) -> list[int]:
        """Row in the tensors of `per_class` of every class of `classes`; of those asked about where none are given."""
        row = {name: i for i, name in enumerate(self._trained)}
        return [row[name] for name in (self.classes if classes is None else classes).names]

    def setup(self, backbone: FrozenClip, classes: ClassSet) -> Adapter:
        """Attach to `backbone`, create the learnable tensors for `classes`, and return self.

        Raises:
            LimpetError: the method cannot work on this backbone.
        """
        reason = self.supports(self.config, backbone.spec)
        if reason:
            raise LimpetError(reason)
        self._backbone = _Reference(backbone)
        self._classes = classes
        self._trained = classes.names
        self._derived = {}
        self.build()
        self.to(backbone.device)
        return self

    def build(self) -> None:
        """Create parameters and buffers. The backbone and the classes are known here."""

    def reference(self) -> Adapter | None:
        """What results are shown beside, set up; None for the task's own reference."""
        return None

    @classmethod
    def image_alone(cls, config: Any, spec: BackboneSpec) -> str | None:
        """Why an answer needs more than the image (boxes, say), as a sentence; None where the image is enough."""
        return None

    def artifact_state(self) -> dict[str, Tensor]:
        """The tensors an artefact holds; a method may leave out what only training needs."""
        return self.state_dict()

    def sharing(self) -> list[nn.Module]:
        """Modules outside of this one that hold the same parameters (towers with something put in)."""
        return []

    def data_sized(self) -> tuple[str, ...]:
        """Names of saved tensors whose size is only known from the training data (cache keys, say)."""
        return ()

    def saved_rows(self) -> dict[str, str]:
        """What each row of a tensor of `data_sized` stands for: a "class", or something else that several have a row for.

        An artefact is refused where tensors disagree on how many there are, or a row has another shape than in `build`.
        """
        return dict.fromkeys(self.per_class(self.config, self.backbone.spec), "class")

    def saved_numbers(self) -> dict[str, str]:
        """Tensors of `data_sized` that hold the numbers of rows, and of what: a word of `saved_rows`."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load saved tensors; those of `data_sized` take the saved size."""
        for name in self.data_sized():
            if name in state_dict:
                own = getattr(self, name)
                fresh = torch.empty(state_dict[name].shape, dtype=own.dtype, device=own.device)
                setattr(self, name, nn.Parameter(fresh, own.requires_grad) if isinstance(own, nn.Parameter) else fresh)
        self._derived = {}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def train(self, mode: bool = True) -> Adapter:
        """Switch between training and evaluation; what evaluation had cached is dropped."""
        self._derived.pop("class_weights", None)
        return super().train(mode)

    # Learning

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Compute what has a closed form from the training batches.

        A batch of a "features" method holds `feature` (B, D), the plain view, and `views` (B, V, D), the augmented ones;
        both are raw, that is not normalised.
        """

    def select(self, batches: Sequence[Batch]) -> None:
        """Choose hyper-parameters on held-out batches and record them in `selected`. `batches` may be empty."""

    def interpolated(self, share: float) -> None:
        """Answer from now on with (1 - share) of the frozen towers' weights and `share` of the trained ones.

        Shares are counted from the end of training, however often this is called.

        Raises:
            LimpetError: the method does not train towers.
        """
        raise LimpetError(
            f"'{self.name}' does not train the towers of the backbone, so there are no weights to interpolate (WiSE-FT)."
        )

    def loss(self, batch: Batch) -> Tensor:
        """Training loss (a scalar): cross-entropy over all classes unless a method says otherwise."""
        return F.cross_entropy(self.logits(batch), batch["label"])

    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Called after epoch `epoch` (0-based) of `epochs`, before the checkpoint; what it keeps must be in the state."""

    # Answers

    def image_feature(self, batch: Batch) -> Tensor:
        """Raw frozen image features (B, D) of a batch, from its `feature` or else its `image`."""
        if "feature" in batch:
            return cast(Tensor, batch["feature"]).to(self.backbone.device, self.dtype)
        return self.backbone.encode_image(batch["image"], normalize=False).to(self.dtype)

    def encode_image(self, batch: Batch) -> Tensor:
        """Image features (B, D), unit norm; they must not depend on the classes asked about."""
        return F.normalize(self.image_feature(batch), dim=-1)

    def encode_text(self, texts: Sequence[Text]) -> Tensor:
        """Text features (N, D), unit norm, of texts or of tuples of token ids, with all that was learned about texts."""
        return self.backbone.encode_text(list(texts)).to(self.dtype)

    def class_weights(self) -> Tensor:
        """One row a class (C, D), unit norm, to be compared with `encode_image`.

        Computed once in evaluation, and again where a tensor of the state has changed since. In training what is learned
        changes from call to call, so nothing is kept, without gradients either.
        """
        if self.training and (torch.is_grad_enabled() or self.learnable()):
            return self.compute_class_weights()
        kept, state = self._derived.get("class_weights"), self._state_versions()
        if kept is None or (state is not None and kept[0] != state):
            with torch.no_grad():
                kept = self._derived["class_weights"] = state, self.compute_class_weights()
        return cast(Tensor, kept[1])

    def _state_versions(self) -> list[tuple[int, int]] | None:
        """What changes when a tensor of the state is written to or replaced; None in an export, which holds it fixed."""
        if torch.compiler.is_compiling():
            return None
        tensors = (*self.parameters(), *self.buffers())
        return [(id(t), 0 if t.is_inference() else t._version) for t in tensors]

    def check_texts(self) -> None:
        """Raise where the texts of the classes do not fit into the method's prompts; asked before training."""
        self.class_weights()

    def compute_class_weights(self) -> Tensor:
        """The text classifier (C, D) of this adapter; zero-shot prompts unless a method says otherwise."""
        return self.zero_shot_weights()

    def zero_shot_weights(self) -> Tensor:
        """Zero-shot text classifier (C, D): each prompt normalised, averaged over a class's prompts, normalised again.

        Source: CLIP, arXiv 2103.00020, section 3.1.4 (prompt ensembling).
        """
        if "zero_shot" not in self._derived:
            with torch.no_grad():
                mean = self.mean_prompts(lambda texts: self.backbone.encode_text(texts).to(self.dtype))
            self._derived["zero_shot"] = F.normalize(mean, dim=-1)
        return cast(Tensor, self._derived["zero_shot"])

    def raw_text_weights(self) -> Tensor:
        """Text classifier (C, D) of any norm: the mean of a class's prompt features as the tower gives them.

        TaskRes and CLAP start from these, not from normalised prompts.
        """
        if "raw_text" not in self._derived:
            encode = self.backbone.encode_text
            self._derived["raw_text"] = self.mean_prompts(lambda texts: encode(texts, normalize=False).to(self.dtype))
        return cast(Tensor, self._derived["raw_text"])

    def prompt_weights(self) -> Tensor:
        """The same average as in `zero_shot_weights`, with this adapter's own text tower."""
        return F.normalize(self.mean_prompts(self.encode_text), dim=-1)

    def mean_prompts(
        self, encode: Callable[[list[str]], Tensor], texts_of: Callable[[str], list[str]] | None = None
    ) -> Tensor:
        """Mean (C, D) over a class's prompts of the features that `encode` gives: texts -> (N, D).

        Args:
            encode: the text tower, or what stands for it.
            texts_of: the prompts of a class; those of `classes` by default.
        """
        prompts = [(texts_of or self.classes.prompts)(name) for name in self.classes.names]
        counts = torch.tensor([len(p) for p in prompts])
        features = encode([text for group in prompts for text in group])
        owner = torch.repeat_interleave(torch.arange(len(prompts)), counts).to(features.device)
        total = torch.zeros(len(prompts), features.shape[1], dtype=features.dtype, device=features.device)
        return total.index_add(0, owner, features) / counts.to(features)[:, None]

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, C), one column a class of `classes`: logit scale times cosine similarity."""
        return self.logits_of(self.encode_image(batch))

    def logits_of(self, features: Tensor) -> Tensor:
        """Scores (B, C) of image features (B, D) that `encode_image` gave; for methods that keep `logits` as it is."""
        return self.scaled_cosines(features, self.class_weights())

    def scaled_cosines(self, features: Tensor, weights: Tensor, scale: float | None = None) -> Tensor:
        """Cosines (B, C) of features (B, D) and weights (C, D), unit norm, times the logit scale or another one.

        In full precision under autocast, too: bfloat16 has nothing between 25 and 25.125.
        """
        with full_precision(features.device):
            return (self.backbone.logit_scale if scale is None else scale) * features @ weights.T

    def evidence(self, batch: Batch, labels: Sequence[int]) -> list[list[tuple[str, float]]]:
        """What speaks for the classes `labels` (B of them) of a batch's images, in words with a number, strongest first.

        Empty lists where the method knows no reason that can be said.
        """
        return [[] for _ in labels]

    def controls(self) -> dict[str, Any]:
        """Name -> `Config` of the same method: what its answers are to be compared with, measured beside it."""
        return {}

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        """The classifier behind the image features, where the scores are linear in them: what can be exported as a table.

        Returns:
            W (C, D), b (C) and whether features have unit norm: logits = W f + b. A method whose `logits` are something
            else need not say so here: what is exported is compared with `logits` before it is written.

        Raises:
            LimpetError: there is none.
        """
        weights = self.backbone.logit_scale * self.class_weights()
        return weights, weights.new_zeros(len(weights)), True

    # Evidence (limpet explain)

    def support_weights(self, batch: Batch) -> Tensor | None:
        """Weight (B, N) of each kept training image in the decision about a batch; None for methods that keep none."""
        return None

    def support_labels(self) -> list[str]:
        """Class of each kept training image."""
        return []

    def learned_tokens(self, label: str) -> dict[str, Tensor]:
        """Learned vectors (n, W) that stand among the token embeddings of a class's prompt, by what they are called."""
        return {}

    # Classes

    @contextmanager
    def answering(self, classes: ClassSet) -> Iterator[Adapter]:
        """Within the context, answer about `classes` instead: base, new, joint or another data set's.

        Raises:
            NeedsImages: the method holds tensors per class and cannot answer about others from text.
        """
        previous, derived = self._classes, self._derived
        self._classes, self._derived = classes, {}
        try:
            self.check_classes(classes)
            yield self
        finally:
            self._classes, self._derived = previous, derived

    def check_classes(self, classes: ClassSet) -> None:
        """Raise NeedsImages where the method cannot answer about `classes`."""

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Answer from now on about `classes`, which contain the present ones.

        Args:
            classes: present and new classes.
            batches: training batches of the new classes (labels count in `classes`), for methods that need them.

        Raises:
            NeedsImages: the method needs images of the new classes and `batches` is None.
        """
        self._classes, self._derived = classes, {}

    def remove_classes(self, names: Sequence[str]) -> None:
        """Forget classes: they are no longer candidates, and their rows of the tensors of `per_class` are dropped.

        Raises:
            RecipeError: a class does not exist.
            LimpetError: no class would be left.
        """
        kept = self.classes.without(names)
        if not len(kept):
            raise LimpetError(f"Removing {', '.join(names)} would leave no class. Keep at least one.")
        removed = set(names)
        rows = [i for i, name in enumerate(self._trained) if name not in removed]
        for tensor in self.per_class(self.config, self.backbone.spec):
            self.replace_tensor(tensor, getattr(self, tensor).detach()[rows])
        self._trained = tuple(self._trained[i] for i in rows)
        self._classes, self._derived = kept, {}

    def rename_classes(self, names: Mapping[str, str], reword: bool = False) -> None:
        """Change the names of classes, `{old: new}`; the answers stay the same, column by column.

        Args:
            names: new name of each old one.
            reword: let the new names stand in the prompts, too, where no text was given for a class. That changes
                the text features, and with them the answers.

        Raises:
            RecipeError: a class does not exist, or two would have one name.
        """
        renamed = self.classes.renamed(names)
        if not reword:
            texts = {names.get(name, name): self.classes.texts[name] for name in self.classes.names}
            renamed = dataclasses.replace(renamed, texts=texts)
        self._trained = tuple(names.get(name, name) for name in self._trained)
        self._classes, self._derived = renamed, {}

    def replace_tensor(self, name: str, value: Tensor) -> None:
        """Put another tensor, possibly of another size, in the place of a parameter or buffer."""
        own = getattr(self, name)
        setattr(self, name, nn.Parameter(value, own.requires_grad) if isinstance(own, nn.Parameter) else value)

    def learnable(self) -> list[nn.Parameter]:
        """Parameters that training changes."""
        return [p for p in self.parameters() if p.requires_grad]


def methods_folder() -> Path:
    """Folder of the built-in methods."""
    return Path(__file__).parent / "methods"


def available() -> list[str]:
    """Names of the built-in methods: the files of `methods/`."""
    return sorted(p.stem for p in methods_folder().glob("*.py") if not p.stem.startswith("_"))


def find(name: str) -> type[Adapter]:
    """Class of a method.

    Args:
        name: a file of `methods/` ("coop"), a file of the user's own ("./mine.py:MyAdapter"), or "package.module:Class".

    Raises:
        RecipeError: no such method (names the nearest known one), or plugins are refused.
    """
    where, _, wanted = name.partition(":")
    if not wanted:
        if name not in available():
            known = ", ".join(available())
            raise RecipeError(
                f"There is no method '{name}'.{nearest(name, available())} Known: {known}. "
                "A method of your own is written './file.py:ClassName' or 'package.module:ClassName'."
            )
        module = importlib.import_module(f".methods.{name}", __package__)
        return _only_adapter(module)
    plugins.demand(f"The method {name}")
    module = _load_file(Path(where)) if where.endswith(".py") else _import(where)
    found = getattr(module, wanted, None)
    if not (inspect.isclass(found) and issubclass(found, Adapter)):
        names = [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, Adapter) and v is not Adapter]
        raise RecipeError(
            f"'{where}' has no subclass of limpet.Adapter named '{wanted}'.{nearest(wanted, names)} Found: {names or 'none'}."
        )
    return found


def config_class(method: type[Adapter]) -> type[Any]:
    """The dataclass `Config` of the module that defines `method`."""
    config = getattr(sys.modules[method.__module__], "Config", None)
    if not (inspect.isclass(config) and dataclasses.is_dataclass(config)):
        raise RecipeError(f"The module of '{method.__name__}' needs a dataclass named Config with the method's settings.")
    return config


def _only_adapter(module: ModuleType) -> type[Adapter]:
    found = [
        v for v in vars(module).values() if inspect.isclass(v) and issubclass(v, Adapter) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise RecipeError(f"{module.__name__} must define one subclass of Adapter; it defines {len(found)}.")
    return found[0]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"The method file '{path}' was not found in {Path.cwd()}.")
    name = f"limpet_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"'{path}' is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RecipeError(f"The method file '{path}' does not import: {type(error).__name__}: {error}") from error
    return module


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise RecipeError(f"'{name}' is no module's name. A method of your own is './file.py:Class' or 'package.module:Class'.")
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        raise RecipeError(f"The module '{name}' of the method does not import: {type(error).__name__}: {error}") from error
