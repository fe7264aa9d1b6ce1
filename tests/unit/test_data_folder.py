"""A folder for each class: what real folders hold."""

import json
import os

import pytest
from limpet.datamodules import DataError, load
from limpet.datamodules.configs import FolderConfig
from limpet.datamodules.images import UnreadableImage
from limpet.recipe import load_recipe
from limpet.session import prepare
from PIL import Image


def _image(path, colour=(9, 9, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def _images(folder, count, start=0):
    for i in range(start, start + count):
        _image(folder / f"{i:03d}.png")


def _load(root, seed=1, **more):
    module = load(FolderConfig(root=str(root), **more), seed)
    module.setup()
    return module


def _sizes(module):
    return {split: len(samples) for split, samples in module.samples.items()}


def _paths(module):
    return {split: sorted(sample.path for sample in samples) for split, samples in module.samples.items()}


def test_automatic_split(tmp_path):
    for name in ("b", "a"):
        _images(tmp_path / name, 20)
    module = _load(tmp_path, shots="all")
    assert module.class_names == ["a", "b"] and module.class_texts == {"a": ["a"], "b": ["b"]}
    assert _sizes(module) == {"train": 20, "val": 8, "test": 12}
    assert _sizes(_load(tmp_path, shots=5)) == {"train": 10, "val": 8, "test": 12}
    assert _sizes(_load(tmp_path, shots=2)) == {"train": 4, "val": 4, "test": 12}


def test_run_seed_changes_the_draw_and_split_seed_the_split(tmp_path):
    for name in ("a", "b"):
        _images(tmp_path / name, 30)
    first, second, other = (
        _load(tmp_path, seed, shots=3, split_seed=s) for seed, s in ((1, 1), (2, 1), (1, 2))
    )
    assert _paths(first)["test"] == _paths(second)["test"] != _paths(other)["test"]
    assert _paths(first)["train"] != _paths(second)["train"]
    assert first.manifest()["hash"] != second.manifest()["hash"]
    again = _load(tmp_path, 1, shots=3)
    assert again.manifest() == first.manifest()


def test_manifest_is_json_and_independent_of_listing_and_location(tmp_path, monkeypatch):
    for name in ("a", "b"):
        _images(tmp_path / "one" / name, 12)
    module = _load(tmp_path / "one", shots=2)
    manifest = json.loads(json.dumps(module.manifest()))
    assert manifest["classes"] == ["a", "b"] and manifest["shots"] == 2
    (tmp_path / "one").rename(tmp_path / "two")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listdir(folder)[::-1])
    assert _load(tmp_path / "two", shots=2).manifest() == manifest


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "validation", "TEST"), ("train", "valid", "test")]
)
def test_given_splits(tmp_path, names):
    for folder, count in zip(names, (6, 3, 4), strict=True):
        for name in ("x", "y"):
            _images(tmp_path / folder / name, count)
    module = _load(tmp_path, shots="all")
    assert _sizes(module) == {"train": 12, "val": 6, "test": 8}
    assert {sample.path.split("/")[0] for sample in module.samples["train"]} == {names[0]}


def test_missing_val_is_carved_out_of_train(tmp_path):
    for name in ("x", "y"):
        _images(tmp_path / "train" / name, 10)
        _images(tmp_path / "test" / name, 4)
    module = _load(tmp_path, shots="all")
    assert _sizes(module) == {"train": 16, "val": 4, "test": 8}
    assert any("no val" in sentence for sentence in module.report)


def test_train_alone_is_divided(tmp_path):
    for name in ("x", "y"):
        _images(tmp_path / "train" / name, 10)
    assert _sizes(_load(tmp_path, shots="all")) == {"train": 10, "val": 4, "test": 6}


def test_test_alone_is_kept_for_evaluation(tmp_path):
    for name in ("x", "y"):
        _images(tmp_path / "test" / name, 10)
    module = _load(tmp_path)
    assert _sizes(module) == {"train": 0, "val": 0, "test": 20}
    assert "There are no train images." in module.report


def test_a_class_called_test_is_a_class(tmp_path):
    for name in ("test", "mug"):
        _images(tmp_path / name, 10)
    assert _load(tmp_path).class_names == ["mug", "test"]


@pytest.mark.parametrize(
    "name", ["no", "007", "1e3", "null", "12:30", "sea urchin", "pez león", "鱼", "${x}", "a.b", "-1"]
)
def test_names_are_text(tmp_path, name):
    _images(tmp_path / name, 4)
    _images(tmp_path / "zz", 4)
    module = _load(tmp_path)
    assert set(module.class_names) == {name, "zz"}
    assert module.manifest()["hash"]
    module.content_key(module.samples["train"][0])


def test_odd_contents(tmp_path):
    _images(tmp_path / "a", 5)
    _images(tmp_path / "b" / "deeper" / "still", 4)
    _images(tmp_path / "one", 1)
    (tmp_path / "empty").mkdir()
    _image(tmp_path / "loose.png")
    _image(tmp_path / ".hidden" / "x.png")
    _image(tmp_path / "a" / "._junk.png")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    module = _load(tmp_path, shots="all")
    assert module.class_names == ["a", "b", "one"]
    assert sum(_sizes(module).values()) == 10
    assert [s.path for s in module.samples["test"] if s.label == 2] == ["one/000.png"]
    report = " ".join(module.report)
    for word in ("empty", "loose.png", "txt", "not images"):
        assert word in report


def test_one_image_class_is_reported(tmp_path):
    _images(tmp_path / "a", 10)
    _images(tmp_path / "one", 1)
    module = _load(tmp_path, shots=4)
    assert "No training images of 1 class: one." in module.report
    assert (
        _load(tmp_path, shots=8)
        .report[-2]
        .startswith("1 class has fewer than 8 training images and is kept: a")
    )


def test_the_report_is_about_the_chosen_classes(tmp_path):
    for name, count in (("a", 10), ("few", 4), ("one", 1)):
        _images(tmp_path / name, count)
    module = _load(tmp_path, shots=4)
    assert any("few (" in s for s in module.report) and any("one" in s for s in module.report)
    assert not any("few" in s or "one" in s for s in module.restrict(["a"]).report)
    recipe = load_recipe("fish", [f"data.root={tmp_path}", "backbone=limpet-tiny", "data.shots=4", "classes.include=[a]"])
    assert not any("few (" in note or "No training images" in note for note in prepare(recipe).notes)


def test_classnames(tmp_path):
    for name in ("cat_big", "dog", "eel"):
        _images(tmp_path / name, 4)
    (tmp_path / "classnames.csv").write_text(
        "label,folder,name\n2,cat_big,lion\n2,cat_big,big cat\n1,dog,no\n0,gone,ghost\n", encoding="utf-8"
    )
    module = _load(tmp_path)
    assert module.class_names == ["dog", "cat_big", "eel"]
    assert module.class_texts == {"dog": ["no"], "cat_big": ["lion", "big cat"], "eel": ["eel"]}
    assert any("ghost" in s or "gone" in s for s in module.report)


def test_shared_text_names_are_reported(tmp_path):
    for name in ("crane", "kite", "bird"):
        _images(tmp_path / name, 4)
    (tmp_path / "classnames.csv").write_text("folder,name\ncrane,Crane\nkite,crane\n")
    assert any("crane, kite share the text name 'crane'" in sentence for sentence in _load(tmp_path).report)


def test_unreadable_images_are_replaced_in_the_draw(tmp_path):
    for name in ("a", "b"):
        _images(tmp_path / name, 40)
    whole = _load(tmp_path, shots=4)
    bad = [sample for split in ("train", "val", "test") for sample in whole.samples[split][:1]]
    for sample in bad:
        sample.file.write_bytes(b"")
    module = _load(tmp_path, shots=4)
    assert _sizes(module) == _sizes(whole)
    assert {bad[0].path, bad[1].path}.isdisjoint(
        s.path for s in module.samples["train"] + module.samples["val"]
    )
    assert sorted(f.split(":")[0] for f in module.unreadable) == sorted([bad[0].path, bad[1].path])
    assert any(s.startswith("2 images cannot be read and were left out of the draw: ") for s in module.report)
    kept = {s.path for s in whole.samples["train"]} - {bad[0].path}
    assert kept <= {s.path for s in module.samples["train"]}
    seen = [path for batch in module.test_dataloader() for path in batch["path"]]
    assert len(seen) == len(whole.samples["test"]) - 1 and len(module.unreadable) == 3
    with pytest.raises(DataError, match="strict"):
        _load(tmp_path, shots=4, strict=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_test_images_reach_the_main_process(tmp_path, workers):
    for name in ("a", "b"):
        _images(tmp_path / name, 10)
    module = _load(tmp_path, shots=2, num_workers=workers, batch_size=1)
    module.samples["test"][1].file.write_bytes(b"not an image")
    batches = list(module.test_dataloader())
    assert len(batches) == 5 and all("unreadable" not in batch for batch in batches)
    assert module.unreadable == [f"{module.samples['test'][1].path}: it is not an image of a known format"]
    module.config.strict = True
    with pytest.raises(DataError, match="not an image"):
        list(module.test_dataloader())


def test_nothing_to_find(tmp_path):
    with pytest.raises(DataError, match=r"data\.root is not set"):
        load(FolderConfig(), 1).setup()
    with pytest.raises(DataError, match="There is no folder"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found nothing"):
        _load(tmp_path)
    _image(tmp_path / "x.png")
    with pytest.raises(DataError, match="no class folders"):
        _load(tmp_path)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "x.dcm").write_bytes(b"x")
    with pytest.raises(DataError, match="DICOM"):
        _load(tmp_path)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"sampling": "dasl"}, "Did you mean 'dassl'"),
        ({"batch_size": 0}, "batch_size"),
        ({"shots": "al"}, "data.shots"),
        ({"domain_column": "stain"}, "labels.csv"),
        ({"train_domains": ["x"]}, "domain_column"),
    ],
)
def test_wrong_settings(tmp_path, wrong, said):
    _images(tmp_path / "a", 4)
    with pytest.raises(DataError, match=said):
        _load(tmp_path, **wrong)


def test_unknown_module():
    with pytest.raises(DataError, match="Did you mean 'folder'"):
        load(FolderConfig(name="foldr"), 1)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    _image(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png is a file; give the folder"):
        _load(tmp_path / "x.png")


def test_two_folders_for_one_split_are_refused(tmp_path):
    for split in ("train", "val", "validation"):
        _images(tmp_path / split / "a", 3)
    with pytest.raises(DataError, match="several folders for one split: train, val, validation"):
        _load(tmp_path)


def test_folders_beside_the_splits_are_ignored_and_named(tmp_path):
    for split in ("train", "test", "extra"):
        _images(tmp_path / split / "a", 5)
    module = _load(tmp_path, shots="all")
    assert module.class_names == ["a"] and sum(_sizes(module).values()) == 10
    assert "Folders beside train, val and test are ignored: extra." in module.report


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "classnames.csv is empty"),
        ("folder,name\na,pez le\u00f3n\n".encode("latin-1"), "classnames.csv is not UTF-8; save it again"),
        (b"folder,text\na,lion\n", "needs the columns folder and name; it has folder, text"),
        (b"folder,name,label\na,lion,first\n", "the label of 'a' is 'first', not a whole number"),
        (b"folder,name,label\na,lion,1\na,cat,2\n", "'a' has the labels 1 and 2"),
    ],
)
def test_classnames_that_cannot_be_understood(tmp_path, content, said):
    _images(tmp_path / "a", 4)
    (tmp_path / "classnames.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        _load(tmp_path)


def test_classnames_by_another_name(tmp_path):
    _images(tmp_path / "a", 4)
    (tmp_path / "words.csv").write_text("folder,name\n,nobody\na,sea lion\n")
    assert _load(tmp_path).class_texts == {"a": ["a"]}
    assert _load(tmp_path, classnames="words.csv").class_texts == {"a": ["sea lion"]}
    assert _load(tmp_path, classnames="").class_texts == {"a": ["a"]}
    with pytest.raises(DataError, match=r"There is no wrods\.csv \(data\.classnames\) in"):
        _load(tmp_path, classnames="wrods.csv")


def test_checking_many_images_tells_how_far_it_is(tmp_path):
    _images(tmp_path / "a", 6)
    module, told = load(FolderConfig(root=str(tmp_path), shots=2), 1), []
    module.progress = lambda *state: told.append(state)
    module.setup()
    total = len(module.samples["train"]) + len(module.samples["val"])
    assert told == [("checking images", done, total) for done in range(1, total + 1)]


def test_a_file_that_went_away_has_no_key(tmp_path):
    _images(tmp_path / "a", 4)
    module = _load(tmp_path)
    sample = module.samples["train"][0]
    sample.file.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        module.content_key(sample)
