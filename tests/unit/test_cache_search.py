"""The grid search of a cache model against the plain double loop."""

import pytest
import torch
import torch.nn.functional as F
from limpet.cache_search import by_class, search_hits


def loop(features, labels, keys, owner, zero_shot, betas, alphas):
    values = F.one_hot(owner.clamp_min(0), zero_shot.shape[1]).to(features) * (owner >= 0)[:, None]
    result = []
    for beta in betas:
        cache = (-beta * (1 - features @ keys.T)).exp() @ values
        result.append([int(((zero_shot + alpha * cache).argmax(-1) == labels).sum()) for alpha in alphas])
    return torch.tensor(result)


BETAS, ALPHAS = [0.1 + i for i in range(8)], [0.1 + 0.7 * i for i in range(7)]


def make(seed, images=60, classes=9, owners=None, width=6):
    torch.manual_seed(seed)
    owner = torch.randint(classes, (40,)) if owners is None else torch.tensor(owners)
    features = F.normalize(torch.randn(images, width, dtype=torch.float64), dim=-1)
    keys = F.normalize(torch.randn(len(owner), width, dtype=torch.float64), dim=-1)
    return features, torch.randint(classes, (images,)), keys, owner, torch.randn(images, classes, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_counts_are_those_of_the_loop(seed, block, monkeypatch):
    monkeypatch.setattr("limpet.cache_search.BLOCK", block)
    case = make(seed)
    assert torch.equal(search_hits(*case, BETAS, ALPHAS), loop(*case, BETAS, ALPHAS))


@pytest.mark.parametrize(
    "owners",
    [[0] * 30 + [4], [2, 2, 5], [-1, -1, 3, 3, -1, 8], [-1, -1], list(range(9)) * 4],
    ids=["one large class", "few classes", "keys of no class", "no key at all", "balanced"],
)
def test_uneven_caches(owners):
    case = make(7, owners=owners)
    assert torch.equal(search_hits(*case, BETAS, ALPHAS), loop(*case, BETAS, ALPHAS))


def test_equal_scores_go_to_the_first_class_as_in_argmax():
    features, labels, keys, _, _ = make(3, images=200, classes=4, owners=[0, 1, 2, 3])
    keys[1] = keys[3] = keys[0]
    zero_shot = torch.zeros(200, 4, dtype=torch.float64)
    owner = torch.arange(4)
    found = search_hits(features, labels, keys, owner, zero_shot, BETAS, ALPHAS)
    assert torch.equal(found, loop(features, labels, keys, owner, zero_shot, BETAS, ALPHAS))
    tied = int(((features @ keys.T).argmax(-1) == 0).sum())
    assert tied and int(found.max()) <= int((labels == 0).sum() + (labels == 2).sum())


def test_rows_by_class():
    table = by_class(torch.tensor([1, 0, -1, 1, 3]), 4)
    assert table.tolist() == [[1, 0, -1, 4], [-1, 3, -1, -1]]
