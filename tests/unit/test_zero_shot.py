"""Zero-shot weights: each prompt normalised, averaged, normalised again."""

import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.methods.zero_shot import Config, ZeroShot


def weights(backbone, names, templates=("a photo of a {}.",), texts=None):
    adapter = ZeroShot(Config()).setup(backbone, ClassSet(tuple(names), texts or {}, tuple(templates)))
    return adapter.eval().class_weights()


def test_one_template_is_the_text_itself(random_clip):
    clip = random_clip()
    expected = clip.encode_text(["a photo of a grey shark.", "a photo of a eel."])
    torch.testing.assert_close(weights(clip, ["grey_shark", "eel"]), expected, rtol=0, atol=1e-12)


def test_templates_and_texts_are_averaged_as_unit_vectors(random_clip):
    clip = random_clip()
    got = weights(clip, ["eel"], ["a {}.", "the {}!"], {"eel": ("eel", "long fish")})
    prompts = ["a eel.", "the eel!", "a long fish.", "the long fish!"]
    expected = F.normalize(clip.encode_text(prompts).mean(0, keepdim=True), dim=-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_duplicates_change_nothing_and_permuting_permutes(random_clip):
    clip, names = random_clip(), ["cod", "eel", "ray"]
    plain = weights(clip, names)
    torch.testing.assert_close(weights(clip, names, ["a photo of a {}."] * 3), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights(clip, names[::-1]), plain.flip(0), rtol=0, atol=1e-12)


def test_logits_are_scaled_cosines(random_clip):
    clip = random_clip()
    adapter = ZeroShot(Config()).setup(clip, ClassSet(("cod", "eel"), {}, ("a {}.",))).eval()
    feature = torch.randn(4, clip.embed_dim, dtype=torch.float64)
    expected = clip.logit_scale * F.normalize(feature, dim=-1) @ adapter.class_weights().T
    torch.testing.assert_close(adapter.logits({"feature": feature}), expected)
    assert not adapter.learnable() and not adapter.state_dict()
