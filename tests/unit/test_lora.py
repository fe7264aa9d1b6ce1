"""LoRA: identities of the factors, what is saved, peft's door, dropout, WiSE-FT and the merged weights."""

import copy
import math

import pytest
import torch
from limpet.classes import ClassSet
from limpet.errors import LimpetError, RecipeError
from limpet.interpolation import post_step
from limpet.methods.lora import Config, LoRA
from limpet.methods.zero_shot import Config as ZeroShotConfig
from limpet.methods.zero_shot import ZeroShot

CLASSES = ClassSet(names=("cat", "striped dog", "x-ray"), texts={}, templates=("a photo of a {}.", "a {}."))
TUNERS = ["DELORA", "GRALORA", "HIRA", "HRA", "IA3", "LOHA", "LOKR", "MISS", "OFT", "FOURIERFT"]
OPTIONS = {"FOURIERFT": {"n_frequency": 50, "init_weights": True}, "OFT": {"oft_block_size": 8}, "GRALORA": {"gralora_k": 2}}


def images(count=3, seed=0):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(count=3):
    return {"image": images(count), "label": torch.arange(count) % 3, "path": [""] * count, "index": torch.arange(count)}


def made(clip, stirred=True, **settings):
    settings.setdefault("dropout", 0.0)
    torch.manual_seed(0)
    adapter = LoRA(Config(**settings)).setup(clip, CLASSES).eval()
    if stirred:
        with torch.no_grad():
            for parameter in adapter.learnable():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return adapter


def answer(adapter):
    with torch.no_grad():
        return adapter.logits(batch())


def zero_shot(clip):
    adapter = ZeroShot(ZeroShotConfig()).setup(clip, CLASSES)
    with torch.no_grad():
        return adapter.logits({"image": images()})


def loaded(clip, weights):
    fresh = copy.deepcopy(clip.model)
    fresh.load_state_dict(weights)
    return type(clip).from_model(fresh)


@pytest.mark.parametrize("targets", [["q", "k", "v"], ["o"], ["fc", "proj"], ["q", "k", "v", "o", "fc", "proj"]])
def test_untrained_equals_the_backbone(random_clip, targets):
    clip = random_clip()
    adapter = made(clip, stirred=False, targets=targets)
    torch.testing.assert_close(answer(adapter), zero_shot(clip), rtol=0, atol=1e-11)


def test_scaling_start_and_number_of_parameters(random_clip):
    clip = random_clip()
    for rslora, scale in ((True, 3 / math.sqrt(4)), (False, 3 / 4)):
        adapter = made(clip, stirred=False, rank=4, alpha=3.0, use_rslora=rslora)
        layer = adapter.clip.model.visual.transformer.resblocks[0].attn.q_proj
        assert layer.scaling["default"] == pytest.approx(scale)
        assert layer.lora_A["default"].weight.abs().max() <= 1 / math.sqrt(32)
    vision, text = clip.spec.vision_width, clip.spec.text_width
    assert sum(p.numel() for p in adapter.learnable()) == 4 * 3 * 4 * 2 * (vision + text)
    assert adapter.state_dict().keys() == {n for n, _ in adapter.named_parameters()} | {"share"}
    assert sum(t.numel() * t.element_size() for t in adapter.state_dict().values()) < 200_000


@pytest.mark.parametrize("towers", ["image", "text", "both"])
@pytest.mark.parametrize("targets", [["q", "v"], ["q", "k", "v", "o", "fc", "proj"]])
def test_merged_weights_give_the_same_answers_under_the_original_names(random_clip, towers, targets):
    clip = random_clip()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    adapter = made(clip, towers=towers, targets=targets, layers={"image": [1, -1], "text": "all"})
    merged = adapter.merged()
    assert merged.keys() == before.keys()
    plain = ZeroShot(ZeroShotConfig()).setup(loaded(clip, merged), CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(plain.logits({"image": images()}), answer(adapter), rtol=0, atol=1e-9)
    after = clip.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    touched = {k for k in before if not torch.equal(before[k], merged[k])}
    assert all(k.startswith("visual.") for k in touched) if towers == "image" else touched
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" not in touched


def test_one_change_of_the_fused_matrix_equals_three_split_ones_that_share_a(random_clip):
    """W + s B A with B (3W, r) on the fused matrix, as other tools save it, is q, k and v each with their third of B."""
    clip = random_clip()
    adapter = made(clip, stirred=False)
    prefix, width, rank = "transformer.resblocks", clip.spec.text_width, 2
    fused = copy.deepcopy(clip.model)
    for index, block in enumerate(fused.transformer.resblocks):
        generator = torch.Generator().manual_seed(index)
        first = torch.randn(rank, width, dtype=torch.float64, generator=generator)
        second = torch.randn(3 * width, rank, dtype=torch.float64, generator=generator)
        split = adapter.clip.model.get_submodule(f"{prefix}.{index}.attn")
        scale = split.q_proj.scaling["default"]
        with torch.no_grad():
            for part, third in zip(("q_proj", "k_proj", "v_proj"), second.chunk(3), strict=True):
                layer = split.get_submodule(part)
                layer.lora_A["default"].weight.copy_(first)
                layer.lora_B["default"].weight.copy_(third)
            block.attn.in_proj_weight += scale * second @ first
    expected = zero_shot(type(clip).from_model(fused))
    assert (expected - zero_shot(clip)).abs().max() > 1e-3
    torch.testing.assert_close(answer(adapter), expected, rtol=0, atol=1e-9)


def test_change_of_the_output_projection_is_applied_once(random_clip):
    adapter = made(random_clip(), targets=["o"], towers="image")
    block = "visual.transformer.resblocks.2.attn.out_proj"
    layer = adapter.clip.model.get_submodule(block)
    low_rank = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    x = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), x @ low_rank.T, rtol=0, atol=1e-12)
    change = adapter.merged()[f"{block}.weight"] - adapter.backbone.model.state_dict()[f"{block}.weight"]
    torch.testing.assert_close(change, low_rank, rtol=0, atol=1e-12)


def test_every_factor_gets_a_gradient_and_nothing_else_moves(random_clip):
    clip = random_clip()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    adapter = made(clip, stirred=False, dropout=0.25, targets=["q", "k", "v", "o", "fc", "proj"]).train()
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.1)
    for factors in ({"lora_B"}, {"lora_A", "lora_B"}):
        optimiser.zero_grad()
        adapter.loss(batch()).backward()
        for name, parameter in adapter.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0 or not any(factor in name for factor in factors)
        optimiser.step()
    assert all(torch.equal(before[k], v) for k, v in clip.model.state_dict().items())
    assert all(not p.requires_grad and p.grad is None for p in clip.model.parameters())


def test_dropout_is_drawn_in_training_only_and_for_each_text_by_itself(random_clip):
    adapter = made(random_clip(), dropout=0.5)
    assert torch.equal(answer(adapter), answer(adapter))
    adapter.train()
    first, second = (adapter.encode_text(["cat", "cat"]) for _ in range(2))
    assert not torch.equal(first, second)
    # Two equal texts differ even where only the start of text, the same token for all, could differ.
    start = made(random_clip(), dropout=0.5, towers="text", targets=["v"], layers=[0]).train()
    assert not start.clip.shares_start and start.eval().clip.shares_start
    assert not torch.equal(first[0], first[1])


def test_without_dropout_training_and_evaluation_agree(random_clip):
    adapter = made(random_clip())
    expected = answer(adapter)
    torch.testing.assert_close(answer(adapter.train()), expected, rtol=0, atol=1e-11)


def test_a_copy_is_on_its_own(random_clip):
    adapter = made(random_clip())
    expected = answer(adapter)
    again = copy.deepcopy(adapter)
    assert torch.equal(answer(again), expected)
    with torch.no_grad():
        for parameter in again.learnable():
            parameter.add_(0.1)
    again.train().eval()
    assert not torch.equal(answer(again), expected)
    assert torch.equal(answer(adapter.train().eval()), expected)
    assert again.backbone is adapter.backbone


def test_text_features_are_computed_once_while_the_text_tower_is_frozen(random_clip):
    adapter = made(random_clip(), towers="image").train()
    assert adapter.class_weights() is adapter.class_weights()
    adapter = made(random_clip(), towers="text")
    assert adapter.needs(adapter.config, adapter.backbone.spec) == "features"
    assert adapter.train().class_weights().requires_grad


def test_text_memory_recomputes_with_the_same_dropout(random_clip):
    adapter = made(random_clip(), dropout=0.5, towers="text").train()
    results = []
    for memory in (None, 16):
        adapter.backbone.text_memory = memory
        adapter.zero_grad()
        torch.manual_seed(7)
        adapter.class_weights().square().sum(0)[:5].sum().backward()
        results.append([p.grad.clone() for p in adapter.learnable()])
    adapter.backbone.text_memory = None
    assert all(torch.isfinite(g).all() for g in results[1])
    adapter.config.dropout = 0.0
    exact = []
    again = made(random_clip(), towers="text").train()
    for memory in (None, 16):
        again.backbone.text_memory = memory
        again.zero_grad()
        again.class_weights().square().sum(0)[:5].sum().backward()
        exact.append([p.grad.clone() for p in again.learnable()])
    again.backbone.text_memory = None
    for one, other in zip(*exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_activations_below_the_first_trained_block_are_remembered(random_clip):
    clip = random_clip()
    plain, kept = made(clip, layers=[2, 3]), made(clip, layers=[2, 3], activation_memory=1)
    assert torch.equal(answer(plain), answer(kept))
    assert torch.equal(answer(plain), answer(kept))
    assert len(kept._memory) == 3
    for adapter in (plain, kept):
        adapter.train()
        adapter.loss(batch(5)).backward()
    for one, other in zip(plain.learnable(), kept.learnable(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    assert len(kept._memory) == 5


@pytest.mark.parametrize("settings", [{}, {"peft": {"use_dora": True}}, {"peft": {"type": "LOHA"}}, {"targets": ["o", "fc"]}])
def test_interpolation_is_that_of_the_weights(random_clip, settings):
    clip = random_clip()
    adapter = made(clip, **settings)
    whole, merged = answer(adapter), adapter.merged()
    frozen = {k: v.clone() for k, v in clip.model.state_dict().items()}
    for share in (0.0, 0.3, 1.0):
        adapter.interpolated(share)
        want = {k: frozen[k] + share * (merged[k] - frozen[k]) for k in frozen}
        for key, value in adapter.merged().items():
            torch.testing.assert_close(value, want[key], rtol=0, atol=1e-12)
        plain = ZeroShot(ZeroShotConfig()).setup(loaded(clip, want), CLASSES)
        with torch.no_grad():
            torch.testing.assert_close(plain.logits({"image": images()}), answer(adapter), rtol=0, atol=1e-9)
    torch.testing.assert_close(answer(adapter), whole, rtol=0, atol=1e-11)
    adapter.interpolated(0.0)
    torch.testing.assert_close(answer(adapter), zero_shot(clip), rtol=0, atol=1e-9)
    adapter.interpolated(0.4)
    again = made(clip, stirred=False, **settings)
    again.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(answer(again), answer(adapter), rtol=0, atol=1e-12)


def test_the_share_is_chosen_on_validation_images(random_clip):
    adapter = made(random_clip(), interpolate="val")
    post_step(adapter, [batch()])
    assert adapter.selected["interpolate"] in [step / 10 for step in range(11)]
    adapter = made(random_clip(), interpolate="val")
    post_step(adapter, [])
    assert adapter.selected["interpolate"] == 0.5 and "no validation images" in adapter.notes[-1]
    adapter = made(random_clip(), interpolate=0.25)
    post_step(adapter, [])
    assert float(adapter.share) == 0.25
    with pytest.raises(LimpetError, match="does not train the towers"):
        ZeroShot(ZeroShotConfig()).setup(random_clip(), CLASSES).interpolated(0.5)


@pytest.mark.parametrize("kind", TUNERS)
def test_other_tuners_of_peft_train_merge_and_load(random_clip, kind):
    clip = random_clip()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    settings = {"rank": 4, "peft": {"type": kind, **OPTIONS.get(kind, {})}, "targets": ["q", "v", "fc"], "towers": "image"}
    adapter = made(clip, stirred=False, **settings)
    torch.testing.assert_close(answer(adapter), zero_shot(clip), rtol=1e-4, atol=1e-4)
    adapter.train()
    optimiser = torch.optim.Adam(adapter.learnable(), lr=0.02)
    for _ in range(3):
        optimiser.zero_grad()
        adapter.loss(batch()).backward()
        optimiser.step()
    assert all(p.grad is not None for p in adapter.learnable())
    adapter.eval()
    trained = answer(adapter)
    assert not torch.allclose(trained, zero_shot(clip), atol=1e-3)
    plain = ZeroShot(ZeroShotConfig()).setup(loaded(clip, adapter.merged()), CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(plain.logits({"image": images()}), trained, rtol=1e-4, atol=1e-4)
    torch.manual_seed(99)
    again = LoRA(Config(dropout=0.0, **settings)).setup(clip, CLASSES).eval()
    again.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(answer(again), trained, rtol=0, atol=1e-9)
    assert all(torch.equal(before[k], v) for k, v in clip.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"towers": "vision"}, "It is one of image, text, both"),
        ({"targets": ["qkv"]}, "choose some of q, k, v, o, fc, proj"),
        ({"rank": 0}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
        ({"interpolate": 2}, "share of the trained weights"),
        ({"interpolate": "best"}, "or val"),
        ({"peft": {"type": "ADALORA"}}, "schedule of its own"),
        ({"peft": {"type": "VERA"}}, "by itself"),
        ({"peft": {"r": 4}}, r"method\.rank"),
        ({"peft": {"target_modules": "x"}}, r"method\.targets"),
        ({"peft": {"bias": "all"}}, "small tensors"),
        ({"peft": {"init_lora_weights": "pissa"}}, "changing frozen weights"),
        ({"peft": {"use_dorra": True}}, "Did you mean 'use_dora'"),
        ({"peft": {"type": "MISS"}, "rank": 1000}, "peft refuses"),
        ({"layers": 9}, "names block 9"),
        ({"activation_memory": -1}, "MiB"),
    ],
)
def test_mistakes_are_sentences(random_clip, settings, words):
    with pytest.raises(LimpetError, match=words):
        LoRA(Config(**settings)).setup(random_clip(), CLASSES)


def test_towers_that_cannot_take_it_are_refused_before_weights_load():
    from types import SimpleNamespace

    from limpet.backbone import describe

    resnet = describe(SimpleNamespace(name="RN50", pretrained="random", activation=None, precision="fp32"))
    assert "a ResNet" in LoRA.supports(Config(), resnet) and "method.towers=text" in LoRA.supports(Config(), resnet)
    assert LoRA.supports(Config(towers="text"), resnet) is None


def test_methods_that_train_no_tower_refuse_interpolation_with_a_sentence():
    from limpet.methods.coop import Config as CoOpConfig
    from limpet.recipe import load

    (recipe,) = load("quickstart", ["method=coop", "method.interpolate=0.5"])
    with pytest.raises(RecipeError, match="trains no tower"):
        recipe.method_config(CoOpConfig)
    (recipe,) = load("quickstart", ["method=lora", "method.interpolate=0.5", "method.layers={image: top3, text: [0, -1]}",
                                    "method.peft={use_dora: true}"])  # fmt: skip
    config = recipe.method_config(Config)
    assert config.interpolate == 0.5 and dict(config.layers)["image"] == "top3" and config.peft == {"use_dora": True}
