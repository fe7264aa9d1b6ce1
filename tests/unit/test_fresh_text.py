"""A text tower that starts anew beside a trained image tower."""

from __future__ import annotations

import pytest
import torch
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.methods.contrastive import Config, Contrastive
from open_clip.model import CLIP


def made(clip, seed=0, **settings):
    torch.manual_seed(seed)
    return Contrastive(Config(**settings)).setup(clip, ClassSet(("fish", "eel"))).eval()


def test_the_text_tower_is_another_and_everything_else_the_same(random_clip):
    clip = random_clip()
    fresh, again, other = (made(clip, seed, fresh_text=True) for seed in (1, 1, 2))
    given = {"image": torch.randn(3, 3, 32, 32, dtype=torch.float64)}
    assert torch.equal(fresh.encode_image(given), made(clip).encode_image(given))
    before, after = clip.model.state_dict(), fresh.merged()
    assert torch.equal(before["token_embedding.weight"], after["token_embedding.weight"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    matrices = {n for n in before if before[n].ndim == 2 and not n.startswith("visual.") and n != "token_embedding.weight"}
    assert matrices and changed >= matrices - {"attn_mask"} and not any(n.startswith("visual.") for n in changed)
    texts = ["a red fish", "an eel"]
    assert torch.equal(fresh.encode_text(texts), again.encode_text(texts))
    assert not torch.allclose(fresh.encode_text(texts), other.encode_text(texts))


def test_its_weights_are_spread_as_those_of_a_new_model():
    clip = FrozenClip.load("limpet-tiny")
    after = made(clip, fresh_text=True).merged()
    size = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4}
    new = CLIP(128, {"image_size": 64, "patch_size": 8, "width": 192, "layers": 1, "head_width": 64}, size).state_dict()
    names = [n for n in new if not n.startswith("visual.") and n not in ("token_embedding.weight", "logit_scale", "attn_mask")]
    assert len(names) == 4 * 12 + 4
    for name in names:
        if name.endswith("bias"):
            assert not after[name].any(), name
        elif ".ln_" in f".{name}":
            assert torch.equal(after[name], new[name]), name
        else:
            assert 0.9 < after[name].std() / new[name].std() < 1.1, name


@pytest.mark.parametrize("settings", [{"towers": "image"}, {"layers": "up"}, {"parts": ["attention"]}, {"interpolate": 0.5}])
def test_a_tower_that_is_not_trained_as_a_whole_or_mixed_with_the_given_one_cannot_start_anew(settings, random_clip):
    assert "method.fresh_text" in Contrastive.supports(Config(fresh_text=True, **settings), random_clip().spec)
