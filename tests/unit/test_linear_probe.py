"""The linear probe against scikit-learn, its choice of C, and its corner cases."""

import math

import numpy as np
import pytest
import torch
from limpet.classes import ClassSet
from limpet.errors import LimpetError, NeedsImages
from limpet.methods.linear_probe import BISECTIONS, FALLBACK_C, SWEEP, Config, LinearProbe
from sklearn.linear_model import LogisticRegression


def blobs(backbone, counts, seed=0, spread=3.0):
    """Features around a centre for each class: one batch."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), backbone.embed_dim, generator=torch.Generator().manual_seed(9))
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    feature = centres[labels] + spread * torch.randn(len(labels), backbone.embed_dim, generator=generator)
    return {"feature": feature, "label": labels}


def build(backbone, count, **settings):
    names = tuple(f"fish {i}" for i in range(count))
    return LinearProbe(Config(**settings)).setup(backbone, ClassSet(names, {}, ("{}",))).eval()


@pytest.mark.parametrize(("counts", "C"), [([8, 8, 8], 1.0), ([9, 2, 5], 0.01), ([6, 7], 0.5)])
def test_equals_scikit_learn(tiny, counts, C):
    train, test = blobs(tiny, counts), blobs(tiny, counts, seed=1)
    adapter = build(tiny, len(counts), C=C)
    adapter.fit_closed_form([{k: v[::2] for k, v in train.items()}, {k: v[1::2] for k, v in train.items()}])
    adapter.select([])
    order = torch.cat([torch.arange(len(train["label"]))[::2], torch.arange(len(train["label"]))[1::2]])
    model = LogisticRegression(C=C, max_iter=1000, random_state=0)
    model.fit(train["feature"][order].double().numpy(), train["label"][order].numpy())
    expected = model.predict_log_proba(test["feature"].double().numpy())
    got = adapter.logits(test).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-3)
    assert adapter.selected == {"C": C}


@pytest.mark.parametrize(("spread", "scale"), [(6.0, 1.0), (2.5, 1e-3)])  # of small features large C do better
def test_c_is_chosen_by_the_sweep_and_the_bisections(tiny, spread, scale):
    train, val = blobs(tiny, [6, 6, 6], spread=spread), blobs(tiny, [8, 8, 8], seed=1, spread=spread)
    train["feature"], val["feature"] = train["feature"] * scale, val["feature"] * scale
    adapter = build(tiny, 3)
    adapter.fit_closed_form([train])
    adapter.select([val])
    x, y = train["feature"].double().numpy(), train["label"].numpy()

    def accuracy(C):
        model = LogisticRegression(C=C, max_iter=1000, random_state=0).fit(x, y)
        return model.score(val["feature"].double().numpy(), val["label"].numpy())

    peak = max(SWEEP, key=accuracy)  # the first of equals
    left, right = math.log10(peak) - 1, math.log10(peak) + 1
    for _ in range(BISECTIONS):
        if accuracy(10**left) < accuracy(10**right):
            left, best = (left + right) / 2, right
        else:
            right, best = (left + right) / 2, left
    assert adapter.selected["C"] == pytest.approx(10**best)


def test_a_refit_reads_training_and_validation_images(tiny):
    train, val = blobs(tiny, [6, 6, 6]), blobs(tiny, [8, 8, 8], seed=1)
    adapter = build(tiny, 3, refit=True)
    adapter.fit_closed_form([train])
    adapter.select([val])
    both = {key: torch.cat([train[key], val[key]]) for key in train}
    expected = build(tiny, 3, C=adapter.selected["C"])
    expected.fit_closed_form([both])
    expected.select([])
    torch.testing.assert_close(adapter.weight, expected.weight)
    torch.testing.assert_close(adapter.bias, expected.bias)


def test_without_validation_images_it_says_what_it_took(tiny):
    adapter = build(tiny, 2)
    adapter.fit_closed_form([blobs(tiny, [4, 4])])
    adapter.select([])
    assert adapter.selected == {"C": FALLBACK_C} and "no validation images" in adapter.notes[0]


def test_one_class_and_a_class_without_images(tiny):
    alone = build(tiny, 1)
    alone.fit_closed_form([blobs(tiny, [3])])
    alone.select([blobs(tiny, [2])])
    assert alone.logits(blobs(tiny, [2])).softmax(-1).eq(1).all()
    for counts in ([5, 0, 5], [5, 0, 0], [4, 4, 0, 4]):
        adapter, missing = build(tiny, len(counts)), [i for i, n in enumerate(counts) if not n]
        batch = blobs(tiny, counts)
        adapter.fit_closed_form([batch])
        adapter.select([batch])
        probability = adapter.logits(batch).softmax(-1)
        assert torch.isfinite(adapter.logits(batch)).all() and probability[:, missing].max() < 1e-6


def test_it_answers_only_about_classes_with_images(tiny):
    adapter = build(tiny, 2, C=1.0)
    adapter.fit_closed_form([blobs(tiny, [4, 4])])
    adapter.select([])
    with pytest.raises(NeedsImages, match="images"), adapter.answering(ClassSet(("shark",), {}, ("{}",))):
        pass
    grown = adapter.classes.extended(["shark"], {"shark": ["shark"]})
    batch = blobs(tiny, [0, 0, 5], seed=4)
    before = adapter.logits(batch)
    adapter.add_classes(grown, [batch])
    torch.testing.assert_close(adapter.logits(batch)[:, :2], before)
    assert (adapter.logits(batch).argmax(-1) == 2).all()


def test_a_refused_class_changes_nothing(tiny):
    adapter = build(tiny, 3, C=1.0)
    adapter.fit_closed_form([blobs(tiny, [4, 4, 0])])
    adapter.select([])
    batch = blobs(tiny, [0, 0, 0, 5], seed=4)
    before = adapter.logits(batch)
    with pytest.raises(NeedsImages, match="ray"):
        adapter.add_classes(adapter.classes.extended(["shark", "ray"]), [batch])
    assert len(adapter.weight) == 3
    torch.testing.assert_close(adapter.logits(batch), before, rtol=0, atol=0)
    adapter.add_classes(adapter.classes.extended(["shark"]), [batch])
    norms = adapter.weight.norm(dim=1)
    torch.testing.assert_close(norms[3], norms[:2].mean())  # the class without images has no say


def test_a_probe_of_one_class_cannot_take_another_in(tiny):
    adapter = build(tiny, 1)
    adapter.fit_closed_form([blobs(tiny, [3])])
    adapter.select([])
    with pytest.raises(LimpetError, match="one class"):
        adapter.add_classes(adapter.classes.extended(["shark"]), [blobs(tiny, [0, 3])])
    with pytest.raises(LimpetError, match="at least one training image"):
        build(tiny, 2).fit_closed_form([])
