"""What a prompt-learning step computes: token rows, counted where they pass through the towers' layers."""

from contextlib import contextmanager

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.coop import Config as CoOpConfig
from limpet.methods.coop import CoOp
from limpet.methods.fine_tune import Config as FineTuneConfig
from limpet.methods.fine_tune import FineTune
from limpet.methods.maple import Config as MaPLeConfig
from limpet.methods.maple import MaPLe
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

NAMES = tuple(dict.fromkeys(IMAGENET_CLASSNAMES))
LAYERS, READS, PATCHES = 4, 77, 16


@pytest.fixture
def clip(random_clip):
    """As long a text as CLIP reads."""
    return random_clip(torch.float32, text={"context_length": READS})


@contextmanager
def rows_of(tower):
    """Token rows that pass through each layer of a tower: a list with an entry a call."""
    rows = []
    hooks = [
        block.mlp.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
        for block in tower.resblocks
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def class_set(count):
    return ClassSet(NAMES[:count], texts={}, templates=("a photo of a {}.",))


def useful(clip, count, shared):
    """Start and prompts once, then of every class its name, stop and end."""
    return shared + sum(len(clip.token_ids(f"{name}.")) + 1 for name in NAMES[:count])


@pytest.mark.parametrize(("count", "ratio"), [(10, 12), (100, 14), (200, 16), (900, 18)])
def test_coop_computes_each_useful_token_once(clip, count, ratio):
    """16 context tokens: at least so many times fewer rows than 77 for every class; in the last layer one a class."""
    adapter = CoOp(CoOpConfig()).setup(clip, class_set(count)).train()
    with rows_of(clip.model.transformer) as rows:
        adapter.class_weights()
    tokens = useful(clip, count, 1 + 16)
    assert rows == [tokens] * (LAYERS - 1) + [count]
    assert READS * count / tokens > ratio


@pytest.mark.parametrize(("position", "specific"), [("middle", False), ("front", False), ("end", True)])
def test_what_cannot_be_shared_is_cut_to_length(clip, position, specific):
    adapter = CoOp(CoOpConfig(position=position, class_specific=specific)).setup(clip, class_set(50)).train()
    shared = 1 + (8 if position == "middle" else 0)
    own = 16 - shared + 1
    with rows_of(clip.model.transformer) as rows:
        adapter.class_weights()
    assert rows == [useful(clip, 50, shared) + 50 * own] * (LAYERS - 1) + [50]


def test_chunks_stay_within_the_budget(clip):
    """Forward and backward, the second of which computes every chunk again."""
    clip.text_memory = 100
    try:
        adapter = CoOp(CoOpConfig()).setup(clip, class_set(60)).train()
        with rows_of(clip.model.transformer) as rows:
            adapter.class_weights().sum().backward()
    finally:
        clip.text_memory = None
    assert max(rows) <= 100
    assert len(rows) % (2 * LAYERS) == 0 and len(rows) > 4 * LAYERS


def test_memory_is_bounded_where_nothing_is_set(clip, monkeypatch):
    """The same with room for a hundred rows: a block keeps sixteen numbers of four bytes for each of 24 channels."""
    monkeypatch.setattr("limpet.backbone.ACTIVATIONS", 100 * LAYERS * 16 * 4 * 24)
    adapter = CoOp(CoOpConfig()).setup(clip, class_set(60)).train()
    with rows_of(clip.model.transformer) as rows:
        adapter.class_weights().sum().backward()
    assert max(rows) <= 100
    assert len(rows) % (2 * LAYERS) == 0 and len(rows) > 4 * LAYERS


def test_memory_of_a_trained_text_tower_is_bounded_alike(clip, monkeypatch):
    monkeypatch.setattr("limpet.backbone.ACTIVATIONS", 100 * LAYERS * 16 * 4 * 24)
    adapter = FineTune(FineTuneConfig(towers="text")).setup(clip, class_set(60)).train()
    with rows_of(adapter.clip.model.transformer) as rows:
        adapter.class_weights().sum().backward()
    assert max(rows) <= 100
    assert len(rows) % (2 * LAYERS) == 0 and len(rows) > 4 * LAYERS


def test_maple_computes_prompt_rows_only_where_they_are_read(clip):
    adapter = MaPLe(MaPLeConfig(2, 3)).setup(clip, class_set(30)).train()
    batch = {"image": torch.zeros(3, 3, 32, 32), "label": torch.tensor([0, 1, 2])}
    with rows_of(clip.model.transformer) as text, rows_of(clip.model.visual.transformer) as image:
        adapter.loss(batch).backward()
    assert text == [useful(clip, 30, 1 + 4)] * (LAYERS - 1) + [30]  # "of a" stays in the sentence, and is shared
    assert image == [3 * 17, 3 * 17, 3 * (17 + 2), 3]


@pytest.mark.parametrize("position", ["end", "front"])
def test_short_and_long_packs_attend_alike(random_clip, monkeypatch, position):
    """One masked product of all rows and a product for each length of rest give the same features and gradients."""
    from limpet import packed_text
    from limpet.prompting import PromptEncoder

    found = []
    for limit in (0, 10_000):
        monkeypatch.setattr(packed_text, "TOGETHER", limit)
        encoder = PromptEncoder(random_clip(), NAMES[:40], 3, position)
        context = torch.linspace(-1, 1, 2 * 3 * 24, dtype=torch.float64).reshape(2, 3, 24).requires_grad_()
        features = encoder(context)
        (gradient,) = torch.autograd.grad((features * torch.linspace(0, 1, 16, dtype=torch.float64)).sum(), context)
        found.append((features, gradient))
        masked = {chunk.layout.hidden is not None for chunk in encoder._layout.plan(False, None).chunks}
        assert masked == {limit > 0}
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
