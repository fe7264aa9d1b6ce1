"""FALIP's masks and features against the numbers of its published implementation."""

import open_clip
import pytest
import torch
from limpet import blocks
from limpet.foveal import box_cells, foveal_rows, regional_features


class Tower:
    """The golden image tower behind the few names that are asked of a backbone."""

    def __init__(self, case, dtype):
        config = case.config
        model = open_clip.model.CLIP(
            config["embed_dim"],
            vision_cfg={"image_size": 224, "patch_size": 16, "width": 64, "layers": 10, "head_width": 64},
            text_cfg={"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1},
            quick_gelu=True,
        )
        state = {k.removeprefix("w/"): v.float() for k, v in case.tensors.items() if k.startswith("w/")}
        missing, odd = model.load_state_dict(state, strict=False)
        assert not odd and not any(name.startswith("visual.") for name in missing)
        self.model = model.eval().to(dtype).requires_grad_(False)
        self.dtype, self.device = dtype, torch.device("cpu")
        self.spec = type("Spec", (), {"image_tower": "vit", "image_pool": "tok", "plain_attention": True, "name": "golden"})


def boxes_of(case, size=224):
    """Boxes as shares of the image, cut at its border."""
    sizes, boxes = case.tensors["boxes"][:, :2], case.tensors["boxes"][:, 2:].double()
    return (boxes / sizes.repeat(1, 2)).clamp(0, 1).float()


def test_masks_of_boxes(golden):
    case = golden("falip")
    for name, grid in (("base", 14), ("large", 16)):
        rows = foveal_rows(box_cells(boxes_of(case), (grid, grid)), 0.2, 100.0)
        for tensor in (f"mask_row0_{name}", f"mask_row0_{name}_f64"):
            want, tolerance = case.tensors[tensor], case.json["tensors"][tensor]["tolerance"]
            torch.testing.assert_close(rows.to(want), want, rtol=tolerance["rtol"], atol=tolerance["atol"])


def injected(case):
    """Mask rows [case, factor, 197] as the implementation injected them: rounded to float32, then multiplied."""
    rows = case.tensors["mask_row0_base"][case.config["injection_mask_cases"]].double()
    return torch.stack([rows * factor for factor in case.config["injection_strength_factors"]], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_features_of_regions(golden, dtype):
    case = golden("falip")
    tower = Tower(case, dtype)
    images = case.tensors["images_lowres_uint8"].repeat_interleave(8, -1).repeat_interleave(8, -2)
    images = (images.double() / 127.5 - 1).to(dtype)
    case.close("features_no_mask", blocks.image_features(tower, images))
    rows = injected(case).flatten(0, 1)
    found = regional_features(tower, images, [rows, rows], chosen=[8, 9])
    assert len(found) == 2 * len(rows)
    case.close("features_masked", found.view(2, *injected(case).shape[:2], -1).permute(1, 2, 0, 3))
    ours = foveal_rows(box_cells(boxes_of(case), (14, 14)), 0.2, 100.0)[case.config["injection_mask_cases"]]
    found = regional_features(tower, images, [ours, ours], chosen=[8, 9])
    want = case.tensors["features_masked"][:, 0].transpose(0, 1).flatten(0, 1).to(dtype)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=3e-5)


def test_attention_of_the_class_token(golden):
    case = golden("falip")
    tower = Tower(case, torch.float64)
    images = case.tensors["images_lowres_uint8"].repeat_interleave(8, -1).repeat_interleave(8, -2).double() / 127.5 - 1
    case.close("attn_cls_last_no_mask", class_attention(tower, images, None))
    found = [[class_attention(tower, images, row) for row in rows] for rows in injected(case)]
    case.close("attn_cls_last", torch.stack([torch.stack(rows) for rows in found]))


def class_attention(tower, images, row):
    """What the class token attends to in the last block, read through the seams."""
    seen = {}
    bias = torch.zeros(197, 197, dtype=torch.float64)
    bias[0] = 0 if row is None else row

    def qkv(layer, attention, x):
        seen[layer] = blocks.project_qkv(attention, x)
        return seen[layer]

    seams = blocks.Seams(qkv=qkv, bias=lambda layer: bias if layer >= 8 and row is not None else None)
    blocks.image_features(tower, images, seams=seams)
    q, k, _ = (part.transpose(1, 2) for part in seen[9])
    return ((q[:, :, :1] * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias[0]).softmax(-1).mean(1)[:, 0]
