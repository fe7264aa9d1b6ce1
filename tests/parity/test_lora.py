"""LoRA against the numbers of CLIP-LoRA's published implementation: features, logits, loss, exact gradients, merged weights."""

import math

import pytest
import torch
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.methods.lora import Config, LoRA

NAMES = {"lora_A.weight": "w_lora_A", "lora_B.weight": "w_lora_B"}


def theirs(name):
    """Our name of a factor in the case's words."""
    layer, _, factor = name.removeprefix("trained.").partition(".lora_")
    return f"{layer.replace('out_proj', 'proj')}.{NAMES['lora_' + factor]}"


def build(case, backbone, run):
    settings = case.config["runs"][run]
    config = Config(targets=settings["params"], rank=settings["r"], alpha=settings["alpha"], dropout=0.0, logit_scale=100.0)
    classes = ClassSet(names=tuple(case.config["classnames"]), texts={}, templates=("a photo of a {}.",))
    adapter = LoRA(config).setup(backbone, classes)
    given = {n for n, e in case.json["tensors"].items() if e["role"] == "input" and n.startswith(f"run{run}.")}
    assert {f"run{run}.{theirs(n)}" for n, _ in adapter.named_parameters()} == given
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.copy_(case.tensors[f"run{run}.{theirs(name)}"])
    return adapter.train()


def batch(golden, case, dtype):
    images = golden("model").tensors["images"].to(dtype)
    return {"image": images, "label": torch.tensor(case.config["labels"]), "path": [""] * len(images)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("run", [0, 1])
def test_features_logits_loss_and_gradients(golden, golden_model, run, dtype):
    case, backbone = golden("clip_lora"), golden_model(dtype)
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    adapter, data = build(case, backbone, run), batch(golden, case, dtype)
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in case.config["classnames"]]
    case.close(f"run{run}.image_features", adapter.clip.encode_image(data["image"], normalize=False))
    case.close(f"run{run}.text_features", adapter.clip.encode_text(texts, normalize=False))
    case.close(f"run{run}.logits", adapter.logits(data))
    loss = adapter.loss(data)
    case.close(f"run{run}.loss", loss)
    loss.backward()
    for name, parameter in adapter.named_parameters():
        case.close(f"run{run}.grad.{theirs(name)}", parameter.grad)
    after = backbone.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("run", [0, 1])
def test_merged_weights_are_the_effective_weights_of_the_notes(golden, golden_model, run):
    case, backbone = golden("clip_lora"), golden_model(torch.float64)
    adapter = build(case, backbone, run)
    merged, plain = adapter.merged(), backbone.model.state_dict()
    settings = case.config["runs"][run]
    scale = settings["alpha"] / math.sqrt(settings["r"])
    width = plain["visual.transformer.resblocks.0.attn.in_proj_weight"].shape[1]
    want = {k: v.clone() for k, v in plain.items()}
    for name, entry in case.json["tensors"].items():
        if entry["role"] == "input" and name.startswith(f"run{run}.") and name.endswith("w_lora_A"):
            a, b = (case.input(name[:-1] + letter) for letter in "AB")
            block, _, part = name.removeprefix(f"run{run}.").removesuffix(".w_lora_A").rpartition(".")
            if part == "proj":
                want[f"{block}.out_proj.weight"] += scale * b @ a
            else:
                rows = "qkv".index(part[0]) * width
                want[f"{block}.in_proj_weight"][rows : rows + width] += scale * b @ a
    assert merged.keys() == plain.keys()
    for key, value in want.items():
        torch.testing.assert_close(merged[key], value, rtol=1e-12, atol=1e-14)
    images = batch(golden, case, torch.float64)["image"]
    plain_clip = FrozenClip.from_model(_loaded(backbone.model, merged))
    torch.testing.assert_close(
        plain_clip.model.encode_image(images), case.tensors[f"run{run}.image_features.f64"], rtol=1e-7, atol=1e-9
    )


def _loaded(model, weights):
    import copy

    fresh = copy.deepcopy(model)
    fresh.load_state_dict(weights)
    return fresh


def test_three_steps_equal_steps_on_the_factors_alone(golden, golden_model):
    """SGD on the adapter against SGD on loose factors through the notes' formula, in float64."""
    case, backbone = golden("clip_lora"), golden_model(torch.float64)
    adapter, data = build(case, backbone, 0), batch(golden, case, torch.float64)
    loose = {n: p.detach().clone().requires_grad_() for n, p in adapter.named_parameters()}
    ours, reference = (torch.optim.SGD(p, lr=0.01) for p in (adapter.learnable(), list(loose.values())))
    tokens = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in case.config["classnames"]])
    plain = backbone.model.state_dict()
    for _ in range(3):
        ours.zero_grad()
        adapter.loss(data).backward()
        ours.step()
        reference.zero_grad()
        weights = dict(plain)
        for key in [k for k in plain if k.endswith("attn.in_proj_weight")]:
            block = key.removesuffix(".in_proj_weight")
            deltas = [loose[f"trained.{block}.{x}_proj.lora_B.weight"] @ loose[f"trained.{block}.{x}_proj.lora_A.weight"]
                      for x in "qkv"]  # fmt: skip
            weights[key] = plain[key] + torch.cat(deltas) / math.sqrt(2)
        model = backbone.model
        image = torch.func.functional_call(_Encoder(model, "encode_image"), _inside(weights), (data["image"],))
        text = torch.func.functional_call(_Encoder(model, "encode_text"), _inside(weights), (tokens,))
        logits = 100 * torch.nn.functional.normalize(image, dim=-1) @ torch.nn.functional.normalize(text, dim=-1).T
        torch.nn.functional.cross_entropy(logits, data["label"]).backward()
        reference.step()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter, loose[name], rtol=1e-7, atol=1e-10)


class _Encoder(torch.nn.Module):
    def __init__(self, model, method):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *given):
        return getattr(self.model, self.method)(*given)


def _inside(weights):
    return {f"model.{k}": v for k, v in weights.items()}
