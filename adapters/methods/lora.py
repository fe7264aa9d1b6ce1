"""LoRA in the attention (and MLP) of both towers: CLIP-LoRA (Zanella and Ben Ayed 2024), and peft's other tuners."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import peft_layers, tower_adapter
from ..blocks import image_problem
from ..layers import per_tower
from ..split_attention import PARTS, fuse, split
from ..tower_adapter import TowerAdapter, block_prefix, tower_problem

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

TARGETS = {"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj",
           "fc": "mlp.c_fc", "proj": "mlp.c_proj"}  # fmt: skip


@dataclass
class Config(tower_adapter.Config):
    """Settings of LoRA; the defaults are CLIP-LoRA's (whose logit scale is the constant 100, that of OpenAI's weights).

    Attributes:
        targets: matrices that get a low-rank change: q, k, v, o of attention; fc, proj of the MLP.
        rank: r.
        alpha: of the scaling.
        use_rslora: scale by alpha / sqrt(r), as CLIP-LoRA does; False: alpha / r.
        dropout: on the input of the low-rank path.
        peft: further options of peft's LoraConfig ({use_dora: true}), or another tuner with its options ({type: LOHA}).
    """

    targets: list[str] = field(default_factory=lambda: ["q", "k", "v"])
    rank: int = 2
    alpha: float = 1.0
    use_rslora: bool = True
    dropout: float = 0.25
    peft: dict[str, Any] = field(default_factory=dict)


class LoRA(TowerAdapter):
    """W x + s B A drop(x) in place of W x, s = alpha / sqrt(r); A is random, B starts at 0, all else stays frozen.

    Only A and B are parameters. The towers they sit in are a copy that shares the backbone's tensors.
    """

    share: Tensor

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Needs open_clip's own transformers in the towers that are trained, and settings that mean something."""
        if tower_problem(config):
            return tower_problem(config)
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
        return peft_layers.problem(config.peft)

    def build(self) -> None:
        """Copy the towers by reference, split the chosen attention, and let peft wrap the chosen layers."""
        config: Config = self.config
        towers = self.towers(config)
        clip = self.backbone.editable(())
        clip.towers = frozenset(towers)
        names, first = [], 0
        for tower in towers:
            blocks: Any = clip.model.get_submodule(block_prefix(clip.model, tower))
            chosen = per_tower(config.layers, tower, len(blocks))
            self.notes += [chosen.note] if chosen.note and chosen.note not in self.notes else []
            first = chosen.first if tower == "image" else first
            prefix = block_prefix(clip.model, tower)
            for index in chosen.blocks:
                if set(config.targets) & set("qkvo"):
                    split(blocks[index])
                names += [f"{prefix}.{index}.{TARGETS[target]}" for target in config.targets]
        tensors = peft_layers.put_in(clip.model, names, config, self.dtype)
        self.attach(clip, tensors, first)
        self.register_buffer("share", torch.ones((), dtype=torch.float64))

    def train(self, mode: bool = True) -> LoRA:
        """Dropout follows the mode; the frozen towers have none."""
        super().train(mode)
        if hasattr(self, "_clip"):
            for layer in peft_layers.tuner_layers(self._clip.model).values():
                layer.train(mode)
            # Each text draws dropout for its own first token, as if it were encoded alone.
            self._clip.shares_start = not mode or (self.config.dropout == 0 and not self.config.peft)
        return self

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
