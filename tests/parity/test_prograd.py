"""ProGrad against its formula, computed with plain open_clip in float64."""

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.errors import RecipeError
from limpet.methods.prograd import Config, ProGrad

NAMES = ["cat", "golden_retriever", "annual crop land", "Boeing 737-800", "x-ray"]
TEMPLATE = "a centered satellite photo of {}."
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def build(plain, scale=0.1, **settings):
    words = ClassSet(names=tuple(NAMES), texts={}, templates=(TEMPLATE,))
    adapter = ProGrad(Config(**{"context_length": 6, **settings})).setup(plain.backbone, words)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        adapter.context += scale * torch.randn(adapter.context.shape, generator=generator, dtype=torch.float64)
    return adapter.train()


def batch(golden, agree, plain):
    """Images with the labels that zero-shot would give, or with its least likely ones."""
    images = golden("model").tensors["images"].double()
    frozen = plain.prompts([TEMPLATE.replace("{}", n.replace("_", " ")) for n in NAMES])
    scores = F.normalize(plain.image(images), dim=-1) @ F.normalize(frozen, dim=-1).T
    labels = scores.argmax(-1) if agree else scores.argmin(-1)
    return {"image": images, "label": labels, "path": [""] * len(images)}


def gradients(plain, adapter, data, temperature):
    """Loss, its gradient g, and the gradient h of the loss to the zero-shot answers, straight from the formulas."""
    context = adapter.context.detach().clone().requires_grad_()
    scale = torch.exp(plain.model.logit_scale)
    features = F.normalize(plain.image(data["image"]), dim=-1)
    learned = F.normalize(plain.text(NAMES, context, " ".join("X" * len(context))), dim=-1)
    frozen = F.normalize(plain.prompts([TEMPLATE.replace("{}", n.replace("_", " ")) for n in NAMES]), dim=-1)
    scores = scale * features @ learned.T
    entropy = -scores.log_softmax(-1)[torch.arange(len(scores)), data["label"]].mean()
    teacher = (scale * features @ frozen.T / temperature).softmax(-1)
    general = -(teacher * (scores / temperature).log_softmax(-1)).sum(1).mean() * temperature**2
    (g,) = torch.autograd.grad(entropy, context, retain_graph=True)
    (h,) = torch.autograd.grad(general, context)
    return entropy.detach(), g, h


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("agree", [True, False])
def test_value_is_the_entropy_and_gradient_the_projected_one(golden, plain, agree, strength, temperature):
    adapter = build(plain, strength=strength, temperature=temperature)
    data = batch(golden, agree, plain)
    entropy, g, h = gradients(plain, adapter, data, temperature)
    assert bool((g * h).sum() < 0) is not agree  # both branches are taken
    unit = h / h.norm()
    expected = g if agree else g - strength * (g * unit).sum() * unit
    loss = adapter.loss(data)
    torch.testing.assert_close(loss.detach(), entropy, **EXACT)
    loss.backward()
    torch.testing.assert_close(adapter.context.grad, expected, **EXACT)
    if not agree and strength == 1.0:
        assert abs(float((adapter.context.grad * unit).sum())) < 1e-10  # nothing is left against what CLIP knows


def test_each_tensor_is_projected_on_its_own(plain):
    adapter = build(plain)
    g = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0])]
    h = [torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])]
    found = adapter.projected(g, h)
    for value, expected in zip(found, ([0.5, 0.5], [1.0, 1.0], [2.0, 0.0]), strict=True):
        torch.testing.assert_close(value, torch.tensor(expected))


def test_it_steps_like_an_ordinary_loss(golden, plain):
    """Scaling and accumulation act on the projected gradient."""
    adapter, data = build(plain), batch(golden, False, plain)
    adapter.loss(data).backward()
    once = adapter.context.grad.clone()
    for _ in range(2):
        (adapter.loss(data) * 8).backward()
    torch.testing.assert_close(adapter.context.grad, 17 * once)
    with torch.no_grad():
        assert float(adapter.loss(data)) > 0


def test_the_context_starts_with_zeros_and_ends_with_words(plain):
    adapter = build(plain, scale=0.0)
    words = plain.backbone.embed_tokens(plain.backbone.token_ids("a photo of a"))
    assert torch.equal(adapter.context[:2], torch.zeros_like(adapter.context[:2]))
    torch.testing.assert_close(adapter.context[2:].detach(), words, rtol=0, atol=0)
    with pytest.raises(RecipeError, match="raise the context length"):
        build(plain, context_length=3)
