"""Preprocessing equals open_clip's; augmentation presets, their randomness, and use in worker processes."""

import multiprocessing
import pickle
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from limpet.errors import RecipeError
from limpet.transforms import ImageTransform
from PIL import Image

PLAIN = {
    "size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3],
    "interpolation": "bicubic", "resize_mode": "shortest", "fill": 0,
}  # fmt: skip


def picture(width=57, height=41, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, [24, 40]])
@pytest.mark.parametrize("shape", [(57, 41), (20, 90), (16, 16)])
def test_equals_open_clip(resize_mode, interpolation, size, shape):
    from open_clip import image_transform

    values = {**PLAIN, "resize_mode": resize_mode, "interpolation": interpolation, "size": size, "fill": 7}
    theirs = image_transform(
        size if isinstance(size, int) else tuple(size), False, PLAIN["mean"], PLAIN["std"],
        resize_mode, interpolation, fill_color=7,
    )  # fmt: skip
    ours = ImageTransform.of(values)
    for mode in ("RGB", "L"):
        image = picture(*shape, mode=mode)
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, [24, 40]])
@pytest.mark.parametrize("shape", [(3000, 60), (40, 2000), (2001, 19), (7, 999), (70_000, 3), (1, 90_001)])
def test_long_images_are_scaled_like_others(resize_mode, interpolation, size, shape):
    """They go other ways, which may round differently."""
    from open_clip import image_transform

    if resize_mode == "longest" and shape[0] // shape[1] + shape[1] // shape[0] > 40:
        pytest.skip("open_clip has no row of pixels left")
    values = {**PLAIN, "std": [1, 1, 1], "resize_mode": resize_mode, "interpolation": interpolation, "size": size}
    shown = size if isinstance(size, int) else tuple(size)
    theirs = image_transform(shown, False, PLAIN["mean"], [1, 1, 1], resize_mode, interpolation)
    # not to black and white, where what the first of two passes overshoots is cut off
    image = picture(*shape).point(lambda value: 64 + value // 2)
    torch.testing.assert_close(ImageTransform.of(values)(image), theirs(image), rtol=0, atol=2.001 / 255)


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("preset", ["none", "natural", "mirror"])
@pytest.mark.parametrize("shape", [(1_000_000, 1), (1, 1_000_000), (5_000_000, 3)])
def test_images_of_extreme_shapes_need_little_memory(resize_mode, preset, shape):
    values = {**PLAIN, "size": 224, "resize_mode": resize_mode}
    transform = ImageTransform.of(values, train=True, augment=SimpleNamespace(preset=preset, scale=[0.1, 1]))
    image = Image.new("RGB", shape, (255, 0, 51))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = transform(image)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    middle = seen[:, 111, 111:113].T * torch.tensor(PLAIN["std"]) + torch.tensor(PLAIN["mean"])
    assert torch.isclose(middle, torch.tensor([1, 0, 0.2]), atol=1e-6).all(1).any()  # a column of its own may be mirrored


@pytest.mark.parametrize("preset", ["natural", "aerial", "microscopy"])
def test_presets_are_random_and_seeded(preset):
    transform = ImageTransform.of(PLAIN, train=True, augment=SimpleNamespace(preset=preset, scale=[0.3, 1.0]))
    torch.manual_seed(1)
    first, second = transform(picture()), transform(picture())
    assert first.shape == (3, 32, 32) and first.dtype == torch.float32 and not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(transform(picture()), first)


def test_presets_differ_in_kind():
    """Natural images are never turned upside down; aerial ones keep their colours, microscopy ones do not."""
    top = Image.new("RGB", (32, 32), (255, 0, 0))
    top.paste((0, 0, 255), (0, 16, 32, 32))

    def corners(preset):
        transform = ImageTransform.of(
            PLAIN, train=True, augment=SimpleNamespace(preset=preset, scale=[1.0, 1.0])
        )
        torch.manual_seed(0)
        return torch.stack([transform(top)[:, 2, 16] for _ in range(40)])

    assert len(corners("natural").unique(dim=0)) == 1
    assert len(corners("aerial").unique(dim=0)) >= 2
    assert len(corners("microscopy").unique(dim=0)) > 20


def test_none_and_evaluation_are_the_same():
    plain = ImageTransform.of(PLAIN)
    assert ImageTransform.of(PLAIN, train=True, augment=SimpleNamespace(preset="none", scale=[0.1, 1]))(
        picture()
    ).equal(plain(picture()))
    assert (
        ImageTransform.of(PLAIN, train=False, augment=SimpleNamespace(preset="aerial", scale=[0.1, 1]))
        == plain
    )


def test_workers_can_have_it(tiny):
    transform = tiny.transform(train=True)
    assert pickle.loads(pickle.dumps(transform)) == transform
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (result,) = pool.map(tiny.transform(), [picture()])
    assert torch.equal(result, tiny.transform()(picture()))


def test_mistakes_are_sentences():
    with pytest.raises(RecipeError, match="Did you mean 'aerial'"):
        ImageTransform.of(PLAIN, train=True, augment=SimpleNamespace(preset="arial", scale=[0.1, 1]))
    with pytest.raises(RecipeError, match="0 < low"):
        ImageTransform.of(PLAIN, train=True, augment=SimpleNamespace(preset="natural", scale=[0.5, 0.1]))
