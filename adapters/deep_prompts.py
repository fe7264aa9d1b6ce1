"""What methods with learned prompts in both towers share: the prompts of every layer, and features made with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import Adapter, Batch, Needs
from .blocks import image_features, image_problem
from .errors import RecipeError
from .prompting import PromptEncoder, init_words, support

if TYPE_CHECKING:
    from .backbone_spec import BackboneSpec


@dataclass
class DeepConfig:
    """Settings of independent prompts in the text and the image tower.

    Attributes:
        context_length: prompt tokens of a text layer.
        image_prompts: prompt tokens of an image layer; 0 leaves the image tower as it is.
        init: words that start the prompt tokens of the first text layer; those beyond `context_length` stay in the prompt
            as they are. None: N(0, 0.02^2), as all other prompts start.
        depth: layers from the first on that have prompts of their own, in both towers; negative ones count from the end
            (-1: all), and so does "all".
    """

    context_length: int = 4
    image_prompts: int = 4
    init: str | None = "a photo of a"
    depth: int | str = 9


def layers_of(depth: int | str, layers: int, usual: tuple[int, ...] = ()) -> int:
    """Number of layers with prompts in a tower of `layers`.

    Args:
        depth: as in `DeepConfig`.
        layers: layers of the tower.
        usual: depths of the papers, which are cut to the tower where they go beyond it.

    Raises:
        RecipeError: no such number of layers.
    """
    if isinstance(depth, str):
        if depth != "all":
            raise RecipeError(f"method.depth is '{depth}'; it is a number of layers, or all.")
        return layers
    count = layers + 1 + depth if depth < 0 else depth
    if count in usual:
        return min(count, layers)
    if not 1 <= count <= layers:
        raise RecipeError(
            f"method.depth is {depth}, and a tower of this backbone has {layers} layers: use 1 to {layers}, -1 or all."
        )
    return count


class DeepPrompts(Adapter):
    """Prompts of every prompted layer of both towers, learned independently; the towers are frozen.

    Learnable tensors: `context` (n, W) of the first text layer, `deep_context` (n, W) of each following one, and
    `image_context`, (m, V) of each image layer, the first included. A layer's prompts overwrite those that come out of the
    layer before. W and V are the widths of the towers.
    """

    context: nn.Parameter
    usual_depths: ClassVar[tuple[int, ...]] = (3, 9, 12)  # published ones, for towers of 12 layers

    @classmethod
    def supports(cls, config: DeepConfig, spec: BackboneSpec) -> str | None:
        """Needs native towers on both sides."""
        return support(spec) or image_problem(spec)

    @classmethod
    def needs(cls, config: DeepConfig, spec: BackboneSpec) -> Needs:
        """The image tower itself has prompts."""
        return "images"

    @classmethod
    def trainable(cls, config: DeepConfig, spec: BackboneSpec) -> bool:
        """The prompts are trained."""
        return True

    def build(self) -> None:
        """Create the prompts of every layer."""
        config: DeepConfig = self.config
        spec = self.backbone.spec
        if config.context_length < 1 or config.image_prompts < 0:
            raise RecipeError("method.context_length must be at least 1 and method.image_prompts at least 0.")
        text, image = (layers_of(config.depth, n, self.usual_depths) for n in (spec.text_layers, spec.vision_layers))
        if isinstance(config.depth, int) and config.depth > min(text, image):
            self.notes.append(
                f"Prompts go {config.depth} layers deep in the paper; {spec.name} has {spec.text_layers} text and "
                f"{spec.vision_layers} image layers, so {text} and {image} have prompts."
            )

        def noise(count: int, width: int) -> nn.Parameter:
            return nn.Parameter(nn.init.normal_(torch.empty(count, width, dtype=self.dtype), std=0.02))

        length, width = config.context_length, spec.text_width
        if config.init:
            words = init_words(self.backbone, config.init, length).to(self.dtype)
            self.context = nn.Parameter(words.clone())
        else:
            self.context = noise(length, width)
        self.deep_context = nn.ParameterList(noise(length, width) for _ in range(text - 1))
        count = image if config.image_prompts else 0
        self.image_context = nn.ParameterList(noise(config.image_prompts, spec.vision_width) for _ in range(count))

    def encode_image(self, batch: Batch) -> Tensor:
        """Image features (B, D) of the prompted image tower, unit norm."""
        features = image_features(self.backbone, batch["image"], list(self.image_context))
        return F.normalize(features.to(self.dtype), dim=-1)

    def compute_class_weights(self) -> Tensor:
        """Text features (C, D) of the learned prompts, unit norm."""
        if "encoder" not in self._derived:
            self._derived["encoder"] = PromptEncoder(
                self.backbone,
                [self.classes.text(name) for name in self.classes.names],
                self.config.context_length,
                phrase=self.config.init or "",
                memory=self.backbone.text_memory,
            )
        encoder: PromptEncoder = self._derived["encoder"]
        return F.normalize(encoder(self.context, deep=list(self.deep_context)), dim=-1)
