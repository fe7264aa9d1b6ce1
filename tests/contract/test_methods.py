"""What every method must do, discovered by listing the method recipes."""

import dataclasses

import pytest
import torch
from limpet import artifact
from limpet.errors import NeedsImages
from limpet.recipe import load
from limpet.runner import fit as run
from limpet.runner import resume

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def answer(adapter, batches):
    with torch.no_grad():
        return torch.cat([adapter.logits(batch) for batch in batches])


def test_every_trainable_tensor_gets_gradient_and_moves_the_answer(build, method):
    session, data = build(method)
    if not session.trainable:
        assert not session.adapter.learnable()
        return
    adapter = session.adapter
    before = {k: v.clone() for k, v in session.backbone.model.state_dict().items()}
    adapter.fit_closed_form(data.closed_form_batches("train", 8) if session.needs == "features" else data.train_dataloader())
    batch = next(iter(data.train_dataloader()))
    adapter.train()
    parameters = dict(adapter.named_parameters())
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.1)
    touched = set()
    for _ in range(3):  # some tensors only get gradient once another has left zero
        optimiser.zero_grad()
        adapter.loss(batch).backward()
        touched |= {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
    assert touched == {n for n, p in parameters.items() if p.requires_grad}
    adapter.eval()
    reference = answer(adapter, [batch])
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
            adapter.train()
            adapter.eval()
            assert not torch.equal(answer(adapter, [batch]), reference), f"{name} changes nothing"
            with torch.no_grad():
                parameter.copy_(kept)
    after = session.backbone.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "a frozen tensor changed"
    assert all(p.grad is None and not p.requires_grad for p in session.backbone.model.parameters())


def test_the_backbone_is_not_part_of_the_adapter(fitted, method):
    session, _, _ = fitted(method)
    frozen = {p.data_ptr() for p in session.backbone.model.parameters()}
    assert not frozen & {p.data_ptr() for p in session.adapter.parameters()}
    if not session.adapter.keeps_towers:
        assert sum(t.numel() for t in session.adapter.state_dict().values()) < 500_000


def test_save_and_load_give_the_same_answers(fitted, method, tmp_path):
    session, _, batches = fitted(method)
    expected = answer(session.adapter, batches)
    artifact.save(session.adapter, tmp_path, {})
    loaded = artifact.load(tmp_path / "adapter")
    assert loaded.classes.names == session.adapter.classes.names
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(session.adapter.config)
    torch.testing.assert_close(answer(loaded, batches), expected, rtol=0, atol=0)


def test_permuting_the_classes_permutes_the_answers(fitted, method):
    session, _, batches = fitted(method)
    adapter, names = session.adapter, session.adapter.classes.names
    expected = answer(adapter, batches)
    order = [2, 0, 3, 1]
    with adapter.answering(adapter.classes.only([names[i] for i in order])):
        permuted = answer(adapter, batches)
    torch.testing.assert_close(permuted, expected[:, order], rtol=1e-4, atol=1e-4)


def test_a_subset_of_the_classes_keeps_their_answers(fitted, method):
    session, _, batches = fitted(method)
    adapter, names = session.adapter, session.adapter.classes.names
    expected = answer(adapter, batches)
    with adapter.answering(adapter.classes.only([names[3], names[1]])):
        if adapter.refits_on_add(adapter.config, session.backbone.spec):  # answers are shared out among the classes asked about
            assert answer(adapter, batches).shape == (len(expected), 2)
            return
        torch.testing.assert_close(answer(adapter, batches), expected[:, [3, 1]], rtol=1e-4, atol=1e-4)


def test_adding_a_class(fitted, method):
    session, _, batches = fitted(method)
    adapter, spec = session.adapter, session.backbone.spec
    before = answer(adapter, batches)
    extended = adapter.classes.extended(["lionfish"], {"lionfish": ["lionfish"]})
    if adapter.new_class(adapter.config, spec) == "images":
        with pytest.raises(NeedsImages, match="images"):
            adapter.add_classes(extended)
        return
    adapter.add_classes(extended)
    after = answer(adapter, batches)
    assert after.shape[1] == before.shape[1] + 1
    assert torch.isfinite(after).all()
    if not adapter.refits_on_add(adapter.config, spec):
        torch.testing.assert_close(after[:, :-1], before, rtol=1e-5, atol=1e-5)


def test_works_under_bfloat16_autocast(fitted, method):
    session, data, batches = fitted(method)
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
    similarity = torch.cosine_similarity(half.float().flatten(), expected.flatten(), dim=0)
    assert similarity > 0.99


def test_overfits_eight_images(build, method):
    session, data = build(method, "data.shots=2")
    adapter = session.adapter
    if not session.trainable:
        return
    adapter.fit_closed_form(data.closed_form_batches("train", 8) if session.needs == "features" else data.train_dataloader())
    batch = next(iter(data.train_dataloader()))
    assert len(batch["label"]) == 8
    adapter.train()
    rate = 0.001 if adapter.keeps_towers else 0.01  # whole trained towers need smaller steps than something beside them
    optimiser = torch.optim.Adam(adapter.learnable(), lr=rate)
    first = float(adapter.loss(batch))
    for _ in range(60):
        optimiser.zero_grad()
        loss = adapter.loss(batch)
        loss.backward()
        optimiser.step()
    last = float(adapter.loss(batch))
    adapter.eval()
    accuracy = (answer(adapter, [batch]).argmax(1) == batch["label"]).float().mean()
    assert accuracy >= 0.75
    # A penalty keeps the loss from zero, or a cache that holds the images themselves knows them from the start.
    assert last < 0.5 * first or (accuracy == 1 and (last < first or first < 1e-6))


def test_a_resumed_run_equals_an_uninterrupted_one(method, tmp_path, monkeypatch):
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path / "cache"))
    settings = [f"method={method}", "protocol=all", "data.shots=2", "data.test=2", "data.val=2", "classes.first=4",
                "data.augment.preset=none", "data.augment.views=1", "trainer.epochs=2", "data.batch_size=4"]  # fmt: skip
    (recipe,) = load("quickstart", settings)
    whole = run(recipe, tmp_path / "whole")

    class Stop(BaseException):
        pass

    from limpet.callbacks.checkpoint import ResumeCheckpoint

    written = ResumeCheckpoint.on_train_epoch_end

    def stop_after_saving(self, trainer, pl_module):
        written(self, trainer, pl_module)
        raise Stop

    (again,) = load("quickstart", settings)
    with monkeypatch.context() as patch:
        patch.setattr(ResumeCheckpoint, "on_train_epoch_end", stop_after_saving)
        try:
            run(again, tmp_path / "stopped")
        except Stop:
            assert not (tmp_path / "stopped" / "metrics.json").exists()
    if not (tmp_path / "stopped" / "metrics.json").exists():
        resume(tmp_path / "stopped")
    assert (tmp_path / "whole" / "metrics.json").read_bytes() == (tmp_path / "stopped" / "metrics.json").read_bytes()
    ours, theirs = (artifact.load(tmp_path / name / "adapter").state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert whole == tmp_path / "whole"


def test_declared_before_weights_load(method):
    """Support, needs and the rest are answered from the recipe and the backbone's description alone."""
    from limpet.adapter import config_class, find
    from limpet.backbone import describe

    (recipe,) = load("quickstart", [f"method={method}"])
    cls = find(recipe.method["name"])
    config = recipe.method_config(config_class(cls))
    spec = describe(recipe.backbone)
    assert cls.supports(config, spec) is None
    assert cls.needs(config, spec) in ("features", "patches", "images")
    assert cls.new_class(config, spec) in ("text", "text_neighbours", "images")
    assert isinstance(cls.trainable(config, spec), bool)
