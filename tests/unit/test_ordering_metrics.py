"""Figures of an order."""

import numpy as np
import pytest
from limpet.ordering_metrics import averaged, displacement, intervals, order_metrics, pairwise_accuracy, unit_metrics


def test_against_hand_counted_pairs():
    values, scores = np.array([1.0, 2, 2, 3]), np.array([0.1, 0.5, 0.2, 0.4])
    # strictly ordered pairs: 5; wrong: (2nd, 4th)
    assert pairwise_accuracy(scores, values) == pytest.approx(4 / 5)
    found = order_metrics(scores, values)
    concordant, discordant, tied_values = 4, 1, 1
    tau = (concordant - discordant) / np.sqrt((concordant + discordant) * (concordant + discordant + tied_values))
    assert found["kendall"] == pytest.approx(tau)
    ranks = np.corrcoef([1, 2.5, 2.5, 4], [1, 4, 2, 3])[0, 1]
    assert found["spearman"] == pytest.approx(ranks)
    assert found["pearson"] == pytest.approx(np.corrcoef(scores, values)[0, 1])


def test_monotone_scores_are_perfect_and_constant_ones_say_nothing():
    values = np.arange(9.0)
    found = order_metrics(np.exp(values), values)
    assert found["spearman"] == found["kendall"] == pytest.approx(1.0)
    assert found["pairwise_accuracy"] == 1.0
    assert order_metrics(np.zeros(9), values) == {"spearman": 0, "pearson": 0, "kendall": 0, "pairwise_accuracy": 0.5}
    assert order_metrics(values, np.ones(9)) is None
    assert order_metrics(values[:1], values[:1]) is None


def test_units():
    found = unit_metrics(np.array([0.4, 1.6, 7.0]), np.array([0.0, 1, 3]))
    assert found["mae"] == pytest.approx((0.4 + 0.6 + 4) / 3)
    assert found["rounded_accuracy"] == pytest.approx(2 / 3)  # 7 counts as 3, the greatest value there is
    assert found["rounded_mae"] == pytest.approx(1 / 3)
    assert set(unit_metrics(np.array([0.4]), np.array([0.5]))) == {"mae"}


def test_averages_leave_out_categories_without_an_order():
    assert averaged([{"a": 1.0}, None, {"a": 3.0}]) == {"a": 2.0}
    assert averaged([None]) == {}


def test_bootstrap_intervals_hold_the_value_and_narrow_with_more_images():
    rng = np.random.default_rng(0)
    widths = []
    for count in (40, 640):
        values = rng.integers(0, 6, count).astype(float)
        scores = values + rng.normal(0, 2, count)
        found = intervals([scores], [values])
        exact = order_metrics(scores, values)
        for key in ("spearman", "pairwise_accuracy"):
            low, high = found[key]
            assert low < exact[key] < high
        widths.append(found["spearman"][1] - found["spearman"][0])
    assert widths[1] < 0.5 * widths[0]
    assert intervals([scores], [values]) == found
    assert intervals([], []) == {}


def test_draws_without_an_order_are_left_out(recwarn):
    one = (np.array([0.1, 0.9, 0.5]), np.array([0.0, 1.0, 0.0]))
    found = intervals(*([part] for part in one), resamples=200)
    assert found["pairwise_accuracy"] == [1.0, 1.0] and not recwarn.list
    two = intervals([one[0], -one[0]], [one[1], one[1]], resamples=200)
    assert two["pairwise_accuracy"][0] < 0.5 < two["pairwise_accuracy"][1]


def test_displacement_is_a_share_of_the_order():
    away = displacement(np.array([3.0, 1, 2]), np.array([1.0, 2, 3]))
    assert away.tolist() == [1.0, -0.5, -0.5]
