"""Where bfloat16 is computed in, and what is used where it is not."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; without them PyTorch emulates it, slower than float32."""
    cpu: Any = torch.cpu
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bf16_problem(device: str | torch.device, key: str) -> str | None:
    """Say that float32 is used in place of the bfloat16 that `key` of the recipe asks for, or None where it is not.

    Args:
        device: where is computed; only a CPU can lack bfloat16.
        key: "backbone.precision" or "trainer.precision".
    """
    if torch.device(device).type != "cpu" or cpu_has_bf16():
        return None
    return (
        f"{key} asks for bfloat16, for which this CPU has no instructions: float32 is used, which is faster here "
        "and exact."
    )


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within the context, autocast is off: for what is short beside a tower and coarse in half precision, such as logits."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
