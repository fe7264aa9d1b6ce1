"""Optimisers and schedules, and their refusals."""

import math

import pytest
import torch
from limpet.errors import RecipeError
from limpet.optim import build_optimiser, build_schedule, learning_rate
from limpet.recipe import OptimConfig


def parameter():
    return [torch.nn.Parameter(torch.zeros(2))]


@pytest.mark.parametrize("epochs", [2, 5, 10, 50, 200])
def test_warm_up_then_a_cosine_that_counts_from_the_peak(epochs):
    config = OptimConfig(lr=0.002)
    assert learning_rate(config, 0, epochs) == 1e-5
    for epoch in range(1, epochs):
        expected = 0.001 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        assert learning_rate(config, epoch, epochs) == pytest.approx(expected, rel=1e-12)


def test_constant_no_warm_up_and_a_floor():
    assert learning_rate(OptimConfig(lr=0.3, schedule="constant", warmup=0), 7, 10) == 0.3
    assert learning_rate(OptimConfig(lr=0.3, warmup=0), 0, 10) == 0.3
    assert learning_rate(OptimConfig(lr=0.3, warmup=0, min_lr=0.1), 10, 10) == pytest.approx(0.1)


def test_a_linear_warm_up_and_a_cosine_to_the_very_end():
    config = OptimConfig(lr=0.3, schedule="warmup_cosine", warmup=3, warmup_lr=1e-6)
    rates = [learning_rate(config, step, 11) for step in range(12)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert rates[7] == pytest.approx(0.15)  # half-way between the end of the warm-up and the end
    assert rates[11] == pytest.approx(0)
    assert learning_rate(config, 1, 2) == pytest.approx(0.2)  # training that ends before its warm-up does


@pytest.mark.parametrize(("recipe", "warmup", "lr"), [("cil_cifar100", 30, 7.1e-6), ("mtil", 100, 1e-5)])
def test_published_streams_rise_to_their_rate_and_end_at_zero(recipe, warmup, lr):
    from limpet.recipe import load_recipe

    optim = load_recipe(recipe).optim
    rates = [learning_rate(optim, step, 200) for step in (0, warmup - 1, warmup, 200)]
    assert rates == pytest.approx([lr / warmup, lr, lr, 0])


def test_the_optimiser_has_the_settings_of_the_recipe():
    sgd = build_optimiser(parameter(), OptimConfig(momentum=0.8, weight_decay=0.1))
    assert sgd.defaults["momentum"] == 0.8 and sgd.defaults["weight_decay"] == 0.1
    adam = build_optimiser(parameter(), OptimConfig(name="adamw", eps=1e-4, betas=[0.5, 0.6]))
    assert isinstance(adam, torch.optim.AdamW) and adam.defaults["eps"] == 1e-4 and adam.defaults["betas"] == (0.5, 0.6)
    assert type(build_optimiser(parameter(), OptimConfig(name="adam"))) is torch.optim.Adam


def test_the_schedule_drives_the_optimiser():
    config = OptimConfig(lr=0.01)
    optimiser = build_optimiser(parameter(), config)
    schedule = build_schedule(optimiser, config, 4)
    for epoch in range(4):
        assert optimiser.param_groups[0]["lr"] == pytest.approx(learning_rate(config, epoch, 4))
        optimiser.step()
        schedule.step()


def test_unknown_words_are_refused():
    with pytest.raises(RecipeError, match="Did you mean 'adam"):
        build_optimiser(parameter(), OptimConfig(name="adamv"))
    with pytest.raises(RecipeError, match="cosine"):
        build_optimiser(parameter(), OptimConfig(schedule="linear"))


def test_a_schedule_that_begins_anew_is_two_schedules():
    plain = OptimConfig(lr=0.3, warmup=2, warmup_lr=0.01)
    restarted = OptimConfig(lr=0.3, warmup=2, warmup_lr=0.01, restart=8)
    assert [learning_rate(restarted, t, 20) for t in range(8)] == [learning_rate(plain, t, 8) for t in range(8)]
    assert [learning_rate(restarted, t, 20) for t in range(8, 20)] == [learning_rate(plain, t, 12) for t in range(12)]
