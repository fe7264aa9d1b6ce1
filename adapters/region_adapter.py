"""The base class of methods that look at regions of an image: foveal attention, a crop, or nothing but the region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapter import Adapter, Batch, Needs
from .errors import RecipeError, nearest
from .foveal import box_cells, foveal_problem, foveal_rows, grid_of, mask_cells, regional_features
from .layers import choose

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec

WAYS = ("foveal", "crop", "blackout", "none")


@dataclass
class RegionConfig:
    """How a region is shown to the image tower.

    Attributes:
        region: "foveal" (attention is drawn to it), "crop" (cut out), "blackout" (all else is black), or "none" (not at all).
        alpha: greatest value added to the attention logits; 0 is plain CLIP.
        sigma: spread of the bias, in patches; far above the size of a region only its shape is left.
        blocks: which blocks are steered (see `limpet.layers`).
        heads: "all", or a list of heads.
    """

    region: str = "foveal"
    alpha: float = 0.2
    sigma: float = 100.0
    blocks: Any = "up"
    heads: Any = "all"


class RegionAdapter(Adapter):
    """Image features of regions, given as boxes or masks; an image without regions is seen as plain CLIP sees it."""

    resize_mode: ClassVar[str | None] = "squash"  # a crop could cut regions off

    @classmethod
    def supports(cls, config: Any, spec: BackboneSpec) -> str | None:
        """Steering attention needs a native ViT with a class token; values out of range are refused here, too."""
        check(config)
        if config.region != "foveal":
            return None
        problem = foveal_problem(spec)
        if problem is None:
            choose(config.blocks, spec.vision_layers, "method.blocks")
            _heads(config.heads, spec.vision_heads)
        return problem

    @classmethod
    def needs(cls, config: Any, spec: BackboneSpec) -> Needs:
        """Whole images: what is computed depends on the regions."""
        return "images"

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Boxes and masks, and crops only where they are looked at."""
        return ("label", "boxes", "masks", *(("crops",) if config.region == "crop" else ()))

    @classmethod
    def image_alone(cls, config: Any, spec: BackboneSpec) -> str | None:
        """Answers depend on boxes or masks, which an exported graph of images does not get."""
        return f"'{cls.variant(config)}' looks at the boxes or masks that come with an image, so the image alone is not enough."

    def build(self) -> None:
        """Say where the paper's blocks were fitted to another depth."""
        config, spec = self.config, self.backbone.spec
        if config.region == "foveal":
            note = choose(config.blocks, spec.vision_layers, "method.blocks").note
            self.notes = [note] if note else []

    def plain_features(self, images: Tensor) -> Tensor:
        """Features (B, D), unit norm, of whole images, bit for bit those of zero-shot CLIP."""
        return F.normalize(self.backbone.encode_image(images, normalize=False).to(self.dtype), dim=-1)

    def rows(self, boxes: Tensor | None, masks: Tensor | None = None) -> Tensor:
        """Foveal biases (K, 1 + P) of the boxes (K, 4) and masks (M, H, W) of one image: boxes first."""
        grid = grid_of(self.backbone)
        cells = [box_cells(boxes, grid)] if boxes is not None and len(boxes) else []
        cells += [mask_cells(masks, grid)] if masks is not None and len(masks) else []
        found = torch.cat(cells) if cells else torch.zeros(0, *grid, dtype=torch.bool)
        return foveal_rows(found, self.config.alpha, self.config.sigma)

    def foveal_features(self, images: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Features (sum of K_i, D), unit norm, of images (B, 3, H, W) with biases (K_i, 1 + P); all-zero rows are plain."""
        counts = torch.tensor([len(row) for row in rows])
        owner = torch.repeat_interleave(torch.arange(len(rows)), counts)
        if not len(owner):
            return torch.zeros(0, self.backbone.embed_dim, dtype=self.dtype, device=self.backbone.device)
        seen = [bool(row.any()) for all_rows in rows for row in all_rows]
        if not any(seen):
            return self.plain_features(images)[owner.to(self.backbone.device)]
        spec = self.backbone.spec
        chosen = choose(self.config.blocks, spec.vision_layers, "method.blocks").blocks
        heads = _heads(self.config.heads, spec.vision_heads)
        feature = F.normalize(regional_features(self.backbone, images, rows, chosen, heads).to(self.dtype), dim=-1)
        if all(seen):
            return feature
        plain = self.plain_features(images)[owner.to(self.backbone.device)]
        return torch.where(torch.tensor(seen, device=feature.device)[:, None], feature, plain)

    def region_features(self, batch: Batch, way: str | None = None, boxes: str = "boxes", crops: str = "crops") -> list[Tensor]:
        """For each image of a batch the features (K_i, D), unit norm, of its regions; K_i may be 0.

        Args:
            batch: with `image`, and `boxes` (or the key given) and `masks` where the data have them.
            way: one of `WAYS`; by default the configured one.
            boxes: key of the boxes.
            crops: key of the regions cut out.
        """
        way = way or self.config.region
        images = batch["image"].to(self.backbone.device)
        size = len(images)
        none = [None] * size
        given: Sequence[Any] = none if batch.get(boxes) is None else batch[boxes]
        masks: Sequence[Any] = none if boxes != "boxes" or batch.get("masks") is None else batch["masks"]
        counts = [sum(len(part) for part in pair if part is not None) for pair in zip(given, masks, strict=True)]
        if way == "none":
            feature = self.plain_features(images)
            return [feature[i : i + 1].expand(n, -1) for i, n in enumerate(counts)]
        if way == "foveal":
            rows = [self.rows(box, mask) for box, mask in zip(given, masks, strict=True)]
            return list(torch.split(self.foveal_features(images, rows), counts))
        if way == "crop" and crops in batch:
            parts = [part.to(images) for part in batch[crops]] if sum(counts) else []
        else:
            parts = [blackened(image, box, mask) for image, box, mask in zip(images, given, masks, strict=True)]
        feature = self.plain_features(torch.cat(parts)) if sum(counts) else self.plain_features(images)[:0]
        return list(torch.split(feature, counts))

    def logits_of_regions(self, batch: Batch) -> Tensor:
        """Scores (sum of K_i, C) of every region on its own; of an image without regions its own (K_i = 1)."""
        found = self.region_features(batch)
        plain = self.plain_features(batch["image"].to(self.backbone.device))
        features = torch.cat([one if len(one) else plain[i : i + 1] for i, one in enumerate(found)])
        return self.backbone.logit_scale * features @ self.class_weights().T


def blackened(image: Tensor, boxes: Tensor | None, masks: Tensor | None = None, together: bool = False) -> Tensor:
    """An image (3, H, W) once for each region (K, 3, H, W), or once for all, with what is outside in CLIP's mean colour.

    The mean colour is 0 for the network. Published code uses black pixels; neither is part of the picture.
    """
    height, width = image.shape[-2:]
    inside = []
    if boxes is not None and len(boxes):
        inside.append(box_cells(boxes, (height, width)))
    if masks is not None and len(masks):
        inside.append(mask_cells(masks, (height, width)))
    if not inside:
        return image[None][:0]
    shown = torch.cat(inside)
    return image[None] * (shown.any(0, keepdim=True) if together else shown).to(image)[:, None]


def check(config: Any) -> None:
    """Refuse settings that mean nothing.

    Raises:
        RecipeError: an unknown way of showing a region, or a spread that is not above 0.
    """
    if config.region not in WAYS:
        raise RecipeError(f"method.region is '{config.region}'.{nearest(config.region, WAYS)} Known: {', '.join(WAYS)}.")
    if not config.sigma > 0:
        raise RecipeError(f"method.sigma is {config.sigma}; it is a distance in patches, above 0.")


def _heads(heads: Any, count: int) -> list[int] | None:
    """The heads that are steered; None for all.

    Raises:
        RecipeError: neither "all" nor a list of heads that exist.
    """
    if heads == "all":
        return None
    listed = [heads] if isinstance(heads, int) and not isinstance(heads, bool) else heads
    if isinstance(listed, str) or not isinstance(listed, Sequence) or not listed or not all(type(h) is int for h in listed):
        raise RecipeError(f"method.heads is '{heads}'; it is all, or a list of heads such as [0, 3].")
    odd = next((head for head in listed if not -count <= head < count), None)
    if odd is not None:
        raise RecipeError(f"method.heads names head {odd}, but a block of this tower has {count}: 0 to {count - 1}.")
    return [cast(int, head) for head in listed]
