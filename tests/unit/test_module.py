"""AdaptationModule and BaseToNew with a Trainer of the user's own."""

import lightning
import pytest
import torch
from limpet.callbacks.base_to_new import BaseToNew
from limpet.errors import LimpetError
from limpet.features import CachedFeatures
from limpet.methods.coop import Config, CoOp
from limpet.module import AdaptationModule, seed_step
from limpet.recipe import load
from limpet.session import prepare
from torch.utils.data import DataLoader


def trainer(**settings):
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, **settings,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trainer_of_the_users_own_measures_base_and_new(tiny):
    (recipe,) = load("quickstart", ["data.species=6", "data.test=4", "data.shots=2"])
    session = prepare(recipe)
    data, classes = CachedFeatures(session.data, tiny), session.classes
    adapter = CoOp(Config(init="a photo of a")).setup(tiny, classes.base())
    measured = BaseToNew(data, classes)
    module = AdaptationModule(adapter)
    trainer(max_epochs=2, callbacks=[measured]).fit(module, data.restrict(classes.base().names).train_dataloader())
    results = measured.spaces.results()
    assert [results[s]["classes"] for s in ("base", "new", "joint")] == [3, 3, 6]
    assert measured.spaces.harmonic_mean() is not None
    assert set(module.state_dict()) == {"adapter.context"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_batch_without_what_the_method_needs_is_refused_before_the_first_step(tiny):
    (recipe,) = load("quickstart", ["data.species=2", "data.shots=1"])
    adapter = CoOp(Config()).setup(tiny, prepare(recipe).classes)
    batches = DataLoader([{"feature": torch.zeros(2, tiny.embed_dim), "path": ["a", "b"]}], batch_size=None)
    with pytest.raises(LimpetError, match="'label'"):
        trainer(max_epochs=1).fit(AdaptationModule(adapter), batches)


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_a_step_draws_the_numbers_that_pytorchs_own_seeding_gives(seed):
    torch.manual_seed(seed)
    expected = torch.rand(3), torch.empty(3, dtype=torch.int64).random_()
    torch.rand(9)
    seed_step(seed)
    for one in expected:
        assert torch.equal(torch.rand(3) if one.is_floating_point() else torch.empty(3, dtype=torch.int64).random_(), one)
