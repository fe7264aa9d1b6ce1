"""What every method must do when it is asked about other data sets and other images of its classes."""

import pytest
import torch
from limpet.callbacks.cross_dataset import measure_targets, other_target
from limpet.callbacks.shift import shift_target
from limpet.datamodules import load as load_module
from limpet.datamodules.configs import ReefConfig
from limpet.transfer import ready

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def reef(**settings):
    data = load_module(ReefConfig(**{"shots": "all", "train": 1, "val": 1, "test": 2, **settings}), seed=1)
    data.setup()
    return data


def test_transfer_and_shift(fitted, method):
    session, _, batches = fitted(method)
    adapter, spec = session.adapter, session.backbone.spec
    before = [adapter.logits(batch) for batch in batches]
    targets = [
        other_target("far", reef(species=7, drawing_seed=2)),
        shift_target("murky", reef(species=5, look="murky"), adapter.classes),
    ]
    found = measure_targets(adapter, ready(targets, session.backbone, session.needs == "features", 1))
    if adapter.new_class(adapter.config, spec) == "images":
        assert "images of the new classes" in found.unanswered["other:far"]
    else:
        outcome = found.outcomes["other:far"]
        assert outcome.logits.shape == (14, 7) and torch.isfinite(outcome.logits).all()
    outcome = found.outcomes["shift:murky"]
    assert outcome.logits.shape == (8, 4) and torch.isfinite(outcome.logits).all()
    assert outcome.classes.names == adapter.classes.names
    after = [adapter.logits(batch) for batch in batches]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
