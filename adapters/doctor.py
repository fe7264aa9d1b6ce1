"""`limpet doctor`: what this installation is made of and what it can run on."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("limpet", "torch", "torchvision", "lightning", "open_clip_torch", "peft", "torchmetrics"),
    *("omegaconf", "pyyaml", "typer", "rich", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow"),
    *("pillow", "safetensors", "matplotlib", "jinja2", "platformdirs"),
)
OPTIONAL = ("transformers", "onnx", "onnxscript", "onnxruntime")
MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}


def versions() -> list[tuple[str, str]]:
    """(package, version or "not installed") of what Limpet needs, and of what it can use."""
    return [(name, _version(name) or "not installed") for name in (*PACKAGES, *OPTIONAL)]


def problems() -> list[str]:
    """Sentences about what should be mended; empty where all is well."""
    found = [f"{name} is not installed: pip install {name}" for name in PACKAGES if _version(name) is None]
    for name, bad in MALICIOUS.items():
        if _version(name) in bad:
            found.append(
                f"{name} {_version(name)} is a compromised release: uninstall it, change this machine's "
                "passwords and tokens, then: pip install -U lightning"
            )
    return found


def machine() -> list[tuple[str, str]]:
    """(what, value): Python, system, cores, GPU, cache folder."""
    rows = [
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("System", platform.platform()),
        ("Cores", _cores()),
    ]
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        rows.append(("GPU", "unknown: torch is not installed"))
    else:
        rows += [("CPU threads", str(torch.get_num_threads())), ("GPU", _gpu(torch))]
    return [*rows, ("Feature cache", _cache()), ("Limpet", str(Path(__file__).parent))]


def size(count: float) -> str:
    """A number of bytes in words: `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} usable of {os.cpu_count()}"


def _gpu(torch: object) -> str:
    cuda, backends = getattr(torch, "cuda", None), getattr(torch, "backends", None)
    if cuda is not None and cuda.is_available():
        names = [cuda.get_device_properties(i) for i in range(cuda.device_count())]
        return ", ".join(f"{p.name} ({size(p.total_memory)})" for p in names)
    mps = getattr(backends, "mps", None)
    if mps is not None and mps.is_available():
        return "Apple GPU (mps)"
    return "none (everything runs on the CPU)"


def _cache() -> str:
    try:
        features = importlib.import_module(".features", __package__)
    except ImportError as err:
        return f"unknown ({err})"
    return f"{features.cache_dir()} ({size(features.cache_size())})"
