"""The version of this installation, read only when asked for."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("limpet")
except metadata.PackageNotFoundError:  # the folders copied somewhere without installing
    __version__ = "0+unknown"
