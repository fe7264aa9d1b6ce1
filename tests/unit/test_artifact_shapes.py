"""Tensors of an artefact that do not belong together, or to the classes, are refused in a sentence."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from limpet import adapter as adapters
from limpet import artifact
from limpet.classes import ClassSet
from limpet.errors import ArtifactError
from safetensors.torch import load_file, save_file

NAMES = ("kelp", "sea star", "ray", "wrasse")
FITTED = [
    ("clap", {}), ("clap", {"constraint": "none"}), ("taskres", {}), ("nearest_mean", {}), ("linear_probe", {}), ("lp_plus_plus", {}),
    ("tip_adapter", {}), ("tip_adapter", {"finetune": True}), ("gda", {}), ("gda", {"neighbours": 2}),
    ("gda", {"covariance": "class_balanced"}),
]  # fmt: skip
IDS = ["-".join([name, *config]) for name, config in FITTED]
MINE = """
from dataclasses import dataclass
import torch
from limpet.adapter import Adapter

@dataclass
class Config:
    pass

class Mine(Adapter):
    def build(self):
        for name in ("left", "right"):
            self.register_buffer(name, torch.zeros(0))
    def data_sized(self):
        return ("left", "right")
    def fit_closed_form(self, batches):
        self.left, self.right = torch.ones(5, self.backbone.embed_dim), torch.ones(5, len(self.classes))
    def logits(self, batch):
        return self.encode_image(batch) @ self.left.T @ self.right
"""


def made(tiny, method, config=(), names=NAMES):
    """An adapter that has seen three images of every class."""
    kind = adapters.find(method)
    adapter = kind(adapters.config_class(kind)(**dict(config))).setup(tiny, ClassSet(names))
    features = torch.randn(3 * len(names), 2, tiny.embed_dim, generator=torch.Generator().manual_seed(0))
    label = torch.arange(len(names)).repeat(3)
    with torch.no_grad():
        adapter.fit_closed_form([{"feature": features[:, 0], "views": features, "label": label, "path": [""] * len(label)}])
    return adapter.eval()


def altered(folder, change):
    """Change the tensors of an artefact, with a checksum and shapes that agree."""
    file = folder / "adapter.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)
    info = json.loads((folder / "adapter.json").read_text())
    info["tensors"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    info["tensors"]["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    (folder / "adapter.json").write_text(json.dumps(info))


def other_shapes(tensor):
    """The same numbers, some more or some less, in shapes that are not due."""
    yield from (tensor[:-1], tensor[:1], tensor[:0], torch.cat([tensor, tensor[-1:]]), tensor[None], tensor.flatten()[0])
    if tensor.ndim > 1:
        yield from (tensor[..., :-1], tensor[..., :1], tensor.flatten(), tensor.transpose(0, -1))


@pytest.mark.parametrize(("method", "config"), FITTED, ids=IDS)
def test_a_tensor_of_another_shape_is_refused(method, config, tiny, tmp_path):
    adapter = made(tiny, method, config)
    artifact.load(artifact.save(adapter, tmp_path, {}), tiny)
    for name in adapter.data_sized():
        for value in other_shapes(adapter.state_dict()[name]):
            folder = artifact.save(adapter, tmp_path, {})
            altered(folder, lambda tensors, name=name, value=value: tensors.update({name: value}))
            with pytest.raises(ArtifactError, match=f"{name} (is of shape|has|points at)|(rows of|and) {name}|{name} has"):
                artifact.load(folder, tiny)


@pytest.mark.parametrize(("method", "config"), [one for one in FITTED if one[0] != "tip_adapter" and "neighbours" not in one[1]])
def test_a_row_less_of_all_tensors_is_one_class_less(method, config, tiny, tmp_path):
    adapter = made(tiny, method, config)
    rows = [name for name, kind in adapter.saved_rows().items() if kind == "class"]
    folder = artifact.save(adapter, tmp_path, {})
    if not rows:  # the classes are pointed at
        altered(folder, lambda tensors: tensors["owner"].fill_(len(NAMES)))
        with pytest.raises(ArtifactError, match="owner points at 4, and there are 4 classes"):
            artifact.load(folder, tiny)
        return
    altered(folder, lambda tensors: tensors.update({name: tensors[name][:-1] for name in rows}))
    with pytest.raises(ArtifactError, match=f"{rows[0]} has 3 rows, and there are 4 classes"):
        artifact.load(folder, tiny)


@pytest.mark.parametrize(("method", "config", "name"), [
    ("tip_adapter", {}, "owner"), ("gda", {"neighbours": 2}, "owner"), ("gda", {}, "group"),
])  # fmt: skip
@pytest.mark.parametrize("number", [-1, 4, 2**40])
def test_a_number_of_no_row_is_refused(method, config, name, number, tiny, tmp_path):
    folder = artifact.save(made(tiny, method, config), tmp_path, {})
    altered(folder, lambda tensors: tensors[name][:1].fill_(number))
    with pytest.raises(ArtifactError, match=f"{name} points at {number}, and there are 4 "):
        artifact.load(folder, tiny)


@pytest.mark.parametrize("method", adapters.available())
def test_what_takes_the_saved_size_says_what_its_rows_are(method, tiny):
    kind = adapters.find(method)
    adapter = kind(adapters.config_class(kind)()).setup(tiny, ClassSet(NAMES))
    assert set(adapter.data_sized()) <= set(adapter.saved_rows())
    assert set(adapter.saved_numbers()) <= set(adapter.data_sized())


def test_a_method_that_says_nothing_of_its_rows_is_asked_for_scores(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    adapter = made(tiny, "./mine.py:Mine")
    folder = artifact.save(adapter, tmp_path, {})
    with pytest.warns(UserWarning, match="code of your own"):
        assert artifact.load(folder, tiny).left.shape == (5, tiny.embed_dim)
    alterations = (("left", adapter.left[:3], "belong together"), ("right", adapter.right[:, 1:], "3 scores for 4 classes"))
    for name, value, words in alterations:
        folder = artifact.save(adapter, tmp_path, {})
        altered(folder, lambda tensors, name=name, value=value: tensors.update({name: value}))
        with pytest.raises(ArtifactError, match=words), pytest.warns(UserWarning, match="code of your own"):
            artifact.load(folder, tiny)


def test_rows_in_another_order_than_the_classes_are_not_saved(tiny, tmp_path):
    adapter = made(tiny, "taskres")
    adapter.add_classes(ClassSet(("goby", *NAMES)))
    with pytest.raises(ArtifactError, match=r"another order.*present classes first"):
        artifact.save(adapter, tmp_path, {})
    assert not (tmp_path / "adapter").exists()
