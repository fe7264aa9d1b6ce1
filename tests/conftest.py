"""Options and fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Keep the features of the tests away from the user's own cache, and Ctrl-C working."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the processes share the cores
        os.environ["OMP_NUM_THREADS"] = "1"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so begins what a script starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests press Ctrl-C
    os.environ["LIMPET_CACHE"] = tempfile.mkdtemp(prefix="limpet-cache-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        default=str(Path(__file__).parent / "parity" / "golden"),
        help="folder of golden cases, NAME/NAME.json and NAME/NAME.safetensors",
    )


@pytest.fixture(scope="session")
def fakes() -> Any:
    """tests/data: `fakes.write(name, root)` writes a published data set in miniature, in its real layout."""
    spec = importlib.util.spec_from_file_location("fakes", Path(__file__).parent / "data" / "fakes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    """The embedded backbone, loaded once; treat it as read-only."""
    from limpet.backbone import FrozenClip

    return FrozenClip.load("limpet-tiny")


VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 4}


def build(
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    custom: bool = False,
    **options: Any,
) -> torch.nn.Module:
    """A CLIP with random weights large enough that mistakes show."""
    from open_clip.model import CLIP, CustomTextCLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        kind = CustomTextCLIP if custom else CLIP
        model = kind(16, {**VISION, **(vision or {})}, {**TEXT, **(text or {})}, **options)
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
            elif parameter.shape[0] == TEXT["vocab_size"] or parameter.shape[0] <= 24:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="session")
def random_clip() -> Callable[..., Any]:
    """Make a FrozenClip of random weights, float64 unless told; equal requests share one."""
    from limpet.backbone import FrozenClip

    made: dict[str, Any] = {}

    def make(dtype: torch.dtype = torch.float64, **options: Any) -> Any:
        key = repr((dtype, options))
        if key not in made:
            made[key] = FrozenClip.from_model(build(**options).to(dtype))
        return made[key]

    return make


@pytest.fixture(scope="session")
def random_model() -> Callable[..., torch.nn.Module]:
    """Make an open_clip model of random weights."""
    return build


def draw_folder(root: Path, species: int = 3, images: int = 10, names: Any = None) -> Path:
    """Write drawn fish into `root`, a folder for each species (named as `names` says, if given)."""
    from limpet.datamodules.reef_drawing import draw_scene
    from limpet.datamodules.reef_species import NAMES

    for number in range(species):
        folder = root / (names[number] if names else NAMES[number])
        folder.mkdir(parents=True)
        for i in range(images):
            draw_scene(NAMES[number], i, size=64).image.save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def draw() -> Callable[..., Path]:
    """draw(root, species=3, images=10, names=None): a folder of drawn fish."""
    return draw_folder


@pytest.fixture(scope="session")
def fish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four species with ten drawings each; treat it as read-only."""
    return draw_folder(tmp_path_factory.mktemp("drawn") / "fish", species=4, images=10)
