"""peft's LoRA layer whose training step is one function: the same numbers in a third of the passes over memory.

What a plain layer does beside the frozen product is a few passes over its input and output: on a CPU, where a random number an
element is the dearest of them, they take as long as the product itself. Here sixteen or eight bits decide about each element of the
dropout, the low-rank product is added in place, and only the mask is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn import functional as F

ROWS = 512  # passed through at once, so that mask and masked input stay in the processor's cache


def keep_mask(shape: torch.Size, dropout: float, device: torch.device) -> tuple[Tensor, float]:
    """Which elements dropout leaves, and the share of them that is expected.

    Drawn from PyTorch's generator, 8 random bits an element where they tell `dropout` exactly (1/4, 1/2, ...), else 16: a probability
    is then off by at most 2^-17, and so is the share that is returned.

    Args:
        shape: of the mask.
        dropout: probability that an element is left out, from 0 to below 1.
        device: of the mask.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(1 - dropout), 1 - dropout
    kind, levels = (torch.uint8, 256) if (dropout * 256).is_integer() else (torch.int16, 65536)
    below = min(round(dropout * levels), levels - 1)
    count, each = shape.numel(), torch.int64.itemsize // kind.itemsize
    words = torch.empty(-(-count // each), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(kind)[:count].view(shape)
    return bits >= (below if levels == 256 else below - levels // 2), 1 - below / levels


class _LowRankLinear(torch.autograd.Function):
    """x W^T + b + s (m x) A^T B^T for a frozen W: gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, mask: Tensor | None
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        kept = None if mask is None else mask.view(rows.shape)
        result = F.linear(rows, weight, bias)
        narrow = rows.new_empty(len(rows), len(a))
        for part in _parts(len(rows)):
            torch.mm(rows[part] if kept is None else rows[part] * kept[part].to(rows.dtype), a.T, out=narrow[part])
            result[part].addmm_(narrow[part], b.T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, narrow, mask)
        ctx.scale = scale
        return result.view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, narrow, mask = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        kept = None if mask is None else mask.view(rows.shape)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b.T)
        for part in _parts(len(rows)):
            back = grad[part] @ b * ctx.scale
            grad_b.addmm_(narrow[part].T, grad[part], alpha=ctx.scale)
            if kept is None:
                grad_a.addmm_(back.T, rows[part])
                if grad_x is not None:
                    grad_x[part].addmm_(back, a)
                continue
            share = kept[part].to(rows.dtype)
            grad_a.addmm_(back.T, rows[part] * share)
            if grad_x is not None:
                grad_x[part].addcmul_(back @ a, share)
        return None if grad_x is None else grad_x.view(x.shape), None, None, grad_a, grad_b.T, None, None


def quicken(layer: Any) -> None:
    """Make a LoRA layer that peft put in train in one function; layers of other kinds stay as they are."""
    if type(layer) is Linear:
        layer.__class__ = LoRALinear


def _parts(count: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, count, ROWS)]


class LoRALinear(Linear):  # type: ignore[misc]  # peft's classes are not typed
    """peft's layer; a training step of plain LoRA in one precision goes through one function."""

    def forward(self, x: Tensor, *given: Any, **options: Any) -> Tensor:
        """W x + b + s B A drop(x), (..., in) -> (..., out)."""
        if given or options or not torch.is_grad_enabled() or not self._at_once(x):
            answer: Tensor = super().forward(x, *given, **options)
            return answer
        (name,) = self.active_adapters
        base, a, b = self.get_base_layer(), self.lora_A[name].weight, self.lora_B[name].weight
        dropout, scale, mask = self.lora_dropout[name], float(self.scaling[name]), None
        if self.training and getattr(dropout, "p", 0.0):
            mask, kept = keep_mask(x.shape, dropout.p, x.device)
            scale /= kept
        result: Tensor = _LowRankLinear.apply(x, base.weight, base.bias, a, b, scale, mask)
        return result

    def _at_once(self, x: Tensor) -> bool:
        """Whether this is y = W x + b + s B A drop(x) and nothing else, in one precision, W frozen."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant or self.lora_B[name].bias is not None:
            return False
        base, a = self.get_base_layer(), self.lora_A[name].weight
        return (
            type(base) is torch.nn.Linear
            and x.dtype == base.weight.dtype == a.dtype
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
            and not torch.is_autocast_enabled(x.device.type)
        )
