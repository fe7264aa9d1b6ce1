"""Batches: order and augmentation come from (seed, epoch, index) and nothing else."""

import random

import pytest
import torch
from limpet.datamodules import DataError, load
from limpet.datamodules.base import DataModule, Listing, Sample, collate
from limpet.datamodules.configs import SCHEMAS, DataConfig, ReefConfig
from limpet.datamodules.images import UnreadableImage


def _noisy(image):
    return torch.rand(3, 4, 4) + random.random()


def _plain(image):
    return torch.zeros(3, 4, 4) + image.getpixel((0, 0))[0]


@pytest.fixture
def reef():
    return _reef()


def _reef(seed=1, **more):
    config = ReefConfig(
        **{"train": 6, "val": 4, "test": 4, "species": 3, "shots": 5, "batch_size": 4, **more}
    )
    module = load(config, seed)
    module.set_transforms(_noisy, _plain)
    return module


def _epoch(module, epoch):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    return [p for b in batches for p in b["path"]], torch.cat([b["image"] for b in batches])


def test_epochs_differ_and_repeat(reef):
    first, second = _epoch(reef, 0), _epoch(reef, 1)
    assert sorted(first[0]) != sorted(second[0]) or first[0] != second[0]
    again = _epoch(_reef(num_workers=2), 1)
    assert again[0] == second[0] and torch.equal(again[1], second[1])
    assert _epoch(_reef(seed=2), 1)[0] != second[0]


def test_augmentation_belongs_to_the_image_not_to_its_place(reef):
    dataset = reef.dataset("train", augment=True)
    whole = {dataset[i]["path"]: dataset[i]["image"] for i in range(len(dataset))}
    for i in reversed(range(len(dataset))):
        assert torch.equal(dataset[i]["image"], whole[dataset[i]["path"]])
    dataset.epoch = 5
    assert not torch.equal(dataset[0]["image"], whole[dataset[0]["path"]])


def test_views_are_fixed(reef):
    one, two = reef.dataset("train", augment=True, view=0), reef.dataset("train", augment=True, view=1)
    assert not torch.equal(one[0]["image"], two[0]["image"])
    before = one[0]["image"]
    one.epoch = 3
    assert torch.equal(one[0]["image"], before)


def test_global_generators_are_left_alone(reef):
    reef.setup()
    random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), torch.rand(1)
    random.seed(0)
    torch.manual_seed(0)
    list(reef.train_dataloader())
    list(reef.test_dataloader())
    assert (random.random(), torch.rand(1)) == expected


def test_short_last_batch_is_dropped_only_where_others_exist(reef):
    assert [len(b["path"]) for b in reef.train_dataloader()] == [4, 4, 4]
    assert [len(b["path"]) for b in _reef(batch_size=100).train_dataloader()] == [15]
    assert [len(b["path"]) for b in reef.test_dataloader()] == [4, 4, 4]
    assert [len(b["path"]) for b in _reef(batch_size=5).test_dataloader()] == [5, 5, 2]


def test_evaluation_is_in_order_and_plain(reef):
    paths = [path for batch in reef.test_dataloader() for path in batch["path"]]
    assert paths == [sample.path for sample in reef.samples["test"]]
    indices = [i for batch in reef.test_dataloader() for i in batch["index"].tolist()]
    assert indices == sorted(indices)


def test_restrict(reef):
    reef.setup()
    names = reef.class_names[:0:-1]
    part = reef.restrict(names)
    assert part.class_names == names and set(part.class_texts) == set(names)
    for split, samples in part.samples.items():
        assert {s.path: names[s.label] for s in samples} == {
            s.path: reef.class_names[s.label]
            for s in reef.samples[split]
            if reef.class_names[s.label] in names
        }
    assert [s.index for s in part.samples["test"]] == [s.index for s in reef.samples["test"] if s.label]
    assert part.manifest()["hash"] != reef.manifest()["hash"]
    images = {item["path"]: item["image"] for item in reef.dataset("test")}
    assert all(torch.equal(item["image"], images[item["path"]]) for item in part.dataset("test"))
    with pytest.raises(DataError, match="Did you mean"):
        reef.restrict([names[0][:-1]])
    with pytest.raises(DataError, match="twice"):
        reef.restrict([names[0], names[0]])


def test_unknown_split(reef):
    with pytest.raises(DataError, match="Did you mean 'train'"):
        reef.dataset("trian")


def test_collate():
    items = [
        {"path": "a", "index": 0, "label": 1, "image": torch.zeros(3, 2, 2), "value": 1.5, "boxes": [[0, 1]]},
        {"path": "b", "index": 1, "unreadable": "it is empty"},
        {"path": "c", "index": 2, "label": 0, "image": torch.ones(3, 2, 2), "value": 2, "boxes": []},
    ]
    batch = collate(items)
    assert batch["path"] == ["a", "c"] and batch["index"].tolist() == [0, 2]
    assert batch["label"].dtype == torch.int64 and batch["value"].tolist() == [1.5, 2.0]
    assert batch["boxes"] == [[[0, 1]], []] and batch["image"].shape == (2, 3, 2, 2)
    assert batch["unreadable"] == ["b: it is empty"]
    assert collate(items[1:2]) == {"unreadable": ["b: it is empty"]}


class Own(DataModule):
    """Data of one's own, of which the samples have no file."""

    paths = ("a", "b", "c")

    def listing(self):
        return Listing(["cod"], {"cod": ["cod"]}, [Sample(path, 0) for path in self.paths], ["train", "test", "test"])


def test_samples_without_a_file_need_a_reader():
    data = Own(DataConfig(name="own", shots="all"), 1)
    assert list(data.test_dataloader()) == [] and data.unreadable == ["b: it has no file", "c: it has no file"]
    with pytest.raises(UnreadableImage, match="b: it has no file"):
        data.content_key(data.samples["test"][0])


def test_images_listed_twice_are_named():
    data = Own(DataConfig(name="own", shots="all"), 1)
    data.paths = ("a", "b", "a")
    with pytest.raises(DataError, match="lists an image twice: a"):
        data.setup()


def test_setup_twice_changes_nothing(reef):
    reef.setup()
    before = reef.manifest()
    reef.setup("fit")
    assert reef.manifest() == before


def test_schemas_have_their_names():
    assert set(SCHEMAS) >= {"folder", "table", "coop_splits", "reef"}
    assert all(schema().name == name for name, schema in SCHEMAS.items())


def test_sample_is_a_value():
    assert Sample("a", 1) == Sample("a", 1)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 20])
def test_what_several_processes_read_in_a_step_is_the_batch_of_one(ranks, size, monkeypatch):
    """Each image once, whether the number of images is a multiple of the batches or not."""
    from limpet.datamodules import loading

    def batches(size):
        loader = _reef(batch_size=size).train_dataloader()
        loader.sampler.set_epoch(3)
        return [batch["path"] for batch in loader]

    one = batches(size * ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(loading, "process", lambda rank=rank: (rank, ranks))
        shares.append(batches(size))
    joined = [sorted(path for part in parts for path in part) for parts in zip(*shares, strict=True)]
    assert joined == [sorted(batch) for batch in one]
    assert len({path for batch in joined for path in batch}) == sum(map(len, joined)) > 0
