"""VPT, shallow and deep, against the numbers of its published implementation."""

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.vpt import VPT, Config

LAYER = "visual.transformer.resblocks.{}.VPT_shallow"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_features_logits_loss_and_gradients(golden, golden_model, dtype):
    case, model, backbone = golden("vpt"), golden("model"), golden_model(dtype)
    classes = ClassSet(tuple(case.config["classnames"]), texts={}, templates=(model.config["template"],))
    data = {"image": model.input("images", dtype), "label": torch.tensor(case.config["labels"])}
    for number, run in enumerate(case.config["runs"]):
        names = [f"run{number}.visual.VPT", *(f"run{number}.{LAYER.format(i)}" for i in range(1, run["dv"]))]
        adapter = VPT(Config(length=run["nv"], depth=run["dv"])).setup(backbone, classes).train()
        assert len(names) == len([n for n in case.expected("input") if n.startswith(f"run{number}.")])
        adapter.load_state_dict({"prompts": torch.stack([case.input(n) for n in names])})
        text, image = (case.tensors[f"run{number}.{side}_features.f64"].to(dtype) for side in ("text", "image"))
        close = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-5}
        torch.testing.assert_close(adapter.class_weights(), torch.nn.functional.normalize(text, dim=-1), **close)
        torch.testing.assert_close(adapter.encode_image(data), torch.nn.functional.normalize(image, dim=-1), **close)
        case.close(f"run{number}.logits", adapter.logits(data))
        loss = adapter.loss(data)
        case.close(f"run{number}.loss", loss)
        loss.backward()
        for name, grad in zip(names, adapter.prompts.grad, strict=True):
            prefix, _, rest = name.partition(".")
            case.close(f"{prefix}.grad.{rest}", grad)
        with torch.no_grad():
            case.close(f"run{number}.logits", adapter.eval().logits(data))
