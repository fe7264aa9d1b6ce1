"""The feature cache: right values whatever happens to its files, and batches like the data module's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from limpet import feature_store, features
from limpet.datamodules import DataError, images, load
from limpet.datamodules.configs import AugmentConfig, FolderConfig
from limpet.errors import LimpetError
from limpet.feature_store import FeatureStore
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIMPET_CACHE", str(folder))
    monkeypatch.setattr(feature_store, "_warned", set())
    return folder


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        for label in ("crab", "eel", "ray"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")
    return tmp_path / "images"


def make(root, tiny, augment=None, *, views=0, seed=1, counter=None, **options):
    augment = augment or AugmentConfig(preset="none")
    config = FolderConfig(root=str(root), shots="all", batch_size=4, augment=augment, **options)
    backbone = tiny if counter is None else Counting(tiny, counter)
    return features.CachedFeatures(load(config, seed), backbone, augment, seed, views, progress=False)


class Counting:
    """A backbone that counts the different images it encodes (small batches are filled up with the last one)."""

    def __init__(self, backbone, counter):
        self.backbone, self.counter = backbone, counter

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    def encode_image(self, images, normalize=True):
        self.counter.append(len(images.flatten(1).unique(dim=0)))
        return self.backbone.encode_image(images, normalize=normalize)


def direct(data, tiny, split):
    plain = data.datamodule.dataset(split)
    return torch.cat([tiny.encode_image(plain[n]["image"][None], normalize=False) for n in range(len(plain))])


def test_a_feature_does_not_depend_on_which_others_were_cached(root, tiny, cache):
    """Bit by bit: a run that finds half of its features gives the numbers of one that finds none."""
    whole = make(root, tiny)
    alone = whole.features("train")
    for count in (1, 4, 14):
        shutil.rmtree(cache)
        part = make(root, tiny)
        part.datamodule.samples["train"] = part.datamodule.samples["train"][:count]
        part.features("train")
        assert torch.equal(make(root, tiny).features("train"), alone)


def test_features_equal_direct_encoding_and_are_computed_once(root, tiny):
    counter = []
    data = make(root, tiny, counter=counter)
    found = data.features("train")
    torch.testing.assert_close(found, direct(data, tiny, "train"), atol=1e-5, rtol=1e-5)
    assert sum(counter) == 15
    again = make(root, tiny, counter=counter)
    assert torch.equal(again.features("train"), found)
    assert sum(counter) == 15
    assert data.views("train").shape == (1, *found.shape)
    assert torch.equal(data.views("train")[0], found)


def test_changed_file_is_computed_again_and_moved_file_is_not(root, tiny):
    counter = []
    before = make(root, tiny, counter=counter).features("test")
    moved = root.rename(root.with_name("elsewhere"))
    assert torch.equal(make(moved, tiny, counter=counter).features("test"), before)
    assert sum(counter) == 9
    Image.new("RGB", (50, 50), "red").save(moved / "test" / "eel" / "1.png")
    after = make(moved, tiny, counter=counter).features("test")
    assert sum(counter) == 10
    changed = (after != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [4]


def test_other_backbone_preprocessing_or_seed_are_other_spaces(root, tiny):
    counter = []
    base = make(root, tiny, counter=counter).features("test")

    class Other(Counting):
        fingerprint = "another"

    other = features.CachedFeatures(
        make(root, tiny).datamodule, Other(tiny, counter), None, 1, 0, progress=False
    )
    assert torch.equal(other.features("test"), base)
    assert sum(counter) == 18
    augment = AugmentConfig(preset="natural", scale=[0.3, 1.0])
    one = make(root, tiny, augment, views=2).views("train")
    two = make(root, tiny, augment, views=2, seed=2).views("train")
    assert one.shape[0] == 2 and not torch.equal(one[0], one[1]) and not torch.equal(one, two)
    assert torch.equal(make(root, tiny, augment, views=3).views("train")[:2], one)


@pytest.mark.parametrize(
    "vision", [{"norm_kwargs": {"eps": 0.1}}, {"pool_type": "avg"}, {"head_width": 8}, {"act_kwargs": {"approximate": "tanh"}}]
)
def test_the_same_weights_run_as_another_network_are_another_space(vision, root):
    from limpet.backbone import FrozenClip
    from open_clip.model import CLIP

    def clip(**vision):
        torch.manual_seed(0)
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16, **vision}
        return FrozenClip.from_model(CLIP(16, vision, {"width": 16, "heads": 2, "layers": 1}))

    one, other, counter = clip(), clip(**vision), []
    assert one.fingerprint == other.fingerprint
    before = make(root, one).features("test")
    assert not torch.equal(make(root, other, counter=counter).features("test"), before)
    assert sum(counter) == 9


def test_views_match_the_data_modules_own_views(root, tiny):
    augment = AugmentConfig(preset="natural")
    data = make(root, tiny, augment, views=2)
    views = data.views("train")
    dataset = data.datamodule.dataset("train", augment=True, view=1)
    images = torch.stack([dataset[n]["image"] for n in range(len(dataset))])
    torch.testing.assert_close(views[1], tiny.encode_image(images, normalize=False), atol=1e-5, rtol=1e-5)


def test_training_batches_follow_the_data_modules_order(root, tiny):
    data = make(root, tiny, AugmentConfig(preset="natural"), views=2)
    theirs, ours = data.datamodule.train_dataloader(), data.train_dataloader()
    assert len(theirs) == len(ours)
    views = data.views("train")
    for epoch in range(3):
        theirs.sampler.set_epoch(epoch)
        ours.sampler.set_epoch(epoch)
        for image_batch, batch in zip(theirs, ours, strict=True):
            assert image_batch["path"] == batch["path"]
            assert torch.equal(image_batch["label"], batch["label"])
            assert torch.equal(image_batch["index"], batch["index"])
            assert "image" not in batch
            place = [[s.path for s in data.samples["train"]].index(p) for p in batch["path"]]
            assert torch.equal(batch["feature"], views[epoch % 2][place])


def test_closed_form_batches_and_restricted_classes(root, tiny):
    counter = []
    data = make(root, tiny, AugmentConfig(preset="natural"), views=3, counter=counter)
    batches = list(data.closed_form_batches("train", 4))
    assert batches[0]["views"].shape == (4, 3, tiny.embed_dim)
    assert torch.equal(torch.cat([b["views"] for b in batches]).transpose(0, 1), data.views("train"))
    assert torch.equal(torch.cat([b["feature"] for b in batches]), data.features("train"))
    done = sum(counter)
    part = data.restrict(["ray", "crab"])
    assert part.class_names == ["ray", "crab"]
    whole = {s.path: f for s, f in zip(data.samples["train"], data.features("train"), strict=True)}
    for batch in part.closed_form_batches("train", 64):
        assert set(batch["label"].tolist()) == {0, 1}
        for path, label, feature in zip(batch["path"], batch["label"], batch["feature"], strict=True):
            assert ["ray", "crab"][label] in path
            assert torch.equal(whole[path], feature)
    assert sum(counter) == done


def test_unreadable_images_are_dropped_everywhere_and_listed(root, tiny):
    (root / "train" / "eel" / "2.png").write_bytes(b"not an image")
    data = make(root, tiny, AugmentConfig(preset="natural"), views=2)
    samples = data.samples["train"]
    assert len(samples) == 14 == len(data.features("train")) == data.views("train").shape[1]
    assert not any("eel/2" in s.path for s in samples)
    assert sum("eel/2" in line for line in data.unreadable) == 1
    assert sum(len(b["label"]) for b in data.val_dataloader()) == 6
    ours, theirs = list(data.train_dataloader()), list(data.datamodule.train_dataloader())
    assert [b["path"] for b in ours] == [b["path"] for b in theirs]


def test_missing_file_is_dropped(root, tiny):
    data = make(root, tiny)
    (root / "test" / "ray" / "0.png").unlink()
    assert len(data.samples["test"]) == 8
    assert any("ray/0" in line for line in data.unreadable)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "garbage"])
def test_damaged_shards_are_noticed_and_computed_again(root, tiny, cache, damage):
    right = make(root, tiny).features("train")
    (shard,) = cache.glob("features/*/*.rows")
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-5] ^= 0x40
    elif damage == "empty":
        content = bytearray()
    else:
        content[:200] = b"x" * 200
    shard.write_bytes(content)
    counter = []
    with pytest.warns(UserWarning, match="computed again"):
        found = make(root, tiny, counter=counter).features("train")
    torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-6)
    assert sum(counter) == (1 if damage == "flip" else 15)


def test_cache_that_cannot_be_written_is_done_without(root, tiny, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path / "a_file" / "cache"))
    data = make(root, tiny)
    with pytest.warns(UserWarning, match="goes on without"):
        found = data.features("train")
    torch.testing.assert_close(found, direct(data, tiny, "train"), atol=1e-5, rtol=1e-5)
    assert torch.equal(data.restrict(["eel"]).features("train"), found[5:10])


def test_full_disk_is_survived(monkeypatch, cache):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FeatureStore, "_write", full)
    store = FeatureStore({"a": 1}, 3)
    with pytest.warns(UserWarning, match="No space left"):
        store.add([b"k" * 32], np.ones((1, 3)))
        rows = store.lookup([b"k" * 32, b"z" * 32])
    assert rows.found.tolist() == [True, False]
    assert rows.take(np.array([0])).tolist() == [[1, 1, 1]]
    with pytest.raises(KeyError):
        rows.take()


def test_cache_deleted_under_a_running_job(root, tiny, cache):
    data = make(root, tiny)
    before = data.features("train")
    import shutil

    shutil.rmtree(cache)
    assert torch.equal(data.features("train"), before)
    assert len(data.features("test")) == 9


@contextmanager
def free_descriptors(number):
    """Let this process open only so many more files."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_hundreds_of_shards_need_few_descriptors():
    keys = [bytes([n]) * 32 for n in range(200)]
    for n, key in enumerate(keys):
        store = FeatureStore({"a": 1}, 3)
        store.add([key], np.full((1, 3), n))
        store.flush()
    assert len(list(store.folder.glob("*.rows"))) == 200
    with free_descriptors(50):
        rows = FeatureStore({"a": 1}, 3).lookup(keys)
        assert rows.found.all()
        assert rows.take()[:, 0].tolist() == list(range(200))
        Path(os.devnull).open().close()  # and leave some over
    with pytest.raises(ValueError, match="read-only"):
        rows.parts[0][0, 0] = 1


def test_a_process_that_is_killed_loses_a_minute_at_most(monkeypatch):
    store = FeatureStore({"a": 1}, 3)
    store.add([b"k" * 32], np.ones((1, 3)))
    assert not store.folder.exists()
    later = feature_store.time.monotonic() + 61
    monkeypatch.setattr(feature_store.time, "monotonic", lambda: later)
    store.add([b"l" * 32], np.ones((1, 3)))
    assert FeatureStore({"a": 1}, 3).lookup([b"k" * 32, b"l" * 32]).found.all()


def test_running_out_of_descriptors_is_said_and_no_image_is_called_damaged(root, tiny, cache):
    data = make(root, tiny)
    data.features("test")
    store = make(root, tiny)._store(False)
    with free_descriptors(0), pytest.raises(LimpetError, match="too many files are open.*ulimit"):
        store.lookup([b"k" * 32])
    with free_descriptors(0), pytest.raises(DataError, match="too many files are open.*ulimit"):
        data.datamodule.content_key(data.datamodule.samples["test"][0])
    with free_descriptors(0), pytest.raises(DataError, match="too many files are open.*ulimit"):
        images.read_image(root / "test" / "eel" / "1.png")
    assert data.unreadable == []
    assert len(make(root, tiny).features("test")) == 9


def test_running_out_of_memory_is_said_and_the_cache_kept(root, tiny, monkeypatch):
    store = make(root, tiny)._store(False)
    make(root, tiny).features("test")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "from_file", full)
    with pytest.raises(LimpetError, match="not enough memory"):
        store.lookup([b"k" * 32])
    assert len(list(store.folder.glob("*.rows"))) == 1
    monkeypatch.setattr(images.Image, "open", full)
    with pytest.raises(DataError, match="not enough memory"):
        images.read_image(root / "test" / "eel" / "1.png")


def test_keys_that_end_in_zero_bytes_are_kept_apart():
    store = FeatureStore({"a": 1}, 2)
    keys = [b"a" + b"\0" * 31, b"a\0b" + b"\0" * 29, b"\0" * 32]
    store.add(keys, np.arange(6.0).reshape(3, 2))
    store.flush()
    again = FeatureStore({"a": 1}, 2).lookup(keys)
    assert again.found.all()
    assert again.take().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_two_processes_fill_one_space():
    code = (
        "import sys, numpy as np, hashlib; from limpet.feature_store import FeatureStore\n"
        "s = FeatureStore({'a': 1}, 4)\n"
        "for n in range(int(sys.argv[1]), 300, 1):\n"
        "    s.add([hashlib.sha256(str(n).encode()).digest()], np.full((1, 4), n))\n"
        "    if n % 50 == 0: s.flush()\n"
        "s.flush()\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, start]) for start in ("0", "100")]
    assert [p.wait() for p in running] == [0, 0]
    import hashlib

    keys = [hashlib.sha256(str(n).encode()).digest() for n in range(300)]
    rows = FeatureStore({"a": 1}, 4).lookup(keys)
    assert rows.take()[:, 0].tolist() == list(range(300))


@pytest.mark.parametrize("when", [10**9, 4 * 10**9])  # long ago; or the clock was set back
def test_size_cap_evicts_the_space_used_longest_ago(when, cache, monkeypatch):
    import os

    folders = []
    for n in range(3):
        store = FeatureStore({"n": n}, 100)
        store.add([bytes([k]) * 32 for k in range(50)], np.zeros((50, 100)))
        store.flush()
        folders.append(store.folder)
        os.utime(store.folder / "space.json", (when + n, when + n))
    size = features.cache_size()
    monkeypatch.setenv("LIMPET_CACHE_MAX_GB", str(size * 0.7 / 1e9))
    feature_store.trim()
    assert [f.exists() for f in folders] == [False, True, True]
    monkeypatch.setenv("LIMPET_CACHE_MAX_GB", "0.0000001")
    feature_store.trim(in_use=folders[1])
    assert [f.exists() for f in folders] == [False, True, False]


def test_clear_deletes_only_what_the_cache_wrote(root, tiny, cache):
    make(root, tiny).features("train")
    (cache / "notes.txt").write_text("mine")
    assert features.cache_dir() == cache
    size = features.cache_size()
    assert size > 15 * 4 * tiny.embed_dim
    assert features.clear_cache() == size
    assert features.cache_size() == 0
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["notes.txt"]


def test_damaged_list_of_known_images_is_started_anew(root, tiny, cache):
    make(root, tiny).features("test")
    (cache / "keys.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.warns(UserWarning, match="known images"):
        make(root, tiny).features("test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(root, tiny).features("test")


def test_folders_of_equal_sizes_and_times_that_change_places_are_read_again(tmp_path, cache):
    import os
    from types import SimpleNamespace

    from limpet.image_keys import image_keys

    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bmp").write_text(name)
        os.utime(tmp_path / name / "a.bmp", (10**9, 10**9))

    def keys():
        return image_keys([SimpleNamespace(path="a.bmp", file=tmp_path / "old" / "a.bmp")], lambda sample: sample.file.read_text())

    assert keys() == ["old"]
    for old, new in (("old", "aside"), ("new", "old")):
        (tmp_path / old).rename(tmp_path / new)
    assert keys() == ["new"]


def test_a_list_of_known_images_of_an_earlier_version_is_written_anew(tmp_path, cache):
    import os
    import sqlite3
    from contextlib import closing
    from types import SimpleNamespace

    from limpet.image_keys import image_keys

    file = tmp_path / "a.bmp"
    file.write_text("new")
    os.utime(file, (10**9, 10**9))
    cache.mkdir(exist_ok=True)
    with closing(sqlite3.connect(cache / "keys.sqlite")) as connection, connection:
        connection.execute("create table keys (name text primary key, size integer, modified integer, key text)")
        connection.execute("insert into keys values (?, 3, ?, 'old')", (f"\0{file}\0a.bmp", 10**18))
    read = []
    for _ in range(2):
        sample = SimpleNamespace(path="a.bmp", file=file)
        assert image_keys([sample], lambda s: read.append(s) or s.file.read_text()) == ["new"]
    assert len(read) == 1


def test_known_images_are_not_read_again(root, tiny, monkeypatch):
    import os

    for file in root.rglob("*.png"):
        os.utime(file, (10**9, 10**9))
    make(root, tiny).features("test")
    data = make(root, tiny)

    def fail(sample):
        raise AssertionError("hashed again")

    monkeypatch.setattr(data.datamodule, "content_key", fail)
    assert len(data.features("test")) == 9


def test_workers_do_not_change_anything(root, tiny, monkeypatch, tmp_path):
    augment = AugmentConfig(preset="natural")
    one = make(root, tiny, augment, views=1).views("train")
    monkeypatch.setenv("LIMPET_CACHE", str(tmp_path / "other"))
    two = make(root, tiny, augment, views=1, num_workers=2).views("train")
    assert torch.equal(one, two)


def test_lightning_trains_on_cached_features(root, tiny):
    import lightning

    data = make(root, tiny, AugmentConfig(preset="natural"), views=2)
    seen = []

    class Probe(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(tiny.embed_dim, 3)

        def training_step(self, batch):
            seen.append((self.current_epoch, tuple(batch["path"])))
            return torch.nn.functional.cross_entropy(self.layer(batch["feature"]), batch["label"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(max_epochs=2, enable_model_summary=False, **options).fit(
            Probe(), data.train_dataloader()
        )
    first, second = ([p for e, p in seen if e == epoch] for epoch in (0, 1))
    assert first != second
    assert len(first) == len(data.train_dataloader()) == 3


def test_progress_is_silent_for_short_work(capsys):
    from limpet.progress import Progress

    with Progress("work", 10) as progress:
        progress.advance(10)
    assert capsys.readouterr() == ("", "")


def test_empty_split(tiny):
    data = SimpleNamespace(
        setup=lambda: None, set_transforms=lambda *_: None, samples={"val": []}, unreadable=[], class_names=[],
        config=SimpleNamespace(batch_size=4), content_key=None, dataset=lambda split: SimpleNamespace(note=lambda f: None),
    )  # fmt: skip
    cached = features.CachedFeatures(data, tiny, None, 1, 0)
    assert cached.features("val").shape == (0, tiny.embed_dim)
    assert list(cached.val_dataloader()) == []
