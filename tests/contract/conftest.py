"""Builds any method's recipe on a handful of drawn fish and limpet-tiny."""

import importlib.resources

import pytest
from limpet.adapter import find
from limpet.recipe import load
from limpet.runner import with_features
from limpet.session import prepare

PLUMBING = [
    "protocol=all", "data.shots=4", "data.batch_size=8", "data.test=4", "data.val=4", "classes.first=4",
    "data.augment.preset=none", "data.augment.views=1", "trainer.accelerator=cpu",
]  # fmt: skip


def method_recipes(task):
    """Names of the packaged method recipes of a task."""
    folder = importlib.resources.files("limpet.recipes") / "method"
    names = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    base = {"ordering": "order_reef"}
    found = {name: load(base.get(task, "quickstart"), [f"method={name}"])[0].method["name"] for name in names}
    return [name for name, method in found.items() if find(method).task == task]


def pytest_generate_tests(metafunc):
    for fixture, tasks in (
        ("method", ["classification"]),
        ("ordering_method", ["ordering"]),
        ("region_method", ["referring", "anomaly"]),
    ):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, [name for task in tasks for name in method_recipes(task)])


@pytest.fixture
def build():
    """build("coop", "method.context_length=4") -> (session, its data with features where the method reads them)."""

    def _build(method, *overrides):
        given = {word.partition("=")[0] for word in overrides}
        plumbing = [word for word in PLUMBING if word.partition("=")[0] not in given]
        (recipe,) = load("quickstart", [f"method={method}", *plumbing, *overrides])
        session = prepare(recipe)
        return session, with_features(session)

    return _build


@pytest.fixture
def fitted(build):
    """fitted("coop") -> (session, data, training batches) after the closed form and, for trainable methods, a few steps."""

    def _fitted(method, *overrides):
        session, data = build(method, *overrides)
        fit(session, data)
        return session, data, list(data.test_dataloader())

    return _fitted


def fit(session, data, steps=3):
    """Closed form, a few plain steps, selection: a method as a run leaves it."""
    import torch

    adapter = session.adapter
    if session.needs == "features":
        adapter.fit_closed_form(data.closed_form_batches("train", 8))
    else:
        adapter.fit_closed_form(data.train_dataloader())
    if session.trainable:
        adapter.train()
        optimiser = torch.optim.SGD(adapter.learnable(), lr=0.01)
        for _, batch in zip(range(steps), data.train_dataloader(), strict=False):
            optimiser.zero_grad()
            adapter.loss(batch).backward()
            optimiser.step()
    adapter.eval()
    adapter.select(list(data.val_dataloader()))
