"""Few-shot draws in Dassl's order and base/new halves, against the golden case."""

import random

import pytest
from limpet.datamodules.fewshot import base_and_new, draw_dassl, relabel


@pytest.fixture
def case(golden):
    return golden("fewshot")


def _runs(case):
    return [(seed, shots) for seed in case.json["config"]["seeds"] for shots in case.json["config"]["shots"]]


@pytest.mark.parametrize("order, prefix", [("train_labels", ""), ("train_labels_grouped", "grouped.")])
def test_train_then_val_from_one_stream(case, order, prefix):
    train, val = case.tensors[order].tolist(), case.tensors["val_labels"].tolist()
    for seed, shots in _runs(case):
        rng = random.Random(seed)
        name = f"{prefix}seed{seed}.shots{shots}"
        assert draw_dassl(train, shots, rng) == case.tensors[f"{name}.train_idx"].tolist()
        assert draw_dassl(val, min(shots, 4), rng) == case.tensors[f"{name}.val_idx"].tolist()


def test_repetition_fills_small_classes(case):
    train = case.tensors["train_labels"].tolist()
    for seed, shots in _runs(case):
        drawn = draw_dassl(train, shots, random.Random(seed), repeat=True)
        assert drawn == case.tensors[f"seed{seed}.shots{shots}.repeat.train_idx"].tolist()


def test_base_and_new_of_a_draw(case):
    train, val = case.tensors["train_labels"].tolist(), case.tensors["val_labels"].tolist()
    for seed, shots in _runs(case):
        name = f"seed{seed}.shots{shots}"
        drawn = {split: case.tensors[f"{name}.{split}_idx"].tolist() for split in ("train", "val")}
        halves = base_and_new([train[i] for i in drawn["train"]])
        for part, keep in zip(("base", "new"), halves, strict=True):
            positions, labels = relabel([train[i] for i in drawn["train"]], keep)
            assert [drawn["train"][i] for i in positions] == case.tensors[f"{name}.{part}.train_idx"].tolist()
            assert labels == case.tensors[f"{name}.{part}.train_labels"].tolist()
            positions, _ = relabel([val[i] for i in drawn["val"]], keep)
            assert [drawn["val"][i] for i in positions] == case.tensors[f"{name}.{part}.val_idx"].tolist()


def test_halves_by_number_of_classes(case):
    sizes = {
        int(key.split(".")[0].removeprefix("split_n")) for key in case.tensors if key.startswith("split_n")
    }
    assert sizes
    for n in sizes:
        items = [label for label in reversed(range(n)) for _ in range(2)]
        for part, keep in zip(("base", "new"), base_and_new(items), strict=True):
            assert keep == case.tensors[f"split_n{n}.{part}.old_labels"].tolist()
            assert relabel(items, keep)[1] == case.tensors[f"split_n{n}.{part}.item_new_labels"].tolist()
