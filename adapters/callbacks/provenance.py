"""What a run was made with: versions, machine, times. Kept apart from metrics.json, which must be reproducible to the bit."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "limpet", "torch", "torchvision", "lightning", "open_clip_torch", "peft", "torchmetrics", "omegaconf",
    "scikit-learn", "numpy", "pandas", "pillow", "safetensors",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def environment() -> dict[str, Any]:
    """Versions, machine and threads, for env.json."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
