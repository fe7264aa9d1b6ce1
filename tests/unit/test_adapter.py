"""The base class: what it keeps, what it refuses, and how a method is found."""

import copy
import sys

import pytest
import torch
from limpet.adapter import Adapter, available, config_class, find
from limpet.classes import ClassSet
from limpet.errors import LimpetError, RecipeError
from limpet.methods.coop import Config as CoOpConfig
from limpet.methods.coop import CoOp
from limpet.methods.zero_shot import Config, ZeroShot

PLUGIN = """
from dataclasses import dataclass
import torch
from torch import nn
from limpet.adapter import Adapter

@dataclass
class Config:
    start: float = 0.0

class MyAdapter(Adapter):
    @classmethod
    def trainable(cls, config, spec):
        return True

    def build(self):
        self.shift = nn.Parameter(torch.full((self.backbone.embed_dim,), self.config.start))

    def compute_class_weights(self):
        return torch.nn.functional.normalize(self.zero_shot_weights() + self.shift, dim=-1)
"""


@pytest.fixture
def classes():
    return ClassSet(names=("cod", "eel"), texts={}, templates=("a photo of a {}.",))


def test_methods_are_the_files_of_the_folder():
    assert {"zero_shot", "linear_probe", "coop", "tip_adapter"} <= set(available())
    for name in available():
        assert issubclass(find(name), Adapter) and config_class(find(name))()


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'coop'"):
        find("cop")


def test_the_backbone_is_neither_saved_nor_copied(tiny, classes):
    adapter = ZeroShot(Config()).setup(tiny, classes)
    assert not adapter.state_dict() and not list(adapter.parameters())
    assert copy.deepcopy(adapter).backbone is tiny


def test_before_setup_there_is_a_sentence():
    with pytest.raises(LimpetError, match="setup"):
        _ = ZeroShot(Config()).backbone
    with pytest.raises(LimpetError, match="setup"):
        _ = ZeroShot(Config()).classes


def test_answering_about_others_ends_with_the_context(tiny, classes):
    adapter = ZeroShot(Config()).setup(tiny, classes).eval()
    batch = {"feature": torch.randn(3, tiny.embed_dim)}
    before = adapter.logits(batch)
    with pytest.raises(ZeroDivisionError), adapter.answering(ClassSet(("a", "b", "c"), {}, ("{}",))):
        assert adapter.logits(batch).shape == (3, 3)
        raise ZeroDivisionError
    assert torch.equal(adapter.logits(batch), before)


def test_a_method_of_the_users_own(tiny, classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(PLUGIN)
    method = find("./my.py:MyAdapter")
    adapter = method(config_class(method)(start=0.5)).setup(tiny, classes)
    assert adapter.shift.tolist() == [0.5] * tiny.embed_dim and len(adapter.learnable()) == 1
    with pytest.raises(RecipeError, match="Did you mean 'MyAdapter'"):
        find("./my.py:MyAdaptor")
    with pytest.raises(RecipeError, match="not found"):
        find("./mine.py:MyAdapter")
    (tmp_path / "bad.py").write_text("import nothing_like_this")
    with pytest.raises(RecipeError, match="ModuleNotFoundError"):
        find("./bad.py:X")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("my:MyAdapter").__name__ == "MyAdapter"
    sys.modules.pop("my")


def test_a_plugin_runs_from_a_recipe_to_predictions(tmp_path, monkeypatch, fish):
    from limpet.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(PLUGIN)
    (tmp_path / "mine.yaml").write_text(
        "extends: [base, data/folder, trainer/cpu]\n"
        "method:\n  name: ./my.py:MyAdapter\n  start: 0.1\n"
        "trainer:\n  epochs: 2\n"
    )
    assert main(["fit", "mine.yaml", f"data.root={fish}", "data.shots=2", "data.augment=none"]) == 0
    assert main(["predict", "mine", str(fish), "--out", "p.csv"]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 41
    assert main(["evaluate", "mine"]) == 0
    assert main(["fit", "mine.yaml", f"data.root={fish}", "method.strat=1"]) == 2


@pytest.mark.parametrize("mode", [True, False])
def test_answers_follow_what_was_learned(random_clip, classes, mode):
    """In training mode without gradients, and in evaluation after a step that did not go through `train`."""
    clip = random_clip()
    adapter = CoOp(CoOpConfig(context_length=2)).setup(clip, classes).train(mode)
    batch = {"feature": torch.randn(2, clip.embed_dim, dtype=torch.float64)}
    with torch.no_grad():
        before = adapter.logits(batch)
        assert torch.equal(adapter.logits(batch), before)
    optimiser = torch.optim.SGD(adapter.parameters(), lr=1.0)
    adapter.context.grad = torch.randn_like(adapter.context)
    optimiser.step()
    with torch.no_grad():
        after = adapter.logits(batch)
        if mode:  # a write past autograd's eyes
            adapter.context.data.neg_()
            assert not torch.allclose(adapter.logits(batch), after)
    assert not torch.allclose(after, before)
