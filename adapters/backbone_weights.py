"""Reading the weights of a backbone, and building the model they fit."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone_checks import TOKENIZER_SETTINGS
from .backbone_hub import WEIGHT_FILES, hub_file, local_or_hub, offline_if, tagged_file
from .backbone_spec import HUB, TINY, Source, tiny_asset
from .errors import BackboneError, LimpetError, exhausted

SEED = 0  # of untrained models and of token rows that were never trained
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
        text["hf_model_name"] = local_or_hub(text["hf_model_name"], source, "config.json")
        _check_text_tower(text["hf_model_name"], source)
    kind = CLIP
    if source.model.get("custom_text") or text.get("hf_model_name"):
        kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP
    try:
        with torch.random.fork_rng(devices=[]), offline_if(text.get("hf_model_name")):
            torch.manual_seed(SEED)
            model: nn.Module = kind(**{**config, "vision_cfg": vision, "text_cfg": text})
    except Exception as error:  # constructors of three libraries, fed with what a file says
        if exhausted(error):
            raise
        detail = " ".join(str(error).split()) or "open_clip does not take one of its values"
        raise BackboneError(f"The configuration of the backbone {source.name} cannot be built: {detail}") from error
    return model


def _check_text_tower(place: str, source: Source) -> None:
    """Refuse a Hugging Face text tower that transformers could build only by running code that lies beside it.

    open_clip names the tower alone, and transformers would then ask at the terminal whether the code may run.

    Raises:
        BackboneError: the tower is not of a kind that transformers and open_clip have themselves.
    """
    from open_clip.hf_configs import arch_dict

    what = f"The text tower {place} of the backbone {source.name}"
    with offline_if(place), _no_foreign_code(what):
        from transformers import AutoConfig, PretrainedConfig

        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        written, _ = PretrainedConfig.get_config_dict(place)
    if config.model_type not in arch_dict:
        raise BackboneError(f"{what} is of the kind {config.model_type!r}; open_clip builds {', '.join(sorted(arch_dict))}.")
    kernel = written.get("attn_implementation") or written.get("_attn_implementation")
    if any(sign in str(kernel) for sign in "/:"):
        raise BackboneError(f"{what} takes its attention from {kernel!r}, compiled code of the hub, which Limpet does not load.")


@contextmanager
def _no_foreign_code(what: str) -> Iterator[None]:
    """Say in one sentence why transformers cannot read a tower or a tokenizer; `what` begins the sentence."""
    try:
        yield
    except LimpetError:
        raise
    except Exception as error:  # transformers raises nearly anything on files that are not as it wrote them
        if exhausted(error):
            raise
        detail = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in detail:
            raise BackboneError(
                f"{what} comes with Python code of its own that would have to run; Limpet reads data only. Choose one of a kind "
                "that the transformers library has."
            ) from error
        raise BackboneError(f"{what} cannot be read: {detail}") from error


def tokenizer(source: Source) -> Any:
    """Return the tokenizer a source names: CLIP's own, or one of the Hugging Face hub or a local folder."""
    from .backbone_tokens import clip_tokenizer

    text = source.model["text_cfg"]
    hub = text.get("hf_tokenizer_name")
    # checked again at the last place before other libraries see it
    options = {k: v for k, v in (text.get("tokenizer_kwargs") or {}).items() if k in TOKENIZER_SETTINGS}
    length = text.get("context_length", 77)
    if not hub and not options:
        return clip_tokenizer()
    with _no_foreign_code(f"The tokenizer {hub or 'of open_clip'} of the backbone {source.name}"):
        if not hub:
            from open_clip.tokenizer import SimpleTokenizer

            return SimpleTokenizer(context_length=length, **options)
        from open_clip.tokenizer import HFTokenizer

        place = local_or_hub(hub, source, "tokenizer_config.json")
        with offline_if(place):
            return HFTokenizer(
                place, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), trust_remote_code=False, **options
            )


def weights_file(source: Source) -> Path:
    """Return the file of the weights a source names, fetching it where it is of the hub.

    Raises:
        BackboneError: weights that are missing or unreachable.
    """
    if source.kind == "tiny":
        return tiny_asset(f"{TINY}.safetensors")
    if source.kind == "hub":
        return hub_file(source.name.removeprefix(HUB), WEIGHT_FILES, source.name)
    if source.kind == "folder" and source.folder is not None and source.pretrained is None:
        found = [source.folder / n for n in WEIGHT_FILES if (source.folder / n).is_file()]
        found += sorted(source.folder.glob("*.safetensors")) + sorted(source.folder.glob("*.bin"))
        if not found:
            raise BackboneError(f"The folder {source.folder} has no weights ({' or '.join(WEIGHT_FILES)}).")
        return found[0]
    if source.weights:
        return tagged_file(source)
    return Path(str(source.pretrained)).expanduser()


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
            return _unprefixed(load_file(path))
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
        detail = (str(error).splitlines() or ["it ends too early"])[0]
        raise BackboneError(f"{path} is not a weights file that torch can read ({detail}).") from error
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
    return _unprefixed(state)


def _unprefixed(state: Mapping[str, Any]) -> State:
    """Return the tensors of a state dict without the prefix that data-parallel training leaves."""
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


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
        table, trained = _token_table(state.pop("token_embedding.rows", None), state.pop("token_rows_index"), own, name)
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


def _token_table(rows: Tensor | None, index: Tensor, model: Any, name: str) -> tuple[Tensor, Tensor]:
    """Return the whole token table and which rows of it were trained; the others are seeded noise."""
    embedding = getattr(getattr(model, "text", model), "token_embedding", None)
    if embedding is None or rows is None or rows.shape != (len(index), embedding.weight.shape[1]):
        raise BackboneError(f"The weights do not fit the backbone {name}: its text tower has another token table.")
    size, width = embedding.weight.shape
    rows, index = rows.float(), index.long()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
        raise BackboneError(f"The weights do not fit the backbone {name}: they number tokens that its vocabulary of {size} has not.")
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
