"""Splitting by group and drawing: shares, no group on two sides, independence of order."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limpet.datamodules import DataError
from limpet.datamodules.checks import parse_shots
from limpet.datamodules.fewshot import FRACTIONS, base_and_new, draw, split_by_group

ITEMS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=80)


def _split(items, **more):
    return split_by_group([name for name, _ in items], [group for _, group in items], **more)


@given(ITEMS)
@settings(max_examples=60, deadline=None)
def test_no_group_on_two_sides_and_order_does_not_matter(items):
    splits = _split(items)
    sides = defaultdict(set)
    for (_, group), split in zip(items, splits, strict=True):
        sides[group].add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert _split(items[::-1]) == splits[::-1]


@pytest.mark.parametrize(
    "images, train, val, test",
    [(1, 0, 0, 1), (2, 1, 0, 1), (3, 1, 1, 1), (4, 2, 1, 1), (10, 5, 2, 3), (100, 50, 20, 30), (7, 3, 2, 2)],
)
def test_shares_without_groups(images, train, val, test):
    counts = Counter(_split([("a", i) for i in range(images)]))
    assert abs(counts["train"] - train) <= (images == 7) and counts["val"] - val in (0, -1 * (images == 7))
    assert counts["test"] >= test and sum(counts.values()) == images


def test_uneven_groups_come_near_the_shares():
    sizes = [40, 30, 22, 13, 9, 8, 5, 5, 4, 3, 3, 2, 2, 1, 1, 1, 1]
    items = [("a", g) for g, size in enumerate(sizes) for _ in range(size)]
    counts = Counter(_split(items))
    for split, share in FRACTIONS.items():
        assert abs(counts[split] / len(items) - share) < 0.05


def test_three_very_uneven_groups_fill_three_splits():
    counts = Counter(_split([("a", 0)] * 100 + [("a", 1), ("a", 2)]))
    assert set(counts) == {"train", "val", "test"}


def test_seed_changes_the_split():
    items = [("a", i) for i in range(30)]
    assert _split(items, seed=1) == _split(items, seed=1) != _split(items, seed=2)


def test_draw_is_independent_of_order_and_of_other_classes():
    labels = [i % 3 for i in range(60)]
    paths = [f"p{i}" for i in range(60)]
    names = ["a", "b", "c"]
    drawn = {paths[i] for i in draw(labels, paths, names, 4, seed=1, split="train")}
    again = {paths[::-1][i] for i in draw(labels[::-1], paths[::-1], names, 4, seed=1, split="train")}
    assert drawn == again and len(drawn) == 12
    only = [i for i in range(60) if labels[i] == 1]
    alone = draw([0] * len(only), [paths[i] for i in only], ["b"], 4, seed=1, split="train")
    assert {paths[only[i]] for i in alone} == {p for p in drawn if int(p[1:]) % 3 == 1}
    fewer = {paths[i] for i in draw(labels, paths, names, 2, seed=1, split="train")}
    assert fewer < drawn
    assert drawn != {paths[i] for i in draw(labels, paths, names, 4, seed=2, split="train")}


def test_small_classes_are_kept_whole_without_repetition():
    assert sorted(draw([0, 0, 1], ["x", "y", "z"], ["a", "b"], 16, seed=1, split="train")) == [0, 1, 2]


@pytest.mark.parametrize("shots, parsed", [(16, 16), ("4", 4), ("all", None), ("All", None)])
def test_shots(shots, parsed):
    assert parse_shots(shots) == parsed


@pytest.mark.parametrize("shots", [0, -1, 1.5, "al", None, "sixteen", True])
def test_wrong_shots(shots):
    with pytest.raises(DataError, match=r"data\.shots"):
        parse_shots(shots)


def test_base_gets_the_odd_class():
    assert base_and_new([4, 0, 2, 2, 9, 7]) == ([0, 2, 4], [7, 9])
