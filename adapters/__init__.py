"""Limpet adapts a frozen CLIP to your own images by training something small beside it.

Names are loaded when first used, so `import limpet` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._version import __version__
    from .adapter import Adapter
    from .backbone import FrozenClip
    from .classes import ClassSet
    from .errors import LimpetError
    from .image_index import ImageIndex
    from .inference import Classifier
    from .module import AdaptationModule
    from .recipe import Recipe, load_recipe

__all__ = [
    "AdaptationModule",
    "Adapter",
    "ClassSet",
    "Classifier",
    "FrozenClip",
    "ImageIndex",
    "LimpetError",
    "Recipe",
    "__version__",
    "load_recipe",
]

_HOME = {
    "AdaptationModule": "module",
    "Adapter": "adapter",
    "ClassSet": "classes",
    "Classifier": "inference",
    "FrozenClip": "backbone",
    "ImageIndex": "image_index",
    "LimpetError": "errors",
    "Recipe": "recipe",
    "__version__": "_version",
    "load_recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the file it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
