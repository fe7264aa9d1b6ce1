"""Identities of CoOp that need no reference."""

import pytest
import torch
from limpet import artifact
from limpet.adapter import config_class, find
from limpet.classes import ClassSet
from limpet.errors import NeedsImages
from limpet.methods.coop import Config, CoOp

NAMES = ("cod", "moray eel", "grey shark")
PHRASE = "a photo of a"


def build(clip, names=NAMES, **settings):
    torch.manual_seed(0)
    return CoOp(Config(**settings)).setup(clip, ClassSet(tuple(names), {}, ("a photo of a {}.",))).eval()


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("position", "sentence"),
    [("end", "a photo of a {}."), ("middle", "a photo {} of a."), ("front", "{} a photo of a.")],
)
def test_a_context_of_words_is_the_written_sentence(random_clip, position, sentence):
    clip = random_clip()
    got = build(clip, init=PHRASE, position=position).class_weights()
    close(got, clip.encode_text([sentence.format(name) for name in NAMES]))


def test_equals_zero_shot_at_its_start(random_clip):
    adapter = build(random_clip(), init=PHRASE)
    close(adapter.class_weights(), adapter.zero_shot_weights())


@pytest.mark.parametrize("method", ["coop", "kgcoop", "cocoop"])
def test_all_tokens_of_the_words_are_learned(random_clip, method):
    """A word of several tokens is not cut: the start is zero-shot with the whole phrase."""
    clip, phrase = random_clip(), "a bronchoscopy of"
    tokens = len(clip.token_ids(phrase))
    assert tokens > len(phrase.split())
    adapter = find(method)(config_class(find(method))(init=phrase)).setup(clip, ClassSet(NAMES)).eval()
    assert adapter.context.shape == (tokens, 24)
    if method == "cocoop":
        torch.nn.init.zeros_(adapter.meta_net.linear2.weight)
        torch.nn.init.zeros_(adapter.meta_net.linear2.bias)
    feature = torch.randn(2, clip.embed_dim, dtype=torch.float64)
    want = clip.encode_text([f"{phrase} {name}." for name in NAMES])
    close(adapter.logits({"feature": feature}), clip.logit_scale * torch.nn.functional.normalize(feature, dim=-1) @ want.T)


def test_equal_class_specific_rows_equal_a_unified_context(random_clip):
    unified, specific = (build(random_clip(), context_length=4, class_specific=s) for s in (False, True))
    with torch.no_grad():
        specific.context.copy_(unified.context.expand_as(specific.context))
    close(specific.class_weights(), unified.class_weights())


@pytest.mark.parametrize("class_specific", [False, True])
def test_a_class_does_not_depend_on_the_others(random_clip, class_specific):
    adapter = build(random_clip(), context_length=4, class_specific=class_specific)
    whole = adapter.class_weights()
    with adapter.answering(adapter.classes.only(["grey shark", "cod"])):
        close(adapter.class_weights(), whole[[2, 0]])


def test_parameter_counts(random_clip):
    clip = random_clip()
    width = clip.spec.text_width
    assert build(clip, context_length=16).context.shape == (16, width)
    assert build(clip, context_length=4, class_specific=True).context.shape == (3, 4, width)
    assert build(clip, init=PHRASE, context_length=16, class_specific=True).context.shape == (4, width)


def test_a_step_moves_the_context_and_nothing_else(random_clip):
    clip = random_clip()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    adapter = build(clip, context_length=4).train()
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.1, weight_decay=0.1)
    start = adapter.context.detach().clone()
    batch = {"feature": torch.randn(4, clip.embed_dim, dtype=torch.float64), "label": torch.tensor([0, 1, 2, 0])}
    adapter.loss(batch).backward()
    optimiser.step()
    assert not torch.equal(adapter.context, start)
    assert all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())
    assert all(p.grad is None for p in clip.model.parameters())


def test_a_trained_context_serves_other_names(tiny, tmp_path):
    adapter = build(tiny, context_length=4)
    artifact.save(adapter, tmp_path, {})
    loaded = artifact.load(tmp_path / "adapter", tiny)
    assert set(loaded.state_dict()) == {"context"} and torch.equal(loaded.context, adapter.context)
    others = ClassSet(("seahorse", "ray"), {}, ("{}",))
    with loaded.answering(others), adapter.answering(others):
        assert torch.equal(loaded.class_weights(), adapter.class_weights())


def test_class_specific_contexts_know_only_their_own(random_clip):
    adapter = build(random_clip(), context_length=4, class_specific=True)
    with pytest.raises(NeedsImages, match="seahorse"), adapter.answering(ClassSet(("seahorse",), {}, ("{}",))):
        pass
