"""CoCoOp against the numbers of its published implementation: logits, loss, gradients, three optimiser steps."""

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods import cocoop
from limpet.methods.cocoop import CoCoOp, Config

FORMATS = [torch.float64, torch.float32]


def build(case, backbone):
    config = case.config
    reduction = backbone.embed_dim // config["meta_net_hidden"]
    adapter = CoCoOp(Config(context_length=config["n_ctx"], init=None, reduction=reduction))
    adapter.setup(backbone, ClassSet(tuple(config["classnames"]), texts={}, templates=("a photo of a {}.",)))
    adapter.load_state_dict({name.replace("ctx", "context"): case.input(name) for name in case.expected("input")})
    return adapter.train()


def batch(golden, case, dtype):
    images = golden("model").input("images", dtype)
    return {"image": images, "label": torch.tensor(case.config["labels"])}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tokens", [None, 70])
def test_logits_loss_gradients_and_three_steps(golden, golden_model, monkeypatch, dtype, tokens):
    """Also in several recomputed passes, where a pass may hold 70 token rows."""
    if tokens:
        monkeypatch.setattr(cocoop, "TOKENS", tokens)
    case = golden("cocoop")
    adapter = build(case, golden_model(dtype))
    data = batch(golden, case, dtype)
    case.close("bias", adapter.meta_net(adapter.encode_image(data)))
    case.close("logits", adapter.logits(data))
    loss = adapter.loss(data)
    case.close("loss", loss)
    loss.backward()
    learned = dict(adapter.named_parameters())
    assert {f"grad.{n.replace('context', 'ctx')}" for n in learned} == {n for n in case.expected() if "grad." in n}
    for name, parameter in learned.items():
        case.close(f"grad.{name.replace('context', 'ctx')}", parameter.grad)
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        adapter.loss(data).backward()
        optimiser.step()
    case.close("ctx_after_sgd3", adapter.context)
    case.close("logits_after_sgd3", adapter.logits(data))
    with torch.no_grad():
        case.close("logits_after_sgd3", adapter.eval().logits(data))
