"""bfloat16 is used where the processor has it; elsewhere float32 is, and the run says so."""

import json

import pytest
import torch
from limpet import precision, runner, session
from limpet.adapter import config_class, find
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.precision import bf16_problem
from limpet.recipe import BackboneConfig, load_recipe

SMALL = [
    "data.species=4", "data.test=2", "data.train=2", "data.val=2", "data.shots=2", "trainer.epochs=1", "method=coop",
    "backbone.precision=bf16", "trainer.precision=bf16-mixed",
]  # fmt: skip


@pytest.fixture(params=[True, False], ids=["with bf16", "without"])
def has(request, monkeypatch):
    """A processor with and without bfloat16."""
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: request.param)
    monkeypatch.setattr(session, "_loaded", {})
    return request.param


def test_only_a_cpu_without_instructions_is_told(has):
    assert (bf16_problem("cpu", "backbone.precision") is None) == has
    assert bf16_problem("cuda", "backbone.precision") is None


@pytest.mark.filterwarnings("error")
def test_weights_become_float32_where_bfloat16_is_emulated(has):
    config = BackboneConfig(precision="bf16")
    if has:
        clip = FrozenClip.load(config)
        assert clip.dtype == torch.bfloat16 and clip.spec.precision == "bf16"
        return
    with pytest.warns(UserWarning, match=r"backbone.precision asks for bfloat16.*float32 is used"):
        clip = FrozenClip.load(config)
    assert clip.dtype == torch.float32 and clip.spec.precision == "fp32"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_says_what_it_used(has, tmp_path):
    recipe = load_recipe("quickstart", [*SMALL, f"run.dir={tmp_path}"])
    made = session.prepare(recipe)
    assert made.backbone.dtype == (torch.bfloat16 if has else torch.float32)
    assert made.adapter.context.dtype == torch.float32
    assert session.training_precision(recipe) == ("bf16-mixed" if has else "32-true")
    metrics = json.loads((runner.fit(recipe) / "metrics.json").read_text())
    said = [note for note in metrics["notes"] if "float32 is used" in note]
    assert [note.partition(" ")[0] for note in said] == ([] if has else ["backbone.precision", "trainer.precision"])


def test_this_machine_can_be_asked():
    assert precision.cpu_has_bf16() in (True, False)


@pytest.mark.parametrize("method", ["zero_shot", "coop", "cocoop", "vpt", "maple", "promptsrc", "lora"])
def test_logits_are_not_rounded_under_autocast(random_clip, method):
    """bfloat16 has nothing between 25 and 25.125: the towers are computed in it, the comparison is not."""
    clip = random_clip(torch.float32)
    adapter = find(method)(config_class(find(method))()).setup(clip, ClassSet(names=("cat", "dog", "grey shark"))).train()
    batch = {"image": torch.randn(5, 3, 32, 32), "label": torch.tensor([0, 1, 2, 0, 1])}
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = adapter.logits(batch), adapter.loss(batch)
    assert logits.dtype == loss.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).any()
    torch.testing.assert_close(logits, adapter.logits(batch), rtol=0.05, atol=1.0)
