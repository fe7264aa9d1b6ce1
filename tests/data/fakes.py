"""Miniature data sets in their real layout: each file beside this one has `write(root, save)`."""

import importlib.util
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem != "fakes")


def picture(seed, size=16):
    """Noise around a colour; the same for the same seed."""
    rng = np.random.default_rng(zlib.crc32(str(seed).encode()))
    return (rng.integers(0, 200, 3) + rng.integers(0, 50, (size, size, 3))).astype(np.uint8)


def save(path):
    """Write a picture of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture("/".join(path.parts[-3:]))).save(path)


def text(path, *lines):
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write(name, root):
    """Write one miniature data set below a root, in the folder of its own that it has there."""
    spec = importlib.util.spec_from_file_location(f"fake_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(Path(root), save, text)
