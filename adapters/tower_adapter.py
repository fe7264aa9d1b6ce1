"""What methods that train towers share: a copy of the towers, what of it is saved, and features from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import interpolation
from .adapter import Adapter, Batch, Needs
from .block_memory import BlockMemory
from .blocks import watched
from .errors import nearest

if TYPE_CHECKING:
    from .backbone import EditableClip
    from .backbone_spec import BackboneSpec
    from .backbone_tokens import Text

TOWERS: Mapping[str, tuple[str, ...]] = {"image": ("image",), "text": ("text",), "both": ("image", "text")}


@dataclass
class Config(interpolation.Interpolation):
    """What the settings of these methods have in common.

    Attributes:
        towers: "image", "text" or "both".
        layers: blocks of each tower (see `limpet.layers.choose`), or a table {image: ..., text: ...}.
        logit_scale: scale of the logits; None takes the backbone's own.
        label_smoothing: share of the target that cross-entropy spreads evenly over all classes.
        activation_memory: MiB for image activations below the first trained block; an image seen again starts from there.
    """

    towers: str = "both"
    layers: Any = "all"
    logit_scale: float | None = None
    label_smoothing: float = 0.0
    activation_memory: int = 0


def tower_problem(config: Config) -> str | None:
    """Why the common settings cannot be used, as a sentence, or None."""
    if config.towers not in TOWERS:
        return f"method.towers is '{config.towers}'.{nearest(config.towers, TOWERS)} It is one of {', '.join(TOWERS)}."
    if not 0 <= config.label_smoothing < 1:
        return f"method.label_smoothing is {config.label_smoothing}: it is a share, from 0 to below 1."
    if config.activation_memory < 0:
        return f"method.activation_memory is {config.activation_memory}: it is a number of MiB, 0 for none."
    return interpolation.problem(config)


def block_prefix(model: Any, tower: str) -> str:
    """Dotted name of the list of blocks of a native tower, "image" or "text"."""
    inside = "visual." if tower == "image" else "text." if hasattr(model, "text") else ""
    return f"{inside}transformer.resblocks"


class Tree(nn.Module):
    """Tensors under their dotted names. The same objects live in a model elsewhere; only they are saved, not the model.

    Args:
        tensors: dotted name -> a Parameter, or a tensor that is kept as a buffer.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *above, last = name.split(".")
            here: nn.Module = self
            for part in above:
                if part not in here._modules:
                    here.add_module(part, nn.Module())
                here = here.get_submodule(part)
            if isinstance(tensor, nn.Parameter):
                here.register_parameter(last, tensor)
            else:
                here.register_buffer(last, tensor)


class TowerAdapter(Adapter):
    """Base of the methods that change towers. `build` ends with `attach(copy, tensors)`.

    The copy is not part of the state: it shares every frozen tensor with the backbone, and its trained ones are the
    parameters of this adapter.
    """

    trained: Tree
    _clip: EditableClip
    _memory: BlockMemory
    _first: int

    @classmethod
    def towers(cls, config: Any) -> tuple[str, ...]:
        """Towers that the configuration trains, of "image" and "text"."""
        return TOWERS[config.towers]

    @classmethod
    def trainable(cls, config: Any, spec: BackboneSpec) -> bool:
        """Gradient training is all there is."""
        return True

    @classmethod
    def needs(cls, config: Any, spec: BackboneSpec) -> Needs:
        """Images, unless the image tower stays frozen: then its features can be kept."""
        return "images" if "image" in cls.towers(config) else "features"

    def attach(self, clip: EditableClip, tensors: Mapping[str, Tensor], first: int) -> None:
        """Work with `clip` from now on; `tensors` of it are trained and saved.

        Args:
            clip: the copy, its encoders carrying gradients to `tensors`.
            tensors: dotted name -> parameter.
            first: lowest block of the image tower that holds one of them; below it nothing is trained.
        """
        self._clip, self._first = clip, first
        self._memory = BlockMemory(self.config.activation_memory * 2**20)
        self.trained = Tree(tensors)

    @property
    def clip(self) -> EditableClip:
        """The copy of the towers, where the backbone is."""
        if self._clip.device != self.backbone.device:
            self._clip.to(self.backbone.device)
        self._clip.text_memory = self.backbone.text_memory
        return self._clip

    def encode_image(self, batch: Batch) -> Tensor:
        """Image features (B, D), unit norm, from the trained tower where there is one."""
        if "image" not in self.towers(self.config):
            return super().encode_image(batch)
        clip, images = self.clip, batch["image"]
        if self._first and self._memory.size and not watched():
            features = self._memory.image_features(clip, images, self._first)
        else:
            features = clip.encode_image(images, normalize=False)
        return F.normalize(features.to(self.dtype), dim=-1)

    def sharing(self) -> list[nn.Module]:
        """The towers that the trained tensors sit in."""
        return [self.clip.model]

    def encode_text(self, texts: Sequence[Text]) -> Tensor:
        """Text features (N, D), unit norm, from the trained tower where there is one."""
        if "text" not in self.towers(self.config) or not texts:
            return super().encode_text(texts)
        return F.normalize(self.clip.encode_text(texts, normalize=False).to(self.dtype), dim=-1)

    def compute_class_weights(self) -> Tensor:
        """Text classifier (C, D): computed once while the text tower is frozen, at every step while it is trained."""
        return self.prompt_weights() if "text" in self.towers(self.config) else self.zero_shot_weights()

    @property
    def answer_scale(self) -> float:
        """What cosines are multiplied by: the scale of the backbone, or `logit_scale` of the configuration."""
        fixed = self.config.logit_scale
        return self.backbone.logit_scale if fixed is None else float(fixed)

    def logits_of(self, features: Tensor) -> Tensor:
        """Scores (B, C): the scale times cosine similarity."""
        return self.scaled_cosines(features, self.class_weights(), self.answer_scale)

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        """The class weights times the scale."""
        weights = self.answer_scale * self.class_weights()
        return weights, weights.new_zeros(len(weights)), True

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over all classes, with label smoothing where asked for."""
        return F.cross_entropy(self.logits(batch), batch["label"], label_smoothing=self.config.label_smoothing)

    def merged(self) -> dict[str, Tensor]:
        """Plain open_clip weights with their original names, what was trained included.

        The tensors are those of the backbone where nothing was trained: copy before changing them.
        """
        weights = dict(self.backbone.model.state_dict())
        with torch.no_grad():
            for name, tensor in self.merged_tensors().items():
                weights[name] = tensor.detach().to(weights[name])
        return weights

    def merged_tensors(self) -> dict[str, Tensor]:
        """The tensors of `merged` that differ from the backbone's."""
        return dict(self.trained.named_parameters())
