"""ComCLIP: parts of an image weighted by parts of a sentence."""

import pytest
import torch
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.errors import RecipeError
from limpet.foveal import box_cells
from limpet.inference import Classifier
from limpet.methods.comclip import ComClip, Config, read_parts
from limpet.methods.zero_shot import Config as PlainConfig
from limpet.methods.zero_shot import ZeroShot
from limpet.sections import BackboneConfig
from torch.nn import functional as F

CLASSES = ClassSet(("yellow striped angelfish", "grey reef shark", "golden seahorse"))
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
BOXES = torch.tensor([[0.0, 0.1, 0.5, 0.6], [0.4, 0.5, 1.0, 1.0]])


@pytest.fixture(scope="module")
def backbone():
    return FrozenClip.load(BackboneConfig())


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def adapter_of(backbone, **settings):
    return ComClip(Config(**settings)).setup(backbone, CLASSES).eval()


def plain(backbone, images):
    return ZeroShot(PlainConfig()).setup(backbone, CLASSES).eval().logits({"image": images})


def test_parts_that_are_the_whole_image_change_nothing(backbone, images):
    for settings in ({}, {"parts": {"golden seahorse": ["golden", "seahorse"]}}):
        found = adapter_of(backbone, **settings).logits({"image": images, "boxes": [WHOLE, WHOLE]})
        torch.testing.assert_close(found, plain(backbone, images), rtol=1e-4, atol=1e-4)


def test_no_parts_and_no_boxes_are_clip(backbone, images):
    none = adapter_of(backbone, parts={name: [] for name in CLASSES.names})
    torch.testing.assert_close(none.logits({"image": images, "boxes": [BOXES] * 2}), plain(backbone, images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapter_of(backbone).logits({"image": images}), plain(backbone, images), rtol=1e-4, atol=1e-4)


def test_weights_and_the_evolved_image(backbone, images):
    parts = {"yellow striped angelfish": ["yellow", "angelfish", "striped"], "grey reef shark": ["shark"]}
    adapter = adapter_of(backbone, parts=parts)
    batch = {"image": images, "boxes": [BOXES, BOXES]}
    found = adapter.logits(batch)
    whole = adapter.plain_features(images)[0]
    own = adapter.region_features(batch)[0]
    together = adapter.together(batch)[0]
    inside = box_cells(BOXES, (64, 64)).any(0)
    torch.testing.assert_close(together, adapter.plain_features((images[0] * inside)[None])[0], rtol=1e-4, atol=1e-5)
    for name, texts in parts.items():
        text = F.normalize(adapter.encode_text(texts), dim=-1)
        seen = torch.stack([*own, together])[: len(texts)]
        sigma = (text * seen).sum(-1).clamp(min=0)
        weights = sigma / sigma.sum() if sigma.sum() > 0 else torch.full_like(sigma, 1 / len(sigma))
        combined = F.normalize(whole + weights @ seen, dim=-1)
        column = CLASSES.index(name)
        expected = backbone.logit_scale * combined @ adapter.class_weights()[column]
        torch.testing.assert_close(found[0, column], expected, rtol=1e-4, atol=1e-4)


def test_regions_may_be_cut_out_or_attended_to(backbone, images):
    crops = torch.randn(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    batch = {"image": images, "boxes": [BOXES, BOXES], "crops": crops}
    found = [adapter_of(backbone, region=region, alpha=2.0).logits(batch) for region in ("blackout", "crop", "foveal")]
    assert not torch.allclose(found[0], found[1], atol=1e-2) and not torch.allclose(found[0], found[2], atol=1e-2)


def test_parts_come_from_a_file_and_follow_a_renamed_class(backbone, images, tmp_path):
    (tmp_path / "parts.csv").write_text("class,part\ngolden seahorse,golden\ngolden seahorse,seahorse\n")
    assert read_parts(tmp_path / "parts.csv") == {"golden seahorse": ["golden", "seahorse"]}
    adapter = adapter_of(backbone, parts_file=str(tmp_path / "parts.csv"))
    assert adapter.config.parts_file is None and adapter.config.parts == {"golden seahorse": ["golden", "seahorse"]}
    batch = {"image": images, "boxes": [BOXES, BOXES]}
    before = adapter.logits(batch)
    Classifier(adapter).rename_classes({"golden seahorse": "Hippocampus"})
    assert torch.equal(adapter.logits(batch), before)
    with pytest.raises(RecipeError, match="no file"):
        adapter_of(backbone, parts_file=str(tmp_path / "gone.csv"))
    assert "grey reef shark" in adapter_of(backbone, parts={"grey reef shar": ["x"]}).notes[-1]
