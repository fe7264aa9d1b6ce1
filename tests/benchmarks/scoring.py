"""Scoring: regions with shared lower blocks against a full pass for each; search in vectors against NumPy brute force.

Run: python tests/benchmarks/scoring.py [--rows falip,search] [--regions K] [--vectors N] [--repeats N] [--device cuda]
Rows are printed as they are measured. Nothing is gated by time.
"""

import argparse

import open_clip
import torch
from limpet import blocks
from limpet.backbone import FrozenClip
from limpet.foveal import box_cells, foveal_rows, regional_features
from measure import interleaved
from scoring_search import search

STEERED = (8, 9, 10, 11)


def vit_b_16():
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16", pretrained=None)
    return FrozenClip.from_model(model.eval(), name="ViT-B-16")


def regions(count):
    """Boxes of all sizes and their biases (count, 197)."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(1)).sort(1).values
    boxes = torch.cat([corners[:, 0], (corners[:, 1] + 0.1).clamp(max=1)], -1)
    return foveal_rows(box_cells(boxes, (14, 14)), 0.2, 100.0)


@torch.inference_mode()
def falip(count, repeats, device):
    """K regions of one image: shared blocks against K full passes in a batch and one by one."""
    backbone = vit_b_16().to(device)
    image, rows = torch.randn(1, 3, 224, 224, device=device), regions(count)
    full = torch.zeros(count, 1, 197, 197, device=device)
    full[:, 0, 0] = rows.to(full)

    def separate(which):
        bias = full[which]
        seams = blocks.Seams(bias=lambda layer: bias if layer in STEERED else None)
        return blocks.image_features(backbone, image.expand(len(bias), -1, -1, -1), seams=seams)

    ways = {
        "shared": lambda: regional_features(backbone, image, [rows], STEERED),
        "full passes, one batch": lambda: separate(slice(0, count)),
        "full passes, one by one": lambda: torch.cat([separate(slice(k, k + 1)) for k in range(count)]),
    }
    apart = (ways["shared"]() - ways["full passes, one batch"]()).abs().max()
    shared, batch, single = interleaved(list(ways.values()), repeats, device)
    print(f"falip, ViT-B/16, {count} regions, {device}, {torch.get_num_threads()} thread(s); greatest difference {apart:.1e}")
    for name, seconds in zip(ways, (shared, batch, single), strict=True):
        print(f"  {name:<26}{1000 * seconds:8.1f} ms   {seconds / shared:5.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="falip,search")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--regions", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = options.rows.split(",")
    if "falip" in rows:
        falip(options.regions, options.repeats, torch.device(options.device))
    if "search" in rows:
        search(options.vectors, repeats=options.repeats)
