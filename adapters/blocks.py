"""One functional forward of a pre-LN residual block, over open_clip's own modules.

Everything an adapter does inside a tower (deep prompts, another source of queries, keys and values, an
attention bias, computing only some rows of the last block, looking at single heads) enters here, so no tower
is rewritten and no weight is copied. Attention uses `linear` and `scaled_dot_product_attention` on the
parameters of
`nn.MultiheadAttention`: the same numbers, and under bf16 autocast several times faster than the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import BackboneError
from .split_attention import SplitAttention

if TYPE_CHECKING:
    from .backbone import FrozenClip
    from .backbone_spec import BackboneSpec

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each (..., L, H, d)."""


@dataclass(frozen=True)
class Seams:
    """What an adapter changes inside the blocks of a tower; every part is optional.

    Attributes:
        qkv: `(layer, attention module, input (B, L, W)) -> (q, k, v)`, each (B, L, H, d), in place of the
            frozen projection.
        out: `(layer, attention module, heads' output (B, L, W)) -> (B, L, W)` in place of the output
            projection.
        bias: `(layer) -> Tensor | None`, added to the attention logits; broadcast to (B, H, Lq, Lk).
        heads: `(layer, heads' output (B, H, Lq, d)) -> the same shape`; may look at single heads or change
            them.
        weights: `(layer, attention weights (B, H, Lq, Lk))`; only looks at them. They are then computed openly.
        enter: `(layer, block, tokens entering it (B, L, W))`; only looks, as a stream beside the tower does.
    """

    qkv: Callable[[int, Any, Tensor], Heads] | None = None
    out: Callable[[int, Any, Tensor], Tensor] | None = None
    bias: Callable[[int], Tensor | None] | None = None
    heads: Callable[[int, Tensor], Tensor] | None = None
    weights: Callable[[int, Tensor], None] | None = None
    enter: Callable[[int, Any, Tensor], None] | None = None


PLAIN = Seams()
_watching: ContextVar[list[Tensor] | None] = ContextVar("watching", default=None)


@contextmanager
def watched_attention() -> Iterator[list[Tensor]]:
    """Within the context, gather the attention weights (B, H, Lq, Lk) of every block that `image_features` passes through.

    Lk counts the class token, the patches, then any prompts; Lq is 1 in the last block of a tower that pools its class token.
    """
    gathered: list[Tensor] = []
    token = _watching.set(gathered)
    try:
        yield gathered
    finally:
        _watching.reset(token)


def watched() -> bool:
    """Whether attention is being watched, so that no shortcut around `image_features` may be taken."""
    return _watching.get() is not None


def attention_problem(block: Any) -> str | None:
    """Say why a block's attention cannot be computed functionally, or None where it can.

    A wrapper around the attention module (PEFT's, say) still shows the weights inside it; computing from
    those would silently ignore the wrapper, so only the plain class and its split form are accepted.
    """
    attention = getattr(block, "attn", None)
    if isinstance(attention, SplitAttention):
        return None
    if type(attention) is not nn.MultiheadAttention or hasattr(block, "ln_attn"):
        return f"its blocks use {type(attention).__name__}, not plain multi-head attention"
    if (
        attention.in_proj_weight is None
        or attention.bias_k is not None
        or attention.add_zero_attn
        or attention.dropout
        or hasattr(block, "ln_1_kv")
    ):
        return "its attention uses options outside those of CLIP"
    return None


def project_qkv(attention: Any, x: Tensor) -> Heads:
    """Return the module's queries, keys and values of x (..., L, W), each (..., L, H, d)."""
    if isinstance(attention, SplitAttention):
        q, k, v = attention.project(x)
        return q, k, v
    heads = attention.num_heads
    packed = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = packed.view(*x.shape[:-1], 3, heads, x.shape[-1] // heads).unbind(-3)
    return q, k, v


def project_part(attention: Any, x: Tensor, start: int, stop: int) -> tuple[Tensor, ...]:
    """Return some of queries (0), keys (1) and values (2) of x, parts start..stop, each (..., L, H, d)."""
    if isinstance(attention, SplitAttention):
        return attention.project(x, start, stop)
    heads, width = attention.num_heads, x.shape[-1]
    rows = slice(start * width, stop * width)
    bias = attention.in_proj_bias
    packed = F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])
    return tuple(packed.view(*x.shape[:-1], stop - start, heads, width // heads).unbind(-3))


def project_out(attention: Any, x: Tensor) -> Tensor:
    """Return the module's output projection of the concatenated heads (..., L, W)."""
    if isinstance(attention, SplitAttention):
        projected: Tensor = attention.out_proj(x)  # a call, so that whatever wraps the layer takes part
        return projected
    return F.linear(x, attention.out_proj.weight, attention.out_proj.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of q (B, H, Lq, d) over k, v (B, H, Lk, d), with an additive bias."""
    bias = None if bias is None else bias.to(q.dtype)
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and q.requires_grad:
        # The fused kernel's half-precision backward is slower on CPUs than the plain products.
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = (logits if bias is None else logits + bias).softmax(-1)
        return torch.matmul(weights.to(v.dtype), v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def self_attention(
    attention: Any,
    x: Tensor,
    layer: int = 0,
    *,
    seams: Seams = PLAIN,
    bias: Tensor | None = None,
    keep: slice | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Self-attention of normalised tokens x (B, L, W); returns (B, Lq, W) for the kept query rows.

    Args:
        attention: a plain `nn.MultiheadAttention`.
        x: input (B, L, W).
        layer: index handed to the seams.
        seams: the adapter's changes.
        bias: the tower's own additive mask, (L, L) or broadcastable to (B, H, L, L).
        keep: query rows to compute; keys and values always come from all rows.
        seen: normalised tokens (B, n, W) or (1, n, W) behind x that are attended to and ask nothing
            themselves; what all images share is projected once.
    """
    length = x.shape[1]
    if seams.qkv is not None:
        q, k, v = seams.qkv(layer, attention, x)
        q = q if keep is None else q[:, keep]
    elif keep is None:
        q, k, v = project_qkv(attention, x)
    else:
        (q,) = project_part(attention, x[:, keep], 0, 1)
        k, v = project_part(attention, x, 1, 3)
    if seen is not None:
        if seams.qkv is not None:
            _, more_k, more_v = seams.qkv(layer, attention, seen)
        else:
            more_k, more_v = project_part(attention, seen, 1, 3)
        k = torch.cat([k, more_k.expand(k.shape[0], -1, -1, -1)], 1)  # not len(): an export keeps the number of images open
        v = torch.cat([v, more_v.expand(v.shape[0], -1, -1, -1)], 1)
        keep = slice(0, length) if keep is None else keep
    bias = bias if bias is None or keep is None else bias[..., keep, :]
    extra = None if seams.bias is None else seams.bias(layer)
    if extra is not None:
        if keep is not None and extra.shape[-2] == k.shape[1]:
            extra = extra[..., keep, :]
        bias = extra if bias is None else bias + extra
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if seams.weights is None:
        out = attend(q, k, v, bias)
    else:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        shares = (scores if bias is None else scores + bias.to(q.dtype)).softmax(-1)
        seams.weights(layer, shares)
        out = shares @ v
    if seams.heads is not None:
        out = seams.heads(layer, out)
    merged = out.transpose(1, 2).flatten(2)
    return project_out(attention, merged) if seams.out is None else seams.out(layer, attention, merged)


def value_attention(attention: Any, x: Tensor) -> Tensor:
    """What attention adds where values are also queries and keys: normalised tokens (B, L, W) -> (B, L, W).

    softmax(v v^T d^-0.5) v per head, through the module's own output projection (CLIP Surgery, arXiv 2304.05653; AnoVL,
    arXiv 2308.15939): tokens attend to those that say the same, which keeps patch features local.
    """
    (v,) = (part.transpose(1, 2) for part in project_part(attention, x, 2, 3))
    return project_out(attention, attend(v, v, v).transpose(1, 2).flatten(2))


def residual(
    block: Any, x: Tensor, attention: Callable[[Tensor], Tensor], kept: Tensor | None = None
) -> Tensor:
    """Pass tokens x (..., L, W) through one pre-LN block whose attention is given as a function.

    Args:
        block: open_clip's residual block (its norms, layer scales and MLP are used as they are).
        x: tokens entering the block.
        attention: maps normalised tokens to what attention adds, for all rows or for the kept ones.
        kept: the rows of x that `attention` answers for, where it does not answer for all.
    """
    x = (x if kept is None else kept) + block.ls_1(attention(block.ln_1(x)))
    out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return out


def run(
    blocks: Sequence[Any],
    x: Tensor,
    *,
    mask: Tensor | None = None,
    prompts: Sequence[Tensor] = (),
    keep: slice | None = None,
    seams: Seams = PLAIN,
    first: int = 0,
) -> Tensor:
    """Pass tokens (B, L, W) through a stack of blocks, with prompts behind them.

    Prompt vectors of block i replace what block i - 1 made of its own, and those of the last prompted block
    flow on. Where the outputs at the prompts' places are not read (they are replaced, or the last block has been
    reached and `keep` ends before them) the prompts take part as keys and values only.

    Args:
        blocks: open_clip residual blocks.
        x: tokens (B, L, W).
        mask: additive attention mask, over the prompts too, or None.
        prompts: vectors (n, W) or (B, n, W) behind x at the input of block 0, 1, ...
        keep: rows to compute in the last block, for towers that pool one token; the result has only these
            rows.
        seams: the adapter's changes inside attention.
        first: number of the stack's first block in its tower, for the seams.

    Raises:
        BackboneError: more prompts than blocks, or prompts of several lengths.
    """
    if len(prompts) > len(blocks):
        raise BackboneError(
            f"Prompts were given for {len(prompts)} layers, but the tower has {len(blocks)}: lower the "
            "prompt depth."
        )
    _check_lengths(prompts)
    places, last = x.shape[1], len(blocks) - 1
    for layer, block in enumerate(blocks):
        seen, rows = None, keep if layer == last else None
        if layer < len(prompts):
            own = prompts[layer].to(x.dtype)
            own = own if own.ndim == 3 else own[None]
            if layer + 1 < len(prompts) or (rows is not None and rows.indices(places)[1] == rows.stop):
                seen = own
            else:
                x = torch.cat([x, own.expand(x.shape[0], -1, -1)], 1)
        if seams.enter is not None:
            seams.enter(first + layer, block, x)
        x = residual(
            block,
            x,
            lambda h, block=block, layer=first + layer, rows=rows, seen=seen: self_attention(  # type: ignore[misc]
                block.attn,
                h,
                layer,
                seams=seams,
                bias=mask,
                keep=rows,
                seen=None if seen is None else block.ln_1(seen),
            ),
            None if rows is None else x[:, rows],
        )
    return x


def _check_lengths(prompts: Sequence[Tensor]) -> None:
    lengths = {vectors.shape[-2] for vectors in prompts}
    if len(lengths) > 1:
        raise BackboneError(
            f"The prompts of several layers have {', '.join(map(str, sorted(lengths)))} tokens: all need the same "
            "number."
        )


def overwrite(x: Tensor, vectors: Tensor, slots: slice) -> Tensor:
    """Return tokens x (B, L, W) with the rows `slots` replaced by vectors (n, W) or (B, n, W)."""
    start, stop, _ = slots.indices(x.shape[1])
    new = vectors.to(x.dtype).expand(x.shape[0], -1, -1)
    if new.shape[1] != stop - start:
        raise BackboneError(
            f"A deeper prompt has {new.shape[1]} tokens where the first has {stop - start}: all need the "
            "same number."
        )
    return torch.cat([x[:, :start], new, x[:, stop:]], dim=1)


def image_problem(spec: BackboneSpec) -> str | None:
    """Say in a sentence why image prompts and other changes inside the image tower are impossible, or None.

    Callable before weights load.
    """
    kinds = {"resnet": "a ResNet", "timm": "a timm model"}
    if spec.image_tower != "vit":
        return (
            f"The image tower of {spec.name} is {kinds[spec.image_tower]}; this needs one of open_clip's own "
            "ViT towers."
        )
    if spec.image_pool not in ("tok", "avg"):
        return (
            f"The image tower of {spec.name} pools by attention; this needs a tower that reads its class "
            "token or the mean."
        )
    if not spec.plain_attention:
        return (
            f"The image tower of {spec.name} uses a variant of attention that Limpet does not compute itself."
        )
    return None


def image_features(
    backbone: FrozenClip, images: Tensor, prompts: Sequence[Tensor] = (), *, seams: Seams = PLAIN
) -> Tensor:
    """Image features of a native ViT tower, with prompt tokens and changes inside its blocks.

    Args:
        backbone: whose image tower is used; gradients flow to prompts and to what the seams bring in.
        images: network input (B, 3, H, W).
        prompts: the first (n, W) or (B, n, W) goes behind the patch tokens, before `ln_pre` and without a
            position; the following ones overwrite the last n tokens as they are, before block 1, 2, ...
        seams: the adapter's changes inside attention.

    Returns:
        Features (B, D), not normalised.

    Raises:
        BackboneError: a tower this cannot be done on, or more prompts than blocks.
    """
    x = embed_image(backbone, images)
    visual = backbone.model.visual
    gathered = _watching.get()
    if gathered is not None:
        seams = replace(seams, weights=lambda _, shares: gathered.append(shares))
    if prompts:
        prompts = [visual.ln_pre(prompts[0].to(x.dtype)), *prompts[1:]]
    # Only the pooled tokens' outputs are read, so the last block computes nothing else.
    keep = slice(0, 1) if visual.pool_type == "tok" else slice(0, x.shape[1])
    x = run(visual.transformer.resblocks, x, prompts=prompts, keep=keep, seams=seams)
    return pool_image(backbone, x)


def embed_image(backbone: FrozenClip, images: Tensor) -> Tensor:
    """Tokens (B, 1 + P, W) that enter the first block of a native ViT tower: the class token, then the patches row by row.

    Raises:
        BackboneError: a tower whose blocks cannot be computed here.
    """
    problem = image_problem(backbone.spec)
    visual = backbone.model.visual
    if problem is None:
        wrapped = next((p for p in map(attention_problem, visual.transformer.resblocks) if p), None)
        problem = (
            f"The image tower of {backbone.spec.name} cannot be changed: {wrapped}." if wrapped else None
        )
    if problem is not None:
        raise BackboneError(problem)
    tokens: Tensor = visual._embeds(images.to(backbone.device, backbone.dtype))
    return tokens


def pool_image(backbone: FrozenClip, x: Tensor) -> Tensor:
    """Features (B, D), not normalised, from the tokens (B, L, W) behind the last block; one that is pooled is enough."""
    visual = backbone.model.visual
    pooled: Tensor = visual._pool(x)[0]
    return pooled if visual.proj is None else torch.matmul(pooled, visual.proj)


def project_tokens(backbone: FrozenClip, x: Tensor) -> Tensor:
    """Each token (B, L, W) behind the last block as a feature (B, L, D) of the joint space, not normalised."""
    visual = backbone.model.visual
    x = visual.ln_post(x)
    return x if visual.proj is None else torch.matmul(x, visual.proj)


def image_tokens(backbone: FrozenClip, images: Tensor, block: int | None = None) -> Tensor:
    """Patch tokens (B, P, W) of network input (B, 3, H, W) behind the last block of any image tower.

    With `block`, those behind this block (counted from 0) of a native ViT, before any norm.
    """
    visual = backbone.model.visual
    kind = backbone.spec.image_tower
    x: Tensor
    if kind == "vit" and block is not None:
        x = visual._embeds(images)
        for layer in visual.transformer.resblocks[: block + 1]:
            x = layer(x)
        return x[:, 1:]
    if kind == "vit":
        x = visual.transformer(visual._embeds(images))
        x = x if visual.attn_pool is not None else visual.ln_post(x)
        return x[:, 1:]
    if kind == "resnet":
        x = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
    else:
        x = visual.trunk.forward_features(images)
    if x.ndim == 4:
        if kind == "timm" and getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC":
            return x.flatten(1, 2)
        return x.flatten(2).transpose(1, 2)
    return x[:, getattr(visual.trunk, "num_prefix_tokens", 0) :]
