"""Objectives, Muon, and contrastive training on captions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.methods.contrastive import Config, Contrastive
from limpet.muon import Muon, orthogonalised
from limpet.objectives import infonce, siglip


def cosines(rows=6, columns=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = (F.normalize(torch.randn(n, 5, generator=generator, dtype=torch.float64), dim=-1) for n in (rows, columns))
    return a @ b.T


def test_infonce_with_single_positives_is_clips_loss():
    logits, scale = cosines(), torch.tensor(2.0, dtype=torch.float64)
    target = torch.arange(6)
    expected = (F.cross_entropy(scale.exp() * logits, target) + F.cross_entropy(scale.exp() * logits.T, target)) / 2
    assert infonce(logits, torch.eye(6, dtype=torch.bool), scale, torch.zeros(())).item() == pytest.approx(expected.item(), abs=1e-6)


def test_infonce_reaches_zero_exactly_where_all_positives_are_equally_near():
    positives = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool()
    logits = positives.double()
    assert infonce(logits, positives, torch.tensor(6.0), torch.zeros(())).item() == pytest.approx(0, abs=1e-6)
    assert infonce(-logits, positives, torch.tensor(2.0), torch.zeros(())) > 1


def test_rows_without_a_positive_are_left_out():
    positives = torch.eye(4, dtype=torch.bool)
    positives[3] = False
    logits, scale = cosines(4, 4), torch.tensor(1.0, dtype=torch.float64)
    rows = F.cross_entropy(scale.exp() * logits[:3], torch.arange(3))
    columns = F.cross_entropy(scale.exp() * logits.T[:3], torch.arange(3))
    assert infonce(logits, positives, scale, torch.zeros(())).item() == pytest.approx((rows + columns).item() / 2, abs=1e-6)


def test_siglip_is_a_binary_question_about_every_pair():
    logits, scale, bias = cosines(4, 4), torch.tensor(1.5, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    positives = torch.eye(4, dtype=torch.bool)
    expected = F.binary_cross_entropy_with_logits(scale.exp() * logits + bias, positives.double(), reduction="sum") / 4
    assert siglip(logits, positives, scale, bias).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(*shape, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalised(given, steps=7))
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    aligned = torch.einsum("nri,nrc,nci->ni", u, orthogonalised(given, steps=7), v.transpose(1, 2))
    assert aligned.min() > 0.6  # the singular vectors are kept


def test_muon_leaves_table_rows_without_gradient_alone_and_equals_adamw_elsewhere():
    torch.manual_seed(0)
    table, vector = torch.nn.Parameter(torch.randn(5000, 4)), torch.nn.Parameter(torch.randn(7))
    twin, before = torch.nn.Parameter(vector.detach().clone()), table.detach().clone()
    muon = Muon([("token_embedding.weight", table), ("bias", vector)], lr=0.1, rest_lr=0.01, weight_decay=0.1)
    adamw = torch.optim.AdamW([twin], lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(3):
        for parameter in (vector, twin):
            parameter.grad = torch.linspace(-1, 1, 7) * (step + 1)
        table.grad = torch.zeros_like(table)
        table.grad[[3, 4000]] = 1.0
        muon.step()
        adamw.step()
    assert torch.allclose(vector, twin, atol=1e-6)
    changed = (table != before).any(1).nonzero()[:, 0].tolist()
    assert changed == [3, 4000]


def test_muon_takes_stacked_queries_keys_and_values_apart():
    torch.manual_seed(0)
    stacked = torch.nn.Parameter(torch.zeros(24, 8, dtype=torch.float64))
    optimiser = Muon([("blocks.0.attn.in_proj_weight", stacked)], lr=1.0, rest_lr=1.0)
    stacked.grad = torch.randn(24, 8, dtype=torch.float64)
    optimiser.step()
    for part in stacked.detach().chunk(3):
        values = torch.linalg.svdvals(part / (0.2 * 8**0.5))
        assert values.min() > 0.3 and values.max() < 1.3


def batch(size=32, count=6):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)
    names = ["a red fish", "a blue fish", "a red fish", "two crabs", "an eel", "a very long green eel"][:count]
    return {"image": image, "caption": names, "path": list("abcdef")[:count], "label": torch.zeros(count, dtype=torch.long)}


def made(random_clip, **settings):
    return Contrastive(Config(**settings)).setup(random_clip(), ClassSet(("fish", "eel")))


def test_captions_that_repeat_are_positives_of_each_other(random_clip):
    adapter = made(random_clip).train()
    given = batch()
    loss = adapter.loss(given)
    texts = ["a red fish", "a blue fish", "two crabs", "an eel", "a very long green eel"]
    logits = adapter.encode_image(given) @ adapter.encode_text(texts).T
    positives = torch.tensor([[caption == text for text in texts] for caption in given["caption"]])
    expected = infonce(logits, positives, adapter.scale.log(), adapter.bias)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    more = torch.eye(6, dtype=torch.bool)
    more[0, 1] = True  # the blue fish's caption is true of the first image, too
    assert adapter.loss({**given, "positives": more}).item() != pytest.approx(loss.item(), abs=1e-4)


@pytest.mark.parametrize("objective", ["infonce", "siglip"])
def test_both_towers_and_the_temperature_learn_to_match_captions(objective, random_clip):
    adapter = made(random_clip, objective=objective, temperature=10.0).train()
    optimiser = torch.optim.Adam(adapter.learnable(), lr=2e-3)
    first = adapter.loss(batch()).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = adapter.loss(batch())
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2 * first
    assert adapter.scale.item() != pytest.approx(10.0)


def test_locked_image_tower_stays_frozen(random_clip):
    adapter = made(random_clip, towers="text").train()
    adapter.loss(batch()).backward()
    names = [name for name, p in adapter.named_parameters() if p.requires_grad]
    assert not any("visual" in name for name in names) and any("token_embedding" in name for name in names)


def test_patches_are_left_out_in_training_only_and_fewer_towards_the_end(random_clip):
    adapter = made(random_clip, patch_dropout=0.5).train()
    given = batch()
    torch.manual_seed(0)
    one = adapter.loss(given)
    torch.manual_seed(1)
    assert one.item() != adapter.loss(given).item()
    assert adapter.patch_share == 0.5
    adapter.epoch_ended(7, 10)
    assert adapter.patch_share == 0.75
    adapter.epoch_ended(9, 10)
    assert adapter.patch_share == 1.0
    assert adapter.loss(given).item() == adapter.loss(given).item()


@pytest.mark.parametrize(("choice", "always"), [("contrast", True), ("random", False)])
def test_patches_with_something_on_them_can_be_kept(choice, always, random_clip):
    adapter = made(random_clip, patch_dropout=0.5, patch_choice=choice).train()
    given = batch()
    side = given["image"].shape[-1] // adapter.backbone.model.visual.grid_size[0]
    image = torch.zeros_like(given["image"])
    image[:, :, :side, :side] = torch.randn(len(image), 3, side, side, generator=torch.Generator().manual_seed(0))
    kept = []
    for seed in range(6):
        torch.manual_seed(seed)
        pixels = image.clone().requires_grad_()
        adapter.loss({**given, "image": pixels}).backward()
        kept.append((pixels.grad[:, :, :side, :side].abs().sum((1, 2, 3)) > 0).all().item())
    assert all(kept) is always


def test_moved_positions_train_later_places(random_clip):
    adapter = made(random_clip, position_offsets=True).train()
    assert all(adapter.loss(batch()).item() == adapter.loss(batch()).item() for _ in range(6))  # not yet in the first half
    adapter.epoch_ended(4, 10)
    places = torch.zeros(24)
    for seed in range(12):
        torch.manual_seed(seed)
        adapter.zero_grad()
        adapter.loss(batch()).backward()
        grads = dict(adapter.named_parameters())["trained.positional_embedding"].grad
        places += grads.abs().sum(1).float()
    assert (places > 0).sum() > 15  # the longest caption alone needs 7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "infonc"}, "infonce"), ({"patch_dropout": 1.0}, "patch_dropout"), ({"temperature": 0.0}, "temperature"),
        ({"patch_choice": "some"}, "patch_choice"),
        ({"patch_choice": "contrast"}, "patch_dropout=0"),
        ({"patch_dropout": 0.5, "towers": "text"}, "patch_dropout"), ({"position_offsets": True, "towers": "image"}, "text tower"),
    ],
)  # fmt: skip
def test_impossible_settings_are_sentences(settings, words, random_clip):
    assert words in str(Contrastive.supports(Config(**settings), random_clip().spec))


def test_the_warm_up_trains_texts_alone_and_ends_after_its_steps(random_clip):
    adapter = made(random_clip, text_warmup=2).train()
    given = {**batch(), "other_caption": ["red", "blue", "red", "crabs", "eel", "green"]}
    assert adapter.batch_keys(adapter.config, adapter.backbone.spec) == ("other_caption",)
    texts = ["a red fish", "a blue fish", "two crabs", "an eel", "a very long green eel"]
    positives = torch.tensor([[caption == text for text in texts] for caption in given["caption"]])
    logits = adapter.encode_text(given["other_caption"]) @ adapter.encode_text(texts).T
    expected = infonce(logits, positives, adapter.scale.log(), adapter.bias)
    for _ in range(2):
        adapter.zero_grad()
        loss = adapter.loss(given)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        moved = {name.split(".")[1] for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
        assert "visual" not in moved and "token_embedding" in moved
    loss = adapter.loss(given)
    loss.backward()
    assert loss.item() == pytest.approx(adapter.loss(batch()).item(), abs=1e-9)
    assert any(p.grad is not None and p.grad.any() for name, p in adapter.named_parameters() if ".visual." in f".{name}")


def test_a_resumed_training_does_not_warm_up_again(random_clip):
    adapter = made(random_clip, text_warmup=1).train()
    adapter.loss({**batch(), "other_caption": ["red", "blue", "red", "crabs", "eel", "green"]})
    again = made(random_clip, text_warmup=1).train()
    again.load_state_dict(adapter.state_dict())
    assert again.loss(batch()).item() == pytest.approx(made(random_clip).train().loss(batch()).item(), abs=1e-6)


@pytest.mark.parametrize("settings", [{"text_warmup": -1}, {"text_warmup": 5, "towers": "image"}])
def test_a_warm_up_that_cannot_be_is_a_sentence(settings, random_clip):
    assert "method.text_warmup" in Contrastive.supports(Config(**settings), random_clip().spec)
