"""Continual learning: what is done against forgetting while a method is trained on new images."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..errors import LimpetError

if TYPE_CHECKING:
    from .base import Regulariser, Task
    from .configs import ContinualConfig

__all__ = ["Regulariser", "Task", "make"]


def __getattr__(name: str) -> Any:
    """`Regulariser` and `Task`, loaded when asked for: reading a recipe needs no torch."""
    if name in ("Regulariser", "Task"):
        return getattr(importlib.import_module(".base", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make(config: ContinualConfig) -> Regulariser:
    """The regulariser that a continual section names: the class in the file of that name, or plain training for "none"."""
    from .base import Regulariser

    if config.name == "none":
        return Regulariser(config)
    module = importlib.import_module(f".{config.name}", __name__)
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, Regulariser) and found.__module__ == module.__name__:
            return found(config)
    raise LimpetError(f"The file continual/{config.name}.py holds no Regulariser.")
