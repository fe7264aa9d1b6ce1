"""Images whose frozen features are read from the cache: the same views, and no second pass of the frozen tower."""

import pytest
import torch
from limpet.recipe import load_recipe
from limpet.runner import training_batches, with_features
from limpet.session import prepare

SMALL = [
    "data.species=4", "data.test=2", "data.train=4", "data.val=2", "data.shots=4", "data.batch_size=3", "method=promptsrc",
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def batches(*words):
    """Session, and the function that makes its training batches."""
    session = prepare(load_recipe("quickstart", [*SMALL, *words]))
    training = with_features(session).restrict(session.training_classes.names)
    return session, training_batches(session, training)


@pytest.mark.parametrize("words", [["data.augment=none"], ["data.augment=natural", "data.augment.views=2"]])
def test_features_belong_to_the_views_shown(words):
    session, make = batches(*words)
    loader = make()
    shown = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            want = session.backbone.encode_image(batch["image"], normalize=False)
            torch.testing.assert_close(batch["feature"], want, rtol=1e-4, atol=1e-4)
            shown += [(path, epoch, image) for path, image in zip(batch["path"], batch["image"], strict=True)]
    first = shown[0][0]
    views = {epoch: image for path, epoch, image in shown if path == first}
    same = torch.equal(views[0], views[2]) if {0, 2} <= set(views) else True
    assert same and (len(words) == 1 or 1 not in views or not torch.equal(views[0], views[1]))


def test_training_does_not_run_the_frozen_tower(monkeypatch):
    session, make = batches("data.augment=natural", "data.augment.views=2")
    loader, calls = make(), []
    for epoch in range(2):  # both views are computed and kept before training
        loader.sampler.set_epoch(epoch)
        list(loader)
    encode = session.backbone.encode_image
    monkeypatch.setattr(session.backbone, "encode_image", lambda *a, **k: calls.append(1) or encode(*a, **k))
    adapter = session.adapter.train()
    for batch in loader:
        adapter.loss(batch).backward()
    assert not calls
    bare = {key: value for key, value in batch.items() if key != "feature"}
    torch.testing.assert_close(adapter.loss(batch), adapter.loss(bare), rtol=1e-4, atol=1e-4)
    assert calls == [1]


def test_fresh_crops_have_no_cached_features():
    _, make = batches("data.augment=natural", "data.augment.views=0")
    assert "feature" not in next(iter(make()))
    _, make = batches("data.augment=none", "method.image_length=0")
    assert "image" not in next(iter(make()))  # without image prompts nothing but features is read


def test_methods_without_a_teacher_read_images_alone():
    session = prepare(load_recipe("quickstart", [*SMALL[:-1], "method=maple", "data.augment=none"]))
    batch = next(iter(training_batches(session, session.data)()))
    assert "feature" not in batch and "image" in batch
