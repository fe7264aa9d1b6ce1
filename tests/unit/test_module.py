"""AdaptationModule and BaseToNew with a Trainer of the user's own."""

import lightning
import pytest
import torch
from limpet.callbacks.base_to_new import BaseToNew
from limpet.classes import ClassSet
from limpet.errors import LimpetError, RunError
from limpet.features import CachedFeatures
from limpet.methods import promptsrc
from limpet.methods.coop import Config, CoOp
from limpet.module import AdaptationModule, seed_step
from limpet.optim import learning_rate
from limpet.recipe import OptimConfig, load
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


class Rates(lightning.Callback):
    """The learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def steps_of(clip, count=2):
    feature = clip.encode_image(torch.randn(4, 3, 32, 32, dtype=torch.float64), normalize=False)
    batch = {"feature": feature, "label": torch.tensor([0, 1, 0, 1]), "path": list("abcd")}
    return DataLoader([batch] * count, batch_size=None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 6}, {"max_steps": 5}])
def test_the_schedule_ends_where_the_trainer_does(random_clip, limits):
    clip, rates = random_clip(), Rates()
    adapter = CoOp(Config(context_length=2)).setup(clip, ClassSet(names=("cat", "dog")))
    trainer(**limits, callbacks=[rates]).fit(AdaptationModule(adapter), steps_of(clip))
    wanted = [learning_rate(OptimConfig(), epoch, 3) for epoch in (0, 0, 1, 1, 2, 2)]
    assert rates.seen == pytest.approx(wanted[: len(rates.seen)]) and len(rates.seen) == limits.get("max_steps", 6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 6}, {"max_epochs": 50, "max_steps": 5}])
def test_prompts_are_averaged_whatever_ends_the_training(random_clip, limits):
    """The weights of the epochs add up to 1 over those that there are."""
    clip = random_clip()
    config = promptsrc.Config(image_length=0, aggregation_mean=2, aggregation_sd=1)
    adapter = promptsrc.PromptSRC(config).setup(clip, ClassSet(names=("cat", "dog")))
    start = adapter.text_vectors.detach().clone()
    still = OptimConfig(lr=1e-30, warmup_lr=1e-30)
    trainer(**limits).fit(AdaptationModule(adapter, still), steps_of(clip))
    torch.testing.assert_close(adapter.text_vectors.detach(), start, rtol=0, atol=1e-12)
    torch.testing.assert_close(adapter.sum_text_vectors, start, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_trainer_without_end_is_refused_in_a_sentence(random_clip):
    clip = random_clip()
    adapter = CoOp(Config(context_length=2)).setup(clip, ClassSet(names=("cat", "dog")))
    with pytest.raises(RunError, match="max_epochs or max_steps"):
        trainer(max_epochs=-1).fit(AdaptationModule(adapter), steps_of(clip))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("settings", "epochs", "said"),
    [
        ({"warmup": 2}, 2, "Training ended after 2 epochs, all of them warm-up (optim.warmup=2)"),
        ({"warmup": 2, "schedule": "warmup_cosine"}, 2, ""),  # it rises to the peak
        ({"warmup": 2}, 3, ""),
        ({"warmup": 8, "interval": "step"}, 3, "Training ended after 6 steps, all of them warm-up (optim.warmup=8)"),
        ({"restart": 3, "warmup": 0}, 3, "before the schedule began anew (optim.restart=3)"),
        ({"restart": 2, "warmup": 0}, 3, ""),
    ],
)
def test_a_schedule_longer_than_the_training_is_said(random_clip, settings, epochs, said):
    clip = random_clip()
    adapter = CoOp(Config(context_length=2)).setup(clip, ClassSet(names=("cat", "dog")))
    trainer(max_epochs=epochs).fit(AdaptationModule(adapter, OptimConfig(**settings)), steps_of(clip))
    assert [said in note for note in adapter.notes] == ([True] if said else [])


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_a_step_draws_the_numbers_that_pytorchs_own_seeding_gives(seed):
    torch.manual_seed(seed)
    expected = torch.rand(3), torch.empty(3, dtype=torch.int64).random_()
    torch.rand(9)
    seed_step(seed)
    for one in expected:
        assert torch.equal(torch.rand(3) if one.is_floating_point() else torch.empty(3, dtype=torch.int64).random_(), one)
