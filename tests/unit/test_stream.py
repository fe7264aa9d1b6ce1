"""Streams: which session gets which classes, domains and images, and what is kept of them."""

import pytest
import torch
from limpet.datamodules import load
from limpet.datamodules.configs import AugmentConfig, ReefConfig, StreamConfig, TableConfig
from limpet.datamodules.errors import DataError
from limpet.datamodules.memory import ExemplarMemory, herding
from limpet.datamodules.reef_species import NAMES
from limpet.datamodules.stream import class_sessions, make_stream


def reef(**settings):
    data = load(ReefConfig(**{"shots": 3, "species": 6, "train": 5, "val": 2, "test": 2, **settings}), 1)
    data.setup()
    return data


def test_cifar_sessions_of_ten():
    names = [f"c{i}" for i in range(100)]
    cut = class_sessions(names, 10)
    assert [len(part) for part in cut] == [10] * 10
    assert [name for part in cut for name in part] == names
    assert [len(part) for part in class_sessions(names, 10, 50)] == [50, 10, 10, 10, 10, 10]
    assert [len(part) for part in class_sessions(names[:7], 3)] == [3, 3, 1]


def test_sessions_share_no_class_and_no_image():
    data = reef()
    stream = make_stream(StreamConfig(by="classes", increment=2), data)
    assert [session.classes for session in stream.sessions] == [tuple(data.class_names[i : i + 2]) for i in (0, 2, 4)]
    paths = [{s.path for split in session.data.samples.values() for s in split} for session in stream.sessions]
    assert not paths[0] & paths[1] and not paths[1] & paths[2]
    assert {s.path for s in data.samples["train"]} == {s.path for part in stream.sessions for s in part.data.samples["train"]}
    assert all({s.label for s in part.data.samples["train"]} == {0, 1} for part in stream.sessions)


def test_candidates_grow():
    stream = make_stream(StreamConfig(by="classes", increment=2), reef())
    names = stream.classes()
    assert stream.candidates(0, 0) == names[:2]
    assert stream.candidates(1, 0) == names[:4]
    assert stream.candidates(0, 2) == (*names[:2], *names[4:])


def test_the_plan_is_the_same_every_time():
    config = StreamConfig(by="classes", increment=2, order="random", order_seed=3)
    first, again = (make_stream(config, reef()).manifest() for _ in range(2))
    assert first == again
    assert sorted(n for s in first["sessions"] for n in s["classes"]) == sorted(reef().class_names)
    assert first["hash"] != make_stream(StreamConfig(by="classes", increment=2), reef()).manifest()["hash"]


def test_listed_sessions():
    data = reef()
    a, b, c, *rest = data.class_names
    stream = make_stream(StreamConfig(by="classes", sessions={"spring": [c, a], "autumn": [b]}), data)
    assert [session.name for session in stream.sessions] == ["spring", "autumn"]
    assert stream.sessions[0].classes == (c, a)
    assert any("3 classes in no session" in line and rest[0] in line for line in stream.report)


def test_the_last_session_may_be_smaller_and_says_so():
    data = reef()
    stream = make_stream(StreamConfig(by="classes", increment=2, first=3), data)
    assert [len(session.classes) for session in stream.sessions] == [3, 2, 1]
    assert "The last session has 1 class instead of 2." in stream.report


def test_a_session_without_test_images_says_so(tmp_path, draw):
    draw(tmp_path / "fish", species=4, images=8)
    rows = ["path,label,split"]
    for number, folder in enumerate(sorted((tmp_path / "fish").iterdir())):
        for i, image in enumerate(sorted(folder.iterdir())):
            rows.append(f"fish/{folder.name}/{image.name},{number},{'test' if number < 2 and i > 5 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    data = load(TableConfig(root=str(tmp_path), shots="all"), 1)
    data.setup()
    stream = make_stream(StreamConfig(by="classes", increment=2), data)
    assert [line for line in stream.report if "no test images" in line] == [
        "Session 2 has no test images: nothing can be measured on it."
    ]
    with pytest.raises(DataError, match=r"the images have no domain; name the column that holds it with data\.domain_column"):
        make_stream(StreamConfig(by="domains"), data)


def test_domains_draw_their_own_shots():
    stream = make_stream(StreamConfig(by="domains"), reef(look="both"))
    assert [session.name for session in stream.sessions] == ["clear", "murky"]
    for session in stream.sessions:
        for samples in session.data.samples.values():
            assert {sample.domain for sample in samples} == {session.name}
        assert len(session.data.samples["train"]) == 6 * 3
        assert session.classes == stream.classes()
    assert stream.candidates(0, 1) == stream.classes()


def test_a_group_stays_on_its_side_of_the_split_across_domains(tmp_path, draw):
    draw(tmp_path / "fish", species=2, images=12)
    rows = ["path,label,group,camera"]
    for folder in sorted((tmp_path / "fish").iterdir()):
        for i, image in enumerate(sorted(folder.iterdir())):
            rows.append(f"fish/{folder.name}/{image.name},{folder.name},g{folder.name}{i // 2},{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    data = load(TableConfig(root=str(tmp_path), shots="all", domain_column="camera", augment=AugmentConfig("none")), 1)
    data.setup()
    stream = make_stream(StreamConfig(by="domains"), data)
    trained = {s.group for session in stream.sessions for s in session.data.samples["train"]}
    tested = {s.group for session in stream.sessions for s in session.data.samples["test"]}
    assert trained and tested and not trained & tested


def test_tasks_keep_their_own_candidates():
    tasks = {"fish": reef(species=2), "more": reef(species=3, drawing_seed=2)}
    stream = make_stream(StreamConfig(by="tasks", tasks=dict.fromkeys(tasks)), tasks["fish"], tasks.__getitem__)
    assert [session.name for session in stream.sessions] == ["fish", "more"]
    assert stream.candidates(1, 0) == tuple(tasks["fish"].class_names)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StreamConfig(by="classes"), "stream.increment is missing"),
        (StreamConfig(by="classes", increment=6), "one session only.*Lower stream.increment"),
        (StreamConfig(by="classes", sessions={"a": ["yellow striped angelfish"]}), "one session only.*List another in stream.sess"),
        (StreamConfig(by="domains"), "one session only.*another domain"),
        (StreamConfig(by="classes", first=6, increment=1), "none would be left"),
        (StreamConfig(by="domains", sessions={"a": ["clear"], "b": ["green"]}), "no domain of the data"),
        (StreamConfig(by="classes", sessions={"a": ["blue tang"], "b": ["blue tang"]}), "no class of the data"),
        (
            StreamConfig(by="classes", sessions={"a": [NAMES[0]], "b": [NAMES[1], NAMES[0]]}),
            f"'{NAMES[0]}' is in stream.sessions.a and in stream.sessions.b: sessions do not share classes",
        ),
        (StreamConfig(), "stream.by says nothing: it is classes, domains or tasks"),
        (StreamConfig(by="classes", sessions={"a": [], "b": []}), "is empty"),
        (StreamConfig(by="tasks"), "stream.tasks names none"),
    ],
)
def test_streams_that_cannot_be(config, message):
    with pytest.raises(DataError, match=message):
        make_stream(config, reef())


def test_labels_within_more_classes():
    data = reef().restrict(reef().class_names[:2])
    wide = data.within(["another", *reversed(data.class_names)])
    assert {s.path: wide.class_names[s.label] for s in wide.samples["test"]} == {
        s.path: data.class_names[s.label] for s in data.samples["test"]
    }
    with pytest.raises(DataError, match="no label"):
        data.within(["another"])


def test_herding_follows_the_mean():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.9]])
    order = herding(rows, 4)
    assert order[0] == 2 or order[0] == 3
    assert sorted(order) == [0, 1, 2, 3]
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    mean = unit.mean(0)
    for k in (1, 2, 3):  # no other next choice comes closer
        best = (unit[order[:k]].mean(0) - mean).norm()
        others = [(unit[[*order[: k - 1], i]].mean(0) - mean).norm() for i in range(4) if i not in order[: k - 1]]
        assert best <= min(others) + 1e-12


@pytest.mark.parametrize("choice", ["herding", "random"])
def test_the_memory_has_a_fixed_budget_and_only_shrinks(choice):
    stream = make_stream(StreamConfig(by="classes", increment=2), reef(shots="all", train=8))
    memory = ExemplarMemory(7, choice)
    before = set()
    for number, session in enumerate(stream.sessions):
        features = torch.randn(len(session.data.samples["train"]), 4, generator=torch.Generator().manual_seed(number))
        memory.add(number, session.data, features if choice == "herding" else None)
        assert len(memory) == 7
        kept = {path for n in range(number) for path in memory.paths(n)}
        assert kept <= before
        before = kept | set(memory.paths(number))
    sizes = [len(paths) for own in memory.kept.values() for paths in own.values()]
    assert max(sizes) - min(sizes) <= 1
    again = ExemplarMemory(7, choice)
    again.restore(memory.state())
    assert again.kept == memory.kept
    part = stream.sessions[0].data.training_on(memory.paths(0))
    assert [s.path for s in part.samples["train"]] == memory.paths(0)


@pytest.mark.parametrize(("budget", "choice"), [(0, "random"), (5, "best")])
def test_memories_that_cannot_be(budget, choice):
    with pytest.raises(DataError, match=f"at least one image, chosen by herding or random: not {budget} by '{choice}'"):
        ExemplarMemory(budget, choice)


def test_a_class_without_training_images_leaves_nothing_in_the_memory():
    data = reef(species=3)
    part = data.training_on([sample.path for sample in data.samples["train"] if sample.label != 1])
    memory = ExemplarMemory(4, "random")
    memory.add(0, part)
    assert set(memory.kept[0]) == {data.class_names[0], data.class_names[2]} and len(memory) == 4
    with pytest.raises(DataError, match="Herding needs the features"):
        ExemplarMemory(4, "herding").add(0, part)
