"""Exact search equals brute force, ties included."""

import numpy as np
import pytest
from limpet.vector_search import ExactSearch


def brute_force(vectors, queries, k):
    scores = np.stack([(vectors.astype(np.float64) * q).sum(1) for q in queries.astype(np.float64)])
    order = np.stack([np.lexsort((np.arange(len(vectors)), -row)) for row in scores])[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("queries", [1, 2, 9])
@pytest.mark.parametrize(("count", "k", "block"), [(1000, 10, 64), (1000, 10, 4096), (50, 50, 7), (5, 9, 2), (300, 100, 64)])
def test_equals_brute_force(count, k, block, queries):
    rng = np.random.default_rng(count + queries)
    vectors = rng.normal(size=(count, 16)).astype(np.float32)
    asked = rng.normal(size=(queries, 16))
    found, scores = ExactSearch(vectors, block)(asked, k)
    expected, values = brute_force(vectors, asked, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(scores, values)


@pytest.mark.parametrize("queries", [1, 3])
def test_equal_vectors_come_in_their_order(queries):
    rng = np.random.default_rng(0)
    few = rng.normal(size=(4, 33)).astype(np.float32)
    vectors = few[rng.integers(0, 4, 500)]  # a hundred copies of each, in no order
    asked = rng.normal(size=(queries, 33))
    for k in (1, 7, 130, 500):
        found, scores = ExactSearch(vectors, 33)(asked, k)
        np.testing.assert_array_equal(found, brute_force(vectors, asked, k)[0])
        assert (np.diff(scores, axis=1) <= 0).all()


def test_scores_that_differ_less_than_float32_can_tell():
    base = np.ones((64, 8), np.float32)
    base[:, 0] += np.arange(64, dtype=np.float32) * np.float32(2**-23)
    asked = np.array([[1.0, *[1e3] * 7]])
    found, _ = ExactSearch(base, 16)(asked, 3)
    assert found[0].tolist() == [63, 62, 61]


def test_memory_maps_and_nothing_to_find(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    search = ExactSearch(np.load(tmp_path / "v.npy", mmap_mode="r"), 8)
    np.testing.assert_array_equal(search(vectors[:2], 3)[0], brute_force(vectors, vectors[:2], 3)[0])
    assert search(vectors[:2], 0)[0].shape == (2, 0)
    assert search(vectors[:0], 3)[0].shape == (0, 3)
    assert ExactSearch(vectors[:0])(vectors[:2], 3)[0].shape == (2, 0)
