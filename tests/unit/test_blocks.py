"""The functional block forward: the same numbers as open_clip's own towers, and the seams in them."""

import pytest
import torch
from limpet.blocks import Seams, attention_problem, image_features, image_problem, project_qkv, run
from limpet.errors import BackboneError
from torch import nn
from torch.nn import functional as F

EXACT = {"rtol": 0, "atol": 1e-12}
VARIANTS = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.3}},
    "mean": {"vision": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "mean, norm first": {"vision": {"pool_type": "avg"}},
}


def images(dtype=torch.float64):
    return torch.randn(3, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(0))


def draw(*shape):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()


@pytest.mark.parametrize("variant", VARIANTS)
def test_image_tower_equals_open_clip(random_clip, variant):
    clip = random_clip(**VARIANTS[variant])
    want = clip.model.encode_image(images())
    torch.testing.assert_close(image_features(clip, images()), want, **EXACT)
    torch.testing.assert_close(clip.encode_image(images(), normalize=False), want, **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_tower_equals_open_clip(random_clip, variant):
    clip = random_clip(**VARIANTS[variant])
    ids = clip.tokenize(["a cat", "two large striped fishes"])
    tower = clip.text
    x = run(tower.blocks, tower.embed(ids) + tower.positions, mask=tower.mask)
    want = clip.model.transformer(tower.embed(ids) + tower.positions, attn_mask=tower.mask)
    torch.testing.assert_close(x, want, **EXACT)


def reference(clip, first, deep):
    """Prompts before ln_pre, without positions, through open_clip's blocks; deep ones overwrite them."""
    visual = clip.model.visual
    x = visual.conv1(images()).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, first.expand(len(x), -1, -1)], 1))
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer <= len(deep):
            x = torch.cat([x[:, : -first.shape[-2]], deep[layer - 1].expand(len(x), -1, -1)], 1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_image_prompts(random_clip, depth):
    clip = random_clip()
    prompts = [draw(2, 32) * (i + 1) for i in range(depth)]
    got, want = image_features(clip, images(), prompts), reference(clip, prompts[0], prompts[1:])
    torch.testing.assert_close(got, want, **EXACT)
    for a, b in zip(
        torch.autograd.grad(got.sum(), prompts), torch.autograd.grad(want.sum(), prompts), strict=True
    ):
        torch.testing.assert_close(a, b, **EXACT)
    assert all(p.grad is None for p in clip.model.parameters())


def test_image_prompt_identities(random_clip):
    clip, prompt = random_clip(), draw(3, 32)
    plain = image_features(clip, images())
    torch.testing.assert_close(
        image_features(clip, images(), [prompt.flip(0)]), image_features(clip, images(), [prompt])
    )
    assert (
        image_features(clip, images(), [0 * prompt]) - plain
    ).abs().max() > 1e-6  # zeros take attention too
    per_image = torch.stack([prompt, 2 * prompt, 3 * prompt])
    many = image_features(clip, images(), [per_image])
    torch.testing.assert_close(many[1], image_features(clip, images()[1:2], [2 * prompt])[0], **EXACT)


def test_only_prompt_outputs_that_matter_are_computed(random_clip):
    """Outputs at prompt places are replaced before the deepest prompted layer, and not read after the last block."""
    clip, prompt = random_clip(), draw(2, 32)
    rows = {1: [19, 19, 19, 1], 2: [17, 19, 19, 1], 4: [17, 17, 17, 1]}
    for depth, expected in rows.items():
        seen = []

        def heads(_, out, seen=seen):
            seen.append(out.shape[2])
            return out

        prompts = [prompt * (i + 1) for i in range(depth)]
        plain = image_features(clip, images(), prompts)
        torch.testing.assert_close(image_features(clip, images(), prompts, seams=Seams(heads=heads)), plain, **EXACT)
        assert seen == expected


def test_prompts_meet_the_other_seams(random_clip):
    """Queries, keys and values of one's own, and a bias over all places, see the prompts as well."""
    clip, prompts = random_clip(), [draw(2, 32), draw(2, 32) * 2]

    def qkv(_, attention, x):
        return project_qkv(attention, x)

    seams = Seams(qkv=qkv, bias=lambda _: torch.zeros(19, 19, dtype=torch.float64))
    torch.testing.assert_close(
        image_features(clip, images(), prompts, seams=seams), image_features(clip, images(), prompts), **EXACT
    )
    hide = torch.zeros(1, 19, dtype=torch.float64)
    hide[:, 17:] = float("-inf")
    blind = Seams(bias=lambda _: hide)
    torch.testing.assert_close(
        image_features(clip, images(), prompts, seams=blind), image_features(clip, images()), **EXACT
    )


def test_seams_see_every_layer(random_clip):
    clip, seen = random_clip(), []

    def qkv(layer, attention, x):
        seen.append(layer)
        return project_qkv(attention, x)

    def out(_, attention, merged):
        return attention.out_proj(merged)

    def bias(_):
        return torch.zeros(2, 17, 17, dtype=torch.float64)

    got = image_features(clip, images(), seams=Seams(qkv=qkv, out=out, bias=bias))
    torch.testing.assert_close(got, image_features(clip, images()), **EXACT)
    assert seen == [0, 1, 2, 3]


def test_attention_bias_hides_tokens(random_clip):
    """A bias of minus infinity on a patch is the same as an image without that patch's token."""
    clip = random_clip()
    hide = torch.zeros(17, 17, dtype=torch.float64)
    hide[:, 5] = float("-inf")
    changed = images().clone()
    changed[:, :, 8:16, 0:8] += 1.0  # patch 4 of a 4 x 4 grid is token 5
    seams = Seams(bias=lambda _: hide)
    torch.testing.assert_close(
        image_features(clip, images(), seams=seams), image_features(clip, changed, seams=seams)
    )
    assert (image_features(clip, images()) - image_features(clip, changed)).abs().max() > 1e-6
    row = Seams(bias=lambda layer: hide[:1] if layer == 3 else None)  # for the class token's row alone
    assert (image_features(clip, images(), seams=row) - image_features(clip, images())).abs().max() > 1e-9


def test_no_gradients_of_frozen_weights(random_clip):
    clip, prompt = random_clip(torch.float32), draw(2, 32).float().detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        features = image_features(clip, images(torch.float32), [prompt])
    features.float().sum().backward()
    assert prompt.grad is not None and all(p.grad is None for p in clip.model.parameters())
    want = image_features(clip, images(torch.float32), [prompt])
    assert F.cosine_similarity(features.float(), want).min() > 0.99


def test_refusals_are_sentences(random_clip, random_model):
    from limpet.backbone import FrozenClip

    with pytest.raises(BackboneError, match="5 layers, but the tower has 4"):
        image_features(random_clip(), images(), [draw(2, 32)] * 5)
    with pytest.raises(BackboneError, match="same number"):
        image_features(random_clip(), images(), [draw(2, 32), draw(3, 32)])
    resnet = random_clip(vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64})
    assert "ResNet" in image_problem(resnet.spec)
    with pytest.raises(BackboneError, match="ResNet"):
        image_features(resnet, images())
    pooled = random_clip(custom=True, vision={"attentional_pool": True, "attn_pooler_heads": 2})
    assert "pools by attention" in image_problem(pooled.spec)
    special = random_clip(vision={"scale_attn": True})
    assert "variant of attention" in image_problem(special.spec)
    torch.testing.assert_close(special.encode_image(images(), False), special.model.encode_image(images()))

    class Wrapped(nn.MultiheadAttention):
        """Stands for a wrapper whose weights alone do not tell what it computes."""

    model = random_model()
    model.visual.transformer.resblocks[2].attn = Wrapped(32, 2, batch_first=True)
    assert "Wrapped" in attention_problem(model.visual.transformer.resblocks[2])
    with pytest.raises(BackboneError, match="variant of attention"):
        image_features(FrozenClip.from_model(model), images(torch.float32))


def test_a_block_wrapped_later_on_is_run_and_not_looked_through(random_model):
    """Of a backbone in use, one block's attention is replaced by something that shows the same weights."""
    from limpet.backbone import FrozenClip

    class Louder(nn.MultiheadAttention):
        def forward(self, *args, **options):
            out, weights = super().forward(*args, **options)
            return 1.5 * out, weights

    clip = FrozenClip.from_model(random_model().double())
    before = clip.encode_image(images(), False)
    block = clip.model.visual.transformer.resblocks[-1]
    louder = Louder(32, 2, batch_first=True).double().eval()
    louder.load_state_dict(block.attn.state_dict())
    block.attn = louder
    got = clip.encode_image(images(), False)
    torch.testing.assert_close(got, clip.model.encode_image(images()), **EXACT)
    assert (got - before).abs().max() > 1e-6
    with pytest.raises(BackboneError, match="Louder"):
        image_features(clip, images(), [draw(2, 32)])
