"""Recipes: a YAML file and the words after it on the command line, checked, as plain dataclasses.

Needs OmegaConf and the standard library only; PyTorch is not imported to find a spelling mistake.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .compose import Composed, compose, find_recipe, packaged_folder, packaged_names
from .emit import escape, lines, written
from .errors import RecipeError, RunError, nearest
from .files import is_text
from .further_data import PLACES, WORDINGS, read, read_wordings, take_out
from .nodes import Items, Node, Scalar, Section, describe, plain_data
from .sections import (
    LOGGERS,
    POOLINGS,
    PROTOCOLS,
    BackboneConfig,
    ClassesConfig,
    EvaluateConfig,
    OptimConfig,
    RunConfig,
    TrainerConfig,
    choice,
    number,
)
from .validate import Parts, build

__all__ = [
    "BackboneConfig",
    "ClassesConfig",
    "EvaluateConfig",
    "OptimConfig",
    "Recipe",
    "RunConfig",
    "TrainerConfig",
    "find_recipe",
    "load",
    "load_recipe",
    "packaged_folder",
    "packaged_names",
]

CELL = "cell.json"
T = TypeVar("T")
_DATA_WORDS = {
    "sampling": ("limpet", "dassl"),
    "templates": ("hand_crafted", "ensemble", "recipe"),
    "lists": ("every", "uniform"),
    "augment.preset": ("natural", "aerial", "microscopy", "mirror", "none"),
}
_ORDER = (
    "seed",
    "protocol",
    "backbone",
    "classes",
    "data",
    "method",
    "optim",
    "trainer",
    "evaluate",
    "run",
    "stream",
    "continual",
    "init_from",
)


@dataclasses.dataclass
class Recipe:
    """One run, fully described.

    Attributes:
        name: The recipe's name; run folders are `<run.dir>/<name>/<nnn>`.
        seed: Of sampling, initialisation, shuffling and augmentation.
        protocol: "all", "base_to_new" or "cross_dataset".
        method: `name`, and the method's own keys as written (`method_config` checks them).
        data: The dataclass of the data module that `data.name` names.
        stream: How the data arrive in sessions; `stream.by` is None where they do not.
        continual: The dataclass of the regulariser that `continual.name` names.
        init_from: The run (with @vN a version of its adapter) that training continues from, or None.
        origins: Dotted key -> "file:line" or "command line"; keys left at their default are absent.
        notes: Sentences the user should see, e.g. which keys `method=x` dropped.
        overrides: The words of the command line that apply to this cell.
        cell: The values of the keys that vary in the grid this recipe is a cell of; empty without a grid.
    """

    name: str
    seed: int
    protocol: str
    backbone: BackboneConfig
    classes: ClassesConfig
    data: Any
    method: dict[str, Any]
    optim: OptimConfig
    trainer: TrainerConfig
    evaluate: EvaluateConfig
    run: RunConfig
    stream: Any = None
    continual: Any = None
    init_from: str | None = None
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    overrides: list[str] = dataclasses.field(default_factory=list)
    cell: dict[str, Any] = dataclasses.field(default_factory=dict)
    method_written: Section = dataclasses.field(default_factory=Section, repr=False, compare=False)

    def method_config(self, cls: type[T]) -> T:
        """Fill a method's own `Config` dataclass from the method section.

        Raises:
            RecipeError: with file and line, for keys it does not have and values of another type.
        """
        items = {k: v for k, v in self.method_written.items.items() if k != "name"}
        if "interpolate" in items and "interpolate" not in {f.name for f in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            origin = self.method_written.keys.get("interpolate", self.method_written.origin)
            raise RecipeError(
                f"{origin}: method.interpolate mixes trained towers with the frozen ones (WiSE-FT), and "
                f"'{self.method['name']}' trains no tower. Remove it, or use method=lora or method=fine_tune."
            )
        section = Section(items, self.method_written.origin, self.method_written.keys)
        around = {key: value for key, value in self.to_dict().items() if key not in ("method", "classes")}
        return build(cls, section, "method", _escaped(around))

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain nested dictionaries, lists and scalars."""
        result = {}
        for key in _ORDER:
            value: Any = getattr(self, key)
            plain = value is None or isinstance(value, int | str | dict)
            result[key] = copy.deepcopy(value) if plain else dataclasses.asdict(value)
        return result

    def to_yaml(self, origins: bool = False) -> str:
        """The resolved recipe as YAML, which reads back as the same recipe.

        Args:
            origins: End every line with a comment that says where its value is from.
        """
        data = _escaped(self.to_dict())
        data["method"] = written(self.method_written)
        data["classes"] = self.to_dict()["classes"]
        data["stream"]["sessions"] = self.to_dict()["stream"]["sessions"]  # texts, too
        known = {**dict.fromkeys(("classes.texts",), "default"), **self.origins} if origins else None
        return "\n".join(lines(data, known)) + "\n"

    @classmethod
    def from_run(cls, run_dir: Path | str, overrides: Sequence[str] = ()) -> Recipe:
        """Read the recipe of a run folder.

        Args:
            run_dir: The folder; its `recipe.yaml` is read, and of a grid's cell `cell.json`, what it is there.
            overrides: `key=value` words laid over it; no grids.

        Raises:
            RunError: if the folder holds no recipe, or a damaged cell.json.
        """
        path = Path(run_dir) / "recipe.yaml"
        if not path.is_file():
            raise RunError(f"{run_dir} is not a run folder: it has no recipe.yaml.")
        recipe = load_recipe(str(path), overrides)
        return dataclasses.replace(recipe, cell=_cell(path.with_name(CELL)))


def _cell(path: Path) -> dict[str, Any]:
    """The values that a run has as a cell of a grid; none where it is no cell."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged. Delete the folder {path.parent}, and give the grid's command again.")
    return found


def load(name_or_path: str, overrides: Sequence[str] = ()) -> list[Recipe]:
    """Load a recipe with its overrides.

    Args:
        name_or_path: A file, or the name of a packaged recipe.
        overrides: `key=value` words; a comma outside brackets and quotes makes a grid.

    Returns:
        One recipe per grid cell; one in all without a grid.

    Raises:
        RecipeError: a sentence, with file and line where there is one.
    """
    parts = Parts()
    return [_check(composed, parts) for composed in compose(str(name_or_path), overrides)]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load one recipe; like `load`, for overrides without a grid."""
    recipes = load(name_or_path, overrides)
    if len(recipes) > 1:
        raise RecipeError(f"The overrides make a grid of {len(recipes)} recipes, and one is wanted here.")
    return recipes[0]


def _check(composed: Composed, parts: Parts) -> Recipe:
    """Turn one composed tree into a checked recipe; `parts` is shared by the cells of a grid."""
    tree = composed.tree
    if "name" in tree.items:
        raise RecipeError(f"{tree.keys['name']}: Key 'name' is not in a recipe. Did you mean: 'run.name'?")
    schema, continual = _data_schema(tree), _continual_schema(tree)
    method = tree.items.get("method")
    if method is None or (isinstance(method, Scalar) and method.is_null):
        method = Section({}, tree.origin)
    if not isinstance(method, Section):
        raise RecipeError(f"{method.origin}: 'method' is a section of keys.")
    _check_method_name(method, tree)
    scalars: dict[str, Node] = {k: v for k, v in method.items.items() if isinstance(v, Scalar)}
    plain, further = take_out(tree)
    items = {**plain.items, "method": Section(scalars, method.origin, method.keys)}
    filled: Any = parts.build(_root_fields(schema, continual), Section(items, tree.origin, tree.keys))
    values = {key: getattr(filled, key) for key in _ORDER}
    values["method"] = {
        k: filled.method[k] if k in scalars else plain_data(v) for k, v in method.items.items()
    }
    origins = dict(_origins(tree))
    if filled.run.name is None:
        filled.run.name = composed.name
        origins["run.name"] = "name of the file"
    _check_run_name(filled.run.name, origins.get("run.name", tree.origin))
    _check_values(filled, tree, origins)
    _check_stream(filled, further, tree, origins)
    _read_further(filled, further, tree, origins)
    return Recipe(
        name=filled.run.name,
        **values,
        origins=origins,
        notes=list(composed.notes),
        overrides=list(composed.overrides),
        cell=composed.cell,
        method_written=method,
    )


def _read_further(
    filled: Any, further: Mapping[str, Section], tree: Section, origins: dict[str, str]
) -> None:
    """Fill `evaluate.others`, `evaluate.shift`, `evaluate.wordings` and `stream.tasks`; a cross-dataset run needs the first."""
    data = tree.items["data"]
    assert isinstance(data, Section)
    schemas: dict[str, type] = importlib.import_module(".datamodules.configs", __package__).SCHEMAS
    around = {k: getattr(filled, k) for k in ("seed", "backbone", "data", "trainer", "run")}
    around = {k: v if isinstance(v, int) else dataclasses.asdict(v) for k, v in around.items()}
    if WORDINGS in further:
        filled.evaluate.wordings = read_wordings(further[WORDINGS], _escaped(around))
    for kind, entries in ((k, e) for k, e in further.items() if k in PLACES):
        holder = getattr(filled, PLACES[kind])
        setattr(holder, kind, read(kind, entries, data, schemas, _escaped(around)))
        for name, entry in getattr(holder, kind).items():
            if entry.name == filled.data.name:  # keys left out are those of `data`
                own = {k: o for k, o in origins.items() if k.startswith("data.")}
                for key, origin in own.items():
                    origins.setdefault(f"{PLACES[kind]}.{kind}.{name}.{key.removeprefix('data.')}", origin)
    if filled.protocol == "cross_dataset" and not filled.evaluate.others:
        raise RecipeError(
            f"{origins.get('protocol', tree.origin)}: protocol cross_dataset trains on all classes and tests on other "
            "data sets, and evaluate.others names none. Name one: evaluate.others.birds.root=PATH_TO_BIRDS"
        )


def _root_fields(schema: type, continual: type) -> list[tuple[str, Any, Any]]:
    def section(cls: Any) -> Any:
        return dataclasses.field(default_factory=cls)

    stream: type = importlib.import_module(".datamodules.configs", __package__).StreamConfig
    return [
        ("seed", int, number(1, 0, 2**32 - 1)),  # the most that NumPy and scikit-learn take
        ("protocol", str, choice("all", *PROTOCOLS)),
        ("backbone", BackboneConfig, section(BackboneConfig)),
        ("classes", ClassesConfig, section(ClassesConfig)),
        ("data", schema, section(schema)),
        ("method", dict[str, Any], section(dict)),
        ("optim", OptimConfig, section(OptimConfig)),
        ("trainer", TrainerConfig, section(TrainerConfig)),
        ("evaluate", EvaluateConfig, section(EvaluateConfig)),
        ("run", RunConfig, section(RunConfig)),
        ("stream", stream, section(stream)),
        ("continual", continual, section(continual)),
        ("init_from", str | None, dataclasses.field(default=None)),
    ]


def _data_schema(tree: Section) -> type:
    """The dataclass of the data section, by `data.name`."""
    schemas: dict[str, type] = importlib.import_module(".datamodules.configs", __package__).SCHEMAS
    data = tree.items.get("data")
    if data is not None and not isinstance(data, Section):
        raise RecipeError(f"{data.origin}: 'data' is a section of keys; found {describe(data)}.")
    name = data.items.get("name") if data is not None else None
    if not isinstance(name, Scalar) or not name.text:
        known = ", ".join(f"data/{schema}" for schema in sorted(schemas))
        origin = next(node.origin for node in (name, data, tree) if node is not None)
        raise RecipeError(f"{origin}: data.name is missing: add one of {known} to 'extends'.")
    if name.text not in schemas:
        hint = nearest(name.text, schemas)
        raise RecipeError(
            f"{name.origin}: there is no data '{name.text}'.{hint} Known: {', '.join(sorted(schemas))}."
        )
    return schemas[name.text]


def _continual_schema(tree: Section) -> type:
    """The dataclass of the continual section, by `continual.name`."""
    schemas: dict[str, type] = importlib.import_module(".continual.configs", __package__).SCHEMAS
    continual = tree.items.get("continual")
    name = continual.items.get("name") if isinstance(continual, Section) else None
    if not isinstance(name, Scalar) or name.is_null:
        return schemas["none"]
    if name.text not in schemas:
        raise RecipeError(
            f"{name.origin}: there is no continual '{name.text}'.{nearest(name.text, schemas)} Known: {', '.join(schemas)}."
        )
    return schemas[name.text]


def _check_stream(filled: Any, further: Mapping[str, Section], tree: Section, origins: Mapping[str, str]) -> None:
    """Refuse settings of a stream that would not be read."""
    stream, tasks = filled.stream, further.get("tasks")
    used = {
        "classes": {"first", "increment", "sessions", "order", "order_seed", "candidates"},
        "domains": {"sessions", "order", "order_seed"},
        "tasks": {"tasks", "order", "order_seed"},
        None: {"candidates"} if filled.init_from else set(),
    }[stream.by]
    default = type(stream)()
    for key in dataclasses.fields(stream):
        given = bool(tasks and tasks.items) if key.name == "tasks" else getattr(stream, key.name) != getattr(default, key.name)
        if given and key.name != "by" and key.name not in used:
            place = origins.get(f"stream.{key.name}", tree.origin)
            what = f"stream.by is {stream.by}" if stream.by else "stream.by is not set (classes, domains or tasks)"
            raise RecipeError(f"{place}: stream.{key.name} would not be read: {what}.")
    if stream.sessions and (stream.increment is not None or stream.first):
        raise RecipeError(
            f"{origins.get('stream.increment', tree.origin)}: stream.sessions lists the classes of each session, so "
            "stream.first and stream.increment would not be read; remove them."
        )
    if stream.by and filled.protocol != "all":
        raise RecipeError(
            f"{origins.get('protocol', tree.origin)}: a stream goes with protocol all, not {filled.protocol}: "
            "what is kept on other data is measured after every session (evaluate.others)."
        )


def _check_method_name(method: Section, tree: Section) -> None:
    name = method.items.get("name")
    if not isinstance(name, Scalar) or not name.text:
        origin = name.origin if name is not None else tree.origin
        raise RecipeError(f"{origin}: method.name is missing: add a method to 'extends', like method/coop.")
    if ":" in name.text:
        return
    folder = Path(__file__).parent / "methods"
    known = sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    if known and name.text not in known:
        hint = nearest(name.text, known)
        raise RecipeError(
            f"{name.origin}: there is no method '{name.text}'.{hint} Known: {', '.join(known)}."
        )


def _check_run_name(name: str, origin: str) -> None:
    if not name or name in (".", "..") or any(c in name for c in '/\\:*?"<>|\0'):
        raise RecipeError(f"{origin}: run.name '{name}' cannot be the name of a folder.")
    if not is_text(name):
        raise RecipeError(f"{origin}: run.name {name!a} is not valid text (UTF-8); give another with run.name=NAME.")


def _check_values(filled: Any, tree: Section, origins: Mapping[str, str]) -> None:
    """Checks that need more than one field's type: templates, class lists, shots."""
    classes: ClassesConfig = filled.classes
    for i, template in enumerate(classes.templates):
        if template.count("{}") < 1:
            place = _item_origin(tree, "templates", i, origins)
            raise RecipeError(f"{place}: the template '{template}' has no {{}} where the class name goes.")
    if not classes.templates:
        raise RecipeError(f"{origins['classes.templates']}: classes.templates is empty; give at least one.")
    for key in ("include", "base", "new"):
        names = getattr(classes, key) or []
        again = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if again is not None or (getattr(classes, key) is not None and not names):
            what = (
                f"names '{again}' twice"
                if again is not None
                else "is an empty list; leave it out for all classes"
            )
            raise RecipeError(f"{origins[f'classes.{key}']}: classes.{key} {what}.")
    both = next((n for n in classes.new or [] if n in (classes.base or [])), None)
    if both is not None:
        raise RecipeError(f"{origins['classes.new']}: '{both}' is in classes.base and in classes.new.")
    for key, known in _DATA_WORDS.items():
        word = functools.reduce(
            lambda holder, name: getattr(holder, name, known[0]), key.split("."), filled.data
        )
        if word not in known:
            place = origins.get(f"data.{key}", "default")
            raise RecipeError(
                f"{place}: data.{key} is '{word}', not one of {', '.join(known)}.{nearest(word, known)}"
            )
    _check_pairs(filled, origins)
    _check_retrieval(filled.evaluate.retrieval, origins)
    if not filled.optim.lr:
        raise RecipeError(f"{origins['optim.lr']}: optim.lr is 0: nothing would be learned.")
    _check_loggers(filled.trainer.loggers, origins.get("trainer.loggers", "default"))
    shots = getattr(filled.data, "shots", "all")
    if shots != "all" and (isinstance(shots, bool) or not isinstance(shots, int) or shots < 1):
        raise RecipeError(
            f"{origins.get('data.shots')}: data.shots is '{shots}'; it is a number from 1 on, or 'all'."
        )


def _check_loggers(entries: Sequence[Any], place: str) -> None:
    """Each is csv, tensorboard, a dotted path, or one of these with its arguments; whether it exists is seen later."""
    for entry in entries:
        word = next(iter(entry)) if isinstance(entry, Mapping) and len(entry) == 1 else entry
        arguments = entry[word] if isinstance(entry, Mapping) and word is not entry else None
        known = isinstance(word, str) and (word in LOGGERS or (all(part.isidentifier() for part in word.split(".")) and "." in word))
        if not known or not (arguments is None or isinstance(arguments, Mapping)):
            raise RecipeError(
                f"{place}: trainer.loggers names '{entry}', not one of {', '.join(LOGGERS)}, a dotted path like "
                "lightning.pytorch.loggers.MLFlowLogger, or a path with its arguments: {path: {argument: value}}."
                f"{nearest(word, LOGGERS) if isinstance(word, str) else ''}"
            )


def _check_pairs(filled: Any, origins: Mapping[str, str]) -> None:
    """Two numbers each, in order: the crop's share of the image, the averaging of adam."""
    scale = getattr(getattr(filled.data, "augment", None), "scale", [1.0, 1.0])
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        place = origins.get("data.augment.scale", "default")
        raise RecipeError(
            f"{place}: data.augment.scale is {scale}; it is two shares of the image, like [0.5, 1.0]."
        )
    betas = filled.optim.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise RecipeError(f"{origins['optim.betas']}: optim.betas is {betas}; it is two numbers below 1.")


def _check_retrieval(section: Any, origins: Mapping[str, str]) -> None:
    """Poolings that exist, each once; numbers k from 1 on."""
    place = origins.get("evaluate.retrieval.pooling", "default")
    for word in section.pooling:
        if word not in POOLINGS:
            raise RecipeError(
                f"{place}: evaluate.retrieval.pooling names '{word}', not one of {', '.join(POOLINGS)}."
                f"{nearest(word, POOLINGS)}"
            )
    if not section.pooling or len(set(section.pooling)) < len(section.pooling):
        raise RecipeError(f"{place}: evaluate.retrieval.pooling is {section.pooling}; name each pooling once.")
    if not section.k or min(section.k) < 1:
        place = origins.get("evaluate.retrieval.k", "default")
        raise RecipeError(f"{place}: evaluate.retrieval.k is {section.k}; give numbers from 1 on, like [1, 5, 10].")
    if section.crop_share > 1:
        place = origins.get("evaluate.retrieval.crop_share", "default")
        raise RecipeError(f"{place}: evaluate.retrieval.crop_share is {section.crop_share}; the most it can be is 1.")


def _item_origin(tree: Section, key: str, index: int, origins: Mapping[str, str]) -> str:
    classes = tree.items.get("classes")
    node = classes.items.get(key) if isinstance(classes, Section) else None
    return node.items[index].origin if isinstance(node, Items) else origins.get(f"classes.{key}", "default")


def _origins(node: Section, path: str = "") -> list[tuple[str, str]]:
    """(dotted key, place) of every value; a table of texts is one value."""
    result: list[tuple[str, str]] = []
    for key, value in node.items.items():
        dotted = f"{path}.{key}" if path else key
        if isinstance(value, Section) and dotted != "classes.texts" and value.items:
            result += _origins(value, dotted)
        elif dotted not in _ORDER or isinstance(value, Scalar):
            result.append((dotted, node.keys.get(key, value.origin)))
    return result


def _escaped(data: Any) -> Any:
    """Keep `${` in single texts from being read as a reference; lists of texts are literal anyway."""
    if isinstance(data, dict):
        return {key: _escaped(value) for key, value in data.items()}
    return escape(data) if isinstance(data, str) else data
