"""Temperature and thresholds of an adapter that went through sessions: fitted on the validation images of all sessions so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .calibration import Calibration, calibrate
from .tasks.classification import evaluate, tempered

if TYPE_CHECKING:
    from .adapter import Adapter
    from .callbacks.base_to_new import Spaces
    from .classes import ClassSet
    from .streams import Plan

NONE = (
    "The sessions have no validation images, so there is no temperature and no threshold: `limpet predict` gives plain "
    "probabilities and takes --threshold alone. Images of split val would give both."
)


def fit(adapter: Adapter, sessions: Iterable[Any], seen: ClassSet) -> Calibration | None:
    """Fit on validation images with all classes so far as candidates, which is what `limpet predict` asks later.

    Args:
        adapter: after the last of `sessions`.
        sessions: data modules of all sessions so far, with what the method reads of an image.
        seen: all classes so far.

    Returns:
        None without validation images.
    """
    answers = [evaluate(adapter, data.within(seen.names).val_dataloader(), seen) for data in sessions]
    return calibrate([part for a in answers for part in a.parts], torch.cat([a.labels for a in answers]))


def note(metrics: dict[str, Any], spaces: Spaces, content: Mapping[str, Any], plan: Plan) -> None:
    """Put what the last artefact's calibration does on the test images into `metrics`, or say why there is none.

    Args:
        metrics: the content of metrics.json so far; changed.
        spaces: answers after the last session; they are given the temperature.
        content: `adapter.json` of the last artefact.
        plan: the sessions.
    """
    found = Calibration.from_dict(content["info"].get("calibration"))
    if found is None:
        metrics["notes"].append(NONE)
        return
    metrics["calibration"] = tempered(found, spaces)
    if plan.known is not None:
        metrics["notes"].append(
            f"The temperature was fitted on the {found.images} validation images of this run; those that the adapter saw before "
            "are not at hand."
        )
