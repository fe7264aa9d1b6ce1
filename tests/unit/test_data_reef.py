"""Drawn fish: the same everywhere, distinct, with boxes; three looks."""

import numpy as np
import pytest
import torch
from limpet.datamodules import DataError, load
from limpet.datamodules.configs import ReefConfig
from limpet.datamodules.reef_drawing import draw_scene
from limpet.datamodules.reef_species import NAMES


def _reef(seed=1, **more):
    module = load(ReefConfig(**{"train": 6, "val": 4, "test": 3, "species": 4, "shots": 2, **more}), seed)
    module.setup()
    return module


def test_at_least_twelve_distinct_names():
    assert len(set(NAMES)) == len(NAMES) >= 12
    assert all(len(name.split()) >= 2 for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_repeatable_and_varies(name):
    image = np.asarray(draw_scene(name, 7).image)
    assert image.shape == (64, 64, 3)
    assert np.array_equal(image, np.asarray(draw_scene(name, 7).image))
    assert not np.array_equal(image, np.asarray(draw_scene(name, 8).image))
    assert not np.array_equal(image, np.asarray(draw_scene(name, 7, murkiness=0.8).image))


@pytest.mark.parametrize("size", [64, 100, 160, 224])
def test_sizes_show_the_same_scene(size):
    scene, small = draw_scene(0, 3, size=size), draw_scene(0, 3, size=64)
    assert scene.image.size == (size, size)
    assert np.allclose(np.array(scene.boxes) / size, np.array(small.boxes) / 64, atol=0.03)


def test_boxes_hold_the_fish():
    water = np.asarray(draw_scene(0, 5, count=0).image, dtype=int)
    assert water.std() > 0
    for seed in range(6):
        scene = draw_scene(1, seed, size=96, length=0.5)
        left, top, right, bottom = scene.boxes[0]
        assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
        pixels = np.asarray(scene.image, dtype=int)
        red = (pixels[..., 0] > 150) & (pixels[..., 1] < 80)
        ys, xs = red.nonzero()
        assert len(xs) > 50
        assert np.quantile(xs, 0.05) >= left - 2 and np.quantile(xs, 0.95) <= right + 2
        assert np.quantile(ys, 0.05) >= top - 2 and np.quantile(ys, 0.95) <= bottom + 2


def test_counting_and_facing():
    for count in range(1, 7):
        scene = draw_scene(["orange banded clownfish", 2], count, count=count, size=128, facing="left")
        assert len(scene.boxes) == len(scene.species) == count
        assert set(scene.facing) == {"left"}
    assert np.mean([f == "left" for s in range(40) for f in draw_scene(0, s).facing]) == pytest.approx(
        0.5, abs=0.3
    )


def test_murky_water_has_less_contrast():
    clear = [np.asarray(draw_scene(i, 1).image).std() for i in range(8)]
    murky = [np.asarray(draw_scene(i, 1, murkiness=0.9).image).std() for i in range(8)]
    assert np.mean(murky) < 0.7 * np.mean(clear)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("species", "purple eel"), ("species", 99), ("size", 4), ("murkiness", 2), ("facing", "up"), ("length", 0.0), ("length", 8.0)],
)
def test_wrong_scenes(argument, value):
    with pytest.raises(DataError, match=str(value)):
        draw_scene(**{"species": 0, argument: value})
    with pytest.raises(DataError, match="Did you mean 'green moray eel'"):
        draw_scene("green moray eels")


def test_module():
    reef = _reef()
    assert reef.class_names == list(NAMES[:4])
    assert {split: len(samples) for split, samples in reef.samples.items()} == {
        "train": 8,
        "val": 8,
        "test": 12,
    }
    assert {sample.domain for sample in reef.samples["test"]} == {"clear"}
    batch = next(iter(reef.loader("test", batch_size=5)))
    assert batch["image"].shape == (5, 3, 64, 64) and 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert set(batch) == {"path", "index", "label", "image"}


def test_looks_as_domains():
    both = _reef(look="both")
    assert {sample.domain for sample in both.samples["train"]} == {"clear", "murky"}
    shifted = _reef(look="both", train_domains=["clear"], test_domains=["murky"])
    assert {sample.domain for sample in shifted.samples["train"]} == {"clear"}
    assert {sample.domain for sample in shifted.samples["test"]} == {"murky"}
    assert len(shifted.samples["test"]) == 12


def test_deep_water_shows_the_same_fish_with_little_red_and_contrast():
    clear, deep = _reef(look="clear"), _reef(look="deep")
    for one, two in zip(clear.samples["test"], deep.samples["test"], strict=True):
        assert two.domain == "deep" and clear.content_key(one) != deep.content_key(two)
        bright, dim = clear.reader(one), deep.reader(two)
        assert dim.info["boxes"] == bright.info["boxes"]
        assert np.array_equal(np.asarray(dim), np.asarray(deep.reader(two)))  # the noise, too
        red, blue = (np.asarray(dim, dtype=float)[..., channel] for channel in (0, 2))
        assert red.mean() < 0.75 * blue.mean() and red.max() < np.asarray(bright)[..., 0].max()
        assert np.asarray(dim).std((0, 1)).mean() < np.asarray(bright).std((0, 1)).mean()


def test_content_key_follows_the_drawing():
    reef, other = _reef(), _reef(seed=2)
    sample = reef.samples["test"][0]
    assert reef.content_key(sample) == other.content_key(sample) != _reef(size=96).content_key(sample)
    assert reef.content_key(sample) != _reef(drawing_seed=2).content_key(sample)
    keys = {reef.content_key(sample) for split in reef.samples.values() for sample in split}
    assert len(keys) == 8 + 8 + 12


@pytest.mark.parametrize(
    "wrong", [{"look": "murkey"}, {"size": 32}, {"species": 1}, {"species": 99}, {"train": -1}, {"shots": 0}]
)
def test_wrong_settings(wrong):
    with pytest.raises(DataError, match=r"data\."):
        _reef(**wrong)


def test_workers_change_nothing():
    batches = [list(_reef(num_workers=n, batch_size=4).train_dataloader()) for n in (0, 2)]
    for one, two in zip(*batches, strict=True):
        assert one["path"] == two["path"] and torch.equal(one["image"], two["image"])
