"""Finding, fetching and reading the weights of a backbone, and building the model they fit."""

from __future__ import annotations

import hashlib
import json
import pickle
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone_spec import HUB, TINY, Source, tiny_asset
from .errors import BackboneError

SEED = 0  # of untrained models and of token rows that were never trained
CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
NOT_WEIGHTS = (
    "input_resolution",
    "context_length",
    "vocab_size",
)  # numbers that OpenAI stored among its weights
State = dict[str, Tensor]


def build(source: Source) -> nn.Module:
    """Build the model a source describes, its random weights from a private seed."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    config = {k: v for k, v in source.model.items() if k != "custom_text"}
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = _local_or_hub(text["hf_model_name"], source, "config.json")
    kind = CLIP
    if source.model.get("custom_text") or text.get("hf_model_name"):
        kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP
    try:
        with torch.random.fork_rng(devices=[]), _offline_if(text.get("hf_model_name")):
            torch.manual_seed(SEED)
            model: nn.Module = kind(**{**config, "vision_cfg": vision, "text_cfg": text})
    except (TypeError, AssertionError, RuntimeError) as error:
        raise BackboneError(
            f"The configuration of the backbone {source.name} cannot be built: {error}"
        ) from error
    return model


def tokenizer(source: Source) -> Any:
    """Return the tokenizer a source names: CLIP's own, or one of the Hugging Face hub or a local folder."""
    from .backbone_tokens import clip_tokenizer

    text = source.model["text_cfg"]
    hub = text.get("hf_tokenizer_name")
    if not hub:
        options = dict(text.get("tokenizer_kwargs") or {})
        if not options:
            return clip_tokenizer()
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=text.get("context_length", 77), **options)
    from open_clip.tokenizer import HFTokenizer

    place = _local_or_hub(hub, source, "tokenizer_config.json")
    with _offline_if(place):
        return HFTokenizer(
            place,
            context_length=text.get("context_length", 77),
            tokenizer_mode=text.get("tokenizer_mode"),
            **(text.get("tokenizer_kwargs") or {}),
        )


def load_state(source: Source) -> State:
    """Read the weights a source names, under the names they are stored with.

    Raises:
        BackboneError: weights that are missing, unreachable, unreadable or not plain tensors.
    """
    if source.kind == "tiny":
        return read_state(tiny_asset(f"{TINY}.safetensors"))
    if source.kind == "hub":
        return read_state(_hub_file(source.name.removeprefix(HUB), WEIGHT_FILES, source.name))
    if source.kind == "folder" and source.folder is not None and source.pretrained is None:
        found = [source.folder / n for n in WEIGHT_FILES if (source.folder / n).is_file()]
        found += sorted(source.folder.glob("*.safetensors")) + sorted(source.folder.glob("*.bin"))
        if not found:
            raise BackboneError(f"The folder {source.folder} has no weights ({' or '.join(WEIGHT_FILES)}).")
        return read_state(found[0])
    if source.weights:
        return read_state(_tagged_file(source))
    return read_state(Path(str(source.pretrained)).expanduser())


def read_state(path: Path) -> State:
    """Read a safetensors file or a plain state dict; nothing in the file is executed.

    Args:
        path: `.safetensors`, or what `torch.save` writes; `{"state_dict": ...}` and `module.` prefixes are
            unwrapped.

    Raises:
        BackboneError: a TorchScript archive, a file with other objects than tensors, or a damaged file.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise BackboneError(f"{path} is not a readable safetensors file ({error}).") from error
    if _is_torchscript(path):
        raise BackboneError(
            f"{path} is a TorchScript archive (as OpenAI published CLIP), which holds program code and "
            "cannot be read as plain weights. Convert it once, where you trust the file: "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in torch.jit.load(FILE, "
            "map_location='cpu').state_dict().items()}, 'weights.safetensors'), then give that file and "
            "backbone.activation=quick_gelu."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} holds other objects than tensors, so reading it could run code; Limpet reads weights "
            "only. Save the model's state_dict() as safetensors and give that file."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BackboneError(
            f"{path} is not a weights file that torch can read ({str(error).splitlines()[0]})."
        ) from error
    while isinstance(state, dict) and not _is_state(state):
        inner = [
            state[k]
            for k in ("state_dict", "model", "model_state_dict", "module")
            if isinstance(state.get(k), dict)
        ]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, dict) or not _is_state(state):
        found = (
            f"keys {', '.join(map(str, list(state)[:4]))}"
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise BackboneError(
            f"{path} is not a plain state dict (found: {found}): save the model's state_dict()."
        )
    state = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    return {k.removeprefix("module."): v for k, v in state.items()}


def _is_state(state: Mapping[Any, Any]) -> bool:
    return (
        bool(state)
        and all(isinstance(k, str) for k in state)
        and any(isinstance(v, Tensor) for v in state.values())
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(n.endswith("constants.pkl") or "/code/" in n for n in archive.namelist())


def fit_state(model: nn.Module, state: State, name: str) -> Tensor | None:
    """Load weights into a model built for them, allowing for the known differences of naming.

    Args:
        model: as `build` makes it.
        state: weights as stored; limpet-tiny stores only the trained rows of its token table.
        name: of the backbone, for messages.

    Returns:
        A mask (V,) of trained token rows where the file says which they are, else None.

    Raises:
        BackboneError: names or shapes do not fit.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = {k: v for k, v in state.items() if k not in NOT_WEIGHTS}
    own: Any = model
    trained = None
    if "token_rows_index" in state:
        table, trained = _token_table(state.pop("token_embedding.rows"), state.pop("token_rows_index"), own)
        state["token_embedding.weight"] = table
    state = convert_state_dict(own, state)
    if "positional_embedding" in state and not hasattr(own, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for scalar in ("logit_scale", "logit_bias"):
        target = getattr(own, scalar, None)
        if target is None:
            state.pop(scalar, None)
        elif scalar in state and state[scalar].shape != target.shape and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(target.shape)
    wanted = own.state_dict()
    if "text.transformer.embeddings.position_ids" not in wanted:
        state.pop(
            "text.transformer.embeddings.position_ids", None
        )  # stored by older versions of transformers
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in sorted(wanted.keys() & state.keys())
        if wanted[k].shape != state[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})"
            for what, items in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
            if items
        ]
        raise BackboneError(
            f"The weights do not fit the backbone {name}: {'; '.join(parts)}. Check that `backbone.name` is "
            "the model these weights were made for."
        )
    model.load_state_dict(state)
    return trained


def _token_table(rows: Tensor, index: Tensor, model: Any) -> tuple[Tensor, Tensor]:
    """Return the whole token table and which rows of it were trained; the others are seeded noise."""
    size, width = model.token_embedding.weight.shape
    rows, index = rows.float(), index.long()
    generator = torch.Generator().manual_seed(SEED)
    table = torch.randn(size, width, generator=generator) * rows.std()
    table[index] = rows
    trained = torch.zeros(size, dtype=torch.bool)
    trained[index] = True
    return table, trained


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over sorted names, shapes and values of weights as they were loaded.

    Half-precision values are widened first, so a file and its float32 copy have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fetch_hub_config(repository: str) -> dict[str, Any]:
    """Return open_clip's configuration of a Hugging Face hub repository."""
    path = _hub_file(repository, (CONFIG_FILE,), f"{HUB}{repository}")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _tagged_file(source: Source) -> Path:
    """Return the local file of a weight tag, fetching it where it is not stored yet."""
    entry = source.weights or {}
    what = f"The weights {source.pretrained!r} of {source.name}"
    if entry.get("hf_hub"):
        repository, _, file = str(entry["hf_hub"]).rpartition("/")
        safe = [f"{file.rsplit('.', 1)[0]}.safetensors", file] if file else list(WEIGHT_FILES)
        return _hub_file(repository, tuple(dict.fromkeys(safe)), what)
    from open_clip.pretrained import download_pretrained_from_url

    url = str(entry.get("url", ""))
    stored = Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[-1]
    if not stored.is_file() and not _reachable(url):
        raise _unreachable(what, url)
    try:
        return Path(download_pretrained_from_url(url))
    except (OSError, RuntimeError) as error:
        raise _unreachable(what, url, str(error)) from error


def _hub_file(repository: str, names: tuple[str, ...], what: str) -> Path:
    """Return the first of some files of a hub repository, from the local store where it is there."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name, local_files_only=True))
        except (LocalEntryNotFoundError, FileNotFoundError):
            continue
        except ValueError as error:
            raise BackboneError(
                f"{repository!r} is not a hub repository name, OWNER/NAME ({error})."
            ) from error
    endpoint = hub.constants.ENDPOINT
    if hub.constants.HF_HUB_OFFLINE or not _reachable(endpoint):
        raise _unreachable(what, endpoint)
    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise _unreachable(what, endpoint) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise BackboneError(
                f"There is no public repository {repository!r} on {endpoint}: check its name."
            ) from error
        except OSError as error:
            raise _unreachable(what, endpoint, str(error).splitlines()[0]) from error
    raise BackboneError(
        f"The hub repository {repository!r} has none of {', '.join(names)}: it is no open_clip model."
    )


def _reachable(url: str) -> bool:
    """Ask once, briefly: the hub's own client would retry an unreachable host for half a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _unreachable(what: str, where: str, detail: str = "") -> BackboneError:
    host = where.rsplit("//", maxsplit=1)[-1].split("/", maxsplit=1)[0]
    return BackboneError(
        f"{what}: not stored on this machine, and {host} cannot be "
        f"reached{f' ({detail})' if detail else ''}. Connect once to store it, give a local file with "
        f"`backbone.pretrained=FILE`, or use `backbone={TINY}`, which needs no network."
    )


def _local_or_hub(name: str, source: Source, file: str) -> str:
    """Return where a Hugging Face tower or tokenizer is read from: a local folder, else its hub name."""
    candidates = [Path(name).expanduser()]
    if source.folder is not None:
        candidates += [source.folder / name, source.folder]
    for folder in candidates:
        if (folder / file).is_file():
            return str(folder)
    _hub_file(name, (file, "config.json"), f"The files of {name}, which {source.name} needs,")
    return name


@contextmanager
def _offline_if(place: Any) -> Iterator[None]:
    """Read stored hub files without asking the hub when it cannot be reached; local folders never ask."""
    if not place or Path(str(place)).is_dir():
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
