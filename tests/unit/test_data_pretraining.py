"""Pretraining pairs: photographs from zips and folders, drawn shapes and fish, and what is true of each."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np
import pytest
import torch
from limpet.datamodules import load
from limpet.datamodules.configs import PretrainingConfig, ShapesConfig
from limpet.datamodules.errors import DataError
from limpet.datamodules.pretraining_sources import fish_source, held_out, invented_species, read_photos, shape_source
from limpet.datamodules.reef_species import SPECIES
from limpet.datamodules.shapes_drawing import COLOURS, SHAPES, Scene, draw_shapes, random_scene, rgb, unnamed_colour
from PIL import Image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two zips laid out as CIFAR-100's."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, count in (("train.zip", 14), ("test.zip", 3)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for label in ("apple", "aquarium_fish"):
                for i in range(count):
                    file = io.BytesIO()
                    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(file, "JPEG")
                    fine = "cooking_apple" if label == "apple" and i % 2 else label
                    archive.writestr(f"{label}/{fine}_s_{i:06d}.jpg", file.getvalue())
    return folder


def config(root, **settings):
    return PretrainingConfig(root=str(root), batch_size=20, epoch_images=60, shapes=12, fish=6, **settings)


def test_photographs_are_read_alike_from_zips_and_folders(root, tmp_path):
    zipped = read_photos(root / "train.zip")
    with zipfile.ZipFile(root / "train.zip") as archive:
        archive.extractall(tmp_path / "train")
    assert read_photos(tmp_path / "train") == zipped
    assert {photo.label for photo in zipped} == {"apple", "aquarium fish"}
    assert {photo.fine for photo in zipped} == {"apple", "cooking apple", "aquarium fish"}


def test_people_are_called_by_their_class_alone(tmp_path):
    for label in ("woman", "apple"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / label / "other_name_s_000001.png")
    assert {photo.label: photo.fine for photo in read_photos(tmp_path)} == {"woman": "woman", "apple": "other name"}


def test_missing_photographs_are_a_sentence(tmp_path):
    data = load(PretrainingConfig(root=str(tmp_path)), 1)
    with pytest.raises(DataError, match=r"neither a folder .* nor a zip"):
        data.setup()


def test_photographs_without_class_folders_are_a_sentence(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"no images in sub-folders of .*apple/0001\.jpg"):
        read_photos(tmp_path)


def test_damaged_photographs_are_named(root, tmp_path):
    content = (root / "train.zip").read_bytes()
    start = content.index(b"apple/apple_s_000002.jpg") + 60
    (tmp_path / "train.zip").write_bytes(content[:start] + b"\xff" * 9 + content[start + 9 :])
    with pytest.raises(DataError, match=r"train\.zip/apple/.*000002\.jpg: Bad CRC-32"):
        read_photos(tmp_path / "train.zip")
    (tmp_path / "train.zip").write_bytes(content)
    with zipfile.ZipFile(root / "test.zip") as archive:
        archive.extractall(tmp_path / "test")
    next((tmp_path / "test/apple").iterdir()).write_bytes(b"no picture")
    data = load(config(tmp_path, test_photos="test"), 1)
    assert sum(len(batch["path"]) for batch in data.test_dataloader()) == 5
    assert len(data.unreadable) == 1 and "not an image" in data.unreadable[0]
    data = load(config(tmp_path, photos="test", test_photos="train.zip"), 1)
    with pytest.raises(DataError, match=r"Cannot read the image apple/.*\.jpg: it is not an image of a known format"):
        data.sources()


def test_classes_of_the_test_are_those_of_the_training(root, tmp_path):
    (tmp_path / "test/zebra").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "test/zebra/0.png")
    with pytest.raises(DataError, match=r"test has the class 'zebra', which .*train\.zip has not"):
        load(config(root, test_photos=str(tmp_path / "test")), 1).setup()


def test_splits_and_classes(root):
    data = load(config(root), 1)
    data.setup()
    assert data.class_names == ["apple", "aquarium fish"]
    assert {split: len(samples) for split, samples in data.samples.items()} == {"train": 24, "val": 4, "test": 6}


def test_batches_mix_the_sources_and_know_all_their_positives(root):
    data = load(config(root), 1)
    batch = data.train_dataloader().batch(0)
    kinds = [path.split("/")[0] for path in batch["path"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"photographs": 12, "shapes": 5, "fish": 3}
    assert batch["image"].shape == (20, 3, 64, 64) and len(batch["caption"]) == len(batch["other_caption"]) == 20
    assert batch["other_caption"] != batch["caption"]
    assert batch["positives"].diagonal().all()  # every caption is true of its own image
    apart = [i for i, kind in enumerate(kinds) if kind == "photographs"], [i for i, kind in enumerate(kinds) if kind != "photographs"]
    assert not batch["positives"][apart[0]][:, apart[1]].any()


def test_a_batch_depends_on_seed_and_step_alone(root):
    one, two = (load(config(root), 1).train_dataloader() for _ in range(2))
    list(one)
    two.set_epoch(1)
    one.set_epoch(1)
    first, again = next(iter(one)), next(iter(two))
    assert first["caption"] == again["caption"] and torch.equal(first["image"], again["image"])
    other = load(config(root), 2).train_dataloader().batch(3)
    assert other["caption"] != first["caption"]


def test_every_photograph_is_seen_once_before_any_is_seen_twice(root):
    loader = load(config(root, photo_share=1.0, shape_share=0.0, fish_share=0.0), 1).train_dataloader()
    seen = [path for step in range(3) for path in loader.batch(step)["path"]]
    assert sorted(seen[:24]) == sorted(f"photographs/{i}" for i in range(24))
    assert sorted(seen[24:48]) == sorted(seen[:24])


def test_captions_of_shapes_claim_what_the_scene_has():
    source = shape_source(40, 32, 1)
    rng = random.Random(0)
    for number, facts in enumerate(source.facts):
        text, claims = source.caption(number, rng)
        assert claims <= facts
        for fact in claims:
            if fact.startswith(("colour", "pattern")):
                assert fact.split()[1] in text
        colour = next(f.split()[1] for f in facts if f.startswith("colour"))
        shape = next(f.split()[1] for f in facts if f.startswith("shape"))
        assert not held_out(colour, shape)


ATTRIBUTES = ("colour", "shape", "pattern", "count", "size", "position", "facing")


def differing(one, other):
    """Attributes that two sets of facts give different values."""
    value = [{f.split(" ", 1)[0]: f for f in facts} for facts in (one, other)]
    return {key for key in ATTRIBUTES if key in value[0] and key in value[1] and value[0][key] != value[1][key]}


def test_twins_differ_in_one_attribute_that_both_captions_tell():
    source = shape_source(200, 32, 1, twins=True)
    rng = random.Random(2)
    kinds = set()
    for number in range(0, 200, 2):
        (about,) = differing(source.facts[number], source.facts[number + 1])
        kinds.add(about)
        for n in (number, number + 1):
            text, claims = source.caption(n, rng)
            assert claims <= source.facts[n] and any(claim.startswith(about) for claim in claims), text
            assert not any(held_out(c, s) for c in COLOURS for s in SHAPES if {f"colour {c}", f"shape {s}"} <= source.facts[n])
    assert kinds == set(ATTRIBUTES)


def test_twins_come_in_the_same_batch(root):
    loader = load(config(root, photo_share=0.0, shape_share=1.0, fish_share=0.0, twins=True), 1).train_dataloader()
    for step in range(3):
        numbers = [int(path.split("/")[1]) for path in loader.batch(step)["path"]]
        assert [n ^ 1 for n in numbers[::2]] == numbers[1::2]


def test_colours_without_a_name_are_in_no_caption_and_far_from_those_with_one():
    source = shape_source(60, 32, 1, unnamed=0.5)
    rng = random.Random(3)
    without = [n for n, facts in enumerate(source.facts) if not any(fact.startswith("colour") for fact in facts)]
    assert 15 < len(without) < 45
    for n in without:
        text, claims = source.caption(n, rng)
        assert any(claim.startswith("shape") for claim in claims)
        assert not any(colour in text.split() for colour in COLOURS)
    drawn = [rgb(unnamed_colour(rng)) for _ in range(50)]
    assert min(np.linalg.norm(np.subtract(one, other)) for one in drawn for other in COLOURS.values()) >= 60


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unnamed_share": 1.5}, r"data\.unnamed_share"),
        ({"unnamed_share": -0.1}, r"data\.unnamed_share"),
        ({"photo_share": -0.1}, "shares of a batch, none below 0"),
        ({"photo_share": 0.0, "shape_share": 0.0, "fish_share": 0.0}, r"data\.photo_share, shape_share and fish_share"),
        ({"epoch_images": 19}, r"data\.epoch_images is 19, less than a batch of 20"),
    ],
)
def test_impossible_shares_are_sentences(root, settings, said):
    with pytest.raises(DataError, match=said):
        load(PretrainingConfig(root=str(root), **{"batch_size": 20, "epoch_images": 60, **settings}), 1)


def test_a_fifth_of_the_combinations_is_held_out_of_every_colour_and_shape():
    pairs = [(c, s) for c in COLOURS for s in SHAPES if held_out(c, s)]
    assert len(pairs) == 24
    assert {c for c, _ in pairs} == set(COLOURS) and {s for _, s in pairs} == set(SHAPES)


def test_invented_fish_never_have_the_name_of_a_reef_species():
    rng = random.Random(0)
    names = {invented_species(rng).name for _ in range(500)}
    assert not names & {species.name for species in SPECIES} and len(names) > 200


def test_fish_captions_are_true_and_later_species_are_never_named():
    source = fish_source(60, 64, 1, named=2)
    rng = random.Random(1)
    for number, facts in enumerate(source.facts):
        text, claims = source.caption(number, rng)
        assert claims <= facts
        assert not any(species.name in text for species in SPECIES[2:])


@pytest.mark.parametrize("given", [{}, {"count": 4}, {"position": "left"}, {"facing": "right"}, {"size": "small"}])
def test_scenes_have_what_was_asked_for_and_draw_alike(given):
    scene = random_scene(random.Random(3), **given)
    assert all(getattr(scene, key) == value for key, value in given.items())
    one, two = (np.asarray(draw_shapes(scene, 5)) for _ in range(2))
    assert np.array_equal(one, two) and one.shape == (64, 64, 3)
    assert not np.array_equal(one, np.asarray(draw_shapes(scene, 6)))


def test_the_side_a_thing_is_on_shows():
    scenes = (Scene("circle", "white", position=place, size="small") for place in ("left", "right"))
    left, right = (np.asarray(draw_shapes(scene, 1)).astype(float) for scene in scenes)
    bright = [np.argmax(image.mean((0, 2))) for image in (left, right)]
    assert bright[0] < 32 < bright[1]


@pytest.mark.parametrize(("attribute", "classes"), [("combination", 120), ("count", 5), ("position", 5), ("facing", 2), ("size", 2)])
def test_shapes_by_attribute(attribute, classes):
    data = load(ShapesConfig(attribute=attribute, train=1, val=0, test=1), 1)
    data.setup()
    assert len(data.class_names) == classes and len(data.samples["test"]) == classes
    assert data.reader(data.samples["test"][0]).size == (64, 64)


def test_held_out_shapes_keep_all_answers():
    data = load(ShapesConfig(combinations="held_out", train=0, val=0, test=2), 1)
    data.setup()
    assert len(data.class_names) == 120 and len(data.samples["test"]) == 48


@pytest.mark.parametrize("settings", [{"attribute": "colors"}, {"combinations": "some"}, {"size": 8}, {"test": -1}])
def test_impossible_shapes_are_sentences(settings):
    with pytest.raises(DataError, match=r"data\."):
        load(ShapesConfig(**settings), 1)


def test_methods_that_need_labels_are_refused_on_captions(root):
    from limpet.errors import RecipeError
    from limpet.recipe import load as load_recipe
    from limpet.session import prepare

    settings = [f"data.root={root}", "data.photos=train.zip", "data.test_photos=test.zip", "backbone=limpet-tiny"]
    with pytest.raises(RecipeError, match="trained on class labels"):
        prepare(load_recipe("pretrain_tiny", [*settings, "method=coop"])[0])


@pytest.mark.parametrize(
    "wrong", [{"shape": "blob"}, {"colour": "no"}, {"pattern": "wavy"}, {"count": 6}, {"size": "tiny"}, {"position": "behind"}]
)
def test_scenes_that_cannot_be_drawn_are_sentences(wrong):
    with pytest.raises(DataError, match="A scene of shapes cannot be drawn from"):
        draw_shapes(Scene(**{"shape": "circle", "colour": "red", **wrong}))
