"""Metrics against values worked out by hand and with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from limpet import metrics
from limpet.errors import LimpetError


def example():
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    answers = [0, 0, 0, 1, 1, 0]
    probability = torch.full((6, 4), 0.1, dtype=torch.float64)
    probability[torch.arange(6), answers] = 0.7
    return probability, labels


def test_headline_numbers_by_hand():
    found = metrics.scores(*example())
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((2 * 3 / (4 + 4) + 2 / 3 + 0) / 3)
    assert found["ece"] == pytest.approx(abs(4 / 6 - 0.7))
    assert (found["images"], found["classes"]) == (6, 4)
    assert "top3" in found and "top5" not in found


@pytest.mark.parametrize(
    ("classes", "key"), [(1, None), (2, None), (3, "top2"), (5, "top4"), (6, "top5"), (30, "top5")]
)
def test_top_k_depends_on_the_number_of_classes(classes, key):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(200, classes, generator=generator)
    labels = torch.randint(classes, (200,), generator=generator)
    found = metrics.classification_metrics(logits, labels)
    assert [k for k in found if k.startswith("top")] == ([key] if key else [])
    if key:
        order = np.argsort(-logits.numpy(), axis=1)[:, : int(key[3:])]
        assert found[key] == pytest.approx((order == labels.numpy()[:, None]).any(axis=1).mean())
    assert all(0 <= v <= 1 for k, v in found.items() if k not in ("images", "classes"))
    assert found == metrics.classification_metrics(logits, labels)


def test_calibration_error_against_numpy():
    generator = torch.Generator().manual_seed(0)
    probability = torch.randn(500, 7, generator=generator).double().mul(2).softmax(-1)
    labels = torch.randint(7, (500,), generator=generator)
    confidence, answer = probability.max(-1)
    right = (answer == labels).numpy()
    place = np.clip(np.ceil(confidence.numpy() * 15).astype(int) - 1, 0, 14)
    expected = sum(
        (place == b).mean() * abs(right[place == b].mean() - confidence.numpy()[place == b].mean())
        for b in range(15)
        if (place == b).any()
    )
    assert metrics.calibration_error(probability, labels) == pytest.approx(expected, abs=1e-6)


def test_per_class_and_confusion_with_empty_classes():
    probability, labels = example()
    answer = probability.argmax(-1)
    rows = metrics.per_class(answer, labels, 4)
    assert [(r.images, r.accuracy) for r in rows] == [(4, 0.75), (1, 1.0), (1, 0.0), (0, None)]
    assert metrics.confusion(answer, labels, 4).tolist() == [
        [3, 1, 0, 0],
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("classes", [1, 2, 3, 40])
def test_blocks_give_the_same_as_the_whole(classes, monkeypatch):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(300, classes, generator=generator) * 4
    labels = torch.randint(classes, (300,), generator=generator)
    whole = metrics.scores(logits.double().softmax(-1), labels)
    assert metrics.classification_metrics(logits, labels) == whole
    monkeypatch.setattr("limpet.answers.CELLS", 100)
    assert metrics.classification_metrics(logits.split([1, 200, 99]), labels) == whole
    assert metrics.calibration_error(logits.double().softmax(-1), labels) == whole["ece"]


def test_harmonic_mean_and_spread():
    assert metrics.harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean(0.0, 0.9) == 0.0
    assert metrics.mean_and_sd([1.0]) == (1.0, None)
    assert metrics.mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_refusals_are_sentences():
    with pytest.raises(LimpetError, match="no test images"):
        metrics.scores(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(LimpetError, match="diverged"):
        metrics.classification_metrics(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3,\)"):
        metrics.scores(torch.full((2, 3), 1 / 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        metrics.scores(torch.full((1, 3), 1 / 3), torch.tensor([3]))
