"""A description changed by hand is told from the one that was written with the tensors."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from limpet import adapter as adapters
from limpet import artifact
from limpet.classes import ClassSet
from limpet.errors import ArtifactError
from limpet.inference import Classifier
from safetensors.torch import load_file, save_file

CLASSES = ClassSet(("kelp", "ray", "wrasse"), {"ray": ("manta", "eagle ray")}, ("a photo of a {}.", "a drawing of a {}."))


@pytest.fixture
def folder(tiny, tmp_path):
    """The artefact of a TaskRes whose residuals differ from class to class."""
    kind = adapters.find("taskres")
    adapter = kind(adapters.config_class(kind)(alpha=1.0)).setup(tiny, CLASSES)
    torch.nn.init.normal_(adapter.residual)
    return artifact.save(adapter, tmp_path, {})


def edit(folder, change):
    info = json.loads((folder / "adapter.json").read_text())
    change(info)
    (folder / "adapter.json").write_text(json.dumps(info))


@pytest.mark.parametrize("change", [
    lambda info: info["classes"]["names"].reverse(),
    lambda info: info["classes"].update(names=["kelp", "ray", "goby"], texts={}, base_names=[], new_names=[]),
    lambda info: info["classes"]["texts"].update(ray=["stingray"]),
    lambda info: info["classes"]["templates"].pop(),
    lambda info: info["classes"]["templates"].reverse(),
    lambda info: info["classes"].pop("texts"),
    lambda info: info["method"]["config"].update(alpha=0.5),
    lambda info: info["method"]["config"].pop("alpha"),
    lambda info: info["method"].update(name="zero_shot", config={}),
], ids=["order", "name", "text", "template", "templates", "no texts", "setting", "no setting", "method"])  # fmt: skip
def test_a_changed_meaning_is_refused(change, folder, tiny):
    edit(folder, change)
    with pytest.raises(ArtifactError, match="not the description that was written with them"):
        artifact.load(folder, tiny)


def test_layout_order_of_keys_and_whole_numbers_make_no_difference(folder, tiny):
    before = artifact.load(folder, tiny).class_weights()
    info = json.loads((folder / "adapter.json").read_text())
    info["method"]["config"]["alpha"] = 1
    info["info"]["note"] = "what is recorded beside it may change"
    info["classes"] = dict(reversed(info["classes"].items()))
    (folder / "adapter.json").write_text(json.dumps(dict(reversed(info.items())), indent=7))
    assert torch.equal(artifact.load(folder, tiny).class_weights(), before)


def test_tensors_without_a_digest_load_as_before(folder, tiny):
    """As those that an older Limpet wrote."""
    file = folder / "adapter.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    edit(folder, lambda info: info["tensors"].update(sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
    edit(folder, lambda info: info["classes"]["templates"].pop())
    artifact.load(folder, tiny)


def test_classes_added_renamed_and_removed_have_a_meaning_of_their_own(folder, tiny):
    run = folder.parent.parent
    for change in (
        lambda classifier: classifier.add_classes(["goby"]),
        lambda classifier: classifier.rename_classes({"kelp": "ray", "ray": "kelp"}),
        lambda classifier: classifier.rename_classes({"goby": "sea star"}, reword=True),
        lambda classifier: classifier.remove_classes(["kelp"]),
    ):
        classifier = Classifier.load(run, backbone=tiny)
        change(classifier)
        after = classifier.adapter.class_weights()
        classifier.save(run)
        torch.testing.assert_close(artifact.load(run, tiny).class_weights(), after, rtol=0, atol=0)


def test_code_of_ones_own_may_lie_elsewhere(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom limpet.adapter import Adapter\n@dataclass\nclass Config:\n    x: int = 1\n"
        "class Mine(Adapter):\n    pass\n"
    )
    kind = adapters.find("./mine.py:Mine")
    folder = artifact.save(kind(adapters.config_class(kind)()).setup(tiny, CLASSES), tmp_path / "run", {})
    (tmp_path / "mine.py").rename(tmp_path / "ours.py")
    edit(folder, lambda info: info["method"].update(name="./ours.py:Mine"))
    with pytest.warns(UserWarning, match="code of your own"):
        artifact.load(folder, tiny)


@pytest.mark.parametrize(("key", "value"), [
    ("names", "abc"), ("templates", "a {}"), ("base_names", "kelp"), ("new_names", "kelp"), ("texts", {"kelp": "kelp"}),
])  # fmt: skip
def test_a_text_is_not_taken_for_a_list_of_its_characters(key, value, folder, tiny):
    edit(folder, lambda info: info["classes"].update({key: value}))
    with pytest.raises(ArtifactError, match=r"adapter\.json is damaged: .*is the text .* where a list of texts is due"):
        artifact.load(folder, tiny)
