"""Split attention: the numbers of the plain module, the same tensors, and the way back bit by bit."""

import pytest
import torch
from limpet.blocks import attention_problem, image_features
from limpet.split_attention import PARTS, SplitAttention, fuse, split
from torch import nn

VARIANTS = {
    "plain": {},
    "layer scale": {"vision": {"ls_init_value": 0.3}, "text": {"ls_init_value": 0.3}},
    "reads both ways": {"text": {"no_causal_mask": True}, "custom": True},
}


def linears(attention):
    layers = {name: getattr(attention, name) for name in (*PARTS, "out_proj")}
    return {name: (layer.weight, layer.bias) for name, layer in layers.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_towers_equal_the_unsplit_model(random_clip, variant, dtype):
    clip = random_clip(dtype=dtype, **VARIANTS[variant])
    images = torch.randn(3, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(0))
    texts = ["a cat", "two large striped fishes", "x"]
    copy = clip.editable(())
    text = getattr(copy.model, "text", copy.model)
    for block in (*copy.model.visual.transformer.resblocks, *text.transformer.resblocks):
        split(block)
        assert attention_problem(block) is None
    exact = {"rtol": 1e-6, "atol": 1e-6}
    want = clip.model.encode_image(images)
    torch.testing.assert_close(copy.model.encode_image(images), want, **exact)
    torch.testing.assert_close(image_features(copy, images), want, **exact)
    ids = clip.tokenize(texts)
    torch.testing.assert_close(copy.model.encode_text(ids), clip.model.encode_text(ids), **exact)
    torch.testing.assert_close(copy.encode_text(texts), clip.encode_text(texts), **exact)


@pytest.mark.parametrize("bias", [True, False])
def test_splitting_shares_and_joining_restores_bit_by_bit(bias):
    plain = nn.MultiheadAttention(12, 3, batch_first=True, bias=bias)
    attention = SplitAttention(plain)
    joined = fuse(linears(attention))
    assert joined.keys() == plain.state_dict().keys()
    assert all(torch.equal(joined[key], value) for key, value in plain.state_dict().items())
    assert attention.q_proj.weight.data_ptr() == plain.in_proj_weight.data_ptr()
    assert attention.out_proj.weight.data_ptr() == plain.out_proj.weight.data_ptr()
    assert not any(p.requires_grad for p in attention.parameters())


@pytest.mark.parametrize("batch_first", [True, False])
def test_called_like_the_plain_module(batch_first):
    plain = nn.MultiheadAttention(12, 3, batch_first=batch_first).double().eval()
    attention = SplitAttention(plain)
    q, k, v = torch.randn(3, 2, 2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.full((2, 2), float("-inf"), dtype=torch.float64).triu(1)
    for given in (None, mask, mask.expand(6, 2, 2)):
        want = plain(q, k, v, need_weights=False, attn_mask=given)[0]
        torch.testing.assert_close(attention(q, k, v, need_weights=False, attn_mask=given)[0], want, rtol=0, atol=1e-14)


def test_a_block_is_split_once(random_clip):
    block = random_clip().editable(()).model.visual.transformer.resblocks[0]
    assert split(block) is split(block)
