"""Learned prompts: identities with plain text, equality of the ways to compute them, cost, refusals."""

import pytest
import torch
from limpet.errors import BackboneError, LimpetError
from limpet.prompting import PromptEncoder, init_words, support
from torch.nn import functional as F

NAMES = ["cat", "golden_retriever", "boeing 747-400", "kite (bird of prey)", "x-ray"]
WORDS = [n.replace("_", " ") for n in NAMES]
EXACT = {"rtol": 0, "atol": 1e-12}

TOWERS = {
    "clip": {},
    "custom": {"custom": True},
    "quick": {"quick_gelu": True},
    "scale": {"text": {"ls_init_value": 0.3}},
    "linear": {"custom": True, "text": {"proj_bias": True}},
    "eos": {"custom": True, "text": {"pool_type": "eos", "eos_id": 49407}},
}
PLAIN = {
    "bidirectional": {"custom": True, "text": {"no_causal_mask": True, "pool_type": "last"}},
    "special attention": {"custom": True, "text": {"scale_attn": True}},
    "causal, read behind the text": {"custom": True, "text": {"pool_type": "last"}},
    "bidirectional, read at the first token": {"custom": True, "text": {"no_causal_mask": True, "pool_type": "first"}},
}


def reference(clip, context, *, position="end", deep=(), class_specific=False):
    """The published algorithm: whole padded prompts of all classes through open_clip's own blocks."""
    model, tower = clip.model, clip.text
    count = context.shape[-2]
    ids = clip.tokenize([" ".join(["X"] * count + [f"{w}."]) for w in WORDS])
    embedded = tower.embedding(ids)
    rows = []
    for index, row in enumerate(embedded):
        ctx = context[index] if class_specific else context
        tail = row[1 + count :]
        name = len(clip.token_ids(WORDS[index]))
        first = {"end": count, "middle": count // 2, "front": 0}[position]
        rows.append(torch.cat([row[:1], ctx[:first], tail[:name], ctx[first:], tail[name:]]))
    x = torch.stack(rows) + tower.positions
    for layer, block in enumerate(tower.blocks):
        if 0 < layer <= len(deep):
            new = deep[layer - 1]
            x = torch.cat([x[:, :1], new.expand(len(x), -1, -1), x[:, 1 + new.shape[-2] :]], 1)
        x = block(x, attn_mask=tower.mask)
    x = tower.norm(x)
    places = {"first": torch.zeros(len(ids), dtype=torch.long), "last": torch.full((len(ids),), ids.shape[1] - 1)}
    end = places.get(tower.pool, ids.argmax(-1))
    x = x[torch.arange(len(x)), end]
    text = getattr(model, "text", model)
    projection = text.text_projection
    return projection(x) if isinstance(projection, torch.nn.Module) else x @ projection


def both(encode, plain, learned):
    """Assert equal values and equal gradients of every learned tensor."""
    values, want = encode(), plain()
    torch.testing.assert_close(values, want, **EXACT)
    weights = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(0))
    got = torch.autograd.grad((values * weights).sum(), learned)
    for a, b in zip(got, torch.autograd.grad((want * weights).sum(), learned), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def draw(*shape):
    return (
        0.5 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_equals_the_published_algorithm(random_clip, tower, position, class_specific):
    clip = random_clip(**TOWERS[tower])
    context = draw(len(NAMES), 3, 24) if class_specific else draw(3, 24)
    encoder = PromptEncoder(clip, NAMES, 3, position)
    assert encoder.packed
    both(
        lambda: encoder(context, class_specific=class_specific),
        lambda: reference(clip, context, position=position, class_specific=class_specific),
        [context],
    )


@pytest.mark.parametrize("tower", PLAIN)
@pytest.mark.parametrize("position", ["end", "front"])
@pytest.mark.parametrize("memory", [None, 50])
def test_other_towers_take_whole_prompts(random_clip, tower, position, memory):
    clip = random_clip(**PLAIN[tower])
    encoder = PromptEncoder(clip, NAMES, 3, position, memory=memory)
    assert not encoder.packed and encoder.tokens == len(NAMES) * 24
    context, deep = draw(3, 24), [draw(3, 24)]
    both(
        lambda: encoder(context, deep if position == "end" else ()),
        lambda: reference(clip, context, position=position, deep=deep if position == "end" else ()),
        [context, *(deep if position == "end" else [])],
    )
    many = torch.stack([context, 2 * context])
    torch.testing.assert_close(encoder(many)[1], encoder(2 * context), **EXACT)


def test_a_tower_that_masks_its_padding(random_model):
    from limpet.backbone import FrozenClip

    model = random_model(custom=True, text={"no_causal_mask": True}).double()
    model.text.use_pad_mask = True
    clip = FrozenClip.from_model(model)
    want = clip.encode_text([f"a photo of a {w}." for w in WORDS], normalize=False)
    torch.testing.assert_close(PromptEncoder(clip, NAMES, 4)(init_words(clip, "a photo of a")), want, **EXACT)


class Wrapped(torch.nn.Module):
    """Attention with something added, that shows the weights inside it as PEFT's wrapper does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **options):
        out, weights = self.inner(*args, **options)
        return 1.5 * out, weights


def test_a_wrapped_attention_is_run_and_not_looked_through(random_model):
    from limpet.backbone import FrozenClip

    model = random_model().double()
    before = FrozenClip.from_model(model)
    bare = PromptEncoder(before, NAMES, 4)(init_words(before, "a photo of a"))
    for block in model.transformer.resblocks:
        block.attn = Wrapped(block.attn)
    clip = FrozenClip.from_model(model)
    encoder = PromptEncoder(clip, NAMES, 4)
    want = model.encode_text(clip.tokenize([f"a photo of a {w}." for w in WORDS]))
    got = encoder(init_words(clip, "a photo of a"))
    assert not encoder.packed
    torch.testing.assert_close(got, want, **EXACT)
    torch.testing.assert_close(clip.encode_text([f"a photo of a {w}." for w in WORDS], normalize=False), want, **EXACT)
    assert (got - bare).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["last", "eos", "argmax"])
def test_frozen_text_is_read_where_the_tower_reads_it(random_clip, pool):
    clip = random_clip(custom=True, text={"pool_type": pool, "eos_id": 49407})
    texts = [f"a photo of a {w}." for w in WORDS]
    want = clip.model.encode_text(clip.tokenize(texts))
    torch.testing.assert_close(clip.encode_text(texts, normalize=False), want, **EXACT)


@pytest.mark.parametrize("method", ["coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc"])
def test_methods_refuse_towers_that_no_prompt_can_change(random_model, method):
    """Of models at hand: CoCa's token behind the padding, a foreign text tower, one read at a causal first token."""
    from limpet.adapter import config_class, find
    from limpet.backbone import FrozenClip
    from limpet.classes import ClassSet
    from open_clip.coca_model import CoCa

    class Foreign(torch.nn.Module):
        context_length, output_dim = 24, 16

        def forward(self, ids):
            return torch.zeros(len(ids), 16)

    text = {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    coca = CoCa(16, {**text, "width": 24}, {**text, "embed_cls": True, "output_tokens": True}, vision)
    foreign = random_model(custom=True)
    foreign.text, foreign.context_length = Foreign(), 24
    first = random_model(custom=True, text={"pool_type": "first"})
    cls = find(method)
    for model, reason in ((coca, "behind the padding"), (foreign, "Hugging Face"), (first, "first token")):
        clip = FrozenClip.from_model(model)
        assert reason in cls.supports(config_class(cls)(), clip.spec)
        with pytest.raises(LimpetError, match=reason):
            cls(config_class(cls)()).setup(clip, ClassSet(("cat", "dog"), {}))


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("memory", [None, 30])
def test_deep_prompts(random_clip, class_specific, depth, memory):
    clip = random_clip()
    context = draw(len(NAMES), 3, 24) if class_specific else draw(3, 24)
    deep = [draw(3, 24) * (i + 1) for i in range(depth - 1)]
    encoder = PromptEncoder(clip, NAMES, 3, memory=memory)
    both(
        lambda: encoder(context, deep, class_specific),
        lambda: reference(clip, context, deep=deep, class_specific=class_specific),
        [context, *deep],
    )


@pytest.mark.parametrize("memory", [None, 30, 1])
def test_contexts_of_single_images(random_clip, memory):
    clip = random_clip()
    encoder = PromptEncoder(clip, NAMES, 3, memory=memory)
    contexts, deep = draw(4, 3, 24), [draw(4, 3, 24)]
    both(
        lambda: encoder(contexts, deep),
        lambda: torch.stack([reference(clip, c, deep=[d]) for c, d in zip(contexts, deep[0], strict=True)]),
        [contexts, *deep],
    )


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_chunks_change_nothing(random_clip, position, class_specific):
    clip = random_clip()
    context = draw(len(NAMES), 3, 24) if class_specific else draw(3, 24)
    whole = PromptEncoder(clip, NAMES, 3, position)
    for memory in (1, 12, 25):
        chunked = PromptEncoder(clip, NAMES, 3, position, memory=memory)
        both(
            lambda encoder=chunked: encoder(context, class_specific=class_specific),
            lambda: whole(context, class_specific=class_specific),
            [context],
        )


def test_words_at_init_are_the_zero_shot_classifier(random_clip):
    """A context of the words "a photo of a" is the template itself, in any position, for any phrase."""
    clip = random_clip()
    context = init_words(clip, "a photo of a")
    zero_shot = clip.encode_text([f"a photo of a {w}." for w in WORDS], normalize=False)
    torch.testing.assert_close(PromptEncoder(clip, NAMES, 4)(context), zero_shot, **EXACT)
    plain = [w for w in WORDS if not w.endswith(")")]
    for position, template in (("middle", "a photo {} of a."), ("front", "{} a photo of a.")):
        want = clip.encode_text([template.format(w) for w in plain], normalize=False)
        torch.testing.assert_close(PromptEncoder(clip, plain, 4, position)(context), want, **EXACT)
        # A name that ends in punctuation keeps the full stop in its last token, before the context.
        kite = "kite (bird of prey)"
        moved = PromptEncoder(clip, [kite], 4, position)(context)
        assert (moved - clip.encode_text([template.format(kite)], normalize=False)).abs().max() > 1e-6


@pytest.mark.parametrize("phrase", ["a photo of a", "a chest radiograph of", "underwater photo"])
def test_leftover_words_stay(random_clip, phrase):
    """Fewer learned tokens than the phrase has: the rest of its tokens stays in the prompt."""
    clip = random_clip()
    want = clip.encode_text([f"{phrase} {w}." for w in WORDS], normalize=False)
    for count in (1, 2, len(phrase.split())):
        got = PromptEncoder(clip, NAMES, count, phrase=phrase)(init_words(clip, phrase, count))
        torch.testing.assert_close(got, want, **EXACT)


def test_fixed_text_is_the_same_as_the_rest_of_the_phrase(random_clip):
    clip, context = random_clip(), draw(2, 24)
    a = PromptEncoder(clip, NAMES, 2, fixed_text="of a")(context)
    torch.testing.assert_close(a, PromptEncoder(clip, NAMES, 2, phrase="a photo of a")(context), **EXACT)


def test_no_context_at_all(random_clip):
    clip = random_clip()
    got = PromptEncoder(clip, NAMES, 0)(torch.zeros(0, 24, dtype=torch.float64))
    torch.testing.assert_close(got, clip.encode_text([f"{w}." for w in WORDS], normalize=False), **EXACT)


def test_equal_class_contexts_are_a_shared_context(random_clip):
    clip, context = random_clip(), draw(4, 24)
    encoder = PromptEncoder(clip, NAMES, 4)
    many = context.expand(len(NAMES), -1, -1)
    torch.testing.assert_close(encoder(many, class_specific=True), encoder(context), **EXACT)


def test_classes_do_not_see_each_other(random_clip):
    clip, context = random_clip(), draw(4, 24)
    some = PromptEncoder(clip, [NAMES[3], NAMES[0]], 4)(context)
    torch.testing.assert_close(some, PromptEncoder(clip, NAMES, 4)(context)[[3, 0]], **EXACT)


def test_depth_and_order_matter(random_clip):
    clip, context, deep = random_clip(), draw(3, 24), [draw(3, 24) + 1]
    encoder = PromptEncoder(clip, NAMES, 3)
    torch.testing.assert_close(encoder(context), encoder(context, []), **EXACT)
    assert (encoder(context) - encoder(context, deep)).abs().max() > 1e-3
    assert (encoder(context) - encoder(context.flip(0))).abs().max() > 1e-3


def test_tokens_computed(random_clip):
    """Useful tokens of a shared context: start and context once, then every name with its stop and end."""
    clip, count = random_clip(), 5
    names = [len(clip.token_ids(f"{w}.")) + 1 for w in WORDS]
    assert PromptEncoder(clip, NAMES, count).tokens == 1 + count + sum(names)
    encoder = PromptEncoder(clip, NAMES, count, "front")
    assert encoder.tokens == 1 + sum(n + count for n in names) == encoder.count(class_specific=True)
    assert PromptEncoder(clip, NAMES, count, "middle").tokens == 1 + 2 + sum(n + 3 for n in names)


def test_half_precision_and_autocast(random_clip):
    context = draw(3, 24).float()
    want = PromptEncoder(random_clip(torch.float32), NAMES, 3)(context)
    half = PromptEncoder(random_clip(torch.bfloat16), NAMES, 3)(context)
    assert half.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = PromptEncoder(random_clip(torch.float32), NAMES, 3)(context)
    for got in (half, mixed):
        assert F.cosine_similarity(got.float(), want).min() > 0.999
    (grad,) = torch.autograd.grad(mixed.sum(), context)
    assert torch.isfinite(grad).all()


def test_many_classes_are_prepared_quickly(random_clip):
    encoder = PromptEncoder(
        random_clip(torch.float32), [f"thing number {i}" for i in range(3000)], 4, memory=4096
    )
    with torch.no_grad():
        assert encoder(torch.zeros(4, 24)).shape == (3000, 16)


def test_refusals_are_sentences(random_clip, random_model):
    clip = random_clip()
    with pytest.raises(BackboneError, match=r"has 26 tokens .* reads 24"):
        PromptEncoder(clip, ["cat"], 22)
    with pytest.raises(BackboneError, match="5 layers"):
        PromptEncoder(clip, NAMES, 2)(draw(2, 24), [draw(2, 24)] * 4)
    with pytest.raises(LimpetError, match="should end in"):
        PromptEncoder(clip, NAMES, 2)(draw(3, 24))
    with pytest.raises(LimpetError, match="at most 2 tokens"):
        PromptEncoder(clip, NAMES, 2)(draw(2, 24), [draw(3, 24)])
    with pytest.raises(LimpetError, match="at the end only"):
        PromptEncoder(clip, NAMES, 2, "front")(draw(2, 24), [draw(2, 24)])
    with pytest.raises(LimpetError, match="'end' only"):
        PromptEncoder(clip, NAMES, 2, "front", fixed_text="of a")
    with pytest.raises(LimpetError, match="end, middle, front"):
        PromptEncoder(clip, NAMES, 2, "back")
    with pytest.raises(BackboneError, match="fewer tokens"):
        PromptEncoder(clip, NAMES, 4, phrase="a photo")
    with pytest.raises(BackboneError, match="lower the context"):
        init_words(clip, "a photo", 3)


class Pieces:
    """A tokenizer as SigLIP's: no start of text, an end that also pads, and what is too long is cut."""

    def __init__(self, length):
        self.length, self.tokenizer = length, self
        self.words = {}

    def __call__(self, text, add_special_tokens=True):
        if not add_special_tokens:
            return {"input_ids": [self.words.setdefault(w, 2 + len(self.words)) for w in text.split()]}
        rows = [self(t, add_special_tokens=False)["input_ids"][: self.length - 1] for t in text]
        return torch.tensor([row + [1] * (self.length - len(row)) for row in rows])

    def num_special_tokens_to_add(self):
        return 1


def test_a_tokenizer_that_cuts_what_is_too_long_does_not_hide_it(random_model):
    from limpet.backbone import FrozenClip

    model = random_model(custom=True, text={"no_causal_mask": True, "pool_type": "last"}).double()
    clip = FrozenClip.from_model(model, tokenizer=Pieces(24))
    assert clip.tokenizer.start == 0
    fits = "w " * 17 + "end"
    for name, context in (("cat", 22), (fits, 5)):
        assert PromptEncoder(clip, [name], context)(draw(context, 24)).shape == (1, 16)
    for name, context in (("cat", 23), (fits, 6), ("x " + fits, 5)):
        with pytest.raises(BackboneError, match=r"has 25 tokens .* reads 24"):
            PromptEncoder(clip, ["cat", name], context)


def test_towers_without_prompts_are_named_before_weights_load():
    from types import SimpleNamespace

    from limpet.backbone import describe

    def spec(name):
        return describe(SimpleNamespace(name=name, pretrained="random", activation=None, precision="fp32"))

    assert "CoCa" in support(spec("coca_ViT-B-32")) and "padding" in support(spec("coca_ViT-B-32"))
    assert "Hugging Face" in support(spec("roberta-ViT-B-32"))
    assert support(spec("ViT-B-16")) is None and support(describe("limpet-tiny")) is None
    assert support(spec("ViT-B-16-SigLIP")) is None  # possible, on whole prompts
