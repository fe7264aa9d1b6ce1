"""Golden cases: tensors made by the published implementations, read from any folder of their layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


class Case:
    """One golden case: its notes and configuration (`json`), its tensors, and comparison at its
    tolerances."""

    def __init__(self, folder: Path, name: str):
        path = folder / name / f"{name}.json"
        if not path.is_file():
            pytest.fail(f"The golden folder {folder} has no case {name} ({path} is missing).")
        self.name = name
        self.json: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.config: dict[str, Any] = self.json["config"]
        self.tensors: dict[str, Tensor] = load_file(path.with_suffix(".safetensors"))

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def input(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        """A given tensor; floating-point ones in the wanted format."""
        tensor = self.tensors[name]
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def expected(self, role: str = "expected") -> list[str]:
        """Names of the tensors of a role, without the float64 twins."""
        entries = self.json["tensors"]
        return [n for n, e in entries.items() if e["role"] == role and not n.endswith(".f64")]

    def close(self, name: str, value: Tensor) -> None:
        """Compare a float64 value with NAME.f64, a float32 one with NAME, integers exactly."""
        tolerance = self.json["tensors"][name]["tolerance"]
        value = value.detach().cpu()
        if tolerance == "exact":
            torch.testing.assert_close(
                value, self.tensors[name].to(value.dtype), rtol=0, atol=0, msg=self._msg(name)
            )
            return
        sharp = value.dtype == torch.float64 and f"{name}.f64" in self.tensors
        want = self.tensors[f"{name}.f64" if sharp else name]
        torch.testing.assert_close(
            value.to(want.dtype), want, **tolerance["float64" if sharp else "float32"], msg=self._msg(name)
        )

    def _msg(self, name: str) -> Callable[[str], str]:
        return lambda text: f"{self.name}: {name} differs.\n{text}"


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str], Case]:
    """Read a golden case by name."""
    folder = Path(request.config.getoption("--golden"))
    cases: dict[str, Case] = {}

    def read(name: str) -> Case:
        if name not in cases:
            cases[name] = Case(folder, name)
        return cases[name]

    return read


@pytest.fixture(scope="session")
def golden_model(golden: Callable[[str], Case]) -> Callable[..., Any]:
    """The tiny CLIP of the golden cases as a FrozenClip, in the wanted number format."""
    from limpet.backbone import FrozenClip
    from open_clip.model import CLIP

    made: dict[torch.dtype, Any] = {}

    def make(dtype: torch.dtype = torch.float64) -> Any:
        if dtype in made:
            return made[dtype]
        case = golden("model")
        config, tensors = case.config, case.tensors
        state = {
            k[2:]: v.float() for k, v in tensors.items() if k.startswith("w/") and not k.endswith(".rows")
        }
        table = torch.zeros(config["vocab_size"], config["transformer_width"])
        table[tensors["token_rows_index"].long()] = tensors["w/token_embedding.rows"].float()
        state["token_embedding.weight"] = table
        vision = {
            "image_size": config["image_resolution"],
            "patch_size": config["vision_patch_size"],
            "width": config["vision_width"],
            "layers": config["vision_layers"],
            "head_width": config["vision_width"] // config["vision_heads"],
        }
        text = {
            "context_length": config["context_length"],
            "vocab_size": config["vocab_size"],
            "width": config["transformer_width"],
            "heads": config["transformer_heads"],
            "layers": config["transformer_layers"],
        }
        model = CLIP(config["embed_dim"], vision, text, quick_gelu="quick" in config["activation"])
        model.load_state_dict(state)
        made[dtype] = FrozenClip.from_model(model.to(dtype), name="golden")
        return made[dtype]

    return make


class Plain:
    """The formulas of prompt learning written out over open_clip's own modules: 77 tokens, no short cuts."""

    def __init__(self, backbone: Any):
        self.backbone, self.model = backbone, backbone.model

    def text(self, names: list[str], context: Tensor, phrase: str, deep: Sequence[Tensor] = ()) -> Tensor:
        """Features (C, D), not normalised, of "PHRASE NAME." whose first words are replaced by the context."""
        model, n = self.model, len(context)
        ids = self.backbone.tokenize([f"{phrase} {name.replace('_', ' ')}." for name in names])
        fixed = model.token_embedding(ids)
        x = torch.cat([fixed[:, :1], context.expand(len(ids), -1, -1), fixed[:, 1 + n :]], 1)
        x = x + model.positional_embedding
        for layer, block in enumerate(model.transformer.resblocks):
            if 0 < layer <= len(deep):
                x = torch.cat([x[:, :1], deep[layer - 1].expand(len(ids), -1, -1), x[:, 1 + n :]], 1)
            x = block(x, attn_mask=model.attn_mask)
        x = model.ln_final(x)
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection

    def image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Features (B, D), not normalised, with prompts behind the patches of the first layers."""
        visual = self.model.visual
        x = visual.conv1(images).flatten(2).transpose(1, 2)
        start = visual.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([start, x], 1) + visual.positional_embedding
        places = x.shape[1]
        if len(prompts):
            x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], 1)
        x = visual.ln_pre(x)
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer < len(prompts):
                x = torch.cat([x[:, :places], prompts[layer].expand(len(x), -1, -1)], 1)
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj

    def prompts(self, texts: list[str]) -> Tensor:
        """Features (N, D), not normalised, of whole texts."""
        return self.model.encode_text(self.backbone.tokenize(texts))


@pytest.fixture
def plain(golden_model: Callable[..., Any]) -> Plain:
    """The formulas over the golden tiny CLIP in float64."""
    return Plain(golden_model(torch.float64))
