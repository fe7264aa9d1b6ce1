"""Data modules: where images and names come from. Knows no CLIP."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

from .configs import SCHEMAS, DataConfig
from .errors import DataError, nearest

if TYPE_CHECKING:
    from .base import DataModule

__all__ = ["SCHEMAS", "DataConfig", "DataError", "load"]


def load(config: DataConfig, seed: int) -> DataModule:
    """Make the data module that a data section names (nothing is read before its `setup`).

    Args:
        config: a dataclass of `limpet.datamodules.configs`; its `name` is the module's file name.
        seed: seed of the run: few-shot draw, order of batches and augmentation.

    Raises:
        DataError: `config.name` is not a data module, or a value of the config cannot be used.
    """
    if config.name not in SCHEMAS:
        known = ", ".join(sorted(SCHEMAS))
        raise DataError(f"data.name is '{config.name}'; known are {known}.{nearest(config.name, SCHEMAS)}")
    module = importlib.import_module(f".{config.name}", __name__)
    from .base import DataModule

    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, DataModule) and found.__module__ == module.__name__:
            return found(config, seed)
    raise DataError(f"The file datamodules/{config.name}.py holds no DataModule.")
