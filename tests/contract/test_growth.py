"""Adding, removing and renaming classes of every method, discovered by listing the method recipes."""

import numpy as np
import pytest
import torch
from limpet import artifact
from limpet.errors import LimpetError, NeedsImages
from limpet.grow import shot_batches
from limpet.inference import Classifier
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def answer(adapter, batches):
    with torch.no_grad():
        return torch.cat([adapter.logits(batch) for batch in batches])


def pictures(count=5, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)) for _ in range(count)]


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def refits(adapter):
    return adapter.refits_on_add(adapter.config, adapter.backbone.spec)


def grown(classifier, names):
    """Add classes with images; methods that can do without were asked to, before."""
    classifier.add_classes(names, {name: pictures(seed=i) for i, name in enumerate(names)})


def test_a_class_is_added_saved_and_taken_away_again(fitted, method, tmp_path):
    session, _, batches = fitted(method)
    adapter = session.adapter
    before, names = answer(adapter, batches), adapter.classes.names
    first = artifact.save(adapter, tmp_path, {"recipe": "quickstart"})
    classifier = Classifier(adapter)
    try:
        grown(classifier, ["lionfish", "sea star"])
    except NeedsImages:
        assert adapter.classes.names == names  # class-specific prompts: nothing but training helps
        return
    after = answer(adapter, batches)
    assert adapter.classes.names == (*names, "lionfish", "sea star") and torch.isfinite(after).all()
    if not refits(adapter):
        same(after[:, :-2], before)
    second = classifier.save(tmp_path)
    assert (first.name, second.name) == ("v1", "v2")
    loaded = Classifier.load(tmp_path, backbone=session.backbone)
    assert loaded.classes == [*names, "lionfish", "sea star"]
    torch.testing.assert_close(answer(loaded.adapter, batches), after, rtol=0, atol=0)
    loaded.remove_classes(["lionfish", "sea star"])
    same(answer(loaded.adapter, batches), before)
    third = loaded.save(tmp_path)
    again = Classifier.load(tmp_path, backbone=session.backbone)
    same(answer(again.adapter, batches), before)
    assert list(again.info["history"]) == [
        {"added": {"lionfish": 5, "sea star": 5}}, {"removed": ["lionfish", "sea star"]}
    ]  # fmt: skip
    assert third.name == "v3"
    torch.testing.assert_close(
        answer(artifact.load(tmp_path, session.backbone, version=1), batches), before, rtol=0, atol=0
    )


def test_an_original_class_is_removed(fitted, method, tmp_path):
    session, _, batches = fitted(method)
    adapter, names = session.adapter, session.adapter.classes.names
    before = answer(adapter, batches)
    classifier = Classifier(adapter)
    classifier.remove_classes([names[1]])
    after = answer(adapter, batches)
    assert adapter.classes.names == (names[0], *names[2:])
    if not refits(adapter):
        same(after, before[:, [0, 2, 3]])
    classifier.save(tmp_path)
    torch.testing.assert_close(
        answer(artifact.load(tmp_path, session.backbone), batches), after, rtol=0, atol=0
    )
    with pytest.raises(LimpetError, match="no class"):
        classifier.remove_classes([names[1]])
    with pytest.raises(LimpetError, match="leave no class"):
        classifier.remove_classes(classifier.classes)


def test_renaming_changes_names_alone(fitted, method, tmp_path):
    session, _, batches = fitted(method)
    adapter, names = session.adapter, session.adapter.classes.names
    before = answer(adapter, batches)
    classifier = Classifier(adapter)
    classifier.rename_classes({names[0]: names[2], names[2]: names[0], names[3]: "Pterois volitans"})
    assert adapter.classes.names == (names[2], names[1], names[0], "Pterois volitans")
    torch.testing.assert_close(answer(adapter, batches), before, rtol=0, atol=0)
    classifier.save(tmp_path)
    loaded = artifact.load(tmp_path, session.backbone)
    torch.testing.assert_close(answer(loaded, batches), before, rtol=0, atol=0)
    with loaded.answering(loaded.classes.only(["Pterois volitans", names[2]])):
        if not refits(adapter):
            same(answer(loaded, batches), before[:, [3, 0]])
    with pytest.raises(LimpetError, match="more than once"):
        classifier.rename_classes({names[1]: "Pterois volitans"})
    with pytest.raises(LimpetError, match="There is no class"):
        classifier.rename_classes({"whale": "orca"})


def test_reworded_classes_are_asked_about_by_their_new_name(fitted):
    session, _, batches = fitted("zero_shot")
    adapter, names = session.adapter, session.adapter.classes.names
    before = answer(adapter, batches)
    classifier = Classifier(adapter)
    classifier.rename_classes({names[0]: "lionfish"}, reword=True)
    after = answer(adapter, batches)
    if adapter.classes.texts["lionfish"] == ("lionfish",):
        assert not torch.allclose(after[:, 0], before[:, 0])
    same(after[:, 1:], before[:, 1:])


def test_names_that_exist_and_images_of_others_are_refused(fitted):
    session, _, _ = fitted("tip_adapter")
    classifier = Classifier(session.adapter)
    with pytest.raises(LimpetError, match="exists already"):
        classifier.add_classes([classifier.classes[0]])
    with pytest.raises(LimpetError, match="not among the added"):
        classifier.add_classes(["ray"], {"rai": pictures()})
    with pytest.raises(NeedsImages, match="can be read"):
        classifier.add_classes(["ray"], {"ray": ["not/there.jpg"]})
    assert "ray" not in classifier.classes


def odd_pictures(folder):
    """One broken file, and pictures of one pixel, of one channel, with transparency, with 16 bits, and very wide."""
    (folder / "broken.jpg").write_bytes(b"not a picture")
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65535, (30, 40), dtype=np.uint16))
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 255, (4, 700, 3), dtype=np.uint8))
    return [folder / "broken.jpg", wide.resize((1, 1)), wide.convert("L"), wide.convert("RGBA"), deep, wide]


def test_many_images_of_a_class_are_encoded_in_parts(fitted):
    """Seventy images, at most 64 at once: the prototype is that of all of them."""
    session, _, _ = fitted("nearest_mean")
    many = pictures(70)
    batches = shot_batches(session.adapter, session.adapter.classes.extended(["lionfish"]), {"lionfish": many})
    assert [len(batch["label"]) for batch in batches] == [64, 6]
    assert len({path for batch in batches for path in batch["path"]}) == 70
    one = shot_batches(session.adapter, session.adapter.classes.extended(["lionfish"]), {"lionfish": many}, batch_size=70)
    same(torch.cat([batch["feature"] for batch in batches]), one[0]["feature"])


def test_odd_names_and_pictures_are_taken(fitted, method, tmp_path):
    session, _, batches = fitted(method)
    classifier, names = Classifier(session.adapter), ["Müller's [b]ray[/b] {} %s", 'ラ イオン,"b"\n=1']
    try:
        with pytest.warns(UserWarning, match="1 images could not be read"):
            short = {names[0]: ["ray"], names[1]: ["lion"]} if session.adapter.prompted else None  # the context takes its room
            classifier.add_classes(names, {names[0]: odd_pictures(tmp_path), names[1]: pictures(1)}, short)
    except NeedsImages:
        return
    assert torch.isfinite(answer(session.adapter, batches)).all()
    classifier.save(tmp_path)
    loaded = Classifier.load(tmp_path, backbone=session.backbone)
    assert loaded.classes[-2:] == names and loaded.info["history"][-1] == {"added": {names[0]: 5, names[1]: 1}}
    torch.testing.assert_close(answer(loaded.adapter, batches), answer(session.adapter, batches), rtol=0, atol=0)
    assert all(p.error is None for p in loaded.predict(odd_pictures(tmp_path)[1:]))


@pytest.mark.parametrize("learned", ["coop", "cocoop", "maple"])
def test_a_text_that_does_not_fit_is_refused_before_anything_changes(fitted, learned):
    session, _, batches = fitted(learned)
    classifier, before = Classifier(session.adapter), answer(session.adapter, batches)
    names, long = session.adapter.classes.names, "fish " * 200
    for change in (
        lambda: classifier.add_classes(["short", "long"], texts={"long": [long]}),
        lambda: classifier.rename_classes({names[0]: long}, reword=True),
    ):
        with pytest.raises(LimpetError, match="shorten"):
            change()
    assert session.adapter.classes.names == names
    torch.testing.assert_close(answer(session.adapter, batches), before, rtol=0, atol=0)
