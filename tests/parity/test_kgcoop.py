"""KgCoOp against its formula, computed with plain open_clip in float64."""

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.methods.coop import Config as CoOpConfig
from limpet.methods.coop import CoOp
from limpet.methods.kgcoop import Config, KgCoOp

NAMES = ["cat", "golden_retriever", "annual crop land", "Boeing 737-800", "x-ray"]
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def classes(*templates):
    return ClassSet(names=tuple(NAMES), texts={}, templates=templates or ("a photo of a {}.",))


@pytest.fixture
def batch(golden):
    images = golden("model").tensors["images"].double()
    labels = torch.arange(len(images)) % len(NAMES)
    return {"image": images, "label": labels, "path": [""] * len(images)}


def moved(adapter):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        adapter.context += 0.1 * torch.randn(adapter.context.shape, generator=generator, dtype=torch.float64)
    return adapter.train()


@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("a drawing of {}, a type of thing.", "the {}.")])
def test_loss_and_gradient(plain, batch, templates):
    adapter = moved(KgCoOp(Config(weight=3.0)).setup(plain.backbone, classes(*templates)))
    context = adapter.context.detach().clone().requires_grad_()
    learned = F.normalize(plain.text(NAMES, context, "a photo of a"), dim=-1)
    words = [n.replace("_", " ") for n in NAMES]
    frozen = torch.stack([F.normalize(plain.prompts([t.replace("{}", w) for w in words]), dim=-1) for t in templates])
    frozen = F.normalize(frozen.mean(0), dim=-1)
    features = F.normalize(plain.image(batch["image"]), dim=-1)
    scores = torch.exp(plain.model.logit_scale) * features @ learned.T
    entropy = -scores.log_softmax(-1)[torch.arange(len(scores)), batch["label"]].mean()
    expected = entropy + 3.0 * (1 - F.cosine_similarity(learned, frozen).mean())
    loss = adapter.loss(batch)
    torch.testing.assert_close(loss, expected, **EXACT)
    loss.backward()
    torch.testing.assert_close(adapter.context.grad, *torch.autograd.grad(expected, context), **EXACT)
    torch.testing.assert_close(adapter.eval().logits(batch), scores.detach(), rtol=1e-12, atol=1e-11)


def test_the_distance_is_zero_where_the_template_is_the_start(plain, batch):
    adapter = KgCoOp(Config()).setup(plain.backbone, classes()).train()
    assert abs(float(adapter.distance(adapter.class_weights()).detach())) < 1e-14


def test_without_the_distance_it_is_coop(plain, batch):
    ours = moved(KgCoOp(Config(weight=0.0)).setup(plain.backbone, classes()))
    theirs = moved(CoOp(CoOpConfig(init="a photo of a")).setup(plain.backbone, classes()))
    losses = [adapter.loss(batch) for adapter in (ours, theirs)]
    torch.testing.assert_close(*losses, **EXACT)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(ours.context.grad, theirs.context.grad, **EXACT)
