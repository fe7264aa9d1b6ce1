"""The training step of a LoRA layer in one function: peft's numbers, and a mask with dropout's statistics."""

import copy

import pytest
import torch
from limpet.lora_linear import LoRALinear, keep_mask, quicken
from peft import LoraConfig, inject_adapter_in_model
from torch import nn


def layers(dtype=torch.float64, dropout=0.0, **options):
    """The same LoRA layer as peft's and as ours, with B off zero."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(12, 20, dtype=dtype)).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=2, lora_dropout=dropout, target_modules=["0"], **options)
    peft = inject_adapter_in_model(config, base)[0].to(dtype)
    nn.init.normal_(peft.lora_B["default"].weight)
    ours = copy.deepcopy(peft)
    quicken(ours)
    return peft.train(), ours.train()


def results(layer, x):
    """Output, and the gradients of input and factors."""
    x = x.clone().requires_grad_()
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    out = layer(x)
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [x, *factors])]


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12), (2, 400, 12)])  # the last in several parts
def test_outputs_and_gradients_are_pefts(shape):
    peft, ours = layers()
    x = torch.randn(shape, dtype=torch.float64)
    assert type(ours) is LoRALinear
    for expected, found in zip(results(peft, x), results(ours, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


def test_with_dropout_they_are_pefts_for_the_same_mask():
    peft, ours = layers(dropout=0.25)
    x = torch.randn(2, 300, 12, dtype=torch.float64)
    torch.manual_seed(5)
    found = results(ours, x)
    torch.manual_seed(5)
    mask, share = keep_mask(x.shape, 0.25, x.device)
    assert share == 0.75 and not mask.all()
    peft.lora_dropout["default"] = Fixed(mask.double() / share)
    for expected, one in zip(results(peft, x), found, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-11)
    peft.lora_dropout["default"] = nn.Identity()
    torch.testing.assert_close(ours.eval()(x), peft(x), rtol=1e-12, atol=1e-11)


class Fixed(nn.Module):
    """Dropout with a mask that is known."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("dropout", [0.25, 0.5, 0.1, 0.37, 0.999, 0.999999])
def test_each_element_is_left_out_with_the_probability_and_by_itself(dropout):
    torch.manual_seed(3)
    mask, share = keep_mask(torch.Size([500, 803]), dropout, torch.device("cpu"))
    assert mask.dtype == torch.bool and mask.shape == (500, 803)
    assert 0 < share < 1 and abs(share - (1 - dropout)) <= 2**-16
    kept, count = mask.double(), mask.numel()
    assert abs(float(kept.mean()) - share) < 5 * (share * (1 - share) / count) ** 0.5
    for place in range(8):  # every byte of a random word
        rest = kept.flatten()[place::8]
        assert abs(float(rest.mean()) - share) < 5 * (share * (1 - share) / len(rest)) ** 0.5
    spread = share * (1 - share)
    for step in (1, 2, 4, 8):  # neighbours do not follow each other
        one, other = kept.flatten()[:-step] - share, kept.flatten()[step:] - share
        assert abs(float((one * other).mean())) < 5 * spread / count**0.5
    again, _ = keep_mask(mask.shape, dropout, mask.device)
    assert not torch.equal(mask, again)


def test_layers_that_are_more_than_lora_take_pefts_way():
    dora, ours = layers(use_dora=True, dropout=0.0)
    x = torch.randn(4, 12, dtype=torch.float64)
    for expected, found in zip(results(dora, x), results(ours, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    peft, ours = layers(dtype=torch.float32)
    x = torch.randn(4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        for expected, found in zip(results(peft, x), results(ours, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    ours.merge()
    torch.testing.assert_close(ours(x), peft(x))
