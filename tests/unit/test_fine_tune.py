"""Fine-tuning: what is trained, FLYP's loss, WiSE-FT between the endpoints, and the merged weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.errors import LimpetError
from limpet.methods.fine_tune import Config, FineTune
from limpet.methods.zero_shot import Config as ZeroShotConfig
from limpet.methods.zero_shot import ZeroShot

CLASSES = ClassSet(names=("cat", "striped dog", "x-ray"), texts={}, templates=("a photo of a {}.",))


def batch(count=4):
    images = torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"image": images, "label": torch.tensor([0, 1, 2, 1])[:count], "path": [""] * count, "index": torch.arange(count)}


def made(clip, **settings):
    return FineTune(Config(**settings)).setup(clip, CLASSES)


def trained(clip, steps=2, **settings):
    adapter = made(clip, **settings).train()
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        adapter.loss(batch()).backward()
        optimiser.step()
    return adapter.eval()


def answer(adapter):
    with torch.no_grad():
        return adapter.logits(batch())


def zero_shot(clip):
    return answer(ZeroShot(ZeroShotConfig()).setup(clip, CLASSES))


def loaded(clip, weights):
    fresh = copy.deepcopy(clip.model)
    fresh.load_state_dict(weights)
    return type(clip).from_model(fresh)


def names(adapter):
    return {name.removeprefix("trained.") for name, _ in adapter.named_parameters()}


def test_what_is_trained(random_clip):
    clip = random_clip()
    everything = {name for name, _ in clip.model.named_parameters()}
    image = {name for name in everything if name.startswith("visual.")}
    assert names(made(clip)) == image
    assert names(made(clip, towers="both")) == everything - {"logit_scale"}
    assert names(made(clip, towers="text")) == everything - image - {"logit_scale"}
    assert names(made(clip, parts=["projection"])) == {"visual.proj"}
    assert names(made(clip, parts=["projection"], towers="text")) == {"text_projection"}
    last = names(made(clip, layers=[-1]))
    assert last == {n for n in image if ".resblocks.3." in n} | {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}
    norms = names(made(clip, parts=["norms"], layers="bottom"))
    assert norms == {n for n in image if ".resblocks.0.ln_" in n or "ln_pre" in n}
    attention = names(made(clip, parts=["attention", "mlp"], layers={"image": [1, 2]}))
    assert attention == {n for n in image if (".1." in n or ".2." in n) and (".attn." in n or ".mlp." in n)}


@pytest.mark.parametrize("settings", [{}, {"towers": "text"}, {"towers": "both", "layers": [-1]}, {"parts": ["norms"]}])
def test_trained_weights_are_copies_that_all_take_part(random_clip, settings):
    clip = random_clip()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    torch.testing.assert_close(answer(made(clip, **settings)), zero_shot(clip), rtol=0, atol=1e-10)
    adapter = made(clip, **settings).train()
    assert adapter.needs(adapter.config, clip.spec) == ("features" if settings.get("towers") == "text" else "images")
    data = batch()
    if settings.get("towers") == "text":
        data["feature"] = clip.encode_image(data.pop("image"), normalize=False)
    adapter.loss(data).backward()
    assert all(p.grad is not None for p in adapter.learnable())  # no idle parameters, which several processes would refuse
    assert all(torch.equal(before[k], v) for k, v in clip.model.state_dict().items())
    assert not {p.data_ptr() for p in adapter.learnable()} & {p.data_ptr() for p in clip.model.parameters()}


def test_merged_weights_give_the_same_answers(random_clip):
    clip = random_clip()
    adapter = trained(clip, towers="both")
    merged = adapter.merged()
    assert merged.keys() == clip.model.state_dict().keys()
    torch.testing.assert_close(zero_shot(loaded(clip, merged)), answer(adapter), rtol=0, atol=1e-9)


def test_interpolation_of_the_weights(random_clip):
    clip = random_clip()
    adapter = trained(clip, towers="both")
    start, end, tuned = clip.model.state_dict(), adapter.merged(), answer(adapter)
    end = {k: v.clone() for k, v in end.items()}
    assert not torch.allclose(tuned, zero_shot(clip), atol=1e-3)
    for share in (0.5, 0.0, 0.5, 1.0):
        adapter.interpolated(share)
        for key, value in adapter.merged().items():
            torch.testing.assert_close(value, (1 - share) * start[key] + share * end[key], rtol=0, atol=1e-12)
    assert torch.equal(answer(adapter), tuned)
    adapter.interpolated(0.0)
    torch.testing.assert_close(answer(adapter), zero_shot(clip), rtol=0, atol=1e-10)
    adapter.interpolated(0.5)
    again = made(clip, towers="both").eval()
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(answer(again), answer(adapter))


def test_a_copy_is_on_its_own(random_clip):
    adapter = trained(random_clip(), layers=[-1])
    expected, again = answer(adapter), copy.deepcopy(adapter)
    again.interpolated(0.0)
    assert torch.equal(answer(adapter), expected) and not torch.equal(answer(again), expected)


def test_contrastive_loss_is_that_of_pretraining_less_its_floor(random_clip):
    clip = random_clip()
    adapter, data = made(clip, loss="contrastive", towers="both").train(), batch()
    assert adapter.variant(adapter.config) == "flyp"
    model = copy.deepcopy(clip.model).requires_grad_(True)
    prompts = [CLASSES.prompts(CLASSES.names[label])[0] for label in data["label"]]
    image = F.normalize(model.encode_image(data["image"]), dim=-1)
    text = F.normalize(model.encode_text(clip.tokenize(prompts)), dim=-1)
    logits, targets = clip.logit_scale * image @ text.T, torch.arange(4)
    published = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    floor = torch.tensor([1.0, 2.0, 1.0, 2.0], dtype=torch.float64).log().mean()
    loss = adapter.loss(data)
    torch.testing.assert_close(loss, published - floor, rtol=1e-9, atol=1e-7)
    loss.backward()
    published.backward()
    want = dict(model.named_parameters())
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name.removeprefix("trained.")].grad, rtol=1e-6, atol=1e-9)


def test_activations_below_the_first_trained_block_are_remembered(random_clip):
    plain, kept = (trained(random_clip(), layers=[-1], activation_memory=memory) for memory in (0, 1))
    assert len(kept._memory) == 4
    torch.testing.assert_close(answer(plain), answer(kept), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"towers": "all"}, "one of image, text, both"),
        ({"loss": "flyp"}, "cross_entropy, contrastive"),
        ({"parts": ["bias"]}, "some of attention, mlp"),
        ({"parts": []}, "some of attention, mlp"),
        ({"layers": 4}, "names block 4"),
        ({"parts": ["embeddings"], "layers": [-1]}, "nothing to train"),
        ({"interpolate": -0.1}, "from 0"),
    ],
)
def test_mistakes_are_sentences(random_clip, settings, words):
    with pytest.raises(LimpetError, match=words):
        made(random_clip(), **settings)


def test_other_towers_are_tuned_as_a_whole():
    from types import SimpleNamespace

    from limpet.backbone import describe

    resnet = describe(SimpleNamespace(name="RN50", pretrained="random", activation=None, precision="fp32"))
    assert FineTune.supports(Config(), resnet) is None
    assert "as a whole only" in FineTune.supports(Config(layers=[-1]), resnet)
    half = describe(SimpleNamespace(name="ViT-B-32", pretrained="random", activation=None, precision="bf16"))
    assert "too coarse" in FineTune.supports(Config(), half)
