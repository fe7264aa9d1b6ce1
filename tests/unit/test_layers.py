"""Choices of blocks: words, numbers from either end, shares; papers' ranges scaled, explicit mistakes refused."""

import pytest
from limpet.errors import RecipeError
from limpet.layers import choose, per_tower


@pytest.mark.parametrize(
    ("choice", "depth", "blocks"),
    [
        ("all", 3, [0, 1, 2]), ("top3", 12, [9, 10, 11]), ("up", 12, [8, 9, 10, 11]), ("mid", 12, [4, 5, 6, 7]),
        ("bottom", 12, [0, 1, 2, 3]), ("half-up", 12, list(range(6, 12))), ("half-bottom", 12, list(range(6))),
        ("half-up", 24, list(range(12, 24))), ("half-bottom", 24, list(range(12))), ("top3", 4, [3]), ("up", 1, [0]),
        (-1, 12, [11]), (0, 12, [0]), ([-1, -2, 0], 4, [0, 2, 3]), ("6-11", 12, list(range(6, 12))), (0.5, 12, list(range(6, 12))),
        (0.25, 4, [3]), ([0.0, 0.5], 4, [0, 1]), ([0.25, 0.75], 12, list(range(3, 9))), (1.0, 2, [0, 1]), (0.01, 5, [4]),
    ],
)  # fmt: skip
def test_choices(choice, depth, blocks):
    assert list(choose(choice, depth).blocks) == blocks


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (12, "12, but the tower has 12"), (-13, "-13"), ([0, 40], "40"), ("6-12", "12"), ("tpo3", "Did you mean 'top3'"),
        (0.0, "between 0 and 1"), ([0.5, 0.5], "in order"), (1.5, "between 0 and 1"), ([], "It is one of"), (None, "It is one of"),
        (True, "It is one of"), (["a"], "It is one of"), ("11-6", "It is one of"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(choice, words):
    with pytest.raises(RecipeError, match=words):
        choose(choice, 12)


def test_a_scaled_range_says_so():
    assert choose("half-up", 12).note is None
    assert choose("half-up", 4).note == "method.layers: 'half-up', blocks 6-11 of 12, is 2-3 of 4 here."
    assert choose("all", 4).note is None


def test_a_table_for_the_towers():
    table = {"image": "top3", "text": [0]}
    assert per_tower(table, "image", 12).blocks == (9, 10, 11)
    assert per_tower(table, "text", 12).blocks == (0,)
    with pytest.raises(RecipeError, match="says nothing about the text tower"):
        per_tower({"image": "all"}, "text", 12)
    with pytest.raises(RecipeError, match="Did you mean 'image'"):
        per_tower({"images": "all"}, "image", 12)
    with pytest.raises(RecipeError, match=r"method\.layers\.text"):
        per_tower({"image": "all", "text": 99}, "text", 12)
