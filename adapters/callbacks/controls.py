"""Controls: the same method with something taken out, measured on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapter import Adapter
from ..classes import ClassSet
from .base_to_new import measure


def measure_controls(adapter: Adapter, data: Any, spaces: Mapping[str, ClassSet]) -> dict[str, dict[str, Any]]:
    """Results of each control of an adapter: name -> label space -> metrics; empty for methods without controls.

    A control learns nothing from images: it is set up for the adapter's present classes and asked.

    Args:
        adapter: an adapter after training.
        data: a data module with what the adapter reads.
        spaces: label space -> its classes.
    """
    found = {}
    for name, config in adapter.controls().items():
        control = type(adapter)(config).setup(adapter.backbone, adapter.classes)
        found[name] = measure(control, data, spaces).results()
    return found
