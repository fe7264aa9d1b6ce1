"""Every prompt method's training step against the published algorithm written out: all classes, all 77 tokens, all rows.

Logits, loss and the gradient of every learned tensor. Nothing is cut, shared, cached or packed on the plain side, which
runs open_clip's own blocks.
"""

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.cocoop import CoCoOp
from limpet.methods.cocoop import Config as CoCoOpConfig
from limpet.methods.coop import Config as CoOpConfig
from limpet.methods.coop import CoOp
from limpet.methods.ivlp import IVLP
from limpet.methods.ivlp import Config as IVLPConfig
from limpet.methods.kgcoop import Config as KgCoOpConfig
from limpet.methods.kgcoop import KgCoOp
from limpet.methods.maple import Config as MaPLeConfig
from limpet.methods.maple import MaPLe
from limpet.methods.prograd import Config as ProGradConfig
from limpet.methods.prograd import ProGrad
from limpet.methods.promptsrc import Config as PromptSRCConfig
from limpet.methods.promptsrc import PromptSRC
from limpet.methods.vpt import VPT
from limpet.methods.vpt import Config as VPTConfig
from torch.nn import functional as F

NAMES = ["cat", "golden_retriever", "boeing 747-400", "kite (bird of prey)", "x-ray", "hen-of-the-woods"]
READS = 77
PHRASE = "a photo of a"


class Published:
    """The published formulas over one backbone's own modules."""

    def __init__(self, clip, pictures):
        self.clip, self.model = clip, clip.model
        self.pictures = pictures

    def text(self, context, position="end", phrase="", deep=()):
        """Features (C, D), not normalised; context (M, W), or (C, M, W) for contexts of single classes."""
        model, count = self.model, context.shape[-2]
        opening = phrase or " ".join(["X"] * count)
        words = [name.replace("_", " ") for name in NAMES]
        ids = self.clip.tokenize([f"{opening} {word}." for word in words])
        assert ids.shape == (len(NAMES), READS)
        fixed = model.token_embedding(ids).detach()
        first = {"end": count, "middle": count // 2, "front": 0}[position]
        rows = []
        for word, row, own in zip(words, fixed, context.expand(len(words), -1, -1), strict=True):
            tail, name = row[1 + count :], len(self.clip.token_ids(word))
            rows.append(torch.cat([row[:1], own[:first], tail[:name], own[first:], tail[name:]]))
        x = torch.stack(rows) + model.positional_embedding
        x = self.blocks(model.transformer.resblocks, x, deep, 1, model.attn_mask)
        x = model.ln_final(x)
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ model.text_projection

    def image(self, prompts=()):
        """Features (B, D), not normalised."""
        visual = self.model.visual
        x = visual.conv1(self.pictures).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        places = x.shape[1]
        if len(prompts):
            x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], 1)
        x = self.blocks(visual.transformer.resblocks, visual.ln_pre(x), list(prompts)[1:], places, None)
        return visual.ln_post(x)[:, 0] @ visual.proj

    @staticmethod
    def blocks(blocks, x, deep, start, mask):
        """All blocks, all tokens; deep prompts take the places from `start` on."""
        for layer, block in enumerate(blocks):
            if 0 < layer <= len(deep):
                new = deep[layer - 1].expand(len(x), -1, -1)
                x = torch.cat([x[:, :start], new, x[:, start + new.shape[1] :]], 1)
            x = block(x, attn_mask=mask)
        return x

    def frozen_text(self, templates):
        """Unit features (C, D) of frozen prompts, averaged before normalising."""
        rows = [
            self.model.encode_text(self.clip.tokenize([t(name.replace("_", " ")) for t in templates])).mean(0) for name in NAMES
        ]
        return F.normalize(torch.stack(rows), dim=-1).detach()

    def zero_shot(self):
        """Of one template."""
        return self.frozen_text([f"{PHRASE} {{}}.".format])

    def scores(self, image, text):
        """Logits (B, C)."""
        return self.model.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


# What each method computes: (published, learned tensors by name, config, labels) -> (logits, loss)


def coop(p, w, config, labels):
    logits = p.scores(p.image(), p.text(w["context"], config.position))
    return logits, F.cross_entropy(logits, labels)


def cocoop(p, w, config, labels):
    image = F.normalize(p.image(), dim=-1)
    hidden = F.linear(image, w["meta_net.linear1.weight"], w["meta_net.linear1.bias"]).relu()
    shifts = F.linear(hidden, w["meta_net.linear2.weight"], w["meta_net.linear2.bias"])
    rows = [p.scores(one[None], p.text(w["context"] + shift)) for one, shift in zip(image, shifts, strict=True)]
    logits = torch.cat(rows)
    return logits, F.cross_entropy(logits, labels)


def kgcoop(p, w, config, labels):
    text = F.normalize(p.text(w["context"], config.position), dim=-1)
    logits = p.scores(p.image(), text)
    distance = 1 - (text * p.zero_shot()).sum(-1).mean()
    return logits, F.cross_entropy(logits, labels) + config.weight * distance


def prograd(p, w, config, labels):
    logits = p.scores(p.image(), p.text(w["context"], config.position))
    return logits, F.cross_entropy(logits, labels)


def vpt(p, w, config, labels):
    logits = p.scores(p.image(w["prompts"]), p.zero_shot())
    return logits, F.cross_entropy(logits, labels)


def ivlp(p, w, config, labels):
    logits = p.scores(p.image(w.get("image_vectors", ())), p.text(w["text_vectors"][0], "end", PHRASE, w["text_vectors"][1:]))
    return logits, F.cross_entropy(logits, labels)


def maple(p, w, config, labels):
    vectors = w["text_vectors"]
    image = [F.linear(v, w[f"couplings.{i}.weight"], w[f"couplings.{i}.bias"]) for i, v in enumerate(vectors)]
    logits = p.scores(p.image(image), p.text(vectors[0], "end", PHRASE, vectors[1:]))
    return logits, F.cross_entropy(logits, labels)


def promptsrc(p, w, config, labels):
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    text = F.normalize(p.text(w["text_vectors"][0], "end", PHRASE, w["text_vectors"][1:]), dim=-1)
    image = F.normalize(p.image(w.get("image_vectors", ())), dim=-1)
    frozen_text, frozen_image = p.frozen_text(OPENAI_IMAGENET_TEMPLATES[:60]), F.normalize(p.image(), dim=-1).detach()
    logits, teacher = p.scores(image, text), p.scores(frozen_image, frozen_text)
    divergence = (teacher.softmax(-1) * (teacher.log_softmax(-1) - logits.log_softmax(-1))).sum() / logits.numel()
    loss = F.cross_entropy(logits, labels) + config.text_weight * (text - frozen_text).abs().mean()
    return logits, loss + config.image_weight * (image - frozen_image).abs().mean() + divergence


def projected(p, gradient, w, config, labels):
    """ProGrad's gradient: without the part that points against that of the zero-shot answers."""
    logits = p.scores(p.image(), p.text(w["context"], config.position))
    answers = (p.scores(p.image(), p.zero_shot()) / config.temperature).softmax(-1).detach()
    general = -(answers * (logits / config.temperature).log_softmax(-1)).sum(-1).mean() * config.temperature**2
    (known,) = torch.autograd.grad(general, [w["context"]])
    unit = known / known.norm()
    along = (gradient * unit).sum()
    return gradient - config.strength * along * unit if along < 0 else gradient


CASES = {
    **{
        f"coop, {position}, {'own' if own else 'shared'}, {count}": (
            CoOp, CoOpConfig(context_length=count, position=position, class_specific=own), coop,
        )
        for position in ("end", "middle", "front") for own in (False, True) for count in (4, 5)
    },
    "coop, from words": (CoOp, CoOpConfig(init=PHRASE), coop),
    "coop, 16": (CoOp, CoOpConfig(), coop),
    "cocoop": (CoCoOp, CoCoOpConfig(reduction=4), cocoop),
    "cocoop, random": (CoCoOp, CoCoOpConfig(context_length=3, init=None, reduction=4), cocoop),
    "vpt, shallow": (VPT, VPTConfig(3, 1), vpt),
    "vpt, deep": (VPT, VPTConfig(3), vpt),
    "ivlp": (IVLP, IVLPConfig(), ivlp),
    "ivlp, text alone": (IVLP, IVLPConfig(4, 0), ivlp),
    "ivlp, unequal depths": (IVLP, IVLPConfig(2, 3, 2, 3), ivlp),
    "maple": (MaPLe, MaPLeConfig(), maple),
    "maple, shallow": (MaPLe, MaPLeConfig(2, 1), maple),
    "promptsrc": (PromptSRC, PromptSRCConfig(), promptsrc),
    "promptsrc, text alone": (PromptSRC, PromptSRCConfig(image_length=0), promptsrc),
    "kgcoop": (KgCoOp, KgCoOpConfig(), kgcoop),
    "prograd": (ProGrad, ProGradConfig(context_length=6), prograd),
    "prograd, soft": (ProGrad, ProGradConfig(context_length=5, init=None, strength=0.8, temperature=2.0), prograd),
}  # fmt: skip


@pytest.fixture(params=[None, 60], ids=["at once", "chunks"])
def memory(request):
    """Token rows of one text pass."""
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_the_published_one(random_clip, case, memory, dtype):
    method, config, formula = CASES[case]
    clip = random_clip(dtype, text={"context_length": READS})
    pictures = torch.randn(5, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.tensor([0, 5, 2, 2, 4])
    published = Published(clip, pictures)
    clip.text_memory = memory
    try:
        torch.manual_seed(0)
        adapter = method(config).setup(clip, ClassSet(tuple(NAMES), {}, (f"{PHRASE} {{}}.",))).train()
        with torch.no_grad():  # prompts large enough that mistakes show
            for name, parameter in adapter.named_parameters():
                if not name.startswith(("couplings", "meta_net")):
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
        images = {"image": pictures, "label": labels}
        if adapter.needs(config, clip.spec) == "features":
            images = {"feature": published.image().detach(), "label": labels}
        logits = adapter.logits(images).detach()
        loss = adapter.loss(images)
        loss.backward()
    finally:
        clip.text_memory = None
    learned = {name: p.detach().clone().requires_grad_() for name, p in adapter.named_parameters()}
    want, want_loss = formula(published, learned, config, labels)
    gradients = dict(zip(learned, torch.autograd.grad(want_loss, list(learned.values())), strict=True))
    if method is ProGrad:
        gradients["context"] = projected(published, gradients["context"], learned, config, labels)
    near, nearly = (1e-12, 1e-12) if dtype == torch.float64 else (1e-5, 1e-4)
    torch.testing.assert_close(logits, want.detach(), rtol=near, atol=near)
    torch.testing.assert_close(loss.detach(), want_loss.detach(), rtol=near, atol=near)
    for name, gradient in gradients.items():
        own = adapter.get_parameter(name).grad
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(own, gradient, rtol=nearly, atol=nearly, msg=lambda text, n=name: f"{n}: {text}")


def test_prograd_is_tried_where_it_projects(random_clip):
    """At least one of the cases above has gradients that oppose each other, and at least one has not."""
    clip = random_clip(torch.float64, text={"context_length": READS})
    found = set()
    for seed in range(8):
        torch.manual_seed(seed)
        adapter = ProGrad(ProGradConfig(context_length=5, init=None)).setup(
            clip, ClassSet(tuple(NAMES), {}, (f"{PHRASE} {{}}.",))
        )
        pictures = torch.randn(5, 3, 32, 32, dtype=torch.float64)
        published = Published(clip, pictures)
        labels = torch.randint(0, len(NAMES), (5,))
        batch = {"feature": published.image().detach(), "label": labels}
        adapter.train().loss(batch).backward()
        learned = {"context": adapter.context.detach().clone().requires_grad_()}
        _, loss = prograd(published, learned, adapter.config, labels)
        (plain,) = torch.autograd.grad(loss, [learned["context"]])
        want = projected(published, plain, learned, adapter.config, labels)
        torch.testing.assert_close(adapter.context.grad, want, rtol=1e-12, atol=1e-12)
        found.add(bool((want - plain).abs().max() > 1e-9))
    assert found == {True, False}
