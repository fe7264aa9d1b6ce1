"""The convolutional net that an image tower imitates, and contrastive training with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.conv_teacher import ConvTeacher
from limpet.errors import LimpetError
from limpet.methods.contrastive import Config, Contrastive
from limpet.objectives import infonce

CAPTIONS = ["a red fish", "a blue fish", "a red fish", "two crabs", "an eel", "a very long green eel"]
TEXTS = list(dict.fromkeys(CAPTIONS))
POSITIVES = torch.tensor([[caption == text for text in TEXTS] for caption in CAPTIONS])


def batch(size=32):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(6, 3, size, size, generator=generator, dtype=torch.float64)
    other = ["red", "blue", "red", "crabs", "eel", "green"]
    return {"image": image, "caption": CAPTIONS, "other_caption": other, "path": list("abcdef")}


def made(random_clip, **settings):
    return Contrastive(Config(**settings)).setup(random_clip(), ClassSet(("fish", "eel"))).train()


def moved(adapter):
    """Which of the parts of an adapter the last loss has a gradient for."""
    names = [n for n, p in adapter.named_parameters() if p.grad is not None and p.grad.any()]
    kinds = {"visual": "trained.visual.", "text": "trained.token", "teacher": "teacher.kernels", "imitation": "teacher.imitate"}
    return {kind for kind, prefix in kinds.items() if any(name.startswith(prefix) for name in names)}


def test_the_map_is_standardised_and_an_eighth_of_the_image():
    torch.manual_seed(0)
    teacher = ConvTeacher(16, 24).train()
    found = teacher.map(torch.randn(8, 3, 64, 48))
    assert found.shape == (8, 128, 8, 6)
    assert found.mean((0, 2, 3)).abs().max() < 1e-4 and (found.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2
    features = teacher(torch.randn(8, 3, 64, 48))
    assert features.shape == (8, 16) and torch.allclose(features.norm(dim=1), torch.ones(8), atol=1e-5)


def test_features_know_where_a_thing_is():
    torch.manual_seed(0)
    teacher = ConvTeacher(16, 24).eval()
    left = torch.zeros(1, 3, 64, 64)
    left[:, :, 24:40, 4:20] = 1.0
    assert F.cosine_similarity(teacher(left), teacher(left.flip(3))).item() < 0.9


def test_tokens_are_compared_with_the_map_at_their_own_places():
    torch.manual_seed(0)
    teacher, images, tokens = ConvTeacher(16, 24), torch.randn(5, 3, 64, 64), torch.randn(5, 4, 24)
    places = torch.stack([torch.randperm(16)[:4] for _ in range(5)])
    found = teacher.distance(tokens, images, (4, 4), places)
    whole = F.avg_pool2d(teacher.eval().map(images), 2)  # 8 x 8 brought to 4 x 4
    told = teacher.imitate(tokens)
    expected = sum(
        (told[i, j] - whole[i, :, int(at) // 4, int(at) % 4]).square().mean() for i in range(5) for j, at in enumerate(places[i])
    )
    assert found.item() == pytest.approx(expected.item() / 20, rel=1e-5)
    found.backward()
    assert all(p.grad is None for p in teacher.kernels) and teacher.imitate[1].weight.grad.any()


def test_text_then_teacher_then_the_image_tower_learn(random_clip):
    adapter = made(random_clip, text_warmup=1, teacher_steps=2)
    phases = []
    for _ in range(5):
        adapter.zero_grad()
        adapter.loss(batch()).backward()
        phases.append(moved(adapter))
    assert phases == [{"text"}, *2 * [{"text", "teacher"}], *2 * [{"visual", "text", "imitation"}]]


def test_the_teacher_learns_by_the_objective_between_its_features_and_the_texts(random_clip):
    adapter = made(random_clip, teacher_steps=1)
    features = adapter.teacher.train()(batch()["image"]).double()
    expected = infonce(features @ adapter.encode_text(TEXTS).T, POSITIVES, adapter.scale.log(), adapter.bias)
    assert adapter.loss(batch()).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_afterwards_the_distance_of_the_last_but_one_blocks_tokens_is_added(weight, random_clip):
    adapter = made(random_clip, teacher_steps=1, teacher_weight=weight)
    adapter.loss(batch())
    loss = adapter.loss(batch())
    visual = adapter.clip.model.visual
    seen = []
    hook = visual.transformer.resblocks[-2].register_forward_hook(lambda module, given, out: seen.append(out))
    features = F.normalize(visual(batch()["image"]), dim=-1)
    hook.remove()
    plain = infonce(features @ adapter.encode_text(TEXTS).T, POSITIVES, adapter.scale.log(), adapter.bias)
    distance = adapter.teacher.distance(seen[0][:, 1:], batch()["image"], visual.grid_size)
    assert loss.item() == pytest.approx(plain.item() + weight * distance.item(), abs=1e-5)


def test_texts_learn_beside_the_teacher_and_can_stay_as_they_are_then(random_clip):
    adapter = made(random_clip, text_warmup=1, teacher_steps=1, lock_text=True, position_offsets=True)
    phases = []
    for _ in range(4):
        adapter.zero_grad()
        adapter.loss(batch()).backward()
        phases.append(moved(adapter))
    assert phases == [{"text"}, {"text", "teacher"}, *2 * [{"visual", "imitation"}]]
    assert len({adapter.loss(batch()).item() for _ in range(6)}) == 1  # texts no longer begin at a position by chance


def test_locked_texts_have_trained_their_later_positions_before(random_clip):
    torch.manual_seed(0)
    adapter = made(random_clip, text_warmup=12, teacher_steps=12, lock_text=True, position_offsets=True)
    places = []
    for _ in range(24):
        adapter.zero_grad()
        adapter.loss(batch()).backward()
        gradient = dict(adapter.named_parameters())["trained.positional_embedding"].grad
        places.append(int(gradient.any(1).nonzero().max()))
    longest = max(places[:12])
    assert longest < 10 < max(places[12:])  # the longest caption alone needs 7


@pytest.mark.parametrize(("steps", "told"), [(2, True), (3, False)])
def test_a_training_that_ends_before_the_image_towers_turn_says_so(steps, told, random_clip):
    adapter = made(random_clip, text_warmup=1, teacher_steps=2)
    for _ in range(steps):
        adapter.loss(batch())
    adapter.epoch_ended(0, 2)
    assert not any("turn" in note for note in adapter.notes)
    adapter.epoch_ended(1, 2)
    assert any("2 of the 3 steps" in note for note in adapter.notes) is told


def test_an_image_tower_comes_to_tell_the_map(random_clip):
    adapter = made(random_clip, teacher_steps=30, teacher_weight=5.0, patch_dropout=0.3)
    optimiser = torch.optim.Adam(adapter.learnable(), lr=3e-3)
    losses = []
    for _ in range(120):
        optimiser.zero_grad()
        loss = adapter.loss(batch())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[29] < 0.3 * losses[0]  # the teacher
    assert losses[-1] < 0.4 * losses[30]  # the tower


def test_a_resumed_training_goes_on_with_the_teacher_it_had(random_clip):
    adapter = made(random_clip, teacher_steps=1)
    adapter.loss(batch()).backward()
    again = made(random_clip, teacher_steps=1)
    again.load_state_dict(adapter.state_dict())
    assert again.loss(batch()).item() == adapter.loss(batch()).item()


def test_answers_do_not_ask_the_teacher(random_clip):
    adapter, plain = made(random_clip, teacher_steps=1).eval(), made(random_clip).eval()
    assert torch.equal(adapter.logits(batch()), plain.logits(batch()))
    assert set(adapter.merged()) == set(plain.merged())


@pytest.mark.parametrize(
    "settings", [{"teacher_steps": -1}, {"teacher_steps": 2, "towers": "text"}, {"teacher_steps": 2, "teacher_weight": -1.0}]
)
def test_a_teacher_that_cannot_be_is_a_sentence(settings, random_clip):
    assert "method.teacher_" in Contrastive.supports(Config(**settings), random_clip().spec)


def test_texts_without_a_teacher_cannot_be_locked(random_clip):
    assert "method.lock_text" in Contrastive.supports(Config(lock_text=True, text_warmup=2), random_clip().spec)


def test_a_teacher_learns_in_one_process_alone(random_clip, monkeypatch):
    monkeypatch.setattr("limpet.methods.contrastive.processes", lambda: 2)
    monkeypatch.setattr("limpet.methods.contrastive.gathered", lambda rows: rows)
    with pytest.raises(LimpetError, match=r"trainer\.devices=1"):
        made(random_clip, text_warmup=3, teacher_steps=1).loss(batch())
