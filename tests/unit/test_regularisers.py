"""Regularisers: teachers that stay where they are, gradients that are there, and what is refused."""

import importlib

import pytest
import torch
from limpet.classes import ClassSet
from limpet.continual import Regulariser, Task, make
from limpet.continual.base import encoder_problem, gradient_paths
from limpet.continual.configs import SCHEMAS, LwFConfig, ReplayConfig, VRLwFConfig, ZSCLConfig
from limpet.continual.distillation import distil
from limpet.continual.teacher import TaskStart
from limpet.continual.vocabulary import Vocabulary, known_words
from limpet.errors import RecipeError

NAMES = ("blue tang", "clownfish", "moray eel")
SMALL = {"count": 40, "length": 3, "student_count": 16, "teacher": "task_start"}


def method(tiny, name, **settings):
    module = importlib.import_module(f"limpet.methods.{name}")
    kind = next(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__ and v is not module.Config)
    torch.manual_seed(0)
    return kind(module.Config(**settings)).setup(tiny, ClassSet(names=NAMES))


def batch_of(adapter, count=6):
    size, generator = adapter.backbone.image_size, torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator)
    batch = {"label": torch.arange(count) % 3, "index": torch.arange(count), "path": [str(i) for i in range(count)]}
    if adapter.needs(adapter.config, adapter.backbone.spec) == "images":
        return {**batch, "image": images}
    return {**batch, "feature": adapter.backbone.encode_image(images, normalize=False)}


def started(adapter, config, batch, fixed=True):
    regulariser = make(config)
    assert regulariser.problem(adapter) is None
    adapter.train()
    regulariser.start(adapter, Task(0, NAMES, 1, batches=lambda: [batch], fixed_images=fixed))
    return regulariser


def train(adapter, regulariser, batch, steps=3, lr=0.01):
    optimiser = torch.optim.SGD(adapter.learnable(), lr=lr)
    for step in range(steps):
        torch.manual_seed(step)
        optimiser.zero_grad()
        regulariser.loss(adapter, batch, step).backward()
        optimiser.step()
        regulariser.stepped(adapter, step)


METHODS = [("coop", {"context_length": 2}), ("maple", {}), ("vpt", {"length": 2}), ("lora", {"dropout": 0.0}), ("clip_adapter", {}),
           ("fine_tune", {"towers": "both"})]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), METHODS)
@pytest.mark.parametrize("config", [LwFConfig(), VRLwFConfig(**SMALL), VRLwFConfig(resample="step", **SMALL),
                                    ZSCLConfig(**SMALL)])  # fmt: skip
def test_the_teacher_does_not_move_and_the_student_is_pulled_back(tiny, name, settings, config):
    adapter = method(tiny, name, **settings)
    batch = batch_of(adapter)
    regulariser = started(adapter, config, batch, fixed=False)
    teacher = regulariser.teacher
    theirs = {t.data_ptr() for t in teacher.state.values()}
    assert not theirs & {p.data_ptr() for p in [*adapter.parameters(), *tiny.model.parameters()]}
    state = {k: v.clone() for k, v in teacher.state.items()}
    images, texts = teacher.image_features(batch), teacher.text_features(["a b", "c"])
    frozen = {k: v.clone() for k, v in tiny.model.state_dict().items()}
    train(adapter, Regulariser(config), batch)  # away from the start, without any care
    assert all(torch.equal(state[k], teacher.state[k]) for k in state)
    torch.testing.assert_close(teacher.image_features(batch), images, rtol=0, atol=0)
    torch.testing.assert_close(teacher.text_features(["a b", "c"]), texts, rtol=0, atol=0)
    assert all(torch.equal(frozen[k], v) for k, v in tiny.model.state_dict().items())
    adapter.zero_grad()
    regulariser.penalty(adapter, batch, regulariser.teacher_images(batch), 0).backward()
    assert sum(float(p.grad.abs().sum()) for p in adapter.learnable() if p.grad is not None) > 1e-6
    assert not any(t.requires_grad for t in teacher.state.values())


@pytest.mark.parametrize(("name", "settings"), [("lora", {"dropout": 0.0}), ("maple", {}), ("coop", {"context_length": 2})])
def test_nothing_pulls_at_a_student_that_is_its_teacher(tiny, name, settings):
    adapter = method(tiny, name, **settings)
    batch = batch_of(adapter)
    regulariser = started(adapter, VRLwFConfig(**SMALL), batch)
    regulariser.penalty(adapter, batch, regulariser.teacher_images(batch), 0).backward()
    assert max(float(p.grad.abs().max()) for p in adapter.learnable() if p.grad is not None) < 1e-5


def test_the_loss_pulls_towards_the_teacher(tiny):
    adapter = method(tiny, "lora", towers="image", dropout=0.0)
    batch = batch_of(adapter)
    regulariser = started(adapter, VRLwFConfig(**SMALL), batch)
    train(adapter, Regulariser(regulariser.config), batch, steps=5, lr=0.3)
    before = (adapter.encode_image(batch) * regulariser.teacher.image_features(batch)).sum(-1).mean()
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.01)
    for step in range(20):
        optimiser.zero_grad()
        regulariser.penalty(adapter, batch, regulariser.teacher_images(batch), step).backward()
        optimiser.step()
    after = (adapter.encode_image(batch) * regulariser.teacher.image_features(batch)).sum(-1).mean()
    assert after > before


def test_published_text_features_give_prompts_no_gradient(tiny):
    adapter = method(tiny, "coop", context_length=2)
    batch = batch_of(adapter)
    regulariser = started(adapter, VRLwFConfig(text_features="teacher", **SMALL), batch)
    train(adapter, Regulariser(regulariser.config), batch)
    assert not regulariser.penalty(adapter, batch, regulariser.teacher_images(batch), 0).requires_grad
    chosen = started(adapter, VRLwFConfig(**SMALL), batch)
    assert chosen.sides == ("student",)


def test_auto_follows_the_gradient(tiny):
    for name, settings, sides in (
        ("vpt", {}, ("teacher",)), ("coop", {"context_length": 2}, ("student",)), ("maple", {}, ("teacher", "student")),
        ("lora", {"towers": "image"}, ("teacher",)), ("lora", {"towers": "text"}, ("student",)),
    ):  # fmt: skip
        adapter = method(tiny, name, **settings)
        adapter.train()
        assert make(VRLwFConfig(**SMALL)).text_sides(adapter) == sides, (name, settings)
    assert gradient_paths(method(tiny, "lora", towers="image")) == (True, False)


def test_remembered_images_give_the_same_loss(tiny):
    adapter = method(tiny, "lora", dropout=0.0)
    batch = batch_of(adapter)
    kept, fresh = (started(adapter, VRLwFConfig(**SMALL), batch, fixed=fixed) for fixed in (True, False))
    assert len(kept._rows) == 6 and not len(fresh._rows)
    torch.testing.assert_close(kept.loss(adapter, batch, 0), fresh.loss(adapter, batch, 0))


def test_task_and_distillation_share_one_pass(tiny):
    adapter = method(tiny, "vpt")
    batch = batch_of(adapter)
    regulariser = started(adapter, VRLwFConfig(**SMALL), batch)
    asked = []
    plain = type(adapter).encode_image
    adapter.encode_image = lambda given: asked.append(1) or plain(adapter, given)
    regulariser.loss(adapter, batch, 0)
    assert len(asked) == 1


def test_what_cannot_be_regularised_says_so(tiny):
    for name in ("gda", "zero_shot", "nearest_mean"):
        for config in (LwFConfig(), VRLwFConfig(), ZSCLConfig(), ReplayConfig()):
            reason = make(config).problem(method(tiny, name))
            assert reason and "none" in reason
    rows = make(LwFConfig()).problem(method(tiny, "taskres"))
    assert rows and "row for each class" in rows and "replay" in rows
    assert make(ReplayConfig()).problem(method(tiny, "taskres")) is None
    assert "neither carries a gradient" in (encoder_problem(method(tiny, "cocoop"), "lwf") or "")
    assert all(make(config()).problem(method(tiny, "lora")) is None for config in SCHEMAS.values())


def test_the_weight_ensemble_is_the_mean_of_start_and_snapshots(tiny):
    adapter = method(tiny, "lora", towers="image", dropout=0.0)
    batch = batch_of(adapter)
    regulariser = started(adapter, ZSCLConfig(ensemble_every=2, **SMALL), batch)
    seen = [[p.detach().clone() for p in adapter.learnable()]]
    optimiser = torch.optim.SGD(adapter.learnable(), lr=0.1)
    for step in range(5):
        optimiser.zero_grad()
        regulariser.loss(adapter, batch, step).backward()
        optimiser.step()
        regulariser.stepped(adapter, step)
        if step % 2 == 0:
            seen.append([p.detach().clone() for p in adapter.learnable()])
        if step == 2:  # as a killed run does
            again = make(regulariser.config)
            again.start(adapter, Task(0, NAMES, 1, batches=lambda: [batch]))
            again.load_state_dict(torch.load(_saved(regulariser.state_dict()), weights_only=True))
            again._start = regulariser._start
            regulariser = again
    regulariser.finish(adapter)
    assert len(seen) == 4
    for parameter, *snapshots in zip(adapter.learnable(), *seen, strict=True):
        torch.testing.assert_close(parameter.detach(), torch.stack(snapshots).mean(0), rtol=1e-6, atol=1e-7)


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_l2_is_the_squared_distance_from_the_start(tiny):
    adapter = method(tiny, "lora", towers="image", dropout=0.0)
    batch = batch_of(adapter)
    without, with_it = (started(adapter, ZSCLConfig(l2=l2, ensemble_every=0, **SMALL), batch) for l2 in (0.0, 2.0))
    with torch.no_grad():
        for parameter in adapter.learnable():
            parameter.add_(0.5)
    difference = with_it.loss(adapter, batch, 0) - without.loss(adapter, batch, 0)
    expected = 2.0 * 0.25 * sum(p.numel() for p in adapter.learnable())
    torch.testing.assert_close(float(difference.detach()), expected, rtol=1e-3, atol=0)


def test_reference_images_from_a_folder(tiny, fish):
    adapter = method(tiny, "lora", towers="image", dropout=0.0)
    batch = batch_of(adapter)
    regulariser = started(adapter, ZSCLConfig(images=str(fish), reference_batch=4, **SMALL), batch)
    first, again, other = (regulariser.references(adapter, batch, step)["image"] for step in (0, 0, 1))
    assert first.shape[0] == 4 and torch.equal(first, again) and not torch.equal(first, other)
    assert regulariser.loss(adapter, batch, 0).requires_grad


def test_words_that_limpet_tiny_knows(tiny):
    vocabulary = Vocabulary(VRLwFConfig(count=50, length=4), tiny, NAMES, seed=1)
    texts = vocabulary.draw(0)
    assert vocabulary.source == "random_words"
    assert len(texts) == 50 and all(len(text.split()) == 4 for text in texts)
    assert not any(tiny.unseen_tokens(text) for text in texts)
    assert vocabulary.draw(0) == texts and vocabulary.draw(1) != texts and vocabulary.draw(0, 1) != texts
    assert len(known_words(tiny)) > 100


def test_random_ids_leave_start_and_end_out(random_clip):
    clip = random_clip()
    vocabulary = Vocabulary(VRLwFConfig(count=300, length=10), clip, NAMES, seed=1)
    texts = vocabulary.draw(0)
    assert vocabulary.source == "random_bpe"
    rows = clip.tokenize(texts)
    assert rows.shape == (300, 24)
    assert (rows[:, 0] == 49406).all() and (rows[:, 11] == 49407).all() and (rows[:, 12:] == 0).all()
    assert ((rows == 49407).sum(1) == 1).all() and ((rows == 49406).sum(1) == 1).all()


@pytest.mark.parametrize("source", ["random_words", "random_bpe"])
def test_random_texts_longer_than_the_tower_reads_are_refused(tiny, source):
    longest = Vocabulary(VRLwFConfig(source=source, count=2, length=75), tiny, ["a"], 1)
    assert len(longest.draw(0)) == 2
    with pytest.raises(RecipeError, match="length is 76: the text tower of limpet-tiny reads 77 tokens.* at most 75"):
        Vocabulary(VRLwFConfig(source=source, count=2, length=76), tiny, ["a"], 1)


def test_class_names_and_captions(tiny, tmp_path):
    assert Vocabulary(VRLwFConfig(source="class_names"), tiny, NAMES, 1).draw(0) == list(NAMES)
    (tmp_path / "captions.txt").write_text("a fish\n\na bird\na fish\n", encoding="utf-8")
    config = VRLwFConfig(source="captions", captions=str(tmp_path / "captions.txt"))
    assert Vocabulary(config, tiny, NAMES, 1).draw(0) == ["a fish", "a bird"]
    with pytest.raises(RecipeError, match="continual.captions=FILE"):
        Vocabulary(VRLwFConfig(source="captions"), tiny, NAMES, 1)
    with pytest.raises(RecipeError, match="cannot be read"):
        Vocabulary(VRLwFConfig(source="captions", captions=str(tmp_path / "none.txt")), tiny, NAMES, 1)


def test_cross_entropy_identities():
    generator = torch.Generator().manual_seed(1)
    t, z = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p = (t / 2).softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(distil(t, t), 4 * entropy)
    z.requires_grad_()
    distil(t, z).backward()
    torch.testing.assert_close(z.grad, 2 * ((z.detach() / 2).softmax(-1) - p) / 4)


def test_encode_text_of_prompts_is_their_classifier(tiny):
    for name, settings in (("coop", {"context_length": 2}), ("maple", {}), ("kgcoop", {})):
        adapter = method(tiny, name, **settings)
        adapter.eval()
        torch.testing.assert_close(adapter.encode_text(list(NAMES)), adapter.class_weights())
        ids = [tuple(tiny.token_ids(text)) for text in NAMES]
        torch.testing.assert_close(adapter.encode_text(ids), adapter.class_weights(), rtol=1e-5, atol=1e-5)


def test_a_teacher_leaves_the_student_as_it_was(tiny):
    adapter = method(tiny, "lora", dropout=0.5)
    batch = batch_of(adapter)
    adapter.train()
    teacher = TaskStart(adapter)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    teacher.image_features(batch)
    assert adapter.training
    assert all(torch.equal(before[k], v) for k, v in adapter.state_dict().items())
    assert {id(p) for p in adapter.learnable()} == {id(p) for _, p in adapter.clip.named_parameters()}


def test_the_original_clip_as_teacher(tiny):
    for name, settings, template in (("coop", {"context_length": 2}, "a photo of a {}."), ("lora", {"dropout": 0.0}, "{}")):
        adapter = method(tiny, name, **settings)
        batch = batch_of(adapter)
        regulariser = started(adapter, VRLwFConfig(**{**SMALL, "teacher": "original"}), batch)
        train(adapter, Regulariser(regulariser.config), batch)
        texts = ["red fish", "dog"]
        expected = tiny.encode_text([template.replace("{}", text) for text in texts])
        torch.testing.assert_close(regulariser.teacher.text_features(texts), expected)
        raw = batch["feature"] if "feature" in batch else tiny.encode_image(batch["image"], normalize=False)
        torch.testing.assert_close(regulariser.teacher.image_features(batch), torch.nn.functional.normalize(raw, dim=-1))
        torch.testing.assert_close(regulariser.teacher.class_weights(), tiny.encode_text([f"a photo of a {n}." for n in NAMES]))
