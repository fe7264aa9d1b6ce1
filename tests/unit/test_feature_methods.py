"""CLIP-Adapter, TaskRes, CLAP, LP++ and nearest mean: the identities that hold without training, and their own rules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from limpet.adapter import config_class, find
from limpet.classes import ClassSet
from limpet.errors import LimpetError, NeedsImages, RecipeError

NAMES = ("shark", "ray", "eel", "carp")


@pytest.fixture
def backbone(random_clip):
    return random_clip()


def make(backbone, method, names=NAMES, templates=("a photo of a {}.", "the {}."), **settings):
    torch.manual_seed(0)
    kind = find(method)
    return kind(config_class(kind)(**settings)).setup(backbone, ClassSet(names, {}, templates)).eval()


def batch(labels, views=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    centre = torch.randn(9, 16, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    labels = torch.as_tensor(labels)
    found = 4 * centre[labels][:, None] + torch.randn(len(labels), views, 16, generator=random, dtype=torch.float64)
    return {"views": found, "feature": found[:, 0], "label": labels, "path": [""] * len(labels)}


QUERY = batch([0, 1, 2, 3], seed=4)


def test_clip_adapter_of_ratio_zero_is_zero_shot(backbone):
    expected = make(backbone, "zero_shot").logits(QUERY)
    torch.testing.assert_close(make(backbone, "clip_adapter", ratio=0.0).logits(QUERY), expected)


def test_clip_adapter_scales_with_its_input_and_is_not_negative(backbone):
    adapter = make(backbone, "clip_adapter", ratio=0.6)
    assert (adapter.adapted(QUERY["feature"]) >= 0).all()
    scaled = adapter.logits({"feature": 7.5 * QUERY["feature"]})
    torch.testing.assert_close(scaled, adapter.logits(QUERY))
    assert sum(p.numel() for p in adapter.learnable()) == 16 * 16 // 2


def test_clip_adapter_of_ratio_one_sees_the_bottleneck_alone(backbone):
    adapter = make(backbone, "clip_adapter", ratio=1.0)
    a = F.normalize(adapter.adapted(QUERY["feature"]), dim=-1)
    torch.testing.assert_close(adapter.logits(QUERY), backbone.logit_scale * a @ adapter.class_weights().T)
    adapter.up.data.fill_(-1.0)
    assert (adapter.logits(QUERY) == 0).all()  # a dead bottleneck gives no NaN


@pytest.mark.parametrize("method", ["taskres", "clap"])
def test_the_first_step_is_zero_shot_on_its_base(backbone, method):
    adapter = make(backbone, method)
    texts = [[t.replace("{}", name) for t in adapter.classes.templates] for name in NAMES]
    base = torch.stack([backbone.encode_text(group, normalize=False).mean(0) for group in texts])
    weights = F.normalize(base, dim=-1)
    expected = backbone.logit_scale * F.normalize(QUERY["feature"], dim=-1) @ weights.T
    torch.testing.assert_close(adapter.logits(QUERY), expected)
    one = make(backbone, method, templates=("a photo of a {}.",))  # with one template both bases agree
    torch.testing.assert_close(
        one.logits(QUERY), make(backbone, "zero_shot", templates=("a photo of a {}.",)).logits(QUERY)
    )


def test_taskres_with_alpha_zero_stays_and_its_gradient_is_orthogonal(backbone):
    adapter = make(backbone, "taskres", alpha=0.0)
    before = adapter.logits(QUERY)
    adapter.residual.data.normal_()
    adapter._derived = {}
    torch.testing.assert_close(adapter.logits(QUERY), before)
    adapter = make(backbone, "taskres").train()
    adapter.residual.data.normal_()
    adapter.loss(QUERY).backward()
    along = adapter.raw_text_weights() + 0.5 * adapter.residual
    assert ((along * adapter.residual.grad).sum(-1).abs() < 1e-10).all() and adapter.residual.grad.abs().sum() > 0


def test_clap_multipliers_are_probabilities_and_the_penalty_starts_at_zero(backbone):
    adapter = make(backbone, "clap")
    given = batch([0, 0, 1, 2, 2, 2], views=3)  # no image of carp
    adapter.fit_closed_form([given])
    weights = F.normalize(adapter.raw_text_weights(), dim=-1)
    flat, labels = F.normalize(given["views"].flatten(0, 1), dim=-1), given["label"].repeat_interleave(3)
    own = (backbone.logit_scale * flat @ weights.T).softmax(-1).gather(1, labels[:, None])[:, 0]
    expected = torch.stack([own[labels == c].mean() for c in range(3)])
    torch.testing.assert_close(adapter.multiplier[:3], expected)
    assert ((adapter.multiplier >= 0) & (adapter.multiplier <= 1)).all()
    torch.testing.assert_close(adapter.multiplier[3], expected.mean())
    assert float(adapter.penalty()) == 0
    adapter.weight.data += 0.1
    torch.testing.assert_close(adapter.penalty(), (adapter.multiplier * 16 * 0.01).mean())
    entropy = F.cross_entropy(adapter.logits(QUERY), QUERY["label"])
    adapter.train()
    torch.testing.assert_close(adapter.loss(QUERY), F.cross_entropy(adapter.logits(QUERY), QUERY["label"]) + adapter.penalty())
    assert torch.isfinite(entropy)


def test_clap_adaptive_multipliers_follow_the_outer_step(backbone):
    adapter, fixed = make(backbone, "clap", adaptive=True), make(backbone, "clap")
    for one in (adapter, fixed):
        one.fit_closed_form([batch([0, 0, 1, 2, 3])])
    start = adapter.multiplier.clone()
    adapter.weight.data += 0.1  # 16 numbers a class: h = 0.16
    adapter.epoch_ended(0, 3)  # rho was 0
    torch.testing.assert_close(adapter.multiplier, start)
    adapter.weight.data += 0.1  # h = 0.64, rho = 0.16
    adapter.epoch_ended(1, 3)
    torch.testing.assert_close(adapter.multiplier, start + 0.16 * 0.64)
    adapter.epoch_ended(2, 3)
    torch.testing.assert_close(adapter.multiplier, start + 0.16 * 0.64 + 0.64 * 0.64)
    fixed.weight.data += 0.1
    fixed.epoch_ended(0, 3)
    fixed.epoch_ended(1, 3)
    torch.testing.assert_close(fixed.multiplier, start)


def test_clap_other_multipliers(backbone):
    given = [batch([0, 0, 1, 2, 3])]

    def fitted(kind):
        adapter = make(backbone, "clap", multipliers=kind)
        adapter.fit_closed_form(given)
        return adapter.multiplier

    plain = fitted("confidence")
    assert (fitted("balanced") == 1).all()
    torch.testing.assert_close(fitted("constant"), plain.mean().expand(4))
    torch.testing.assert_close(fitted("corrected"), plain / plain.mean())
    assert find("clap").variant(config_class(find("clap"))(constraint="none")) == "zs_lp"
    with pytest.raises(RecipeError, match=r"method\.multipliers"):
        make(backbone, "clap", multipliers="adaptative")


def test_lp_plus_plus_without_its_head_is_zero_shot(backbone):
    adapter = make(backbone, "lp_plus_plus")
    adapter.bias.zero_()
    adapter.alpha.fill_(backbone.logit_scale)
    torch.testing.assert_close(adapter.logits(QUERY), make(backbone, "zero_shot").logits(QUERY))


def test_lp_plus_plus_starts_and_steps_as_published(backbone):
    adapter = make(backbone, "lp_plus_plus")
    given = batch([0, 0, 1, 1, 2, 2, 3, 3], views=1)
    adapter.fit_closed_form([given])
    x, y = F.normalize(given["feature"], dim=-1), given["label"]
    text = adapter.zero_shot_weights()
    torch.testing.assert_close(adapter.weight, torch.stack([x[y == c].sum(0) for c in range(4)]))
    torch.testing.assert_close(adapter.alpha, (250 * (x * text[y]).sum(-1).mean()).expand(4))
    step, alpha_step = adapter.steps(x)
    assert step == pytest.approx(4 * 8 / np.linalg.eigvalsh((x.T @ x).numpy())[-1])
    assert alpha_step == pytest.approx(8 / (4 * float((x @ text.T).square().sum(0).max())))
    start = [t.clone() for t in (adapter.weight, adapter.bias, adapter.alpha)]
    adapter.config.epochs, adapter.config.alpha_every = 1, 1
    adapter.select([])
    W, b, alpha = (t.requires_grad_() for t in start)
    F.cross_entropy(x @ W.T + b + alpha * (x @ text.T), y).backward()
    torch.testing.assert_close(adapter.weight, W.detach() - step * W.grad)
    torch.testing.assert_close(adapter.bias, b.detach() - step * b.grad)
    torch.testing.assert_close(adapter.alpha, alpha.detach() - alpha_step * alpha.grad)


def test_lp_plus_plus_learns_and_says_which_epoch_it_kept(backbone):
    adapter = make(backbone, "lp_plus_plus")
    given, val = batch([0, 1, 2, 3] * 6), batch([0, 1, 2, 3] * 4, seed=2)
    adapter.fit_closed_form([given])
    adapter.select([val])
    assert (adapter.logits(val).argmax(1) == val["label"]).double().mean() > 0.9
    assert 1 <= adapter.selected["epoch"] <= 300 and adapter.selected["step"] > 0


def test_lp_plus_plus_imprints(backbone):
    adapter = make(backbone, "lp_plus_plus")
    adapter.fit_closed_form([batch([0, 1, 2, 3] * 3)])
    adapter.select([])
    before, new = adapter.logits(QUERY), batch([4, 4], seed=6)
    adapter.add_classes(adapter.classes.extended(["whale"]), [new])
    after = adapter.logits(QUERY)
    torch.testing.assert_close(after[:, :4], before, rtol=1e-12, atol=1e-12)  # the texts were encoded in another batch
    direction = F.normalize(F.normalize(new["views"].flatten(0, 1), dim=-1).mean(0), dim=0)
    torch.testing.assert_close(adapter.weight[4], direction * adapter.weight[:4].norm(dim=1).mean())
    assert adapter.alpha[4] == adapter.alpha[:4].mean() and any("not calibrated" in n for n in adapter.notes)


def test_nearest_mean_ends_at_text_and_at_means(backbone):
    given = batch([0, 1, 2, 3] * 3)
    text, means = make(backbone, "nearest_mean", share=0.0), make(backbone, "nearest_mean", share=1.0)
    for adapter in (text, means):
        adapter.fit_closed_form([given])
    torch.testing.assert_close(text.logits(QUERY), make(backbone, "zero_shot").logits(QUERY))
    flat, labels = F.normalize(given["views"].flatten(0, 1), dim=-1), given["label"].repeat_interleave(2)
    expected = F.normalize(torch.stack([flat[labels == c].mean(0) for c in range(4)]), dim=-1)
    torch.testing.assert_close(means.class_weights(), expected)


def test_nearest_mean_searches_all_shares_at_once(backbone):
    adapter = make(backbone, "nearest_mean")
    adapter.fit_closed_form([batch([0, 1, 2, 3] * 2)])
    val = [batch([0, 1, 2, 3] * 5, seed=3), batch([1, 2], seed=7)]
    found, every = adapter.search(val), []
    for share in adapter.grid():
        adapter.share.fill_(float(share))
        adapter._derived = {}
        every.append(torch.cat([adapter.logits(b).argmax(1) == b["label"] for b in val]).double().mean())
    torch.testing.assert_close(found, torch.stack(every))
    adapter.select(val)
    assert adapter.selected["share"] == float(adapter.grid()[int(found.argmax())])
    with pytest.raises(NeedsImages, match="images"), adapter.answering(ClassSet((*NAMES, "whale"))):
        pass


@pytest.mark.parametrize("method", ["taskres", "clap"])
def test_a_new_class_starts_from_its_text_and_the_old_stay(backbone, method):
    adapter = make(backbone, method)
    (adapter.residual if method == "taskres" else adapter.weight).data.normal_()
    adapter._derived = {}
    before = adapter.logits(QUERY)
    adapter.add_classes(adapter.classes.extended(["whale"]))
    torch.testing.assert_close(adapter.logits(QUERY)[:, :4], before)
    fresh = make(backbone, method, names=("whale",)).logits(QUERY)
    torch.testing.assert_close(adapter.logits(QUERY)[:, 4:], fresh)


@pytest.mark.parametrize(
    "method,settings",
    [
        ("clip_adapter", {"ratio": 1.5}),
        ("clip_adapter", {"reduction": 0}),
        ("nearest_mean", {"share": 2.0}),
        ("nearest_mean", {"steps": 0}),
    ],
)  # fmt: skip
def test_impossible_settings_are_sentences(backbone, method, settings):
    with pytest.raises(RecipeError, match=rf"method\.{next(iter(settings))}"):
        make(backbone, method, **settings)


@pytest.mark.parametrize(
    "method,settings",
    [
        ("tip_adapter", {"search_step": [0, 20]}),
        ("tip_adapter", {"search_step": [200]}),
        ("tip_adapter", {"search_scale": [7.0]}),
        ("tip_adapter", {"search_scale": [-5.0, 3.0]}),
        ("lp_plus_plus", {"alpha_every": 0}),
        ("lp_plus_plus", {"momentum": 1.0}),
        ("gda", {"neighbours": -1}),
        ("gda", {"text_repeats": -4}),
    ],
)  # fmt: skip
def test_unsupported_settings_are_sentences(backbone, method, settings):
    with pytest.raises(LimpetError, match=rf"method\.{next(iter(settings))}"):
        make(backbone, method, **settings)


CHOOSING = ["tip_adapter", "gda", "nearest_mean", "linear_probe", "lp_plus_plus", "clap", "taskres"]
HELD_OUT = {"none": [], "one a class": [[0, 1, 2, 3]], "one in all": [[2]], "one class": [[1, 1, 1]], "batches": [[0], [1], [3]]}


@pytest.mark.parametrize("method", CHOOSING)
@pytest.mark.parametrize("val", HELD_OUT)
@pytest.mark.parametrize("train", [[0, 1, 2, 3], [0, 0, 0, 1, 3]], ids=["one shot", "a class without images"])
def test_choosing_on_few_images_or_none_gives_finite_answers_and_says_so(backbone, method, val, train):
    adapter = make(backbone, method)
    adapter.fit_closed_form([batch(train)])
    adapter.select([batch(labels, seed=3) for labels in HELD_OUT[val]])
    assert torch.isfinite(adapter.logits(QUERY)).all()
    assert all(np.isfinite(value) for value in adapter.selected.values())
    assert bool(adapter.selected) == (method not in ("clap", "taskres"))
    if val == "none" and adapter.selected:
        assert any("no validation images" in note for note in adapter.notes)


@pytest.mark.parametrize("method", CHOOSING)
def test_copies_of_one_image_under_every_name_give_finite_answers(backbone, method):
    given = batch([0, 1, 2, 3, 0, 2])
    same = {**given, "views": given["views"][:1, :1].expand(6, 2, 16), "feature": given["feature"][:1].expand(6, 16)}
    adapter = make(backbone, method)
    adapter.fit_closed_form([same])
    adapter.select([same])
    assert torch.isfinite(adapter.logits(QUERY)).all()
    torch.testing.assert_close(adapter.logits(same), adapter.logits(same)[:1].expand(6, 4))
