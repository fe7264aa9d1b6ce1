"""peft's tuners on the linear layers of a copied CLIP: put in, scaled, and merged into plain weights again.

Attention is split into linear layers first: peft's own wrapper of `nn.MultiheadAttention` applies the change of `out_proj`
twice and ignores dropout (0.21.2).
"""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import RecipeError, nearest

REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError, KeyError)  # what peft raises for odd options
NAME = "default"  # of the one adapter inside peft's layers
# Tuners that change each linear layer by itself, can be merged, and follow from their parameters alone.
TUNERS = ("LORA", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LOHA", "LOKR", "MISS", "OFT")
RANKED = ("DELORA", "GRALORA", "HIRA", "HRA", "LOHA", "LOKR", "MISS")  # those whose `r` is a rank
INITS = (True, False, "gaussian", "orthogonal")
_OWN_KEYS = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "use_rslora", "lora_dropout": "dropout"}
_CHOSEN = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")
_NEVER = ("bias", "modules_to_save", "trainable_token_indices", "layer_replication", "task_type", "inference_mode",
          "arrow_config", "alora_invocation_tokens", "megatron_config", "peft_type")  # fmt: skip


def tuner_of(options: Mapping[str, Any]) -> str:
    """Name of the peft tuner that `method.peft` asks for."""
    return str(options.get("type", "LORA")).upper()


def problem(options: Mapping[str, Any]) -> str | None:
    """Why peft options cannot be used, as a sentence, or None; imports nothing."""
    kind = tuner_of(options)
    if kind == "ADALORA":
        return "method.peft.type ADALORA moves ranks between layers by a schedule of its own; use LORA or another tuner."
    if kind not in TUNERS:
        return (
            f"method.peft.type is '{options['type']}'.{nearest(kind, TUNERS)} It must be a tuner that changes each linear layer "
            f"by itself: {', '.join(TUNERS)}."
        )
    for key in options:
        if kind == "LORA" and key in _OWN_KEYS:
            return f"method.peft.{key} is set by method.{_OWN_KEYS[key]}; leave it out of method.peft."
        if key in _CHOSEN:
            return f"method.peft.{key} is set by method.towers, method.layers and method.targets; leave it out of method.peft."
        if key in _NEVER:
            return f"method.peft.{key} cannot be used: only the tuner's own small tensors are trained and saved."
    if options.get("init_lora_weights", True) not in INITS:
        return (
            f"method.peft.init_lora_weights is '{options['init_lora_weights']}', which starts by changing frozen weights; "
            "use true, gaussian or orthogonal."
        )
    return None


def put_in(model: nn.Module, names: Iterable[str], config: Any, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Wrap linear layers of `model`, in place.

    Args:
        model: a copy of a CLIP whose attention is split where needed.
        names: full names of the layers.
        config: with `rank`, `alpha`, `use_rslora`, `dropout` and `peft` (further options, and `type`).
        dtype: of the trained tensors.

    Returns:
        The trained parameters, under their names in the model less the adapter's name.

    Raises:
        RecipeError: peft refuses the options.
    """
    from peft import inject_adapter_in_model

    from .lora_linear import quicken

    options = tuner_config(exactly(names), config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(options, model, adapter_name=NAME)
    except REFUSALS as error:
        raise refused(config, error) from error
    for layer in tuner_layers(model).values():
        quicken(layer)
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
            trained[name.replace(f".{NAME}", "")] = parameter
    return trained


def exactly(names: Iterable[str]) -> str:
    """A pattern that peft matches these layers by, and no others."""
    return "|".join(re.escape(name) for name in names)  # matched in full


def refused(config: Any, error: Exception) -> RecipeError:
    """The sentence for options that peft refuses."""
    return RecipeError(f"peft refuses method.peft {dict(config.peft)}: {' '.join(str(error).split())}")


def tuner_config(targets: Any, config: Any) -> Any:
    """The configuration of peft's tuner for layers, given as a pattern or a list of the ends of names.

    Raises:
        RecipeError: peft refuses the options.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = tuner_of(config.peft)
    cls = next(c for t, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if t.value == kind)
    options = {key: value for key, value in config.peft.items() if key != "type"}
    known = [field.name for field in dataclasses.fields(cls)]
    for key in options:
        if key not in known:
            raise RecipeError(f"method.peft.{key}: peft's {kind} has no such option.{nearest(key, known)}")
    given: dict[str, Any] = {"target_modules": targets}
    if kind == "LORA":
        given |= {key: getattr(config, ours) for key, ours in _OWN_KEYS.items()}
    elif kind in RANKED:
        given["r"] = config.rank
    elif kind == "IA3":
        given["feedforward_modules"] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(**{**given, **options})
    except REFUSALS as error:
        raise refused(config, error) from error


def tuner_layers(model: nn.Module) -> dict[str, Any]:
    """The wrapped layers of a model, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def is_plain_lora(layer: Any) -> bool:
    """Whether a layer is y = W x + s B A drop(x) and nothing else (no DoRA and the like)."""
    from peft.tuners.lora.layer import Linear

    return isinstance(layer, Linear) and NAME not in layer.lora_variant


def set_share(layer: Any, share: float) -> None:
    """Let a wrapped layer compute with (1 - share) of its frozen and `share` of its tuned weight.

    For plain LoRA that is a factor of its scaling, W + a s B A. Any other tuner's output is mixed with the frozen layer's,
    which is the same as mixing the weights, since the layer is linear.
    """
    if is_plain_lora(layer):
        layer.set_scale(NAME, share)  # counts from the scaling of the configuration
        return
    hook = getattr(layer, "limpet_hook", None)
    if hook is not None:
        hook.remove()
    layer.limpet_share = share
    layer.limpet_hook = layer.register_forward_hook(_mix) if share != 1 else None


def merged_linear(layer: Any, share: float) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a wrapped layer as a plain linear layer, with `share` of what was tuned."""
    whole = copy.deepcopy(layer).double()  # merging works in place; in float64 it rounds once, at the end
    base = copy.deepcopy(whole.get_base_layer())
    if is_plain_lora(whole):
        whole.set_scale(NAME, 1.0)
    whole.merge(safe_merge=True)
    tuned = whole.get_base_layer()
    bias = None if base.bias is None else base.bias + share * (tuned.bias - base.bias)
    return (tuned.weight if share == 1 else base.weight + share * (tuned.weight - base.weight)), bias


def _mix(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    frozen = layer.get_base_layer()(*given)
    return torch.lerp(frozen, output, layer.limpet_share)
