"""FALIP: CLIP's own attention, steered to a region of the image; nothing is trained (ECCV 2024, arXiv 2407.05578)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..errors import RecipeError
from ..region_adapter import RegionAdapter, RegionConfig

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

COMBINE = ("union", "mean")


@dataclass
class Config(RegionConfig):
    """Settings of FALIP for classification; those of the bias are in `RegionConfig`.

    Attributes:
        combine: several regions of one image: "union" (one mask of them all) or "mean" (of their features).
    """

    combine: str = "union"


class Falip(RegionAdapter):
    """Classification of a region: zero-shot CLIP whose class token attends more to the region's patches.

    An object with several views (depth maps of a 3-D shape, with their foreground as masks) is scored by the weighted sum
    of its views' scores.
    """

    @classmethod
    def supports(cls, config: Any, spec: BackboneSpec) -> str | None:
        """As every region method; a union of regions can be seen, not cut out."""
        if config.combine not in COMBINE:
            raise RecipeError(f"method.combine is '{config.combine}'; it is one of {', '.join(COMBINE)}.")
        return super().supports(config, spec)

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Regions, and the views of an object where the data have several."""
        return (*super().batch_keys(config, spec), "views", "view_masks", "view_weights")

    def encode_image(self, batch: Batch) -> Tensor:
        """Features (B, D), unit norm; of an object with several views the weighted mean of theirs, as it is."""
        if "feature" in batch:
            return F.normalize(self.image_feature(batch), dim=-1)
        if "views" in batch:
            return self._object_features(batch)
        images = batch["image"].to(self.backbone.device)
        if self.config.region == "foveal" and self.config.combine == "union":
            return self.foveal_features(images, [union(rows) for rows in self._rows(batch, len(images))])
        found = self.region_features(batch)
        plain = self.plain_features(images) if any(not len(feature) for feature in found) else None
        one = [plain[i] if plain is not None and not len(f) else f.mean(0) for i, f in enumerate(found)]
        return F.normalize(torch.stack(one), dim=-1)

    def _rows(self, batch: Batch, size: int) -> list[Tensor]:
        boxes, masks = ([None] * size if batch.get(key) is None else batch[key] for key in ("boxes", "masks"))
        return [self.rows(box, mask) for box, mask in zip(boxes, masks, strict=True)]

    def _object_features(self, batch: Batch) -> Tensor:
        """sum_j beta_j v_j (B, D) over the views of each object: its product with a text is the weighted sum of cosines."""
        found = []
        for views, masks, weights in zip(batch["views"], batch["view_masks"], batch["view_weights"], strict=True):
            images = views.to(self.backbone.device)
            if self.config.region == "foveal":
                feature = self.foveal_features(images, [union(self.rows(None, mask[None])) for mask in masks])
            else:
                feature = torch.cat(self.region_features({"image": images, "masks": [mask[None] for mask in masks]}))
            found.append((weights.to(feature)[:, None] * feature).sum(0))
        return torch.stack(found)

    def select(self, batches: Sequence[Batch]) -> None:
        """Nothing is chosen; data without regions are said so."""
        if batches and not any(key in batches[0] for key in ("boxes", "masks", "views")):
            self.notes.append("The data give no boxes or masks: without regions this is zero-shot CLIP.")


def union(rows: Tensor) -> Tensor:
    """One mask (1, L) of the masks (K, L) of an image: the greatest value at each token; zeros where there are none."""
    return rows.amax(0, keepdim=True) if len(rows) else rows.new_zeros(1, rows.shape[1])
