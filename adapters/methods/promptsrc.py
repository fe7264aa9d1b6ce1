"""PromptSRC: deep prompts in both towers, held near frozen CLIP and averaged over epochs (Khattak et al. 2023, arXiv 2307.06948)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Batch
from ..backbone_templates import imagenet_templates
from ..errors import RecipeError
from ..prompt_towers import TowerPrompts, TowersConfig

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

TEMPLATES = 60  # of CLIP's 80 for ImageNet; the published 60 are the first ones


@dataclass
class Config(TowersConfig):
    """Settings of PromptSRC; the defaults are those of its base-to-new protocol.

    Attributes:
        text_length: text prompt tokens in every prompted layer.
        image_length: the same in the image tower; 0 leaves that tower alone.
        text_depth: text layers that get prompts of their own, counted from the first. A number, a fraction of the
            tower, "all", or None for the paper's 9, cut to a smaller tower.
        image_depth: the same in the image tower.
        init: words whose first tokens start the text prompts of layer 0; the other words stay in the sentence.
            None, or fewer words than prompts: N(0, 0.02^2).
        text_weight: weight of the mean absolute difference of learned and frozen text features.
        image_weight: the same of image features.
        aggregation_mean: epoch (counted from 1) whose prompts weigh most in the final ones; beyond the last epoch, that
            one. None: the last epoch's prompts are final.
        aggregation_sd: width of the Gaussian over epochs.
    """

    text_length: int = 4
    image_length: int = 4
    text_weight: float = 25.0
    image_weight: float = 10.0
    aggregation_mean: float | None = 15.0
    aggregation_sd: float = 1.0


class PromptSRC(TowerPrompts):
    """Cross-entropy + text_weight mean|t - t0| + image_weight mean|v - v0| + KL(p0 || p) / (B C), then the averaged prompts.

    t, v are learned and t0, v0 frozen features (unit norm); p0 are the answers of v0 to t0. t0 of a class is the normalised
    mean over 60 ImageNet templates of features that are not normalised. After each epoch e the prompts are added to a running
    sum with a weight proportional to exp(-(e - mean)^2 / (2 sd^2)), the weights of all epochs adding up to 1; after the last
    epoch the sum takes their place. The sum is saved in every checkpoint, so a resumed run ends the same.
    """

    paper_depth = 9

    @classmethod
    def reads_features_too(cls, config: Config, spec: BackboneSpec) -> bool:
        """The frozen image features are the teacher."""
        return bool(config.image_length)

    def build(self) -> None:
        """Create the prompts and, for each, its running sum."""
        if self.config.aggregation_sd <= 0:
            raise RecipeError(f"method.aggregation_sd is {self.config.aggregation_sd}; it must be above 0.")
        super().build()
        for name, parameter in list(self.named_parameters()):
            self.register_buffer(_sum_of(name), torch.zeros_like(parameter))

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy and the three regularisers."""
        config: Config = self.config
        text, image = self.class_weights(), self.encode_image(batch)
        frozen_text, frozen_image = self.frozen_text(), F.normalize(self.image_feature(batch), dim=-1)
        logits = self.scaled_cosines(image, text)
        answers, frozen = logits.log_softmax(-1), self.scaled_cosines(frozen_image, frozen_text).log_softmax(-1)
        # divided by B C, not by B: as published
        divergence = F.kl_div(answers, frozen, reduction="sum", log_target=True) / answers.numel()
        loss: Tensor = (
            F.cross_entropy(logits, batch["label"])
            + config.text_weight * (text - frozen_text).abs().mean()
            + config.image_weight * (image - frozen_image).abs().mean()
            + divergence
        )
        return loss

    def frozen_text(self) -> Tensor:
        """Frozen text features (C, D) averaged over the ImageNet templates, unit norm."""
        if "frozen_text" not in self._derived:
            rows = []
            for name in self.classes.names:
                texts = [template.format(self.classes.text(name)) for template in imagenet_templates(TEMPLATES)]
                rows.append(self.backbone.encode_text(texts, normalize=False).to(self.dtype).mean(0))
            self._derived["frozen_text"] = F.normalize(torch.stack(rows), dim=-1)
        frozen: Tensor = self._derived["frozen_text"]
        return frozen

    def epoch_weights(self, epochs: int) -> list[float]:
        """Weight of each epoch's prompts in the final ones; they add up to 1."""
        mean, sd = self.config.aggregation_mean, self.config.aggregation_sd
        powers = [-((epoch - mean) ** 2) / (2 * sd**2) for epoch in range(1, epochs + 1)]
        exponentials = [math.exp(power - max(powers)) for power in powers]  # of far-away epochs all would be 0
        return [value / math.fsum(exponentials) for value in exponentials]

    @torch.no_grad()
    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Add the prompts to the sum; after the last epoch install it."""
        if self.config.aggregation_mean is None:
            return
        weight = self.epoch_weights(epochs)[epoch]
        for name, parameter in self.named_parameters():
            total = self.get_buffer(_sum_of(name))
            if epoch == 0:
                total.zero_()  # training may have been done before, on other classes
            total.add_(parameter, alpha=weight)
            if epoch == epochs - 1:
                parameter.copy_(total)
        if epoch == epochs - 1:
            self._derived.pop("class_weights", None)


def _sum_of(name: str) -> str:
    return "sum_" + name.replace(".", "_")
