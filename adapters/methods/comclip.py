"""ComCLIP: an image and its parts against a sentence and its words; nothing is trained (NAACL 2024, arXiv 2211.13854)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..classes import ClassSet
from ..csv_files import read_rows
from ..errors import RecipeError, nearest
from ..region_adapter import RegionAdapter, RegionConfig, blackened

if TYPE_CHECKING:
    from ..adapter import Adapter
    from ..backbone import FrozenClip
    from ..backbone_spec import BackboneSpec


@dataclass
class Config(RegionConfig):
    """Settings of ComCLIP; alpha, sigma, blocks and heads count where `region` is foveal.

    Attributes:
        region: how the image of a part is made: "blackout" (all but its box is hidden, as published), "crop" or "foveal".
        parts: class -> the words of its parts (subject, object, predicate), in the order of the boxes.
        parts_file: a CSV with the columns class and part, one row a part; its rows come behind those of `parts`.
    """

    region: str = "blackout"
    parts: dict[str, list[str]] = field(default_factory=dict)
    parts_file: str | None = None


class ComClip(RegionAdapter):
    """v' = v + sum_k w_k v_k, w_k = s_k / sum_k s_k, s_k = cos(t_k, v_k); score = logit scale * cos(v', sentence).

    v_k is the image of the k-th box, t_k the k-th part of the class. A part beyond the boxes (the predicate) sees all boxes
    together, and without boxes every part sees the whole image; a class without parts has one, its own text. Negative s_k
    count as 0: the published division by their sum would turn their sign.
    """

    @classmethod
    def supports(cls, config: Any, spec: BackboneSpec) -> str | None:
        """As every region method; parts need words."""
        for name, words in config.parts.items():
            if not all(isinstance(word, str) and word.strip() for word in words):
                raise RecipeError(f"method.parts of '{name}' is {words}; it lists the words of its parts, [] for none.")
        return super().supports(config, spec)

    def setup(self, backbone: FrozenClip, classes: ClassSet) -> Adapter:
        """Attach, and take the parts from the file, where there is one."""
        if self.config.parts_file:
            given = {name: list(words) for name, words in self.config.parts.items()}
            for name, words in read_parts(Path(self.config.parts_file)).items():
                given.setdefault(name, []).extend(words)
            self.config = replace(self.config, parts=given, parts_file=None)
        return super().setup(backbone, classes)

    def build(self) -> None:
        """Say which parts belong to no class."""
        super().build()
        unknown = [name for name in self.config.parts if name not in self.classes]
        if unknown:
            hint = nearest(unknown[0], self.classes.names)
            self.notes.append(f"method.parts names '{unknown[0]}', which is not among the classes.{hint}")

    def rename_classes(self, names: Mapping[str, str], reword: bool = False) -> None:
        """Change names; parts stay with their class."""
        super().rename_classes(names, reword)
        self.config = replace(self.config, parts={names.get(n, n): words for n, words in self.config.parts.items()})

    def part_features(self) -> list[Tensor]:
        """For each class the text features (M, D), unit norm, of its parts; M may be 0."""
        if "parts" not in self._derived:
            words = [self.config.parts.get(name, [self.classes.text(name)]) for name in self.classes.names]
            different = list(dict.fromkeys(word for group in words for word in group))
            features = F.normalize(self.encode_text(different), dim=-1) if different else torch.zeros(0)
            place = {word: i for i, word in enumerate(different)}
            empty = torch.zeros(0, self.backbone.embed_dim, dtype=self.dtype, device=self.backbone.device)
            self._derived["parts"] = [features[[place[w] for w in group]] if group else empty for group in words]
        parts: list[Tensor] = self._derived["parts"]
        return parts

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, C)."""
        if "feature" in batch:
            whole, regions = F.normalize(self.image_feature(batch), dim=-1), [None] * len(batch["feature"])
            together: Sequence[Any] = regions
        else:
            whole = self.plain_features(batch["image"])
            regions, together = self.region_features(batch), self.together(batch)  # type: ignore[assignment]
        sentences, parts = self.class_weights(), self.part_features()
        most = max(len(words) for words in parts)
        words = torch.stack([F.pad(group, (0, 0, 0, most - len(group))) for group in parts])  # (C, M, D)
        known = torch.tensor([[k < len(group) for k in range(most)] for group in parts], device=words.device)
        rows = []
        for i, image in enumerate(whole):
            shown = self._images_of_parts(image, regions[i], together[i], most)
            similar = (words * shown).sum(-1).clamp(min=0) * known  # (C, M)
            total = similar.sum(-1, keepdim=True)
            even = known / known.sum(-1, keepdim=True).clamp(min=1)
            weights = torch.where(total > 0, similar / total.clamp(min=1e-12), even.to(similar))
            combined = F.normalize(image + weights @ shown, dim=-1)
            rows.append(self.backbone.logit_scale * (combined * sentences).sum(-1))
        return torch.stack(rows)

    def together(self, batch: Batch) -> list[Tensor | None]:
        """For each image the feature (D,) of all its regions together, all else black; None without regions."""
        images = batch["image"].to(self.backbone.device)
        none = [None] * len(images)
        boxes, masks = (none if batch.get(key) is None else batch[key] for key in ("boxes", "masks"))
        triples = zip(images, boxes, masks, strict=True)
        shown = [blackened(image, box, mask, together=True) for image, box, mask in triples]
        features = iter(self.plain_features(torch.cat(shown)) if any(map(len, shown)) else ())
        return [next(features) if len(one) else None for one in shown]

    def logits_of_regions(self, batch: Batch) -> Tensor:
        """Scores of the image, once for each of its regions: a region alone has none."""
        counts = [max(1, len(one)) for one in self.region_features(batch)]
        return self.logits(batch).repeat_interleave(torch.tensor(counts, device=self.backbone.device), 0)

    def _images_of_parts(self, image: Tensor, regions: Tensor | None, together: Tensor | None, most: int) -> Tensor:
        """Features (M, D) of what each part sees."""
        if regions is None or together is None or not len(regions):
            return image.expand(most, -1)
        own = regions[:most]
        return torch.cat([own, together.expand(most - len(own), -1)])


def read_parts(file: Path) -> dict[str, list[str]]:
    """Words of the parts of each class from a CSV with the columns class and part.

    Raises:
        RecipeError: the file is missing or lacks a column.
    """
    if not file.is_file():
        raise RecipeError(f"There is no file {file} (method.parts_file); it is a CSV with the columns class and part.")
    found: dict[str, list[str]] = {}
    for row in read_rows(file, ("class", "part")):
        if row["class"].strip() and row["part"].strip():
            found.setdefault(row["class"].strip(), []).append(row["part"].strip())
    return found
