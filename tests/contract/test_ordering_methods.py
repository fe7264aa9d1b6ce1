"""What every method that orders images must do, discovered by listing the method recipes."""

import dataclasses

import pytest
import torch
from limpet import artifact
from limpet.recipe import load
from limpet.runner import fit as run
from limpet.runner import resume, with_features
from limpet.session import prepare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PLUMBING = [
    "data.train=8", "data.val=4", "data.test=6", "data.batch_size=8", "data.attributes=[size,count]", "data.size=64",
    "data.augment.preset=none", "data.augment.views=1", "trainer.accelerator=cpu",
]  # fmt: skip


def recipe_of(method, *overrides):
    given = {word.partition("=")[0] for word in overrides}
    (recipe,) = load("order_reef", [f"method={method}", *[w for w in PLUMBING if w.partition("=")[0] not in given], *overrides])
    return recipe


@pytest.fixture
def build_order():
    """build_order("ranking") -> (session, its data with features or tokens)."""

    def _build(method, *overrides):
        torch.manual_seed(0)
        session = prepare(recipe_of(method, *overrides))
        return session, with_features(session)

    return _build


@pytest.fixture
def fitted_order(build_order):
    """After the closed form, a few plain steps and selection."""

    def _fitted(method, *overrides):
        session, data = build_order(method, *overrides)
        adapter = session.adapter
        adapter.fit_closed_form(data.closed_form_batches("train", 8))
        if session.trainable:
            adapter.train()
            optimiser = torch.optim.SGD(adapter.learnable(), lr=0.01)
            for batch in data.train_dataloader():
                optimiser.zero_grad()
                adapter.loss(batch).backward()
                optimiser.step()
        adapter.eval()
        adapter.select(list(data.val_dataloader()))
        return session, data, list(data.test_dataloader())

    return _fitted


def answer(adapter, batches):
    with torch.no_grad():
        return torch.cat([adapter.scores(batch) for batch in batches])


def test_every_trainable_tensor_gets_gradient_and_moves_the_answer(build_order, ordering_method):
    session, data = build_order(ordering_method)
    adapter = session.adapter
    if not session.trainable:
        assert not adapter.learnable()
        return
    before = {k: v.clone() for k, v in session.backbone.model.state_dict().items()}
    adapter.fit_closed_form(data.closed_form_batches("train", 8))
    batch = next(iter(data.train_dataloader()))
    adapter.train()
    parameters = dict(adapter.named_parameters())
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.01)
    touched = set()
    for _ in range(3):
        optimiser.zero_grad()
        adapter.loss(batch).backward()
        touched |= {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
    assert touched == {n for n, p in parameters.items() if p.requires_grad}
    adapter.eval()

    def all_answers():
        with torch.no_grad():
            return torch.cat([adapter.scores(batch), adapter.loss(batch).reshape(1)])

    reference = all_answers()
    for name, parameter in parameters.items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        adapter.train()
        adapter.eval()
        assert not torch.equal(all_answers(), reference), f"{name} changes nothing"
        with torch.no_grad():
            parameter.copy_(kept)
    after = session.backbone.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "a frozen tensor changed"


def test_the_backbone_is_not_part_of_the_adapter(fitted_order, ordering_method):
    session, _, _ = fitted_order(ordering_method)
    frozen = {p.data_ptr() for p in session.backbone.model.parameters()}
    assert not frozen & {p.data_ptr() for p in session.adapter.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in session.backbone.model.parameters())


def test_save_and_load_give_the_same_scores(fitted_order, ordering_method, tmp_path):
    session, _, batches = fitted_order(ordering_method)
    expected = answer(session.adapter, batches)
    artifact.save(session.adapter, tmp_path, {})
    loaded = artifact.load(tmp_path / "adapter")
    assert loaded.learned_instructions() == session.adapter.learned_instructions()
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(session.adapter.config)
    torch.testing.assert_close(answer(loaded, batches), expected, rtol=0, atol=0)
    rows = torch.cat([session.adapter.rows(batch) for batch in batches])
    assert set(rows.tolist()) == {0, 1}
    for one, other in zip(loaded.units(expected, rows), session.adapter.units(expected, rows), strict=True):
        assert torch.equal(one, other)


def test_a_score_does_not_depend_on_the_other_images(fitted_order, ordering_method):
    session, _, batches = fitted_order(ordering_method)
    (batch,) = batches
    whole = answer(session.adapter, [batch])
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))

    def part(rows):
        return {k: v[rows] if isinstance(v, torch.Tensor) else [v[int(i)] for i in rows] for k, v in batch.items()}

    torch.testing.assert_close(answer(session.adapter, [part(order)]), whole[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answer(session.adapter, [part(order[:3])]), whole[order[:3]], rtol=1e-4, atol=1e-5)


def test_works_under_bfloat16_autocast(fitted_order, ordering_method):
    session, data, batches = fitted_order(ordering_method)
    expected = answer(session.adapter, batches)
    session.adapter.train()
    session.adapter.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = answer(session.adapter, batches)
    if session.trainable:
        session.adapter.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):  # one for each step, as Lightning has it
            session.adapter.loss(next(iter(data.train_dataloader()))).backward()
    assert torch.isfinite(half).all()
    if len(set(expected.tolist())) > 1:
        assert torch.cosine_similarity(half.float(), expected.float(), dim=0) > 0.99


def test_overfits_eight_images(build_order, ordering_method):
    session, data = build_order(ordering_method, "data.attributes=[size]")
    adapter = session.adapter
    if not session.trainable:
        return
    adapter.fit_closed_form(data.closed_form_batches("train", 8))
    batch = next(iter(data.train_dataloader()))
    assert len(batch["value"]) == 8
    adapter.train()
    optimiser = torch.optim.Adam(adapter.learnable(), lr=0.003)
    first = float(adapter.loss(batch).detach())
    for _ in range(60):
        optimiser.zero_grad()
        adapter.loss(batch).backward()
        optimiser.step()
    assert float(adapter.loss(batch).detach()) < 0.5 * first
    adapter.eval()
    scores, values = answer(adapter, [batch]), batch["value"]
    above = values[:, None] > values[None]
    assert (scores[:, None] > scores[None])[above].float().mean() >= 0.85


def test_a_resumed_run_equals_an_uninterrupted_one(ordering_method, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path / "cache"))
    settings = ["trainer.epochs=2", "data.batch_size=4", "data.augment.preset=mirror", "data.augment.views=2"]
    run(recipe_of(ordering_method, *settings), tmp_path / "whole")

    class Stop(BaseException):
        pass

    from limpet.callbacks.checkpoint import ResumeCheckpoint

    written = ResumeCheckpoint.on_train_epoch_end

    def stop_after_saving(self, trainer, pl_module):
        written(self, trainer, pl_module)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(ResumeCheckpoint, "on_train_epoch_end", stop_after_saving)
        try:
            run(recipe_of(ordering_method, *settings), tmp_path / "stopped")
        except Stop:
            assert not (tmp_path / "stopped" / "metrics.json").exists()
    if not (tmp_path / "stopped" / "metrics.json").exists():
        resume(tmp_path / "stopped")
    assert (tmp_path / "whole" / "metrics.json").read_bytes() == (tmp_path / "stopped" / "metrics.json").read_bytes()
    ours, theirs = (artifact.load(tmp_path / name / "adapter").state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_declared_before_weights_load(ordering_method):
    """Support, needs and the rest are answered from the recipe and the backbone's description alone."""
    from limpet.adapter import config_class, find
    from limpet.backbone import describe

    recipe = recipe_of(ordering_method)
    cls = find(recipe.method["name"])
    config = recipe.method_config(config_class(cls))
    spec = describe(recipe.backbone)
    assert cls.task == "ordering"
    assert cls.supports(config, spec) is None
    assert cls.needs(config, spec) in ("features", "patches", "images")
    assert isinstance(cls.trainable(config, spec), bool)
