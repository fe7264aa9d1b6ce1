"""LoRA in the attention (and MLP) of both towers: CLIP-LoRA (Zanella and Ben Ayed 2024), and peft's other tuners."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import interpolation, peft_layers
from ..adapter import Batch
from ..block_memory import BlockMemory
from ..blocks import image_problem
from ..errors import nearest
from ..layers import per_tower
from ..split_attention import PARTS, fuse, split
from ..tower_adapter import TOWERS, TowerAdapter

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

TARGETS = {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj",
           "fc": "mlp.c_fc", "proj": "mlp.c_proj"}  # fmt: skip
PREFIXES = {"image": "visual.transformer.resblocks", "text": "transformer.resblocks"}


@dataclass
class Config(interpolation.Interpolation):
    """Settings of LoRA; the defaults are CLIP-LoRA's.

    Attributes:
        towers: "image", "text" or "both".
        layers: blocks of each tower (see `limpet.layers.choose`), or a table {image: ..., text: ...}.
        targets: matrices that get a low-rank change: q, k, v, o of attention; fc, proj of the MLP.
        rank: r.
        alpha: of the scaling.
        use_rslora: scale by alpha / sqrt(r), as CLIP-LoRA does; False: alpha / r.
        dropout: on the input of the low-rank path.
        peft: further options of peft's LoraConfig ({use_dora: true}), or another tuner with its options ({type: LOHA}).
        logit_scale: scale of the logits; None takes the backbone's own (the published code: 100, OpenAI's).
        activation_memory: MiB for image activations below the first trained block; an image seen again starts from there.
    """

    towers: str = "both"
    layers: Any = "all"
    targets: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    rank: int = 2
    alpha: float = 1.0
    use_rslora: bool = True
    dropout: float = 0.25
    peft: dict[str, Any] = field(default_factory=dict)
    logit_scale: float | None = None
    activation_memory: int = 0


class LoRA(TowerAdapter):
    """W x + s B A drop(x) in place of W x, s = alpha / sqrt(r); A is random, B starts at 0, all else stays frozen.

    Only A and B are parameters. The towers they sit in are a copy that shares the backbone's tensors.
    """

    share: Tensor

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs open_clip's own transformers in the towers that are trained, and settings that mean something."""
        if config.towers not in TOWERS:
            return f"method.towers is '{config.towers}'.{nearest(config.towers, TOWERS)} It is one of {', '.join(TOWERS)}."
        odd = [target for target in config.targets if target not in TARGETS]
        if odd or not config.targets:
            return (
                f"method.targets is {list(config.targets)}: choose some of {', '.join(TARGETS)} "
                "(queries, keys, values and output of attention; the two layers of the MLP)."
            )
        if config.rank < 1 or not 0 <= config.dropout < 1:
            return f"method.rank is {config.rank} and method.dropout {config.dropout}: at least 1, and from 0 to below 1."
        if "image" in cls.towers(config) and image_problem(spec):
            return f"{image_problem(spec)} method.towers=text leaves the image tower alone."
        if "text" in cls.towers(config) and (spec.text_tower != "transformer" or spec.multimodal or not spec.plain_attention):
            return (
                f"The text tower of {spec.name} is not one of open_clip's own text transformers with plain attention, which "
                "this needs; method.towers=image leaves the text tower alone."
            )
        return peft_layers.problem(config.peft) or interpolation.problem(config)

    def build(self) -> None:
        """Copy the towers by reference, split the chosen attention, and let peft wrap the chosen layers."""
        config: Config = self.config
        towers = self.towers(config)
        clip = self.backbone.editable(())
        clip.towers = frozenset(towers)
        names, self._first = [], 0
        for tower in towers:
            blocks = self._blocks(clip.model, tower)
            chosen = per_tower(config.layers, tower, len(blocks))
            self.notes += [chosen.note] if chosen.note and chosen.note not in self.notes else []
            self._first = chosen.first if tower == "image" else self._first
            prefix = self._prefix(tower)
            for index in chosen.blocks:
                if set(config.targets) & set("qkvo"):
                    split(blocks[index])
                names += [f"{prefix}.{index}.{TARGETS[target]}" for target in config.targets]
        tensors = peft_layers.put_in(clip.model, names, config, self.dtype)
        self.attach(clip, tensors)
        self._memory = BlockMemory(config.activation_memory * 2**20)
        self.register_buffer("share", torch.ones((), dtype=torch.float64))

    def _prefix(self, tower: str) -> str:
        inside = "text." if tower == "text" and hasattr(self.backbone.model, "text") else ""
        return inside + PREFIXES[tower]

    def _blocks(self, model: Any, tower: str) -> Any:
        return model.get_submodule(self._prefix(tower))

    def train(self, mode: bool = True) -> LoRA:
        """Dropout follows the mode; the frozen towers have none."""
        super().train(mode)
        if hasattr(self, "_clip"):
            for layer in peft_layers.tuner_layers(self._clip.model).values():
                layer.train(mode)
            # Each text draws dropout for its own first token, as if it were encoded alone.
            self._clip.shares_start = not mode or (self.config.dropout == 0 and not self.config.peft)
        return self

    def encode_image(self, batch: Batch) -> Tensor:
        """Image features (B, D), unit norm; frozen blocks below the first trained one are remembered if there is room."""
        if self._first == 0 or not self._memory.size or "image" not in self.towers(self.config):
            return super().encode_image(batch)
        features = self._memory.image_features(self.clip, batch["image"], self._first)
        return torch.nn.functional.normalize(features.to(self.dtype), dim=-1)

    def interpolated(self, share: float) -> None:
        """WiSE-FT by a factor: (1 - a) W + a (W + s B A) = W + a s B A."""
        self.share.fill_(share)
        self._apply_share()

    def _apply_share(self) -> None:
        for layer in peft_layers.tuner_layers(self._clip.model).values():
            peft_layers.set_share(layer, float(self.share))
        self._derived = {key: value for key, value in self._derived.items() if key != "class_weights"}

    def load_state_dict(self, *given: Any, **options: Any) -> Any:
        """Load, and take over the interpolation."""
        result = super().load_state_dict(*given, **options)
        self._apply_share()
        return result

    def merged_tensors(self) -> dict[str, Tensor]:
        """Each changed matrix as a plain one; q, k and v joined under open_clip's name again."""
        share = float(self.share)
        result: dict[str, Tensor] = {}
        layers = peft_layers.tuner_layers(self._clip.model)
        linears = {name: peft_layers.merged_linear(layer, share) for name, layer in layers.items()}
        for name, (weight, bias) in linears.items():
            block, _, kind = name.rpartition(".attn.")
            if kind:
                attention = self._clip.model.get_submodule(f"{block}.attn")
                parts = {part: linears.get(f"{block}.attn.{part}") or _plain(attention, part) for part in (*PARTS, "out_proj")}
                result |= {f"{block}.attn.{key}": value for key, value in fuse(parts).items()}
            else:
                result |= {f"{name}.{key}": value for key, value in (("weight", weight), ("bias", bias)) if value is not None}
        return result


def _plain(attention: Any, part: str) -> tuple[Tensor, Tensor | None]:
    layer = attention.get_submodule(part)
    return layer.weight, layer.bias
