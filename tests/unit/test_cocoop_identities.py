"""CoCoOp: what it must be equal to, what depends on what, and that memory stays bounded."""

import pytest
import torch
from limpet.backbone import describe
from limpet.classes import ClassSet
from limpet.errors import LimpetError
from limpet.methods import cocoop
from limpet.methods.cocoop import CoCoOp, Config
from limpet.methods.coop import Config as CoOpConfig
from limpet.methods.coop import CoOp
from limpet.recipe import BackboneConfig

CLASSES = ClassSet(("cat", "golden_retriever", "x-ray", "boeing 747-400"), texts={}, templates=("a photo of a {}.",))
EXACT = {"rtol": 0, "atol": 1e-11}


def features(count=5):
    generator = torch.Generator().manual_seed(0)
    return {"feature": 7 * torch.randn(count, 16, dtype=torch.float64, generator=generator)}


@pytest.fixture
def adapter(random_clip):
    torch.manual_seed(0)
    return CoCoOp(Config()).setup(random_clip(), CLASSES).eval()


def coop(clip, context):
    other = CoOp(CoOpConfig(init="a photo of a")).setup(clip, CLASSES).eval()
    other.load_state_dict({"context": context})
    return other.logits(features())


def test_without_meta_net_it_is_coop(random_clip, adapter):
    with torch.no_grad():
        adapter.meta_net.linear2.weight.zero_()
        adapter.meta_net.linear2.bias.zero_()
        torch.testing.assert_close(adapter.logits(features()), coop(random_clip(), adapter.context), **EXACT)
        shift = torch.randn(24, dtype=torch.float64)
        adapter.meta_net.linear2.bias.copy_(shift)
        torch.testing.assert_close(adapter.logits(features()), coop(random_clip(), adapter.context + shift), **EXACT)


def test_an_untrained_meta_net_moves_the_answer(random_clip, adapter):
    with torch.no_grad():
        assert (adapter.logits(features()) - coop(random_clip(), adapter.context)).abs().max() > 1e-3


def test_images_do_not_see_each_other(adapter):
    batch = features()["feature"]
    with torch.no_grad():
        together = adapter.logits({"feature": batch})
        alone = torch.cat([adapter.logits({"feature": one[None]}) for one in batch])
    torch.testing.assert_close(together, alone, **EXACT)


def test_the_meta_net_reads_unit_features(adapter):
    batch = features()["feature"]
    with torch.no_grad():
        torch.testing.assert_close(adapter.logits({"feature": batch}), adapter.logits({"feature": 9 * batch}), **EXACT)


def test_passes_are_bounded_and_change_nothing(adapter, monkeypatch):
    """A budget of token rows holds in evaluation and in training, for many images and many classes."""
    data = {**features(), "label": torch.tensor([0, 1, 2, 3, 0])}
    want = adapter.loss(data)
    gradients = torch.autograd.grad(want, adapter.learnable())
    monkeypatch.setattr(cocoop, "TOKENS", 40)
    adapter.train().eval()
    adapter._derived.clear()
    rows = []
    block = adapter.backbone.model.transformer.resblocks[0]
    hook = block.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:2].numel()))
    try:
        with torch.no_grad():
            torch.testing.assert_close(adapter.loss(data), want.detach(), **EXACT)
        loss = adapter.loss(data)
        for got, expected in zip(torch.autograd.grad(loss, adapter.learnable()), gradients, strict=True):
            torch.testing.assert_close(got, expected, **EXACT)
    finally:
        hook.remove()
    assert len(rows) > 5 and max(rows) <= 40


def test_token_rows_of_a_step(adapter):
    """The start and context once for each image, then only each name with its stop and end."""
    clip, rows = adapter.backbone, []
    block = clip.model.transformer.resblocks[0]
    hook = block.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:2].numel()))
    try:
        adapter.logits(features(3))
    finally:
        hook.remove()
    names = [len(clip.token_ids(f"{CLASSES.text(n)}.")) + 1 for n in CLASSES.names]
    assert rows == [3 * (1 + 4 + sum(names))]


def test_learned_sizes():
    """ViT-B/16 with 4 tokens: 35,360, as the paper counts."""
    spec = describe(BackboneConfig(name="ViT-B-16", pretrained="random"))
    adapter = CoCoOp(Config(init=None)).setup(Stub(spec), CLASSES)
    assert sum(p.numel() for p in adapter.learnable()) == 35_360


class Stub:
    """A backbone of which nothing but its description is known."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, spec):
        self.spec = spec


def test_refusals_are_sentences(adapter):
    with pytest.raises(LimpetError, match="depend on the image"):
        adapter.class_weights()
    coca = describe(BackboneConfig(name="coca_ViT-B-32", pretrained="random"))
    assert "CoCa" in CoCoOp.supports(Config(), coca)
    assert "at least 1" in CoCoOp.supports(Config(reduction=0), adapter.backbone.spec)
    resnet = describe(BackboneConfig(name="RN50", pretrained="random"))
    assert CoCoOp.supports(Config(), resnet) is None
