"""CoOp against the numbers of its published implementation: logits, losses, gradients, parameters after three steps."""

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.coop import Config, CoOp

KINDS = [(kind, position) for kind in ("unified", "csc") for position in ("end", "middle", "front")]


def class_set(names):
    return ClassSet(names=tuple(names), texts={}, templates=("a photo of a {}.",))


def build(case, backbone, kind, position):
    config = Config(context_length=case.json["config"]["n_ctx"], position=position, class_specific=kind == "csc")
    adapter = CoOp(config).setup(backbone, class_set(case.json["config"]["classnames"]))
    with torch.no_grad():
        adapter.context.copy_(case.tensors[f"ctx_{kind}"])
    return adapter.train()


def batch(golden, case, dtype):
    images = golden("model").tensors["images"].to(dtype)
    return {"image": images, "label": torch.tensor(case.json["config"]["labels"]), "path": [""] * len(images)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "position"), KINDS)
def test_logits_loss_gradient_and_three_steps(golden, golden_model, kind, position, dtype):
    case, name = golden("coop"), f"{kind}.{position}"
    adapter = build(case, golden_model(dtype), kind, position)
    data = batch(golden, case, dtype)
    case.close(f"{name}.logits", adapter.logits(data))
    loss = adapter.loss(data)
    case.close(f"{name}.loss", loss)
    loss.backward()
    case.close(f"{name}.grad_ctx", adapter.context.grad)
    adapter.zero_grad()
    optimiser, losses = torch.optim.SGD(adapter.learnable(), lr=0.1), []
    for _ in range(3):
        optimiser.zero_grad()
        loss = adapter.loss(data)
        losses.append(loss.detach())
        loss.backward()
        optimiser.step()
    case.close(f"{name}.ctx_after_sgd3", adapter.context)
    case.close(f"{name}.loss_sgd3", torch.stack([*losses, adapter.loss(data).detach()]))
    case.close(f"{name}.logits_after_sgd3", adapter.logits(data))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_context_made_from_words(golden, golden_model, dtype):
    case = golden("coop")
    words = case.json["config"]["ctx_init_text"]
    adapter = CoOp(Config(init=words)).setup(golden_model(dtype), class_set(case.json["config"]["classnames"])).train()
    data = batch(golden, case, dtype)
    case.close("ctx_init.ctx", adapter.context)
    case.close("ctx_init.logits", adapter.logits(data))
    adapter.loss(data).backward()
    case.close("ctx_init.grad_ctx", adapter.context.grad)
