"""Steering attention to regions: identities, regions of any tower, and what is shared between regions."""

import open_clip
import pytest
import torch
from limpet import blocks
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.errors import RecipeError
from limpet.foveal import box_cells, foveal_rows, mask_cells, regional_features
from limpet.methods.falip import Config, Falip
from limpet.methods.zero_shot import Config as PlainConfig
from limpet.methods.zero_shot import ZeroShot
from torch.nn import functional as F

CLASSES = ClassSet(("yellow striped angelfish", "grey reef shark", "golden seahorse"))


def clip(image_size=32, patch=8, layers=4, heads=2, **vision):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        16,
        vision_cfg={"image_size": image_size, "patch_size": patch, "width": 32, "layers": layers, "head_width": 32 // heads, **vision},
        text_cfg={"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    return FrozenClip.from_model(model.double().eval(), name="small")


def images(count=3, height=32, width=None, seed=1):
    return torch.randn(count, 3, height, width or height, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_by_one(backbone, pictures, rows, chosen):
    """The features of every region by a forward of its own, with the whole mask in the seam."""
    found = []
    for picture, biases in zip(pictures, rows, strict=True):
        for row in biases:
            full = torch.zeros(len(row), len(row), dtype=torch.float64)
            full[0] = row
            seams = blocks.Seams(bias=lambda layer, full=full: full if layer in chosen else None)
            found.append(blocks.image_features(backbone, picture[None], seams=seams)[0])
    return torch.stack(found)


BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("tower", "grid", "chosen"),
    [
        ({}, (4, 4), [2, 3]),
        ({}, (4, 4), [3]),
        ({}, (4, 4), [0, 2]),
        ({"image_size": 48, "patch": 16, "heads": 1}, (3, 3), [1, 2, 3]),
        ({"image_size": (32, 64), "patch": 8}, (4, 8), [2, 3]),
    ],
)
def test_regions_that_share_lower_blocks_equal_forwards_of_their_own(tower, grid, chosen):
    backbone = clip(**tower)
    size = tower.get("image_size", 32)
    pictures = images(3, *(size if isinstance(size, tuple) else (size,)))
    every = foveal_rows(box_cells(BOXES, grid), alpha=3.0, sigma=100.0)
    rows = [every, every[:1], every[1:]]  # another number of regions in each image
    found = regional_features(backbone, pictures, rows, chosen)
    torch.testing.assert_close(found, one_by_one(backbone, pictures, rows, chosen), rtol=1e-10, atol=1e-12)
    plain = blocks.image_features(backbone, pictures)
    assert not torch.allclose(found[0], plain[0], atol=1e-4)


def test_a_constant_over_the_whole_row_changes_nothing():
    backbone, pictures = clip(), images()
    rows = foveal_rows(box_cells(BOXES, (4, 4)), alpha=2.0, sigma=100.0)
    found = regional_features(backbone, pictures, [rows] * 3, [2, 3])
    torch.testing.assert_close(regional_features(backbone, pictures, [rows + 7.5] * 3, [2, 3]), found, rtol=1e-10, atol=1e-12)


def test_only_the_class_token_changes_in_the_first_steered_block():
    backbone, pictures = clip(), images(1)
    bias = torch.zeros(17, 17, dtype=torch.float64)
    bias[0, 3:7] = 4.0
    seen = {}

    def outputs(layers):
        entered = []
        seams = blocks.Seams(
            bias=lambda layer: bias if layer in layers else None, enter=lambda layer, block, x: entered.append(x)
        )
        x = blocks.run(backbone.model.visual.transformer.resblocks, blocks.embed_image(backbone, pictures), seams=seams)
        return [*entered[1:], x]

    plain, seen = outputs(()), outputs((2, 3))
    assert torch.equal(plain[1], seen[1])  # below
    assert torch.equal(plain[2][:, 1:], seen[2][:, 1:]) and not torch.allclose(plain[2][:, 0], seen[2][:, 0])
    assert not torch.allclose(plain[3][:, 1:], seen[3][:, 1:])


def test_the_seams_change_nothing_where_they_are_not_used():
    backbone, pictures = clip(), images()
    entered = []
    idle = blocks.Seams(
        bias=lambda layer: None,
        heads=lambda layer, out: out,
        enter=lambda layer, block, x: entered.append((layer, x.shape)),
    )
    assert torch.equal(blocks.image_features(backbone, pictures, seams=idle), blocks.image_features(backbone, pictures))
    assert entered == [(layer, (3, 17, 32)) for layer in range(4)]


def test_uniform_bias_multiplies_the_odds_of_its_tokens():
    """New mass = a e^b / (1 + a (e^b - 1)) where a is the mass before."""
    backbone, pictures = clip(), images(1)
    row = torch.zeros(17, dtype=torch.float64)
    row[2:6] = 1.3
    mass = {}

    def look(name, bias):
        def qkv(layer, attention, x):
            q, k, v = blocks.project_qkv(attention, x)
            if layer == 3:
                logits = torch.einsum("bhd,blhd->bhl", q[:, 0], k) * q.shape[-1] ** -0.5 + bias
                mass[name] = logits.softmax(-1)[..., 2:6].sum(-1)
            return q, k, v

        blocks.image_features(backbone, pictures, seams=blocks.Seams(qkv=qkv))

    look("before", 0.0)
    look("after", row)
    gain = torch.tensor(1.3).double().exp()
    torch.testing.assert_close(mass["after"], mass["before"] * gain / (1 + mass["before"] * (gain - 1)))


def test_values_of_small_and_large_regions():
    boxes = torch.tensor([[17, 17, 32, 32], [16, 16, 32, 32], [0, 0, 48, 48], [50, 60, 120, 150]]) / 224
    rows = foveal_rows(box_cells(boxes, (14, 14)), 0.2, 100)
    cells = rows[:, 1:].view(4, 14, 14)
    assert cells[0].nonzero().tolist() == [[1, 1]] and cells[0, 1, 1] == pytest.approx(0.2)
    assert {tuple(c) for c in cells[1].nonzero().tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert cells[2, :3, :3].mean().item() == pytest.approx(0.06799, abs=1e-5)
    assert cells[2, 1, 1] == pytest.approx(0.2) and cells[2, 0, 0] == pytest.approx(0.00198, abs=1e-5)
    inside = cells[3, 3:10, 3:8]
    assert inside.mean().item() == pytest.approx(0.10782, abs=1e-5) and cells[3].count_nonzero() == inside.count_nonzero() == 35
    assert (rows[:, 0] == 0).all()


def test_mirrored_boxes_and_masks_of_the_same_patches():
    boxes = torch.tensor([[0.11, 0.2, 0.58, 0.71], [0.52, 0.13, 0.93, 0.33]])
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], -1)
    cells = box_cells(boxes, (14, 14))
    assert torch.equal(box_cells(mirrored, (14, 14)), cells.flip(-1))
    masks = cells.repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert torch.equal(mask_cells(masks, (14, 14)), cells)
    assert torch.equal(foveal_rows(cells, 0, 100), torch.zeros(2, 197, dtype=torch.float64))
    assert torch.equal(foveal_rows(torch.zeros(1, 3, 3, dtype=torch.bool), 0.2, 100), torch.zeros(1, 10, dtype=torch.float64))


def falip(backbone, **settings):
    return Falip(Config(**settings)).setup(backbone, CLASSES).eval()


def test_no_strength_or_no_region_is_plain_clip_bit_for_bit():
    backbone, pictures = clip(), images()
    plain = ZeroShot(PlainConfig()).setup(backbone, CLASSES).eval().logits({"image": pictures})
    boxes = [BOXES, BOXES[:1], BOXES[:0]]
    assert torch.equal(falip(backbone, alpha=0.0).logits({"image": pictures, "boxes": boxes}), plain)
    assert torch.equal(falip(backbone).logits({"image": pictures, "boxes": [BOXES[:0]] * 3}), plain)
    assert torch.equal(falip(backbone).logits({"image": pictures}), plain)
    steered = falip(backbone, alpha=2.0).logits({"image": pictures, "boxes": boxes})
    assert torch.equal(steered[2], plain[2]) and not torch.allclose(steered[:2], plain[:2])


def test_heads_and_union_and_mean():
    backbone, pictures = clip(), images(2)
    batch = {"image": pictures, "boxes": BOXES[:2].repeat(2, 1, 1)}
    union = falip(backbone, alpha=2.0, blocks=[2, 3])
    rows = union.rows(BOXES[:2]).amax(0, keepdim=True)
    expected = F.normalize(one_by_one(backbone, pictures, [rows, rows], [2, 3]), dim=-1)
    torch.testing.assert_close(union.encode_image(batch), expected, rtol=1e-10, atol=1e-12)
    mean = falip(backbone, alpha=2.0, blocks=[2, 3], combine="mean").encode_image(batch)
    single = F.normalize(one_by_one(backbone, pictures, [union.rows(BOXES[:2])] * 2, [2, 3]), dim=-1)
    torch.testing.assert_close(mean, F.normalize(single.view(2, 2, -1).mean(1), dim=-1), rtol=1e-10, atol=1e-12)
    every = falip(backbone, alpha=2.0, heads=[0, 1]).encode_image(batch)
    torch.testing.assert_close(every, falip(backbone, alpha=2.0).encode_image(batch), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(falip(backbone, alpha=2.0, heads=[1]).encode_image(batch), every, atol=1e-5)


def test_views_of_an_object_are_weighted():
    backbone = clip()
    views, masks = images(3), torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    masks[1, :8] = True
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    adapter = falip(backbone, alpha=2.0)
    one = [adapter.logits({"image": view[None], "masks": [mask[None]] if mask.any() else [mask[:0]]})
           for view, mask in zip(views, masks, strict=True)]  # fmt: skip
    batch = {"image": views[:1], "views": [views], "view_masks": [masks], "view_weights": [weights]}
    torch.testing.assert_close(adapter.logits(batch)[0], (weights[:, None] * torch.cat(one)).sum(0), rtol=1e-9, atol=1e-9)


def test_crop_and_blackout_and_none():
    backbone, pictures = clip(), images(2)
    crops = [images(3, seed=5), images(1, seed=6)]
    batch = {"image": pictures, "boxes": [BOXES, BOXES[:1]], "crops": crops}
    found = falip(backbone, region="crop").region_features(batch)
    whole = F.normalize(backbone.encode_image(torch.cat(crops), normalize=False), dim=-1)
    torch.testing.assert_close(torch.cat(found), whole, rtol=1e-9, atol=1e-12)
    dark = falip(backbone, region="blackout").region_features(batch)
    covered = pictures[1] * box_cells(BOXES[:1], (32, 32))[0]
    torch.testing.assert_close(dark[1], F.normalize(backbone.encode_image(covered[None], normalize=False), dim=-1))
    plain = falip(backbone, region="none").region_features(batch)
    assert torch.equal(plain[0][0], plain[0][2])


def test_settings_that_mean_nothing_are_refused():
    spec = clip().spec
    for settings, word in (
        ({"region": "crob"}, "Did you mean 'crop'"),
        ({"sigma": 0.0}, "sigma"),
        ({"heads": [2]}, "head 2"),
        ({"heads": "some"}, "heads"),
        ({"blocks": 9}, "block 9"),
        ({"combine": "sum"}, "combine"),
    ):
        with pytest.raises(RecipeError, match=word):
            Falip.supports(Config(**settings), spec)
    assert "averages" in Falip.supports(Config(), clip(pool_type="avg").spec)
    assert Falip.supports(Config(region="none"), clip(pool_type="avg").spec) is None
