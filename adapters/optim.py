"""Optimisers, and the learning-rate schedule of the reference code."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import RecipeError, nearest
from .sections import OPTIMISERS, SCHEDULES

if TYPE_CHECKING:
    from .recipe import OptimConfig


def learning_rate(config: OptimConfig, time: int, total: int) -> float:
    """Learning rate at `time` (0-based epoch, or step when `config.interval` is "step") of `total`.

    `warmup_lr` for the first `warmup` units; then the cosine counts from 0 with period `total`, not `total - warmup`, so it
    starts at the peak and does not quite reach its end. Source: Dassl's scheduler as used by CoOp, CoCoOp, MaPLe.
    "warmup_cosine" rises in a line to the peak instead, and its cosine ends with training: that of open_clip, and of ZSCL.
    With `restart` there are two such courses, one before that time and one from it (SGDR, Loshchilov & Hutter 2017).
    """
    if config.restart:
        time, total = (time, config.restart) if time < config.restart else (time - config.restart, total - config.restart)
    if config.schedule == "warmup_cosine":
        if time < config.warmup:
            return config.lr * (time + 1) / config.warmup
        done = min((time - config.warmup) / max(total - config.warmup, 1), 1.0)
        return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2
    if time < config.warmup:
        return config.warmup_lr
    if config.schedule == "constant":
        return config.lr
    cosine = (1 + math.cos(math.pi * (time - config.warmup) / max(total, 1))) / 2
    return config.min_lr + (config.lr - config.min_lr) * cosine


def build_optimiser(
    parameters: Iterable[nn.Parameter], config: OptimConfig, names: Iterable[str] | None = None
) -> Optimizer:
    """Optimiser of a recipe's `optim` section.

    Args:
        parameters: what is trained.
        config: the section.
        names: of the parameters, by which muon tells embeddings and stacked matrices.

    Raises:
        RecipeError: unknown optimiser or schedule.
    """
    for key, value, known in (("name", config.name, OPTIMISERS), ("schedule", config.schedule, SCHEDULES)):
        if value not in known:
            raise RecipeError(f"optim.{key} is '{value}'.{nearest(value, known)} Known: {', '.join(known)}.")
    groups: list[Any] = list(parameters)
    if config.name == "muon":
        from .muon import Muon

        named = list(zip(list(names or [""] * len(groups)), groups, strict=True))
        rest = config.lr if config.rest_lr is None else config.rest_lr
        options: Any = {"momentum": config.momentum, "betas": tuple(config.betas), "eps": config.eps}
        return Muon(named, config.lr, rest, weight_decay=config.weight_decay, **options)
    if config.decay == "matrices":
        kinds = [[p for p in groups if p.ndim >= 2], [p for p in groups if p.ndim < 2]]
        groups = [{"params": kinds[0]}, {"params": kinds[1], "weight_decay": 0.0}]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    betas = (config.betas[0], config.betas[1])
    return kind(groups, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, amsgrad=config.amsgrad)


def build_schedule(optimiser: Optimizer, config: OptimConfig, total: int) -> LambdaLR:
    """Schedule of `optimiser` over `total` epochs or steps, to be stepped once per `config.interval`."""
    return LambdaLR(optimiser, lambda time: learning_rate(config, time, total) / config.lr)


def unreached(config: OptimConfig, total: int) -> str:
    """What of the schedule lies behind the `total` epochs or steps of training, as a sentence, or ""."""
    units = "steps" if config.interval == "step" else "epochs"
    if config.restart >= total > 0:
        return f"Training ended after {total} {units}, before the schedule began anew (optim.restart={config.restart})."
    if config.warmup >= total > 0 and learning_rate(config, total - 1, total) < config.lr:
        return (
            f"Training ended after {total} {units}, all of them warm-up (optim.warmup={config.warmup}): the learning rate never "
            f"reached optim.lr={config.lr:g}."
        )
    return ""
