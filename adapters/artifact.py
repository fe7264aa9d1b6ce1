"""Artefacts: what a fit leaves behind, `adapter.safetensors` + `adapter.json` + a card, and how it is loaded.

Versions `adapter/v1, v2, ...` are written once. Loading reads tensors and JSON only: nothing is ever executed,
except that a method of the user's own (a plugin) is imported by the reference it was fitted with, which is said.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
import shutil
import sys
import types
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import artifact_meaning, artifact_shapes, files
from .errors import ArtifactError, LimpetError

if TYPE_CHECKING:
    from .adapter import Adapter

FORMAT = 1
INFO, TENSORS, CARD = "adapter.json", "adapter.safetensors", "README.md"
_LIBRARIES = ("limpet", "torch", "open_clip_torch", "safetensors")
_PROBE = "A photo of a 3-spined stickleback, Gasterosteus aculeatus (Ångström)."
# what must agree, and what it is called in a sentence
_MUST_AGREE = {
    "fingerprint": "weights (fingerprint)",
    "activation": "activation",
    "embed_dim": "embedding size",
    "preprocessing": "preprocessing",
    "context_length": "context length",
    "vocab_size": "vocabulary size",
    "tokenizer": "tokenizer",
}
# what must agree as well, but a tower may not have (0 or "")
_OF_TOWERS = {
    "image_tower": "image tower",
    "text_tower": "text tower",
    "vision_heads": "attention heads of the image tower",
    "text_heads": "attention heads of the text tower",
    "image_pool": "pooling of the image tower",
    "text_pool": "pooling of the text tower",
    "causal_text": "causal mask of the text tower",
}


def save(adapter: Adapter, run_dir: str | Path, info: Mapping[str, Any] | None = None) -> Path:
    """Write an adapter as the next version below `run_dir/adapter` and return its folder.

    Args:
        adapter: The fitted adapter.
        run_dir: The run's folder.
        info: More to record, JSON-able: `recipe`, `seed`, `protocol`, `split_hash`, `metrics`, `data`, ...

    Raises:
        ArtifactError: If the adapter's state holds something besides tensors, or its rows are in another order than its classes.
    """
    from safetensors.torch import save_file

    from .artifact_card import card

    tensors = {}
    for name, value in adapter.artifact_state().items():
        if not hasattr(value, "detach"):
            raise ArtifactError(
                f"The state {name!r} of method {adapter.name!r} is not a tensor and cannot be saved."
            )
        tensors[name] = value.detach().cpu().contiguous().clone()
    artifact_shapes.check_order(adapter)
    content = _describe(adapter, tensors)
    parent = Path(run_dir) / "adapter"
    beside = files.beside(parent / "version")
    beside.mkdir(parents=True)
    try:
        save_file(tensors, beside / TENSORS, metadata={artifact_meaning.KEY: artifact_meaning.digest(content)})
        content["tensors"] = {"sha256": hashlib.sha256((beside / TENSORS).read_bytes()).hexdigest(), **content["tensors"]}
        content["info"] = dict(info or {})
        # keys in their order: a method's settings may mean something by it
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=True)
        (beside / INFO).write_text(text + "\n", encoding="utf-8")
        (beside / CARD).write_text(card(content, adapter.task), encoding="utf-8")
        number = max((n for n, _ in versions(run_dir)), default=0) + 1
        while True:
            try:
                (beside).rename(parent / f"v{number}")
                return parent / f"v{number}"
            except OSError:
                if not (parent / f"v{number}").exists():
                    raise
                number += 1  # another process took this number
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def versions(run_dir: str | Path) -> list[tuple[int, Path]]:
    """Return the versions of a run's adapter, oldest first."""
    parent = Path(run_dir) / "adapter"
    found = []
    if parent.is_dir():
        for folder in parent.iterdir():
            match = re.fullmatch(r"v([1-9]\d*)", folder.name)
            if match and (folder / INFO).is_file():
                found.append((int(match[1]), folder))
    return sorted(found)


def locate(path: str | Path, version: int | None = None) -> Path:
    """Return the folder of an artefact: `path` itself, or the newest (or given) version of the run at `path`.

    Raises:
        ArtifactError: If there is none.
    """
    path = Path(path)
    if path.name == INFO:
        path = path.parent
    if (path / INFO).is_file():
        return path
    found = versions(path) or versions(path.parent) if path.name == "adapter" else versions(path)
    if version is not None:
        for number, folder in found:
            if number == version:
                return folder
        have = ", ".join(f"v{number}" for number, _ in found) or "none"
        raise ArtifactError(f"{path} has no adapter of version {version}; it has {have}.")
    if not found:
        why = "does not exist" if not path.exists() else f"holds neither {INFO} nor adapter/v1"
        raise ArtifactError(
            f"No adapter found: {path} {why}. Give the folder of a finished run, or adapter/vN in it."
        )
    return found[-1][1]


def load_info(path: str | Path, version: int | None = None) -> dict[str, Any]:
    """Read and check `adapter.json` of an artefact (or of a run's newest one).

    Raises:
        ArtifactError: If it is missing, damaged or written by a newer Limpet.
    """
    file = locate(path, version) / INFO
    try:
        text = file.read_text(encoding="utf-8")
        info = json.loads(text)
        if "\\ud" in text.lower():  # halves of characters can be written as escapes alone, and no file takes them
            json.dumps(info, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{file} cannot be read: {error}. Copy the artefact again from its source."
        ) from None
    number = info.get("format") if isinstance(info, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ArtifactError(f"{file} is not the description of a Limpet adapter: it has no format number.")
    if number > FORMAT:
        raise ArtifactError(
            f"{file} has format {number}, and this Limpet ({_version('limpet')}) reads up to format {FORMAT}. "
            "Install a newer Limpet."
        )
    assert isinstance(info, dict)
    for section, keys in {
        "method": ("name", "config"),
        "classes": ("names",),
        "backbone": ("spec", "fingerprint", "tokenizer"),
        "tensors": ("sha256",),
    }.items():
        if not isinstance(info.get(section), dict) or any(key not in info[section] for key in keys):
            raise ArtifactError(f"{file} is damaged: its section {section!r} is missing or incomplete.")
    for place in (info["method"]["config"], info["backbone"]["spec"], info.get("info") or {}):
        if not isinstance(place, dict):
            raise ArtifactError(f"{file} is damaged: a section that should hold keys and values does not.")
    if not isinstance(info["method"]["name"], str) or not info["method"]["name"]:
        raise ArtifactError(f"{file} is damaged: the method's name is not a text.")
    return info


def load(
    path: str | Path,
    backbone: Any = None,
    version: int | None = None,
    device: str = "cpu",
    plugins: bool = True,
) -> Adapter:
    """Rebuild an adapter from an artefact.

    Args:
        path: A run folder or an artefact folder.
        backbone: The `FrozenClip` to put it on; loaded from the recorded name by default.
        version: A version number, where `path` is a run; the newest by default.
        device: Where to load the backbone.
        plugins: Whether a method from the user's own file or package may be imported.

    Raises:
        ArtifactError: If it is damaged, or does not fit the backbone; the sentence lists what differs.
    """
    from . import adapter as adapters
    from .classes import ClassSet

    folder = locate(path, version)
    info = load_info(folder)
    tensors = _read_tensors(folder, info)
    method = info["method"]["name"]
    if ":" in method:
        if not plugins:
            raise ArtifactError(
                f"The adapter in {folder} needs the method {method}, and plugins are not allowed here."
            )
        warnings.warn(f"The adapter in {folder} is of the method {method}, code of your own, which is imported now.",
                      UserWarning, stacklevel=2)  # fmt: skip
    kind = adapters.find(method)
    config = build_config(adapters.config_class(kind), info["method"]["config"], folder / INFO)
    if backbone is None:
        backbone = _load_backbone(info["backbone"]["spec"], device, folder)
    check_backbone(info, backbone, folder)
    try:
        classes = ClassSet.from_dict(info["classes"])
    except LimpetError as error:
        raise ArtifactError(f"{folder / INFO} is damaged: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"The adapter described in {folder / INFO} cannot be built: {error}") from error
    try:
        built = kind(config)
        built.setup(backbone, classes)
    except LimpetError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        raise ArtifactError(f"The adapter described in {folder / INFO} cannot be built: {error}") from error
    artifact_meaning.check(folder / TENSORS, info, folder / INFO)
    _check_kinds(tensors, built, folder)
    artifact_shapes.check(tensors, built, folder / TENSORS)
    try:
        built.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise ArtifactError(
            f"The tensors in {folder / TENSORS} do not fit {INFO} beside it: {detail}"
        ) from None
    support = info.get("support")
    built.support_paths = [str(path) for path in support] if isinstance(support, list) else []
    built.eval()
    artifact_shapes.probe(built, folder / TENSORS)
    return built


def check_backbone(info: Mapping[str, Any], backbone: Any, where: Path | str = "the artefact") -> None:
    """Compare the recorded backbone with `backbone`.

    Raises:
        ArtifactError: If weights, what they are run with, preprocessing or tokenizer differ.
    """
    recorded = {
        **info["backbone"]["spec"],
        **{k: info["backbone"].get(k) for k in ("fingerprint", "tokenizer")},
    }
    present = about_backbone(backbone)
    now = {**present["spec"], **{k: present[k] for k in ("fingerprint", "tokenizer")}}
    keys = [key for key in _MUST_AGREE if recorded.get(key) != now.get(key)]
    keys += [key for key in _OF_TOWERS if recorded.get(key) != now.get(key) and _known(recorded.get(key)) and _known(now.get(key))]
    words = {**_MUST_AGREE, **_OF_TOWERS}
    differing = [f"{words[key]}: {_differing(recorded.get(key), now.get(key))}" for key in keys]
    if not differing:  # whatever else changes what the same weights compute, where the artefact says it
        then = info["backbone"].get("settings")
        differing = [
            f"{key.partition('.')[2]} of the {key.partition('.')[0]} tower: {_differing(then[key], value)}"
            for key, value in present["settings"].items()
            if isinstance(then, dict) and key in then and then[key] != value
        ]
    if differing:
        raise ArtifactError(
            f"The adapter in {where} was made on another backbone ({_short(recorded.get('name'))}) than this one "
            f"({_short(now.get('name'))}) and would give wrong answers on it. What differs: {'; '.join(differing)}."
        )
    notes = []
    if recorded.get("precision") != now.get("precision"):
        notes.append(f"precision {recorded.get('precision')} there, {now.get('precision')} here")
    libraries = info.get("libraries")
    for name, then in (libraries if isinstance(libraries, dict) else {}).items():
        if name in _LIBRARIES and _minor(str(then)) != _minor(_version(name)):
            notes.append(f"{name} {then} there, {_version(name)} here")
    if notes:
        warnings.warn(
            f"The adapter in {where} was made with other settings or versions; small differences are possible: "
            f"{'; '.join(notes)}.",
            UserWarning,
            stacklevel=3,
        )


def build_config(kind: type[Any], values: Mapping[str, Any], where: Path | str) -> Any:
    """Make a `Config` from JSON values; lists become tuples where the default is one.

    Raises:
        ArtifactError: If a key is unknown or a value does not fit.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ArtifactError(
            f"{where} sets {', '.join(map(repr, unknown))}, which the method does not know. "
            "It was written by another version of Limpet or of the method."
        )
    given = dict(values)
    for name, value in given.items():
        default = fields[name].default
        if isinstance(value, list) and isinstance(default, tuple):
            given[name] = tuple(value)
        if isinstance(value, dict) and dataclasses.is_dataclass(default) and not isinstance(default, type):
            given[name] = build_config(type(default), value, where)
    for name, wanted in _types(kind).items():
        if name in given and not _fits(given[name], wanted):
            raise ArtifactError(f"{where} holds a configuration that does not fit the method: {name} cannot be {_short(given[name])}.")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where} holds a configuration that does not fit the method: {error}") from None


def _types(kind: type[Any]) -> dict[str, Any]:
    """What the fields of a configuration are declared as; nothing where that cannot be known (a method of one's own)."""
    try:
        return typing.get_type_hints(kind)
    except Exception:  # names that only a type checker sees
        return {}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value of JSON is what a field is declared as; declarations besides plain values and lists take anything."""
    kind = typing.get_origin(wanted) or wanted
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(wanted))
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63  # what a tensor can be multiplied by
        return whole or (kind is float and isinstance(value, float) and math.isfinite(value))
    if kind in (str, bool, type(None)):
        return isinstance(value, kind)
    if kind is list:
        return isinstance(value, list) and all(_fits(one, part) for part in typing.get_args(wanted) for one in value)
    return True


def reference(adapter: Adapter) -> str:
    """The name by which a method is found again: of a built-in one its file, of one's own `file.py:Class`."""
    kind = type(adapter)
    module = kind.__module__
    if module.startswith(f"{__package__}.methods."):
        return adapter.name
    file = getattr(sys.modules.get(module), "__file__", None)
    if module.startswith("limpet_plugin_") and file:
        path = Path(file).resolve()
        here = Path.cwd()
        shown = f"./{path.relative_to(here).as_posix()}" if path.is_relative_to(here) else path.as_posix()
        return f"{shown}:{kind.__name__}"
    return f"{module}:{kind.__name__}"


def _describe(adapter: Adapter, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `adapter.json`, less `info` and the checksum of the tensors."""
    return {
        "format": FORMAT,
        "method": {"name": reference(adapter), "config": dataclasses.asdict(adapter.config)},
        "classes": adapter.classes.to_dict(),
        **({"support": list(adapter.support_paths)} if adapter.support_paths else {}),
        "backbone": about_backbone(adapter.backbone),
        "tensors": {
            "numbers": sum(int(t.numel()) for t in tensors.values()),
            "shapes": {name: list(t.shape) for name, t in tensors.items()},
        },
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def about_backbone(backbone: Any) -> dict[str, Any]:
    """What identifies a backbone, as JSON gives it back. The tokenizer is known by what it makes of one sentence."""
    from .backbone_introspect import settings_of

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a short context cuts it off, which is no user's text
            ids = backbone.tokenize([_PROBE])
        tokenizer = hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest()[:16]
    except (NotImplementedError, AttributeError):
        tokenizer = None
    described = {
        "spec": dataclasses.asdict(backbone.spec),
        "fingerprint": backbone.fingerprint,
        "tokenizer": tokenizer,
        "settings": settings_of(backbone.model),
    }
    again: dict[str, Any] = json.loads(json.dumps(described))  # tuples become lists, as in the file
    return again


def _load_backbone(spec: Mapping[str, Any], device: str, folder: Path) -> Any:
    from .backbone import FrozenClip
    from .backbone_spec import request

    if not isinstance(spec.get("name"), str):
        raise ArtifactError(f"{folder / INFO} is damaged: it does not name its backbone.")
    try:
        return FrozenClip.load(request(spec), device=device)
    except LimpetError as error:
        raise ArtifactError(f"The backbone of the adapter in {folder} cannot be loaded: {error}") from error


def _read_tensors(folder: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Read the tensors, after checking that the file is the one that was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / TENSORS  # the name is fixed: a path in the description is never followed
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be read: {error.strerror}. Copy the whole artefact folder."
        ) from None
    if digest != info["tensors"]["sha256"]:
        raise ArtifactError(f"{file} is damaged or not the file that belongs to {INFO}: its SHA-256 differs.")
    try:
        tensors: dict[str, Any] = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{file} is damaged: {error}") from None
    endless = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if endless:
        raise ArtifactError(
            f"{file} holds no usable numbers: {', '.join(sorted(endless))} is NaN or infinite, and so would be every answer. "
            "Either the training diverged (fit again with a lower optim.lr) or the file was changed."
        )
    return tensors


def _is_finite(tensor: Any) -> bool:
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())  # torch cannot ask it of 8 bits


def _check_kinds(tensors: Mapping[str, Any], built: Adapter, folder: Path) -> None:
    """Refuse whole numbers where fractions are due, and the other way round: copying would round them without a word."""
    own = built.state_dict()
    wrong = [name for name in sorted(tensors) if name in own and tensors[name].is_floating_point() != own[name].is_floating_point()]
    if wrong:
        found, due = (str(t[wrong[0]].dtype).removeprefix("torch.") for t in (tensors, own))
        raise ArtifactError(
            f"The tensors in {folder / TENSORS} do not fit {INFO} beside it: {wrong[0]} is of {found} where {due} is due. "
            "Copy the artefact again from its source."
        )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _known(value: Any) -> bool:
    """Whether a tower has a number, name or switch: 0 and "" say that it has none, and old artefacts lack some."""
    return isinstance(value, bool) or value not in (None, "", 0)


def _differing(there: Any, here: Any) -> str:
    """Both values; of two dictionaries only the entries that are not equal, which may be anywhere in them."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return f"{_short(there)} there, {_short(here)} here"
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    return "; ".join(f"{key} {_short(there.get(key))} there, {_short(here.get(key))} here" for key in keys)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 160 else f"{text[:120]}..."
