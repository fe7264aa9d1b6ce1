"""Which box is meant? Referring expressions with FALIP: every box in turn is looked at; nothing is trained (ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..errors import RecipeError
from ..region_adapter import RegionAdapter, RegionConfig

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

BANK = 500  # captions in the bank, at most (published)


@dataclass
class Config(RegionConfig):
    """Settings of the choice among boxes; those of the bias are in `RegionConfig`.

    Attributes:
        subtract: subtract from a box's score its mean score over a bank of captions, so that a box that suits every
            caption does not always win.
        template: sentence around the caption, which is put in lower case.
    """

    subtract: bool = False
    template: str = "a photo of {}"


class FalipRefer(RegionAdapter):
    """Score of a box: logit scale * cosine(features with that box, caption); probabilities are a softmax over boxes.

    The bank of captions is that of the validation images, else the texts of the classes; only its mean feature is kept.
    """

    task: ClassVar[str] = "referring"
    bank: Tensor

    @classmethod
    def supports(cls, config: Any, spec: BackboneSpec) -> str | None:
        """As every region method; the template needs a place for the caption."""
        if config.template.count("{}") != 1:
            raise RecipeError(f"method.template is '{config.template}'; it needs exactly one {{}}, the place of the caption.")
        return super().supports(config, spec)

    @classmethod
    def batch_keys(cls, config: Any, spec: BackboneSpec) -> tuple[str, ...]:
        """Candidate boxes, what is right, and the caption; crops for the comparison."""
        return ("label", "boxes", "candidates", "candidate_crops", "target", "caption")

    def build(self) -> None:
        """Register the mean feature of the bank."""
        super().build()
        self.register_buffer("bank", torch.zeros(self.backbone.embed_dim, dtype=self.dtype))

    def reference(self) -> FalipRefer:
        """The same without looking at the boxes: every box is as good as the other."""
        return FalipRefer(Config(region="none", template=self.config.template)).setup(self.backbone, self.classes)  # type: ignore[return-value]

    @property
    def ways(self) -> dict[str, tuple[str, bool]]:
        """What is measured side by side: name -> (how a box is shown, whether the bank is subtracted)."""
        if self.config.region == "none":
            return {"no_mask": ("none", False)}
        own, subtract = self.config.region, self.config.subtract
        found = {own: (own, subtract), f"{own}_plain" if subtract else f"{own}_subtract": (own, not subtract)}
        return {**found, "crop": ("crop", False), "no_mask": ("none", False)}

    def captions(self, batch: Batch) -> list[str]:
        """The caption of every image, else the text of its class."""
        texts = [self.classes.text(self.classes.names[int(i)]) for i in batch["label"]] if "label" in batch else []
        return list(batch["caption"]) if "caption" in batch else texts

    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """Text features (N, D), unit norm, of captions in the template."""
        prompts = [self.config.template.replace("{}", " ".join(caption.lower().split())) for caption in captions]
        different = list(dict.fromkeys(prompts))
        place = {prompt: i for i, prompt in enumerate(different)}
        features = F.normalize(self.encode_text(different), dim=-1)
        return features[[place[prompt] for prompt in prompts]]

    def box_features(self, batch: Batch, way: str | None = None) -> list[Tensor]:
        """For each image the features (K_i, D) of its candidate boxes, each shown in turn."""
        return self.region_features(batch, way, boxes="candidates", crops="candidate_crops")

    def box_scores(self, features: Sequence[Tensor], captions: Sequence[str], subtract: bool | None = None) -> list[Tensor]:
        """For each image the scores (K_i,) of its boxes under its caption."""
        subtract = self.config.subtract if subtract is None else subtract
        texts = self.caption_features(captions)
        texts = texts - self.mean_caption() if subtract else texts
        scale = self.backbone.logit_scale
        # sums row by row: equal features have equal scores to the last bit
        return [scale * (boxes * text).sum(-1) for boxes, text in zip(features, texts, strict=True)]

    def mean_caption(self) -> Tensor:
        """Mean feature (D,) of the bank; of the classes' texts where no caption was seen."""
        if bool(self.bank.any()):
            return self.bank
        if "bank" not in self._derived:
            texts = [text for name in self.classes.names for text in self.classes.texts[name]]
            self._derived["bank"] = self.caption_features(texts).mean(0)
        mean: Tensor = self._derived["bank"]
        return mean

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, K) of the boxes, K the greatest number of boxes; minus infinity where an image has fewer.

        Images without boxes and captions are scored against the classes (B, C), as zero-shot CLIP does.
        """
        if "candidates" not in batch:
            return super().logits(batch)
        found = self.box_scores(self.box_features(batch), self.captions(batch))
        most = max((len(scores) for scores in found), default=0)
        return torch.stack([F.pad(scores, (0, most - len(scores)), value=-torch.inf) for scores in found])

    @torch.no_grad()
    def select(self, batches: Sequence[Batch]) -> None:
        """Keep the mean feature of the captions of held-out images."""
        captions = sorted({caption for batch in batches for caption in batch.get("caption", ()) if caption})
        if captions:
            chosen = captions[:: -(-len(captions) // BANK)]
            self.bank.copy_(self.caption_features(chosen).mean(0))
            self.selected = {"captions in the bank": len(chosen)}
