"""Identities of Tip-Adapter that need no reference."""

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.methods.tip_adapter import Config, TipAdapter
from limpet.methods.zero_shot import Config as ZeroShotConfig
from limpet.methods.zero_shot import ZeroShot

COUNTS = [3, 1, 4]


def training(backbone, counts=COUNTS, views=2, seed=0):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(len(labels), views, backbone.embed_dim, generator=generator)
    return {"feature": raw[:, 0], "views": raw, "label": labels}


def class_set(count=3):
    return ClassSet(tuple(["cod", "eel", "ray", "shark"][:count]), {}, ("a photo of a {}.",))


def build(backbone, batch=None, **settings):
    adapter = TipAdapter(Config(**settings)).setup(backbone, class_set())
    adapter.fit_closed_form([batch or training(backbone)])
    return adapter.eval()


@pytest.fixture
def query(tiny):
    return {"feature": torch.randn(6, tiny.embed_dim, generator=torch.Generator().manual_seed(5))}


def cache(adapter, query):
    """The cache term alone, of an adapter with logit_scale=0."""
    return adapter.logits(query) / adapter.alpha


def test_alpha_zero_is_zero_shot(tiny, query):
    adapter = build(tiny, logit_scale=None)
    adapter.alpha.fill_(0.0)
    expected = ZeroShot(ZeroShotConfig()).setup(tiny, class_set()).logits(query)
    torch.testing.assert_close(adapter.logits(query), expected)


def test_small_beta_counts_and_large_beta_finds_the_nearest_key(random_clip):
    clip = random_clip()
    query = {"feature": torch.randn(6, clip.embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))}
    adapter = build(clip, logit_scale=0.0)
    adapter.beta.fill_(1e-9)
    expected = torch.tensor(COUNTS, dtype=torch.float64).expand(6, 3)
    torch.testing.assert_close(cache(adapter, query), expected, rtol=1e-5, atol=1e-5)
    adapter.beta.fill_(400.0)
    nearest = (adapter.encode_image(query) @ adapter.keys.T).argmax(1)
    assert torch.equal(cache(adapter, query).argmax(1), adapter.owner[nearest])


def test_a_query_that_is_a_key_gets_its_own_label(random_clip):
    adapter = build(random_clip(), logit_scale=0.0)
    adapter.beta.fill_(400.0)
    adapter.alpha.fill_(1.0)
    own = F.one_hot(adapter.owner, 3).double()
    torch.testing.assert_close(cache(adapter, {"feature": adapter.keys.detach()}), own, rtol=0, atol=1e-6)


def test_the_order_of_the_keys_does_not_matter(tiny, query):
    batch, order = training(tiny), torch.tensor([7, 2, 5, 0, 1, 6, 3, 4])
    other = build(tiny, {k: v[order] for k, v in batch.items()})
    torch.testing.assert_close(other.logits(query), build(tiny, batch).logits(query), rtol=1e-5, atol=1e-4)


def test_keys_are_normalised_features(tiny):
    batch = training(tiny, views=1)
    torch.testing.assert_close(build(tiny, batch).keys.detach(), F.normalize(batch["feature"], dim=-1))
    many = training(tiny, views=3)
    torch.testing.assert_close(build(tiny, many).keys.detach(), F.normalize(many["views"].mean(1), dim=-1))


def test_the_trained_variant_starts_as_the_plain_one(tiny, query):
    torch.testing.assert_close(build(tiny, finetune=True).logits(query), build(tiny).logits(query))
    assert build(tiny, finetune=True).learnable() and not build(tiny).learnable()


def test_the_ends_of_the_grid(tiny):
    betas, alphas = build(tiny, search_scale=[7.0, 3.0], search_step=[200, 20]).grid()
    assert (len(betas), len(alphas)) == (200, 20) and betas[0] == alphas[0] == 0.1
    assert betas[-1] == pytest.approx(7 - 6.9 / 200) and alphas[-1] == pytest.approx(3 - 2.9 / 20)


@pytest.mark.parametrize("finetune", [False, True])
def test_appending_a_class_leaves_the_others_alone(tiny, query, finetune):
    adapter = build(tiny, finetune=finetune)
    before = adapter.logits(query)
    new = {**training(tiny, [2], seed=3), "label": torch.tensor([3, 3])}
    adapter.add_classes(class_set(4), [new])
    torch.testing.assert_close(adapter.logits(query)[:, :3], before, rtol=1e-6, atol=1e-5)
    assert len(adapter.keys) == 10


def test_the_search_takes_the_first_of_the_best(tiny):
    adapter = build(tiny, search_step=[5, 4])
    batch = training(tiny)
    adapter.select([batch])
    accuracy = adapter.search_accuracy([batch])
    i, j = divmod(int(accuracy.argmax()), 4)
    betas, alphas = adapter.grid()
    assert adapter.selected == pytest.approx({"alpha": alphas[j], "beta": betas[i]}, rel=1e-6)
