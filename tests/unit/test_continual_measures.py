"""Figures of a stream against a matrix worked out by hand."""

import pytest
from limpet.callbacks.continual import retention, seen, summary

TOY = [[90.0, 60.0, 50.0], [80.0, 85.0, 55.0], [70.0, 75.0, 95.0]]
# Zero-shot accuracies of eleven data sets, in two orders: a model that never changes transfers its own mean.
ORDERS = {
    69.4: [24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2],
    65.4: [64.7, 88.5, 59.4, 89.0, 71.0, 65.2, 24.3, 88.4, 44.6, 54.9, 68.2],
}


def test_the_toy_matrix():
    found = summary(TOY)
    expected = {
        "transfer": 56.25, "task_average": 73.333333, "task_last": 80.0, "backward_transfer": -15.0,
        "backward_transfer_all_pairs": -13.333333, "forgetting": 15.0, "mean_seen_by_session": 84.166667, "last": 80.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_accuracy_so_far_counts_images():
    assert seen(TOY, [1, 3, 0])[1] == pytest.approx((80 + 3 * 85) / 4)
    assert seen(TOY, [1, 3, 0])[2] == pytest.approx((70 + 3 * 75) / 4)
    assert summary(TOY, [1, 1, 2])["last"] == pytest.approx((70 + 75 + 2 * 95) / 4)


@pytest.mark.parametrize(("expected", "zero_shot"), ORDERS.items())
def test_a_model_that_never_changes(expected, zero_shot):
    found = summary([zero_shot] * 11)
    assert found["transfer"] == pytest.approx(expected, abs=0.06)
    assert found["forgetting"] == found["backward_transfer"] == 0
    assert found["task_last"] == pytest.approx(65.3, abs=0.05) and found["task_average"] == pytest.approx(65.3, abs=0.05)


def test_what_is_not_known_is_not_guessed():
    found = summary([[0.9, None], [0.8, 0.7]])
    assert found["transfer"] is None and found["task_average"] is None
    assert found["task_last"] == pytest.approx(0.75)
    assert found["forgetting"] == pytest.approx(0.1)


def test_forgetting_can_be_negative_and_ignores_what_was_before_training():
    found = summary([[0.5, 0.99], [0.6, 0.7]])
    assert found["forgetting"] == pytest.approx(-0.1)


def test_one_session():
    found = summary([[0.5]], [4])
    assert found["last"] == found["average_incremental"] == 0.5
    assert found["forgetting"] is None and found["transfer"] is None and found["backward_transfer"] is None


def test_retention():
    found = retention({"cifar": 0.3, "reef": 0.9}, [{"cifar": 0.2, "reef": 0.9}, {"cifar": 0.1, "reef": 0.8}])
    assert found["data"]["cifar"]["change"] == pytest.approx(-0.2)
    assert found["mean"] == {"zero_shot": pytest.approx(0.6), "after": pytest.approx(0.45)}
    assert retention({}, []) == {}
