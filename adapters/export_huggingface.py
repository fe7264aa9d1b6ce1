"""The same CLIP under the names of Hugging Face's CLIPModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .towers import text_tower

if TYPE_CHECKING:
    from .backbone import FrozenClip

# Checkpoints that the hub holds in CLIPModel's format, by name and tag of open_clip.
CHECKPOINTS = {
    ("ViT-B-32", "openai"): "openai/clip-vit-base-patch32",
    ("ViT-B-16", "openai"): "openai/clip-vit-base-patch16",
    ("ViT-L-14", "openai"): "openai/clip-vit-large-patch14",
    ("ViT-L-14-336", "openai"): "openai/clip-vit-large-patch14-336",
    ("ViT-B-32", "laion2b_s34b_b79k"): "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ("ViT-B-16", "laion2b_s34b_b88k"): "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    ("ViT-L-14", "laion2b_s32b_b82k"): "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    ("ViT-H-14", "laion2b_s32b_b79k"): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
_INSIDE = {  # of a block
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so in transformers
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("text_projection", "visual.proj")
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def problem(backbone: FrozenClip) -> str | None:
    """Why a backbone has no CLIPModel counterpart, as the end of a sentence, or None."""
    spec, model = backbone.spec, backbone.model
    if spec.image_tower != "vit" or spec.text_tower != "transformer" or spec.multimodal:
        return "CLIPModel holds a plain ViT and a plain text transformer only"
    visual, text = model.visual, text_tower(model)
    vit = spec.image_pool == "tok" and isinstance(visual.ln_pre, nn.LayerNorm) and isinstance(visual.proj, Tensor)
    vit = vit and visual.conv1.bias is None and not isinstance(spec.preprocessing["size"], list)
    if not vit or not spec.plain_attention or visual.final_ln_after_pool:
        return "its image tower has parts that CLIPModel's has not"
    if text is None or text.mask is None or text.pool != "argmax" or not isinstance(text.projection, Tensor):
        return "its text tower has parts that CLIPModel's has not"
    scaled = [b for b in (*visual.transformer.resblocks, *text.blocks) if not isinstance(b.ls_1, nn.Identity)]
    return "its blocks scale what they add, and CLIPModel's do not" if scaled else None


def checkpoint(backbone: FrozenClip) -> str | None:
    """The hub's name of the same weights in CLIPModel's format, where it is known."""
    name = backbone.spec.name.replace("/", "-").removesuffix("-quickgelu")
    return CHECKPOINTS.get((name, str(backbone.spec.pretrained)))


def module_name(name: str) -> str:
    """Name of a layer of open_clip (attention split) in a CLIPModel.

    Raises:
        KeyError: CLIPModel has no such layer.
    """
    found = _BLOCK.fullmatch(name.removeprefix("text."))
    if not found:
        raise KeyError(name)
    tower = "vision_model" if found[1] else "text_model"
    return f"{tower}.encoder.layers.{found[2]}.{_INSIDE[found[3]]}"


def state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Open_clip weights under the names, and in the form, of CLIPModel.

    Raises:
        KeyError: a tensor that CLIPModel has no place for.
    """
    result: dict[str, Tensor] = {}
    for full, tensor in weights.items():
        name = full.removeprefix("text.") if full.startswith("text.") else full
        if name in ("attn_mask", "logit_bias"):
            continue
        if name in _OUTSIDE:
            result[_OUTSIDE[name]] = tensor.T if name in _TRANSPOSED else tensor
            continue
        found = _BLOCK.fullmatch(name)
        if not found:
            raise KeyError(full)
        layer, _, kind = found[3].rpartition(".")
        prefix = name[: found.start(3)]
        if kind in ("in_proj_weight", "in_proj_bias"):
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                result[f"{module_name(f'{prefix}attn.{part}')}.{kind.removeprefix('in_proj_')}"] = piece
        else:
            result[f"{module_name(prefix + layer)}.{kind}"] = tensor
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in result.items()}


def config(backbone: FrozenClip) -> Any:
    """The `CLIPConfig` of a backbone."""
    from transformers import CLIPConfig

    spec, model = backbone.spec, backbone.model
    act = "quick_gelu" if spec.activation == "quick_gelu" else "gelu"
    text = text_tower(model)
    assert text is not None
    common = {"hidden_act": act, "layer_norm_eps": model.visual.ln_pre.eps, "projection_dim": spec.embed_dim}
    return CLIPConfig(
        text_config={
            **common,
            "hidden_size": spec.text_width,
            "intermediate_size": text.blocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": spec.text_layers,
            "num_attention_heads": spec.text_heads,
            "max_position_embeddings": spec.context_length,
            "vocab_size": spec.vocab_size,
            "eos_token_id": 2,  # stands for: read the text from its token of the greatest number, as open_clip does
        },
        vision_config={
            **common,
            "hidden_size": spec.vision_width,
            "intermediate_size": model.visual.transformer.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": spec.vision_layers,
            "num_attention_heads": spec.vision_heads,
            "image_size": spec.image_size,
            "patch_size": spec.patch_size,
        },
        projection_dim=spec.embed_dim,
    )


def model(backbone: FrozenClip) -> Any:
    """A `CLIPModel` with the weights of a backbone.

    Raises:
        KeyError, RuntimeError: the weights do not fit it.
    """
    from transformers import CLIPModel

    with torch.random.fork_rng(devices=[]):
        made = CLIPModel(config(backbone))
    made.load_state_dict(state(backbone.model.state_dict()))
    return made.eval()


def image_features(model: Any, images: Tensor) -> Tensor:
    """Image features (B, D); transformers 5 wraps them."""
    found = model.get_image_features(pixel_values=images)
    feature: Tensor = getattr(found, "pooler_output", found)
    return feature


def text_features(model: Any, ids: Tensor) -> Tensor:
    """Text features (N, D) of token ids (N, L)."""
    found = model.get_text_features(input_ids=ids)
    feature: Tensor = getattr(found, "pooler_output", found)
    return feature
