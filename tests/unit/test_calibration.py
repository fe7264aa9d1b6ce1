"""Temperature and thresholds chosen on validation answers."""

from __future__ import annotations

import json

import pytest
import torch
from limpet.answers import probabilities
from limpet.calibration import Calibration, calibrate, fit_temperature, risk_coverage
from limpet.errors import LimpetError
from limpet.metrics import calibration_error


def answers(scale, count=4000, classes=5, seed=0):
    """Logits whose softmax is right at scale 1, times `scale`."""
    torch.manual_seed(seed)
    logits = 2 * torch.randn(count, classes, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1).flatten()
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_temperature_undoes_a_scale(scale):
    logits, labels = answers(scale)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(scale, rel=0.05)
    after = calibration_error(probabilities(logits / temperature), labels)
    assert after < 0.03 and (scale == 1 or after < calibration_error(probabilities(logits), labels))


def test_temperature_is_where_the_likelihood_is_greatest():
    logits, labels = answers(3.0, count=200)
    best = fit_temperature(logits, labels)

    def loss(temperature):
        return float(torch.nn.functional.cross_entropy(logits / temperature, labels))

    assert loss(best) <= min(loss(best * 1.02), loss(best / 1.02), loss(1.0))


def test_nothing_to_fit_leaves_the_probabilities_alone():
    right = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(right, torch.tensor([0, 1])) == 1.0  # all right: sharper for ever
    assert fit_temperature(right, torch.tensor([1, 0])) == 1.0  # all wrong: flatter for ever
    assert fit_temperature(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)) == 1.0
    assert calibrate(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) is None


def test_curve_by_hand():
    curve = risk_coverage([0.9, 0.8, 0.8, 0.3], [True, True, False, False])
    assert [(c.threshold, c.coverage, round(c.error, 3)) for c in curve] == [(0.0, 1.0, 0.5), (0.8, 0.75, 0.333), (0.9, 0.25, 0.0)]


def test_a_threshold_for_a_coverage_or_an_error():
    found = Calibration(1.0, 4, 2, tuple(risk_coverage([0.9, 0.8, 0.7, 0.3], [True, True, False, False])))
    assert found.cut(coverage=1).threshold == 0
    assert found.cut(coverage=0.5).threshold == 0.8
    assert found.cut(coverage=0.6).threshold == 0.7  # at least the share asked for
    assert found.cut(error=0.4).coverage == 0.75 and found.cut(error=0).threshold == 0.8
    never = Calibration(1.0, 2, 2, tuple(risk_coverage([0.9, 0.5], [False, True])))
    with pytest.raises(LimpetError, match=r"cannot be reached on the 2 validation images: at best 50\.0 %"):
        never.cut(error=0.1)
    with pytest.raises(LimpetError, match="between 0 and 1"):
        found.cut(coverage=90)


def test_coverage_holds_on_the_images_it_was_chosen_on_and_survives_json():
    logits, labels = answers(2.0, count=999)
    found = calibrate(logits, labels)
    again = Calibration.from_dict(json.loads(json.dumps(found.to_dict())))
    confidence = (logits / again.temperature).softmax(-1).max(-1).values
    for coverage in (0.9, 0.5, 0.1):
        answered = float((confidence >= again.cut(coverage=coverage).threshold).double().mean())
        assert coverage <= answered + 1e-9 < coverage + 0.02
    assert again.images == 999 and again.classes == 5 and len(again.curve) <= 200
    for damaged in (None, {}, {"temperature": "x", "images": 1, "classes": 1, "curve": []}, {**found.to_dict(), "temperature": -1}):
        assert Calibration.from_dict(damaged) is None


def test_parts_give_the_same_as_the_whole(monkeypatch):
    logits, labels = answers(3.0, count=500)
    whole = calibrate(logits, labels)
    monkeypatch.setattr("limpet.answers.CELLS", 40)
    assert calibrate(logits.split([100, 7, 393]), labels) == whole
