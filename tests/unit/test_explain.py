"""What a decision rests on: patches, training images, words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from limpet import adapter as adapters
from limpet import artifact, blocks, explain
from limpet.classes import ClassSet
from limpet.cli import main
from limpet.errors import LimpetError
from limpet.inference import Classifier
from PIL import Image

NAMES = ("clownfish", "ray", "sea turtle")


def make(method, backbone, **settings):
    kind = adapters.find(method)
    return kind(adapters.config_class(kind)(**settings)).setup(backbone, ClassSet(NAMES)).eval()


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def cache(tiny):
    """A Tip-Adapter that keeps six noise images, two for each class."""
    made = make("tip_adapter", tiny)
    rng = np.random.default_rng(4)
    noise = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(6)]
    features = tiny.encode_image(torch.stack([tiny.transform()(image) for image in noise]), normalize=False)
    batch = {"views": features[:, None], "label": torch.tensor([0, 0, 1, 1, 2, 2]), "path": [f"{n}.png" for n in range(6)]}
    made.fit_closed_form([batch])
    made.noise = noise
    return made


def test_relevance_is_the_published_rule_computed_plainly(random_clip, picture):
    backbone = random_clip()
    adapter = make("zero_shot", backbone)
    pixels = backbone.transform()(picture)[None].double()
    got = explain.relevance(adapter, pixels, 1)
    with blocks.watched_attention() as weights:
        images = pixels.clone().requires_grad_(True)
        feature = torch.nn.functional.normalize(blocks.image_features(backbone, images), dim=-1)
        score = backbone.logit_scale * (feature @ adapter.class_weights().T)[0, 1]
    gradients = torch.autograd.grad(score, weights)
    relevance = torch.eye(17, dtype=torch.float64)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert torch.allclose(weight.sum(-1), torch.ones(()).double())
        step = torch.zeros(17, 17, dtype=torch.float64)
        step[: weight.shape[2]] = (weight * gradient)[0].clamp(min=0).mean(0).detach()
        relevance = relevance + step @ relevance
    expected = relevance[0, 1:].reshape(4, 4)
    assert np.allclose(got, (expected / expected.max()).numpy()) and got.max() == 1 and got.min() >= 0


def test_watching_does_not_change_the_answers(random_clip, picture):
    backbone = random_clip()
    pixels = backbone.transform()(picture)[None].double()
    plain = blocks.image_features(backbone, pixels)
    with blocks.watched_attention() as weights:
        assert torch.allclose(blocks.image_features(backbone, pixels), plain, atol=1e-12)
    assert len(weights) == 4 and weights[-1].shape[2] == 1 and not blocks.watched()
    blocks.image_features(backbone, pixels)
    assert len(weights) == 4


@pytest.mark.parametrize("method", ["zero_shot", "coop", "vpt", "maple", "clip_adapter", "lora", "fine_tune", "cocoop"])
def test_every_kind_of_method_shows_its_patches(method, tiny, picture):
    found = explain.explain(Classifier(make(method, tiny)), picture)
    assert found.patches is not None and found.patches.shape == tiny.model.visual.grid_size
    assert found.label == found.top[0][0] and sum(p for _, p in found.top) == pytest.approx(1)
    assert bool(found.words) == (method in ("coop", "maple", "cocoop"))
    assert found.picture.shape == (64, 64, 3) and found.picture.min() >= 0 and found.picture.max() <= 1


def test_another_class_has_another_map(tiny, picture):
    classifier = Classifier(make("zero_shot", tiny))
    maps = [explain.explain(classifier, picture, name).patches for name in NAMES]
    assert not np.allclose(maps[0], maps[1])
    with pytest.raises(LimpetError, match="There is no class 'rai'. Did you mean 'ray'"):
        explain.explain(classifier, picture, "rai")


def test_the_nearest_training_images_of_a_cache(cache):
    found = explain.explain(Classifier(cache), cache.noise[3])
    assert len(found.support) == 5
    assert (found.support[0].path, found.support[0].label) == ("3.png", "ray"), "the image itself is in the cache"
    assert found.support[0].weight == pytest.approx(float(cache.alpha), rel=1e-4)
    assert [s.weight for s in found.support] == sorted((s.weight for s in found.support), reverse=True)


def test_names_of_the_cache_follow_its_classes(cache, tiny, tmp_path):
    artifact.save(cache, tmp_path, {})
    classifier = Classifier.load(tmp_path, backbone=tiny)
    assert classifier.adapter.support_paths == [f"{n}.png" for n in range(6)]
    classifier.remove_classes(["clownfish"])
    classifier.add_classes(["eel"], {"eel": [cache.noise[0]]})
    again = Classifier.load(classifier.save(tmp_path), backbone=tiny)
    assert again.adapter.support_paths[:4] == ["2.png", "3.png", "4.png", "5.png"] and len(again.adapter.support_paths) == 5
    assert again.adapter.support_labels() == ["ray", "ray", "sea turtle", "sea turtle", "eel"]


def test_words_nearest_to_learned_tokens(tiny, picture):
    made = make("coop", tiny, init="a photo of a")
    found = explain.explain(Classifier(made), picture)
    assert [name for name, _ in found.words] == [f"context {n}" for n in (1, 2, 3, 4)]
    for (_, words), expected in zip(found.words, ["a", "photo", "of", "a"], strict=True):
        assert words[0][0] == expected and words[0][1] == pytest.approx(0, abs=1e-2)
        assert [d for _, d in words] == sorted(d for _, d in words) and len(words) == 3
    assert found.between_words > 0.1
    per_class = make("coop", tiny, class_specific=True, context_length=2)
    assert len(explain.explain(Classifier(per_class), picture, "ray").words) == 2


def test_a_tower_that_is_no_vit_says_so(random_clip, picture):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    backbone = random_clip(torch.float32, vision=vision)
    with pytest.raises(LimpetError, match=r"Nothing can be shown .* is a ResNet"):
        explain.explain(Classifier(make("zero_shot", backbone)), picture)
    found = explain.explain(Classifier(make("coop", backbone)), picture)
    assert found.patches is None and found.words and "ResNet" in found.notes[0]


def test_the_command_writes_a_picture_and_overwrites_nothing(cache, tmp_path, picture, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "r" / "001"
    artifact.save(cache, run, {})
    (run / "recipe.yaml").write_text("")
    (run / "metrics.json").write_text("{}")
    picture.save("a fish.png")
    assert main(["explain", str(run), "a fish.png"]) == 0
    out = capsys.readouterr().out
    assert "near training image: " in out and "(unnamed)" not in out and "explained-a fish-1.png" in out
    assert main(["explain", str(run), "a fish.png"]) == 0
    for n in (1, 2):
        assert Image.open(run / f"explained-a fish-{n}.png").size[0] > 600
    assert main(["explain", str(run), "a fish.png", "--out", "new/x.png", "--class", "ray"]) == 0
    assert (tmp_path / "new" / "x.png").exists()
    (tmp_path / "bad.png").write_bytes(b"no image")
    capsys.readouterr()
    for words, expected in (
        (["a fish.png", "--out", "new/x.png"], "--force to overwrite"), (["a fish.png", "--out", "x.jpg"], "end in .png"),
        (["gone.png"], "No images found"), (["bad.png"], "not an image"), (["runs"], "No images found|takes one"),
        (["a fish.png", "--class", "rai"], "Did you mean 'ray'"),
    ):  # fmt: skip
        assert main(["explain", str(run), *words]) == 2
        err = capsys.readouterr().err
        assert any(part in err for part in expected.split("|")), err
    assert main(["explain", str(run), "a fish.png", "--out", "new/x.png", "--force"]) == 0
    assert main(["explain", str(run / "adapter" / "v1"), "a fish.png"]) == 0, "an adapter by itself"
