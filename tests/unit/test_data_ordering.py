"""Images with values: tables, drawn fish, lists."""

import collections

import numpy as np
import pytest
import torch
from limpet.datamodules import DataError, load
from limpet.datamodules.configs import OrderingConfig, ReefOrderingConfig
from PIL import Image


@pytest.fixture
def table(tmp_path):
    """make("path,value\\n...", images=[...]) writes a table and its images."""

    def make(text, images=()):
        for name in images:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20), (hash(name) % 255, 10, 10)).save(tmp_path / name)
        (tmp_path / "labels.csv").write_text(text)
        return tmp_path / "labels.csv"

    return make


def many(count=60, groups=0):
    rows = ["path,value,group"]
    images = [f"{i}.png" for i in range(count)]
    rows += [f"{image},{i % 3},{'g' + str(i // groups) if groups else ''}" for i, image in enumerate(images)]
    return "\n".join(rows), images


def ready(config, seed=1):
    data = load(config, seed)
    data.setup()
    return data


def test_every_split_has_every_value(table):
    data = ready(OrderingConfig(table=str(table(*many()))))
    sizes = {split: len(samples) for split, samples in data.samples.items()}
    assert sizes == {"train": 30, "val": 12, "test": 18}
    for samples in data.samples.values():
        counts = collections.Counter(s.extra["value"] for s in samples)
        assert len(counts) == 3 and max(counts.values()) - min(counts.values()) == 0
    assert data.class_texts == {"value": ["Sort the images by value."]}


def test_groups_stay_together(table):
    data = ready(OrderingConfig(table=str(table(*many(60, groups=4)))))
    where = collections.defaultdict(set)
    for split, samples in data.samples.items():
        for sample in samples:
            where[sample.group].add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert all(data.samples.values())


def test_continuous_values_are_split_by_fifths(table):
    images = [f"{i}.png" for i in range(50)]
    text = "path,value\n" + "\n".join(f"{name},{i * 0.37}" for i, name in enumerate(images))
    data = ready(OrderingConfig(table=str(table(text, images))))
    tested = np.array([s.extra["value"] for s in data.samples["test"]])
    assert len(tested) == 15 and tested.min() < 3 and tested.max() > 14


@pytest.mark.parametrize("count", [4, 8, 10])
def test_a_value_for_each_image_leaves_images_to_train_on(table, count):
    images = [f"{i}.png" for i in range(count)]
    text = "path,value,category\n" + "\n".join(f"{name},{i},fruit" for i, name in enumerate(images))
    data = ready(OrderingConfig(table=str(table(text, images))))
    assert len(data.samples["train"]) >= count // 2 - 1 and data.samples["test"]
    assert data.class_texts == {"fruit": ["Sort the images of fruit by value."]}


def test_given_splits_columns_and_range(table):
    text = "file,age,kind,split,instruction\na.png,3,fox,train,How old?\nb.png,5,fox,test,\nc.png,90,hen,train,\nd.png,1,hen,test,\n"
    config = OrderingConfig(
        table=str(table(text, ["a.png", "b.png", "c.png", "d.png"])), path_column="file", value_column="age",
        category_column="kind", max_value=50, instruction="Sort the photos of {category} by age.",
    )  # fmt: skip
    data = ready(config)
    assert {s.path for s in data.samples["train"] + data.samples["val"]} == {"a.png"}
    assert [s.path for s in data.samples["test"]] == ["b.png", "d.png"]
    assert data.class_texts["fox"] == ["How old?", "Sort the photos of fox by age."]
    assert any("outside data.min_value" in sentence for sentence in data.report)


def test_one_image_may_be_counted_in_several_categories(table):
    images = [f"{i}.png" for i in range(20)]
    rows = [f"{name},{i % 4},{kind}" for i, name in enumerate(images) for kind in ("cat", "dog")]
    text = "path,value,kind\n" + "\n".join(rows)
    data = ready(OrderingConfig(table=str(table(text, images)), category_column="kind"))
    assert sum(map(len, data.samples.values())) == 40
    where = collections.defaultdict(set)
    for split, samples in data.samples.items():
        for sample in samples:
            where[sample.file].add(split)
    assert all(len(splits) == 1 for splits in where.values())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,valeu\na.png,1\n", "no column 'value'.*Did you mean 'valeu'"),
        ("path,value\na.png,ripe\n", "line 2: the value 'ripe' is not a number"),
        ("path,value\na.png,1\nb.png,1\n", "nothing to order"),
        ("path,value\nx.png,1\ny.png,2\n", "None of the 2 images"),
        ("path,value\na.png,\n", "No row"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(table, text, sentence):
    with pytest.raises(DataError, match=sentence):
        ready(OrderingConfig(table=str(table(text, ["a.png", "b.png"]))))


def test_rows_whose_image_is_missing_or_has_a_value_already_are_left_out(table):
    text = "path,value,group\na.png,1,x\nb.png,2,y\na.png,1,x\na.png,5,x\ngone.png,3,z\n"
    config = OrderingConfig(table=str(table(text, ["a.png", "b.png"])), group_column=None)
    data = ready(config)
    found = {s.path: s.extra["value"] for split in data.samples.values() for s in split}
    assert found == {"a.png": 1.0, "b.png": 2.0}
    report = " ".join(data.report)
    assert "1 file of labels.csv missing and left out: gone.png." in report
    assert "2 rows of labels.csv repeat an image and are left out. 1 row of those with another value: the first" in report
    config.strict = True
    with pytest.raises(DataError, match=r"gone\.png.*data\.strict"):
        ready(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lists": "evry"}, "data.lists is 'evry'.*Did you mean 'every'"),
        ({"negatives": 1.0}, "data.negatives is 1.0; it is a share of a list"),
        ({"attributes": []}, "data.attributes needs at least one attribute"),
        ({"attributes": ["count", "count"]}, "data.attributes needs at least one attribute, and each once"),
        ({"size": 32}, "data.size is 32; drawn fish are 64 to 224"),
        ({"val": -1}, "data.train, data.val and data.test count images"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(DataError, match=said):
        reef(**settings)


def test_the_hash_covers_values_and_instructions(table):
    text, images = many()
    file = table(text, images)
    first = ready(OrderingConfig(table=str(file))).manifest()["hash"]
    assert ready(OrderingConfig(table=str(file))).manifest()["hash"] == first
    assert ready(OrderingConfig(table=str(file), instruction="By age.")).manifest()["hash"] != first
    table(text.replace("59.png,2", "59.png,1"))
    assert ready(OrderingConfig(table=str(file))).manifest()["hash"] != first


def lists_of(data, epoch=0):
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader.batch_sampler), loader


def reef(**settings):
    return ready(ReefOrderingConfig(**{"attributes": ["count", "size"], "train": 20, "val": 4, "test": 4, **settings}))


def test_lists_hold_one_category_and_every_image_once():
    data = reef(batch_size=8)
    lists, loader = lists_of(data)
    assert len(lists) == len(loader) == 6
    assert sorted(p for members in lists for p, _, _ in members) == list(range(40))
    assert all(len({c for _, c, _ in members}) == 1 and 6 <= len(members) <= 8 for members in lists)
    assert lists_of(data)[0] == lists and lists_of(data, 1)[0] != lists
    batch = next(iter(loader))
    assert batch["value"].dtype == torch.float32 and batch["image"].shape[1:] == (3, 64, 64)
    assert len(set(batch["instruction"])) == 1


def test_several_processes_share_the_lists(monkeypatch):
    from limpet.datamodules import ordered

    one, shares = lists_of(reef(batch_size=8))[0], []
    for rank in range(4):
        monkeypatch.setattr(ordered, "process", lambda rank=rank: (rank, 4))
        shares.append(lists_of(reef(batch_size=8))[0])
    assert [len(share) for share in shares] == [1, 1, 1, 1]  # of six: two are left out, none comes twice
    assert [share[0] for share in shares] == one[:4]


def test_an_image_of_the_lists_asked_for_by_number_is_as_it_is():
    data = reef(negatives=0.2)
    dataset = data.train_dataloader().dataset
    assert [dataset[i]["path"] for i in (0, 39)] == [data.samples["train"][i].path for i in (0, 39)]
    assert dataset[39]["value"] == data.samples["train"][39].extra["value"]


def test_negatives_are_of_other_categories_and_count_as_none():
    data = reef(batch_size=10, negatives=0.2, lists="uniform")
    lists, loader = lists_of(data)
    assert all(len(members) == 10 for members in lists)
    for batch in loader:
        own = [path.startswith(data.class_names[int(batch["label"][0])]) for path in batch["path"]]
        assert sum(own) == 8
        assert all((value == 0) != mine for value, mine in zip(batch["value"].tolist(), own, strict=True))
        assert len(set(batch["label"].tolist())) == 1


def test_drawn_values_are_exact_and_unlimited():
    data = reef(attributes=["count", "size", "stripes", "murkiness"], train=3)
    for sample in data.samples["train"]:
        image = data.reader(sample)
        assert image.size == (64, 64)
        assert image.tobytes() == data.reader(sample).tobytes()
    few, more = (reef(attributes=["count"], train=count) for count in (200, 300))
    values = {s.path: s.extra["value"] for s in few.samples["train"]}
    assert set(values.values()) == set(map(float, range(1, 9)))
    assert values.items() < {s.path: s.extra["value"] for s in more.samples["train"]}.items()
    assert [s.path for s in few.samples["test"]] == [s.path for s in more.samples["test"]]
    with pytest.raises(DataError, match="Did you mean 'count'"):
        reef(attributes=["counts"])


def test_cached_tokens_serve_the_same_lists(tiny, tmp_path, monkeypatch):
    from limpet.features import CachedFeatures
    from limpet.tokens import image_token_features

    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path))
    data = reef(batch_size=10, negatives=0.2)
    cached = CachedFeatures(data, tiny, layer="tokens", progress=False)
    plain = {p: i for b in data.loader("train") for p, i in zip(b["path"], b["image"], strict=True)}
    ours, theirs = list(cached.train_dataloader()), list(data.train_dataloader())
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one["path"] == other["path"] and one["instruction"] == other["instruction"]
        assert torch.equal(one["value"], other["value"]) and torch.equal(one["label"], other["label"])
        expected = image_token_features(tiny, torch.stack([plain[path] for path in one["path"]]))
        torch.testing.assert_close(one["tokens"], expected, rtol=1e-4, atol=1e-4)
