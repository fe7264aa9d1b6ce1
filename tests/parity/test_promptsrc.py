"""PromptSRC against its formulas, computed with plain open_clip in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.errors import LimpetError, RecipeError
from limpet.methods.promptsrc import Config, PromptSRC

NAMES = ["cat", "golden_retriever", "annual crop land", "Boeing 737-800", "x-ray"]
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def build(backbone, **settings):
    torch.manual_seed(0)
    config = Config(**settings)
    return PromptSRC(config).setup(backbone, ClassSet(names=tuple(NAMES), texts={})).train()


@pytest.fixture
def batch(golden):
    images = golden("model").tensors["images"].double()
    return {"image": images, "label": torch.arange(len(images)) % len(NAMES), "path": [""] * len(images)}


def teacher(plain):
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES as TEMPLATES

    means = [plain.prompts([t(n.replace("_", " ")) for t in TEMPLATES[:60]]).mean(0) for n in NAMES]
    return F.normalize(torch.stack(means), dim=-1)


SETTINGS = [
    {},
    {"text_length": 2, "image_length": 3, "text_depth": 2},
    {"text_depth": 1, "image_depth": 1},
    {"init": None, "text_length": 5},
    {"image_length": 0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_logits_and_gradients(plain, batch, settings):
    adapter = build(plain.backbone, text_weight=7.0, image_weight=3.0, **settings)
    own = {k: v.detach().clone().requires_grad_() for k, v in adapter.named_parameters()}
    image = own.get("image_vectors", ())
    phrase = adapter.config.init or " ".join("X" * adapter.config.text_length)
    t = F.normalize(plain.text(NAMES, own["text_vectors"][0], phrase, own["text_vectors"][1:]), dim=-1)
    v = F.normalize(plain.image(batch["image"], image), dim=-1)
    t0, v0 = teacher(plain), F.normalize(plain.image(batch["image"]), dim=-1)
    scale = torch.exp(plain.model.logit_scale)
    p, p0 = scale * v @ t.T, scale * v0 @ t0.T
    entropy = -p.log_softmax(-1)[torch.arange(len(p)), batch["label"]].mean()
    divergence = (p0.softmax(-1) * (p0.log_softmax(-1) - p.log_softmax(-1))).sum() / p.numel()
    expected = entropy + 7 * (t - t0).abs().mean() + 3 * (v - v0).abs().mean() + divergence
    loss = adapter.loss(batch)
    torch.testing.assert_close(loss, expected, **EXACT)
    loss.backward()
    wanted = torch.autograd.grad(expected, list(own.values()))
    for (name, parameter), gradient in zip(adapter.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(adapter.eval().logits(batch), p.detach(), rtol=1e-12, atol=1e-11)


def test_a_student_that_equals_its_teachers_has_the_plain_loss(plain, batch, monkeypatch):
    adapter = build(plain.backbone)
    monkeypatch.setattr(adapter, "class_weights", adapter.frozen_text)
    monkeypatch.setattr(adapter, "encode_image", lambda b: F.normalize(adapter.image_feature(b), dim=-1))
    torch.testing.assert_close(
        adapter.loss(batch), F.cross_entropy(adapter.logits(batch), batch["label"]), rtol=0, atol=1e-12
    )


def test_the_teacher_reads_a_cached_feature(plain, batch):
    adapter = build(plain.backbone)
    cached = {**batch, "feature": plain.backbone.encode_image(batch["image"], normalize=False)}
    torch.testing.assert_close(adapter.loss(cached), adapter.loss(batch), **EXACT)
    other = {**batch, "feature": torch.ones_like(cached["feature"])}
    assert not torch.allclose(adapter.loss(other), adapter.loss(batch))
    torch.testing.assert_close(adapter.logits(other), adapter.logits(batch))


GAUSSIANS = [(15.0, 1.0, 20), (6.0, 10.0, 20), (30.0, 30.0, 50), (45.0, 5.0, 50), (45.0, 0.1, 2)]


@pytest.mark.parametrize(("mean", "sd", "epochs"), GAUSSIANS)
def test_epoch_weights_are_a_gaussian_that_adds_up_to_one(plain, mean, sd, epochs):
    weights = build(plain.backbone, aggregation_mean=mean, aggregation_sd=sd).epoch_weights(epochs)
    assert len(weights) == epochs
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    if epochs > 2:
        shape = [math.exp(-((e - mean) ** 2) / (2 * sd**2)) for e in range(1, epochs + 1)]
        assert weights == pytest.approx([s / sum(shape) for s in shape], rel=1e-9)
    if (mean, epochs) == (15.0, 20):
        assert weights[14] == max(weights) == pytest.approx(0.399, abs=1e-3)
        assert weights[-1] < 2e-6


def test_prompts_are_averaged_over_epochs(plain):
    adapter = build(plain.backbone, aggregation_mean=2.0)
    weights, history = adapter.epoch_weights(4), []
    for epoch in range(4):
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 1.0
        history.append([p.detach().clone() for p in adapter.parameters()])
        adapter.epoch_ended(epoch, 4)
    for i, parameter in enumerate(adapter.parameters()):
        torch.testing.assert_close(parameter.detach(), sum(w * h[i] for w, h in zip(weights, history, strict=True)), **EXACT)


def test_the_average_of_a_constant_is_that_constant(golden_model):
    adapter = build(golden_model(torch.float32))
    before = [p.detach().clone() for p in adapter.parameters()]
    for epoch in range(20):
        adapter.epoch_ended(epoch, 20)
    for old, new in zip(before, adapter.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=1e-6, atol=3e-7)


def test_the_running_sum_is_part_of_the_state(plain):
    """Stopped after half the epochs and loaded elsewhere, it ends with the same prompts."""
    whole, first, second = (build(plain.backbone, aggregation_mean=2.0) for _ in range(3))
    for epoch in range(2):
        whole.epoch_ended(epoch, 4)
        first.epoch_ended(epoch, 4)
    second.load_state_dict(first.state_dict())
    for epoch in (2, 3):
        for adapter in (whole, second):
            with torch.no_grad():
                adapter.text_vectors += 1
            adapter.epoch_ended(epoch, 4)
    assert torch.equal(whole.text_vectors, second.text_vectors)


def test_parameter_count_of_the_paper(random_clip):
    """4 + 4 prompts in 9 layers of widths 512 and 768 are 46,080 numbers."""
    text, vision = {"layers": 9, "width": 512, "heads": 8}, {"layers": 9, "width": 768, "head_width": 64}
    backbone = random_clip(torch.float32, text=text, vision=vision)
    adapter = PromptSRC(Config()).setup(backbone, ClassSet(names=("cat", "dog"), texts={}))
    assert sum(p.numel() for p in adapter.learnable()) == 46_080


def test_a_tower_that_is_too_short_is_said(plain):
    adapter = build(plain.backbone)
    assert len(adapter.text_vectors) == plain.backbone.spec.text_layers
    assert "the paper's depth is 9" in adapter.notes[0]
    with pytest.raises(LimpetError, match="method.text_depth is 9"):
        build(plain.backbone, text_depth=9)


def test_without_averaging_the_last_prompts_stay(plain):
    adapter = build(plain.backbone, aggregation_mean=None)
    with torch.no_grad():
        adapter.text_vectors += 1
    kept = adapter.text_vectors.detach().clone()
    adapter.epoch_ended(0, 1)
    assert torch.equal(adapter.text_vectors, kept)
    with pytest.raises(RecipeError, match="aggregation_sd"):
        build(plain.backbone, aggregation_sd=0.0)
