"""PerceptionCLIP: the identities of its probabilities."""

import math

import pytest
import torch
from limpet import artifact
from limpet.classes import ClassSet
from limpet.methods.perception_clip import Config, PerceptionCLIP
from limpet.methods.zero_shot import Config as ZeroConfig
from limpet.methods.zero_shot import ZeroShot

CLASSES = ClassSet(("cat", "dog", "blue shark"), templates=("a photo of a {}.", "a picture of a {}."))
SURROUNDINGS = {
    "scene light": {"plain": [], "dark": ["in the dark", "at night"]},
    "place": {"sea": ["in the sea"], "land": ["on land"], "air": ["flying"]},
}


@pytest.fixture
def batch(tiny):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, tiny.embed_dim, generator=generator)
    return {"feature": features, "label": torch.tensor([0, 1, 2, 0, 1, 2])}


def made(tiny, **config):
    config.setdefault("attributes", SURROUNDINGS)
    config.setdefault("temperatures", [1.0])
    return PerceptionCLIP(Config(**config)).setup(tiny, CLASSES).eval()


def joint(tiny, adapter, batch):
    """f(y, z), from texts written out."""
    said = ["{}, in the sea", "{}, on land", "{}, flying"]
    dark = [["{}, in the dark, in the sea", "{}, at night, in the sea"], ["{}, in the dark, on land", "{}, at night, on land"],
            ["{}, in the dark, flying", "{}, at night, flying"]]  # fmt: skip
    image = torch.nn.functional.normalize(batch["feature"], dim=-1)
    columns = []
    for name in CLASSES.names:
        for texts in [*([s] for s in said), *dark]:
            prompts = [t.format(p.format(name)) + "." for p in ("a photo of a {}", "a picture of a {}") for t in texts]
            mean = torch.nn.functional.normalize(tiny.encode_text(prompts).mean(0), dim=0)
            columns.append(tiny.logit_scale * image @ mean)
    return torch.stack(columns, 1).reshape(len(image), 3, 6)


def test_marginal_equals_the_joint_softmax(tiny, batch):
    adapter = made(tiny)
    f = joint(tiny, adapter, batch)
    expected = f.flatten(1).softmax(-1).reshape(f.shape).sum(-1)
    torch.testing.assert_close(adapter.logits(batch).exp(), expected.to(adapter.logits(batch)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(adapter.logits(batch).exp().sum(1).double(), torch.ones(6).double(), rtol=0, atol=1e-6)


def test_extreme_temperatures(tiny, batch):
    f = joint(tiny, made(tiny), batch)
    given = f.softmax(1)
    far = made(tiny, temperatures=[1e9]).logits(batch).exp()
    torch.testing.assert_close(far, given.mean(-1).to(far), rtol=1e-4, atol=1e-6)
    near = made(tiny, temperatures=[1e-3]).logits(batch).exp()
    best = f.amax(1).argmax(-1)
    expected = given[torch.arange(6), :, best]
    torch.testing.assert_close(near, expected.to(near), rtol=1e-3, atol=1e-5)
    flat = made(tiny, class_temperature=1e9).logits(batch).exp()
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attributes", [{}, {"light": {"plain": []}}, {"a": {"x": []}, "b": {"y": []}}])
def test_without_attributes_it_is_zero_shot(tiny, batch, attributes):
    plain = ZeroShot(ZeroConfig()).setup(tiny, CLASSES).eval()
    ours = made(tiny, attributes=attributes)
    torch.testing.assert_close(ours.logits(batch), plain.logits(batch).log_softmax(1).to(ours.logits(batch)), rtol=1e-5, atol=1e-5)


def test_attributes_without_classes_are_inferred_from_the_noun(tiny, batch):
    adapter = made(tiny, given_class=False, noun="animal", temperatures=[2.0])
    said = ["in the sea", "on land", "flying"]
    texts = [[s] for s in said] + [[f"in the dark, {s}", f"at night, {s}"] for s in said]
    image = torch.nn.functional.normalize(batch["feature"], dim=-1)
    columns = []
    for group in texts:
        prompts = [f"{p}, {s}." for p in ("a photo of a animal", "a picture of a animal") for s in group]
        columns.append(tiny.logit_scale * image @ torch.nn.functional.normalize(tiny.encode_text(prompts).mean(0), dim=0))
    inferred = (torch.stack(columns, 1) / 2).softmax(-1)
    found = adapter.attribute_log_probabilities(batch).exp()
    torch.testing.assert_close(found, inferred.to(found), rtol=1e-4, atol=1e-6)
    f = joint(tiny, adapter, batch)
    expected = (f.softmax(1) * inferred[:, None]).sum(-1)
    torch.testing.assert_close(adapter.logits(batch).exp(), expected.to(found), rtol=1e-4, atol=1e-6)
    others = made(tiny, given_class=False, noun="animal", temperatures=[2.0])
    with others.answering(CLASSES.only(["dog"])):  # does not depend on the classes asked about
        torch.testing.assert_close(others.attribute_log_probabilities(batch).exp(), found)


def test_the_temperature_is_chosen_on_held_out_images_and_saved(tiny, batch, tmp_path):
    adapter = made(tiny, temperatures=[1.0, 3.0, 0.01])
    right = [int((made(tiny, temperatures=[t]).logits(batch).argmax(1) == batch["label"]).sum()) for t in (1.0, 3.0, 0.01)]
    adapter.select([batch])
    assert adapter.selected == {"temperature": (1.0, 3.0, 0.01)[right.index(max(right))]}
    adapter.temperature.fill_(3.0)
    artifact.save(adapter, tmp_path, {})
    loaded = artifact.load(tmp_path, tiny)
    torch.testing.assert_close(loaded.logits(batch), adapter.logits(batch), rtol=0, atol=0)
    alone = made(tiny, temperatures=[3.0, 1.0])
    alone.select([])
    assert "no validation images" in alone.notes[0] and float(alone.temperature) == 3.0


def test_evidence_is_the_inferred_surroundings(tiny, batch):
    adapter = made(tiny)
    (first, *_) = adapter.evidence(batch, [0] * 6)
    assert len(first) == 6 and math.isclose(sum(p for _, p in first), 1, abs_tol=1e-6)
    assert first[0][1] == max(p for _, p in first)
    assert {"scene light plain, place sea", "scene light dark, place air"} <= {name for name, _ in first}


def test_settings_that_make_no_sense(tiny):
    for config, message in (
        (Config(attributes={"light": {}}), "light has no values"),
        (Config(temperatures=[]), "above 0"),
        (Config(temperatures=[1.0, 0.0]), "above 0"),
        (Config(class_temperature=-1.0), "above 0"),
        (Config(given_class=False, noun=" "), "noun is empty"),
    ):
        assert message in PerceptionCLIP.supports(config, tiny.spec)
