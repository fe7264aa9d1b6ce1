"""WiSE-FT: after training, go part of the way from the frozen towers to the trained ones (Wortsman et al. 2022).

Any method that trains towers takes `method.interpolate`; its `Config` inherits `Interpolation`.
Source: arXiv 2109.01903; theta = (1 - a) theta_0 + a theta_1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .adapter import Adapter, Batch

GRID = tuple(step / 10 for step in range(11))  # the released code's sweep
DEFAULT = 0.5  # the released code's share


@dataclass
class Interpolation:
    """The setting of the post-step.

    Attributes:
        interpolate: None; the share a in [0, 1] of the trained weights; or "val", which chooses a on validation images.
    """

    interpolate: Any = None


def problem(config: Any) -> str | None:
    """Why `config.interpolate` cannot be used, as a sentence, or None."""
    share = getattr(config, "interpolate", None)
    if share is None or share == "val":
        return None
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        return (
            f"method.interpolate is '{share}': it is the share of the trained weights, from 0 (frozen) to 1 (trained), "
            "or val to choose it on the validation images."
        )
    return None


def post_step(adapter: Adapter, batches: Sequence[Batch]) -> None:
    """Do what `method.interpolate` asks for, after training and selection; record the share in `adapter.selected`.

    With "val", of the shares 0, 0.1, ... 1 the most accurate is taken, and of equals the one nearest to a half.

    Args:
        adapter: a trained adapter in evaluation mode.
        batches: validation batches; may be empty.
    """
    share = getattr(adapter.config, "interpolate", None)
    if share is None:
        return
    if share == "val" and not batches:
        share = DEFAULT
        adapter.notes.append(f"There are no validation images to choose method.interpolate on; {DEFAULT} was used.")
    elif share == "val":
        scores = {candidate: _accuracy(adapter, candidate, batches) for candidate in GRID}
        share = max(GRID, key=lambda candidate: (scores[candidate], -abs(candidate - DEFAULT)))
    adapter.interpolated(float(share))
    adapter.selected["interpolate"] = float(share)


@torch.no_grad()
def _accuracy(adapter: Adapter, share: float, batches: Sequence[Batch]) -> float:
    adapter.interpolated(share)
    right = sum(int((adapter.logits(batch).argmax(-1) == batch["label"]).sum()) for batch in batches)
    return right / sum(len(batch["label"]) for batch in batches)
