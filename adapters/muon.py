"""Muon for matrices, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

LARGE_TABLE = 4096  # rows: an embedding of a vocabulary
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steep at zero, about 1 for singular values from 0.1 to 1


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of `matrices` (n, R, C), by Newton-Schulz iteration.

    Half precision is enough, and used, where matrices are not float64.
    """
    a, b, c = QUINTIC
    x = matrices if matrices.dtype == torch.float64 else matrices.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.transpose(-1, -2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x if wide else x.transpose(-1, -2)
    result: Tensor = x.to(matrices.dtype)
    return result


class Muon(Optimizer):
    """Momentum whose update is made orthogonal, scaled to the size that an AdamW update would have.

    Sources: Jordan et al. 2024 (Muon), Liu et al. 2025, equation 4 (the factor 0.2 sqrt(max(R, C)) and decoupled decay).

    Args:
        named: (name, parameter) pairs. Matrices that are not embeddings are Muon's; stacked q/k/v matrices are taken
            apart; everything else is AdamW's.
        lr: learning rate of the matrices.
        rest_lr: learning rate of everything else.
        momentum: of the matrices (Nesterov's).
        betas, eps: AdamW's.
        weight_decay: of all matrices and of no vector or embedding.
    """

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], lr: float, rest_lr: float, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        kinds: dict[tuple[bool, int], list[nn.Parameter]] = {}
        for name, parameter in named:
            matrix = parameter.ndim == 2 and "embedding" not in name
            parts = 3 if matrix and name.endswith("in_proj_weight") else 1
            kinds.setdefault((matrix, parts), []).append(parameter)
        groups = [
            {"params": params, "matrices": matrix, "parts": parts, "lr": lr if matrix else rest_lr,
             "weight_decay": weight_decay if matrix else 0.0}
            for (matrix, parts), params in kinds.items()
        ]  # fmt: skip
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._matrices if group["matrices"] else self._rest
            update(group)
        return loss

    def _matrices(self, group: dict[str, Any]) -> None:
        shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault((parameter.shape[0], parameter.shape[1]), []).append(parameter)
        for (rows, columns), parameters in shapes.items():  # equal shapes go through the iteration together
            ahead = []
            for parameter in parameters:
                state, grad = self.state[parameter], cast(Tensor, parameter.grad)
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(grad, 1 - group["momentum"])
                ahead.append(grad.lerp(state["momentum"], group["momentum"]))
            parts = group["parts"]
            stacked = torch.stack(ahead).reshape(-1, rows // parts, columns)
            updates = orthogonalised(stacked).reshape(len(parameters), rows, columns)
            size = 0.2 * max(rows // parts, columns) ** 0.5 * group["lr"]
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)

    def _rest(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state, grad = self.state[parameter], parameter.grad
            if not state:
                state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
            state["step"] += 1
            # Of a large table only the rows that took part are looked at: the others have no gradient, and no decay.
            rows = grad.any(1).nonzero()[:, 0] if parameter.ndim == 2 and len(parameter) > LARGE_TABLE else None
            if rows is not None:
                grad = grad[rows]
            mean, square, values = (t if rows is None else t[rows] for t in (state["mean"], state["square"], parameter))
            mean = mean.lerp(grad, 1 - first)
            square = (square * second).addcmul_(grad, grad, value=1 - second)
            scale = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
            values = values * (1 - group["lr"] * group["weight_decay"])
            values.addcdiv_(mean, scale, value=-group["lr"] / (1 - first ** state["step"]))
            for kept, new in ((state["mean"], mean), (state["square"], square), (parameter, values)):
                if rows is None:
                    kept.copy_(new)
                else:
                    kept[rows] = new
