"""The ranking-aware adapter's exact identities."""

import dataclasses
import math

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.ranking import WEIGHTS, Config, Ranking
from limpet.pair_attention import PairAttention
from limpet.ranking_network import RankingNetwork, ordered, smooth_log
from limpet.tokens import image_token_features
from scipy.stats import spearmanr
from torch.nn import functional as F

TEXT = "Sort the images by the number of fish."


def naive(attention, tokens):
    """Every ordered pair's keys side by side, one softmax over both, difference of the halves: (N, N, M, D)."""
    count, places = tokens.shape[:2]
    keys = attention.keys(tokens)  # (N, H, P, d)
    both = torch.cat([keys[:, None].expand(-1, count, -1, -1, -1), keys[None].expand(count, -1, -1, -1, -1)], 3)
    weights = (attention.query() @ both.transpose(-1, -2)).softmax(-1)
    out = weights[..., :places] @ both[..., :places, :] - weights[..., places:] @ both[..., places:, :]
    return F.linear(out.transpose(2, 3).flatten(3), attention.out_proj.weight, attention.out_proj.bias)


@pytest.fixture
def attention():
    torch.manual_seed(0)
    made = PairAttention(32, 4, 5).double()
    torch.nn.init.normal_(made.out_proj.bias)
    return made


def make(tiny, **settings):
    torch.manual_seed(0)
    return Ranking(Config(**settings)).setup(tiny, ClassSet(("value",), {"value": (TEXT,)}))


def batch_of(count, seed=0, places=64, width=128):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, places, width, generator=generator)
    values = torch.arange(count).float()[torch.randperm(count, generator=generator)]
    return {"tokens": tokens, "value": values, "instruction": [TEXT] * count}


def test_factorised_pairs_equal_the_naive_form_with_gradients(attention):
    tokens = torch.randn(6, 9, 32, dtype=torch.float64, requires_grad=True)
    summary = attention.summary(tokens)
    ours, theirs = attention(summary, summary), naive(attention, tokens).sum(2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    inputs = [tokens, *attention.parameters()]
    for one, other in zip(
        torch.autograd.grad((ours * weight).sum(), inputs), torch.autograd.grad((theirs * weight).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_pairs_are_antisymmetric_and_an_image_with_itself_gives_nothing(attention):
    summary = attention.summary(torch.randn(5, 7, 32, dtype=torch.float64))
    pairs = attention.pairs(summary, summary)
    assert torch.equal(pairs, -pairs.transpose(0, 1))
    assert not pairs.diagonal().any()
    out = attention(summary, summary)
    twice = 2 * len(attention.queries) * attention.out_proj.bias
    torch.testing.assert_close(out + out.transpose(0, 1), twice.expand(5, 5, -1), rtol=0, atol=1e-12)


def test_the_diagonal_is_one_constant_whatever_the_images(tiny):
    adapter = make(tiny).eval()
    with torch.no_grad():
        one, other = adapter.pair_logits(batch_of(4, 1)), adapter.pair_logits(batch_of(4, 2))
    assert len({round(x, 5) for x in [*one.diagonal().tolist(), *other.diagonal().tolist()]}) == 1


def test_scores_do_not_depend_on_the_list_and_permute_with_it(tiny):
    adapter = make(tiny).eval()
    batch, order = batch_of(6), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = {**batch, "tokens": batch["tokens"][order]}
    with torch.no_grad():
        scores, pairs = adapter.scores(batch), adapter.pair_logits(batch)
        torch.testing.assert_close(adapter.scores({**batch, "tokens": batch["tokens"][:2]}), scores[:2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(adapter.scores(moved), scores[order], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(adapter.pair_logits(moved), pairs[order][:, order], rtol=1e-4, atol=1e-4)


def test_scalar_tokens_have_no_effect_and_full_ones_have(tiny):
    batch = batch_of(4)
    moved = {}
    for reference in (True, False):
        adapter = make(tiny, reference=reference, dropout=0.0).eval()
        adapter.loss(batch).backward()
        before = adapter.scores(batch).detach()
        gradient = adapter.network.learned_tokens.grad.abs().max()
        with torch.no_grad():
            adapter.network.learned_tokens.add_(0.5 * torch.randn(adapter.network.learned_tokens.shape).abs())
        moved[reference] = (float(gradient), float((adapter.scores(batch).detach() - before).abs().max()))
    assert moved[True][0] < 1e-4 * moved[False][0] + 1e-6 and moved[True][1] < 1e-3
    assert moved[False][0] > 1e-5 and moved[False][1] > 1e-3


def test_losses_of_known_numbers():
    values = torch.arange(8).double()
    zero = F.binary_cross_entropy_with_logits(torch.zeros(8, 8).double(), ordered(values))
    assert float(zero) == pytest.approx(math.log(2), abs=1e-12)
    assert float(ordered(values).mean()) == pytest.approx(7 / 16)
    scores, targets = torch.tensor([1.5, 2.0]).double(), torch.tensor([1.0, 4.0]).double()
    assert float(F.smooth_l1_loss(scores, targets)) == pytest.approx(0.8125)
    assert float(smooth_log(scores, targets)) == pytest.approx(0.594707, abs=1e-6)
    assert WEIGHTS["regression"] * float(smooth_log(scores, targets)) == pytest.approx(0.118941, abs=1e-6)
    sharp = 100 * (values[:, None] - values[None]).sign() - 100 * torch.eye(8)
    assert float(F.binary_cross_entropy_with_logits(sharp, ordered(values))) < 1e-12
    assert spearmanr(torch.exp(values), values).statistic == pytest.approx(1.0)


@pytest.mark.parametrize(("width", "count"), [(512, 18_150_434), (768, 40_791_586)])
def test_numbers_of_parameters_are_the_published_ones(width, count):
    with torch.device("meta"):
        network = RankingNetwork(width, scalar_tokens=True)
        assert sum(p.numel() for p in network.parameters()) == count
        without = RankingNetwork(width, scalar_tokens=True, pair_branch=False)
    assert sum(p.numel() for p in without.parameters()) == pytest.approx(count - {512: 1.6e6, 768: 3.58e6}[width], rel=0.005)


def test_pieces_give_the_same_losses_and_gradients(tiny):
    batch = batch_of(7)
    found = []
    for settings in ({}, {"images_at_once": 3, "pairs_at_once": 14}):
        adapter = make(tiny, dropout=0.0, losses=["regression", "rank", "bce"], **settings).train()
        adapter.loss(batch).backward()
        found.append([float(adapter.loss(batch).detach()), *(p.grad for p in adapter.learnable())])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_list_of_equals_has_no_rank_loss(tiny):
    adapter = make(tiny)
    batch = {**batch_of(4), "value": torch.full((4,), 3.0)}
    assert set(adapter.losses(batch)) == {"regression"}
    assert torch.isfinite(adapter.loss(batch))


def test_the_pair_branch_is_saved_only_when_asked(tiny, tmp_path):
    from limpet import artifact

    batch = batch_of(3)
    for keep in (False, True):
        adapter = make(tiny, keep_pair_branch=keep).eval()
        artifact.save(adapter, tmp_path / str(keep), {})
        loaded = artifact.load(tmp_path / str(keep), tiny)
        assert any(".pair." in name for name in loaded.state_dict()) == keep
        with torch.no_grad():
            assert torch.equal(loaded.scores(batch), adapter.scores(batch))


def test_a_list_may_mix_instructions(tiny):
    adapter = make(tiny).eval()
    batch = batch_of(4)
    other = "Sort the images by the size of the fish."
    with torch.no_grad():
        one, two = adapter.scores(batch), adapter.scores({**batch, "instruction": [other] * 4})
        mixed = adapter.scores({**batch, "instruction": [TEXT, other, TEXT, other]})
    torch.testing.assert_close(mixed, torch.stack([one[0], two[1], one[2], two[3]]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("tower", ["timm", "narrow text"])
def test_towers_of_other_widths_get_a_trained_projection(tower, random_clip):
    if tower == "timm":
        options = {"vision": {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "timm_pool": "avg",
                              "timm_proj": "linear", "image_size": 64}}  # fmt: skip
    else:
        options = {}
    clip = random_clip(torch.float32, custom=tower == "timm", **options)
    adapter = Ranking(Config(heads=2, post_heads=2, pair_heads=2)).setup(clip, ClassSet(("value",), {"value": (TEXT,)}))
    size = clip.image_size
    batch = {"image": torch.randn(3, 3, size, size), "value": torch.arange(3.0), "instruction": [TEXT] * 3}
    adapter.loss(batch).backward()
    projections = [p for n, p in adapter.named_parameters() if n.startswith(("image_projection", "text_projection"))]
    assert projections and all(p.grad is not None and p.grad.abs().sum() > 0 for p in projections)
    assert adapter.scores(batch).shape == (3,)


def test_tokens_of_a_block_are_those_the_tower_computes(tiny):
    images, seen = torch.randn(3, 3, 64, 64), []
    hook = tiny.model.visual.transformer.resblocks[2].register_forward_hook(lambda *given: seen.append(given[2]))
    tiny.model.encode_image(images)
    hook.remove()
    expected = F.layer_norm(seen[0][:, 1:], seen[0].shape[-1:])
    for block in (2, -4, 0.5):
        adapter = Ranking(Config(block=block)).setup(tiny, ClassSet(("value",), {"value": (TEXT,)}))
        found = image_token_features(tiny, images, adapter.token_block(adapter.config, tiny.spec))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        batch = {"instruction": [TEXT] * 3}
        scores = [adapter.eval().scores({**batch, **given}) for given in ({"image": images}, {"tokens": found})]
        torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize("block", [6, -7, 0.0, 1.5, True, "half"])
def test_a_block_the_tower_lacks_is_refused_in_a_sentence(tiny, block):
    assert "has 6 blocks: give 0 to 5" in str(Ranking.supports(Config(block=block), tiny.spec))
    assert Ranking.supports(Config(block=5), tiny.spec) is None
    assert "leave it null" in str(Ranking.supports(Config(block=1), dataclasses.replace(tiny.spec, image_tower="timm"))).lower()


def test_units_are_those_of_a_category(tiny):
    """Counts around 4 and lengths around 50 under one adapter: each is learned and answered in its own units."""
    texts = {"count": ("by the number of fish",), "size": ("by the size of the fish",)}
    adapter = Ranking(Config()).setup(tiny, ClassSet(("count", "size"), texts))
    values = torch.tensor([3.0, 5.0, 4.0, 30.0, 70.0, 50.0])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    adapter.fit_closed_form([{"value": values, "label": labels}])
    scores = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    sd = torch.tensor([3.0, 5.0, 4.0]).std(unbiased=False)
    found, known = adapter.units(scores, labels)
    torch.testing.assert_close(found.float(), torch.tensor([4, 4 + sd, 4, 50, 50 + 20 * sd, 50]), rtol=1e-5, atol=1e-5)
    assert known.all() and [adapter.row_of(texts[name][0]) for name in texts] == [0, 1] and adapter.row_of("by age") == -1
    assert not adapter.units(scores, torch.full((6,), -1))[1].any()
    with adapter.answering(adapter.classes.only(["size"])):  # labels then count the categories asked about
        assert adapter.rows({"label": torch.zeros(2, dtype=torch.long)}).tolist() == [1, 1]
