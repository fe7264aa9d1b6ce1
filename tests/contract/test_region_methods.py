"""What every method of the tasks about regions must do, discovered by listing the method recipes."""

import dataclasses

import pytest
import torch
from limpet import artifact
from limpet.adapter import config_class, find
from limpet.backbone import describe
from limpet.recipe import load
from limpet.runner import fit as run
from limpet.runner import resume
from limpet.session import prepare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DATA = {
    "referring": ["data=reef_scenes", "data.fish=3", "data.train=0", "data.val=1", "data.test=2"],
    "anomaly": ["data=reef_defects", "data.test=2"],
}


def recipe_of(method, *overrides):
    task = find(load("quickstart", [f"method={method}"])[0].method["name"]).task
    words = [f"method={method}", "protocol=all", "data.shots=all", "data.size=64", "data.species=4", "trainer.accelerator=cpu"]
    return load("quickstart", [*words, *DATA[task], *overrides])[0]


@pytest.fixture
def ready(region_method):
    session = prepare(recipe_of(region_method))
    session.adapter.eval().select(list(session.data.val_dataloader()))
    return session, list(session.data.test_dataloader())


def answer(adapter, batches):
    with torch.no_grad():
        return torch.cat([adapter.logits(batch) for batch in batches])


def test_nothing_is_trained_and_the_backbone_stays(ready):
    session, batches = ready
    adapter = session.adapter
    before = {k: v.clone() for k, v in session.backbone.model.state_dict().items()}
    answer(adapter, batches)
    assert not adapter.learnable() and not session.trainable
    assert all(torch.equal(before[k], v) for k, v in session.backbone.model.state_dict().items())
    frozen = {p.data_ptr() for p in session.backbone.model.parameters()}
    assert not frozen & {t.data_ptr() for t in adapter.state_dict().values()}


def test_save_and_load_give_the_same_answers(ready, tmp_path):
    session, batches = ready
    expected = answer(session.adapter, batches)
    artifact.save(session.adapter, tmp_path, {})
    loaded = artifact.load(tmp_path / "adapter")
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(session.adapter.config)
    torch.testing.assert_close(answer(loaded, batches), expected, rtol=0, atol=0)


def test_an_answer_does_not_depend_on_the_other_images(ready):
    session, (batch, *_) = ready
    whole = answer(session.adapter, [batch])
    rows = [5, 0, 3]
    part = {k: v[rows] if isinstance(v, torch.Tensor) else [v[i] for i in rows] for k, v in batch.items()}
    torch.testing.assert_close(answer(session.adapter, [part]), whole[rows], rtol=1e-4, atol=1e-4)


def test_works_under_bfloat16_autocast(ready):
    session, batches = ready
    expected = answer(session.adapter, batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = answer(session.adapter, batches)
    assert torch.isfinite(half).all()
    assert torch.cosine_similarity(half.float().flatten(), expected.float().flatten(), dim=0) > 0.99


def test_a_class_may_be_added_from_its_text(ready):
    session, batches = ready
    adapter = session.adapter
    before = answer(adapter, batches)
    adapter.add_classes(adapter.classes.extended(["lionfish"]))
    torch.testing.assert_close(answer(adapter, batches), before, rtol=1e-4, atol=1e-4)


def test_a_run_is_the_same_twice_and_cannot_be_resumed(region_method, tmp_path):
    from limpet.errors import RunError

    first, second = (run(recipe_of(region_method), tmp_path / name) for name in ("one", "two"))
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    assert (first / "report.html").is_file() and (first / "per_class.csv").is_file()
    with pytest.raises(RunError, match="finished"):
        resume(first)


def test_declared_before_weights_load(region_method):
    recipe = recipe_of(region_method)
    method = find(recipe.method["name"])
    config, spec = recipe.method_config(config_class(method)), describe(recipe.backbone)
    assert method.supports(config, spec) is None and method.needs(config, spec) == "images"
    assert not method.trainable(config, spec) and method.new_class(config, spec) == "text"
