"""GDA and nearest mean: identities, streaming, few samples, growth equal to a refit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from limpet import artifact
from limpet.adapter import config_class, find
from limpet.classes import ClassSet
from limpet.errors import LimpetError, NeedsImages, RecipeError
from limpet.gaussian import Moments, Precision
from limpet.methods.gda import GDA, Config

NAMES = ("shark", "ray", "eel", "carp", "perch")


@pytest.fixture
def backbone(random_clip):
    return random_clip()


def batches(labels, width=16, views=2, seed=0, size=7, spread=1.0):
    """Features around a centre of each class, raw, as closed-form batches."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(labels)
    centres = torch.randn(50, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(len(labels), views, width, generator=random, dtype=torch.float64)
    found = (centres[labels][:, None] + spread * noise) * 3
    rows = torch.arange(len(labels)).split(size)
    return [{"views": found[r], "feature": found[r, 0], "label": labels[r], "path": [""] * len(r)} for r in rows]


def make(backbone, given, names=NAMES, method="gda", **settings):
    kind = find(method)
    adapter = kind(config_class(kind)(**settings)).setup(backbone, ClassSet(names))
    adapter.fit_closed_form(given)
    return adapter.eval()


def joined(given):
    views = F.normalize(torch.cat([b["views"] for b in given]), dim=-1)
    labels = torch.cat([b["label"] for b in given])
    return views.flatten(0, 1), labels.repeat_interleave(views.shape[1])


@pytest.mark.parametrize("labels", [list(range(5)) * 8, [0] * 30 + [1] * 4 + [2] * 9 + [3, 4] * 3], ids=["even", "uneven"])
def test_equals_scikit_learns_lda_with_the_stated_shrinkage(backbone, labels):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    given = batches(labels)
    W, b = make(backbone, given).columns()
    x, y = joined(given)
    size, width = x.shape
    count = torch.bincount(y).double()
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=width / (width + size - 1), priors=(count / size).numpy())
    lda.fit(x.numpy(), y.numpy())
    factor = width * (size - 1) / (size * (size - 1 + width))
    np.testing.assert_allclose(W.T.numpy(), factor * lda.coef_, rtol=1e-8, atol=1e-9)
    expected = factor * (lda.intercept_ - (count / size).log().numpy())
    np.testing.assert_allclose((b + np.log(5)).numpy(), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_batches_of_any_size_and_order_give_the_same(backbone, size):
    labels = [0] * 9 + [1] * 3 + [2] * 5 + [3] + [4] * 7
    whole = make(backbone, batches(labels)).columns()
    other = batches(labels, size=size)[::-1]
    for a, b in zip(make(backbone, other).columns(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("single", [True, False])
def test_statistics_do_not_cancel_far_from_the_origin(single):
    random = torch.Generator().manual_seed(0)
    x = 1e6 + torch.randn(4000, 8, generator=random, dtype=torch.float64)
    y = torch.randint(3, (4000,), generator=random)
    moments = Moments.empty(3, 8, single=single)
    for rows in torch.arange(4000).split(97):
        moments.add(x[rows], y[rows])
    mean = torch.stack([x[y == c].mean(0) for c in range(3)])
    exact = (x - mean[y]).T @ (x - mean[y])
    torch.testing.assert_close(moments.total, exact, rtol=1e-7, atol=1e-4)  # sums of squares are near 1e15
    torch.testing.assert_close(moments.mean, mean, rtol=1e-13, atol=0)


def test_precision_is_symmetric_and_positive():
    x = torch.randn(5, 12, dtype=torch.float64)
    P = Precision.shrunk(x.T @ x, 5) @ torch.eye(12, dtype=torch.float64)  # fewer samples than dimensions
    torch.testing.assert_close(P, P.T)
    assert torch.linalg.eigvalsh(P)[0] > 0
    S = x.T @ x
    torch.testing.assert_close(P, 12 * torch.linalg.inv(S + S.trace() / 4 * torch.eye(12, dtype=torch.float64)))


def test_orthogonal_change_of_basis_leaves_the_scores(backbone):
    given, query = batches(list(range(5)) * 4), batches([0, 1, 2, 3, 4], seed=5)
    Q, _ = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))

    class Turned(GDA):
        turn = torch.eye(16, dtype=torch.float64)

        def zero_shot_weights(self):
            return super().zero_shot_weights() @ self.turn

    def scores(turn):
        adapter = Turned(Config(alpha=1.0)).setup(backbone, ClassSet(NAMES))
        adapter.turn = turn
        adapter.fit_closed_form([{**b, "views": b["views"] @ turn} for b in given])
        return torch.cat([adapter.eval().logits({"feature": b["feature"] @ turn}) for b in query])

    torch.testing.assert_close(scores(Q), scores(Turned.turn), rtol=1e-9, atol=1e-8)


def test_alpha_zero_and_one_view_of_one_shot_are_zero_shot(backbone):
    zero_shot = make(backbone, (), method="zero_shot")
    (query,) = batches([0, 1, 2, 3, 4], seed=5)
    flat = make(backbone, batches(range(5), views=1), logit_scale=None, alpha=3.0)
    off = make(backbone, batches(list(range(5)) * 3), logit_scale=None, alpha=0.0)
    for adapter in (flat, off):
        shifted = adapter.logits(query) - zero_shot.logits(query)
        torch.testing.assert_close(shifted, shifted[:, :1].expand_as(shifted), rtol=0, atol=1e-9)
    assert any("zero-shot" in note for note in flat.notes)


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1], [2, 2]])
def test_few_samples_and_classes_give_finite_answers(backbone, labels):
    adapter = make(backbone, batches(labels, views=1), NAMES[: max(labels) + 1])
    (query,) = batches([0, 1], seed=5)
    adapter.select([])
    assert torch.isfinite(adapter.logits(query)).all()


def test_a_class_without_images_scores_the_average(backbone):
    adapter = make(backbone, batches([0, 1, 2, 4] * 3))
    assert any("perch" not in note and "carp" in note for note in adapter.notes)
    W, b = adapter.columns()
    torch.testing.assert_close(W[:, 3], W[:, [0, 1, 2, 4]].mean(1))
    torch.testing.assert_close(b[3], b[[0, 1, 2, 4]].mean())


def test_no_samples_and_wrong_words_are_sentences(backbone):
    with pytest.raises(LimpetError, match="at least one training image"):
        make(backbone, ())
    with pytest.raises(RecipeError, match=r"method\.prior is 'unifrom'"):
        make(backbone, (), prior="unifrom")
    with pytest.raises(RecipeError, match="no labels"):
        make(backbone, (), em=True, neighbours=4)


def test_the_smallest_of_equal_alphas_is_chosen_and_named(backbone):
    adapter = make(backbone, batches(list(range(5)) * 6), alphas=[0.0, 1e-9, 1.0, 2.0])
    val = batches([0, 1, 2, 3, 4] * 4, seed=3)
    found = adapter.search(val)
    adapter.select(val)
    every = []
    for alpha in adapter.config.alphas:
        adapter.alpha.fill_(alpha)
        hits = [(adapter.logits(b).argmax(1) == b["label"]).double() for b in val]
        every.append(torch.cat(hits).mean())
    torch.testing.assert_close(found, torch.stack(every))
    assert adapter.selected["alpha"] == adapter.config.alphas[int(torch.stack(every).argmax())]


def test_balanced_choice_and_correction_for_rare_classes(backbone):
    labels = [0] * 40 + [1, 2, 3, 4] * 2
    plain = make(backbone, batches(labels))
    fair = make(backbone, batches(labels), correct_rare=True, criterion="balanced_accuracy")
    gain = fair.columns()[1] - plain.columns()[1]
    count = plain.statistics().count
    torch.testing.assert_close(gain * count, (gain * count)[:1].expand(5))
    assert gain[1] > gain[0] > 0
    skewed = batches([0] * 9 + [1], seed=2)
    right = torch.cat([fair.logits(b).argmax(1) == b["label"] for b in skewed]).double()
    fair.config.alphas = [float(fair.alpha)]
    assert float(fair.search(skewed)[0]) == pytest.approx(float((right[:9].mean() + right[9]) / 2))


def test_more_neighbours_than_samples_are_clamped(backbone):
    adapter = make(backbone, batches([0, 1, 2] * 2), NAMES[:3], neighbours=64)
    with adapter.answering(ClassSet(NAMES)):
        (query,) = batches([0, 1], seed=5)
        assert torch.isfinite(adapter.logits(query)).all() and adapter.logits(query).shape == (2, 5)


def test_expectation_maximisation_with_certain_shares_is_the_supervised_fit():
    given = batches(list(range(5)) * 6)
    x, y = joined(given)
    soft = Moments.soft(x, F.one_hot(y, 5).double())
    hard = Moments.empty(5, 16)
    hard.add(x, y)
    torch.testing.assert_close(soft.mean, hard.mean)
    torch.testing.assert_close(soft.total, hard.total, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(soft.count, hard.count)


def test_expectation_maximisation_reads_no_labels(backbone):
    given = batches(list(range(5)) * 10, spread=0.2)
    wrong = [{**b, "label": torch.zeros_like(b["label"])} for b in given]
    one, other = make(backbone, given, em=True), make(backbone, wrong, em=True)
    torch.testing.assert_close(one.columns()[0], other.columns()[0], rtol=0, atol=0)
    assert one.selected["em_steps"] >= 1


def split(given, chosen):
    keep = [torch.isin(b["label"], torch.tensor(chosen)) for b in given]
    return [{k: v[m] for k, v in b.items() if k != "path"} for b, m in zip(given, keep, strict=True) if m.any()]


@pytest.mark.parametrize(
    "method,settings",
    [("gda", {}), ("gda", {"covariance": "class_balanced"}), ("gda", {"neighbours": 3, "shrinkage": "none",
     "covariance": "class_balanced"}), ("gda", {"prior": "empirical", "correct_rare": True}), ("nearest_mean", {"share": 0.6})],
    ids=["pooled", "class-balanced", "base-to-new", "imbalanced", "nearest mean"],
)  # fmt: skip
@pytest.mark.parametrize("roomy", [True, False])
def test_growing_equals_a_fit_to_everything(backbone, method, settings, roomy, tmp_path, monkeypatch):
    monkeypatch.setattr("limpet.gaussian.PER_CLASS_LIMIT", 2**22 if roomy else 0)
    given = batches([0, 1, 2, 3, 4] * 4 + [4, 4, 2])
    query = batches([0, 1, 2, 3, 4], seed=5)
    whole = make(backbone, given, method=method, **settings)
    part = make(backbone, split(given, [0, 1, 2]), NAMES[:3], method=method, **settings)
    alone = torch.cat([part.logits(b) for b in query])
    part.add_classes(part.classes.extended(["carp"]), split(given, [3]))
    artifact.save(part, tmp_path)
    part = artifact.load(tmp_path, backbone)  # what is needed for exact growth is in the artefact
    part.add_classes(part.classes.extended(["perch"]), split(given, [4]))

    def same(one, other):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)

    same(torch.cat([part.logits(b) for b in query]), torch.cat([whole.logits(b) for b in query]))
    artifact.save(part, tmp_path)
    part = artifact.load(tmp_path, backbone)
    part.remove_classes(["perch", "carp"])  # what was added can be taken out exactly
    same(torch.cat([part.logits(b) for b in query]), alone)
    for name, label in (("perch", 4), ("carp", 3)):  # again, in the other order
        part.add_classes(part.classes.extended([name]), relabelled(split(given, [label]), len(part.classes)))
    same(torch.cat([part.logits(b) for b in query]), torch.cat([whole.logits(b) for b in query])[:, [0, 1, 2, 4, 3]])


def relabelled(given, label):
    return [{**batch, "label": torch.full_like(batch["label"], label)} for batch in given]


@pytest.mark.parametrize("method", ["gda", "nearest_mean"])
@pytest.mark.parametrize("roomy", [True, False])
def test_growing_by_one_image_at_a_time_equals_a_fit_to_everything(backbone, method, roomy, monkeypatch):
    monkeypatch.setattr("limpet.gaussian.PER_CLASS_LIMIT", 2**22 if roomy else 0)
    labels = [0, 1, 2, 3, 4, 0, 0]
    given, query = batches(labels, views=1, size=1), batches([0, 1, 2, 3, 4], seed=5)
    whole = make(backbone, given, method=method)
    part = make(backbone, split(given, [0]), NAMES[:1], method=method)
    for label in range(1, 5):
        part.add_classes(part.classes.extended([NAMES[label]]), split(given, [label]))
    for b in query:
        torch.testing.assert_close(part.logits(b), whole.logits(b), rtol=1e-8, atol=1e-8)


def test_copies_of_one_image_have_no_spread(backbone):
    given = batches([0, 1, 2] * 4, spread=0.0)  # each class one image, many times
    (query,) = batches([0, 1, 2, 0], seed=5)
    text = make(backbone, (), NAMES[:3], method="zero_shot").logits(query)
    adapter = make(backbone, given, NAMES[:3], logit_scale=None, alpha=100.0)
    shifted = adapter.logits(query) - text
    torch.testing.assert_close(shifted, shifted[:, :1].expand_as(shifted), rtol=0, atol=1e-9)
    assert any("copies" in note for note in adapter.notes)


@pytest.mark.parametrize(
    "settings", [{}, {"correct_rare": True}, {"covariance": "class_balanced", "shrinkage": "none"}, {"neighbours": 2}, {"em": True}]
)
@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0, 1, 2]])
def test_features_that_are_all_the_same_give_finite_answers(backbone, settings, labels):
    given = [{**b, "views": torch.ones_like(b["views"])} for b in batches(labels)]
    adapter, (query,) = make(backbone, given, NAMES[:3], **settings), batches([0, 1, 2, 0], seed=5)
    adapter.select(batches([0, 1, 2], seed=3))
    assert torch.isfinite(adapter.logits(query)).all()
    adapter.select([{**query, "feature": torch.ones_like(query["feature"])}])
    assert torch.isfinite(adapter.logits(query)).all()


def test_new_classes_need_images_and_a_refusal_changes_nothing(backbone):
    for method in ("gda", "nearest_mean"):
        adapter = make(backbone, batches([0, 1, 2] * 3), NAMES[:3], method=method)
        (query,) = batches([0, 1], seed=5)
        before = adapter.logits(query)
        extended = adapter.classes.extended(["carp", "perch"])
        with pytest.raises(NeedsImages, match="images"):
            adapter.add_classes(extended)
        with pytest.raises(NeedsImages, match="perch"):
            adapter.add_classes(extended, batches([3, 3]))
        assert adapter.classes.names == NAMES[:3]
        torch.testing.assert_close(adapter.logits(query), before, rtol=0, atol=0)


def test_an_original_class_leaves_no_trace_where_there_is_room(backbone, monkeypatch):
    given = batches([0, 1, 2] * 4)
    (query,) = batches([0, 1], seed=5)
    others = [{**b, "label": b["label"] // 2} for b in split(given, [0, 2])]
    expected = make(backbone, others, ("shark", "eel")).logits(query)
    roomy = make(backbone, given, NAMES[:3])
    roomy.remove_classes(["ray"])
    torch.testing.assert_close(roomy.logits(query), expected, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("limpet.gaussian.PER_CLASS_LIMIT", 0)
    shared = make(backbone, given, NAMES[:3])
    shared.remove_classes(["ray"])
    assert any("still holds" in note for note in shared.notes)
    assert torch.isfinite(shared.logits(query)).all()
