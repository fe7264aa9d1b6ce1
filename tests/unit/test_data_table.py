"""Tables: cells are text, columns have parts, splits and groups are respected."""

import json
import time

import pandas as pd
import pytest
from limpet.datamodules import DataError, load
from limpet.datamodules.configs import CoopSplitsConfig, FolderConfig, TableConfig
from PIL import Image


def _write(root, rows, header="path,label", name="labels.csv", images=True):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    for row in rows if images else ():
        path = root / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)


def _load(root, seed=1, **more):
    module = load(TableConfig(root=str(root), **{"shots": "all", **more}), seed)
    module.setup()
    return module


def _sizes(module):
    return tuple(len(module.samples[split]) for split in ("train", "val", "test"))


def test_labels_csv_in_a_folder_root_is_read_as_a_table(tmp_path):
    _write(tmp_path, [f"im/{i}.png,{'ab'[i % 2]}" for i in range(20)])
    module = load(FolderConfig(root=str(tmp_path), shots="all"), 1)
    module.setup()
    assert module.class_names == ["a", "b"] and _sizes(module) == (10, 4, 6)
    assert module.manifest()["hash"] == _load(tmp_path).manifest()["hash"]


@pytest.mark.parametrize("name", ["no", "007", "NA", "null", "1e3", "True", "nan", "12:30", "é鱼"])
def test_cells_are_text(tmp_path, name):
    _write(tmp_path, [f"{i}.png,{name if i % 2 else 'zz'}" for i in range(8)])
    assert set(_load(tmp_path).class_names) == {name, "zz"}


def test_whole_number_classes_are_in_numeric_order(tmp_path):
    _write(tmp_path, [f"{i}.png,{i}" for i in (10, 9, 2)])
    assert _load(tmp_path).class_names == ["2", "9", "10"]


def test_class_and_label_columns(tmp_path):
    _write(tmp_path, [f"{i}.png,{['z', 'm', 'a'][i % 3]},{i % 3}" for i in range(9)], "path,class,label")
    assert _load(tmp_path).class_names == ["z", "m", "a"]
    _write(tmp_path, ["0.png,z,0", "1.png,z,1"], "path,class,label")
    with pytest.raises(DataError, match="'z' has the labels 0 and 1"):
        _load(tmp_path)
    _write(tmp_path, ["0.png,z,0", "1.png,y,0"], "path,class,label")
    with pytest.raises(DataError, match="label 0 stands for"):
        _load(tmp_path)


def test_row_order_does_not_matter(tmp_path):
    rows = [f"{i}.png,{'abc'[i % 3]},{i // 4}" for i in range(60)]
    _write(tmp_path, rows, "path,label,group")
    first = _load(tmp_path, shots=3)
    _write(tmp_path, rows[::-1], "path,label,group")
    second = _load(tmp_path, shots=3)
    assert first.manifest() == second.manifest()
    assert first.samples == second.samples


def test_groups_stay_together(tmp_path):
    _write(tmp_path, [f"{i}.png,{'ab'[i % 2]},{i // 5}" for i in range(100)], "path,label,group")
    module = _load(tmp_path)
    sides = {split: {s.group for s in samples} for split, samples in module.samples.items()}
    assert (
        not sides["train"] & sides["test"]
        and not sides["train"] & sides["val"]
        and not sides["val"] & sides["test"]
    )
    assert sum(_sizes(module)) == 100


def test_leaking_groups_of_a_given_split_are_reported(tmp_path):
    rows = [f"{i}.png,{'ab'[i % 2]},{('train', 'val', 'test')[i % 3]},{i // 6}" for i in range(12)]
    _write(tmp_path, rows, "path,label,split,group")
    assert any("in both train and test" in sentence for sentence in _load(tmp_path).report)


def test_split_words(tmp_path):
    words = ("Train", "VALID", "dev", "test", "validation")
    _write(tmp_path, [f"{i}.png,a,{words[i % 5]}" for i in range(20)], "path,label,split")
    assert _sizes(_load(tmp_path)) == (4, 12, 4)


def test_unknown_split_names_the_domain_column(tmp_path):
    rows = [f"{i}.png,{'ab'[i % 2]},{('site1', 'site2')[i // 20]}" for i in range(40)]
    _write(tmp_path, rows, "path,label,split")
    with pytest.raises(DataError, match=r"site1, site2.*data\.domain_column=split"):
        _load(tmp_path)
    module = _load(tmp_path, domain_column="split")
    assert _sizes(module) == (20, 8, 12) and {s.domain for s in module.samples["train"]} == {"site1", "site2"}
    shifted = _load(tmp_path, domain_column="split", train_domains=["site1"], test_domains=["site2"])
    assert _sizes(shifted) == (10, 4, 20)
    within = _load(tmp_path, domain_column="split", train_domains=["site1"], test_domains=["site1"])
    assert _sizes(within) == (10, 4, 6) and within.samples["train"] == shifted.samples["train"]
    with pytest.raises(DataError, match="Did you mean 'site2'"):
        _load(tmp_path, domain_column="split", test_domains=["sit2"])


def test_images_of_other_domains_whose_group_is_trained_on_are_no_test_images(tmp_path):
    rows = [f"{i}.png,a,d{i % 2},g{i // 2}" for i in range(40)]
    _write(tmp_path, rows, "path,label,site,group")
    module = _load(tmp_path, domain_column="site", train_domains=["d0"], test_domains=["d1"])
    sides = {split: {s.group for s in samples} for split, samples in module.samples.items()}
    assert sides["test"] and not sides["test"] & (sides["train"] | sides["val"])


def test_extras_and_batches(tmp_path):
    rows = [f"{i}.png,a,{i / 2},a fish {i},cam{i % 2}" for i in range(10)]
    _write(tmp_path, rows, "path,label,value,caption,camera")
    module = _load(tmp_path)
    module.keys = ("value", "caption")
    batch = next(iter(module.loader("test", batch_size=3)))
    assert batch["value"].shape == (3,) and batch["caption"][0].startswith("a fish")
    assert module.samples["test"][0].extra["camera"].startswith("cam")
    module.keys = ("boxs",)
    with pytest.raises(DataError, match="needs 'boxs'"):
        next(iter(module.loader("test")))


def test_a_value_that_is_no_number_stays_text(tmp_path):
    _write(tmp_path, [f"{i}.png,a,{('1.5', 'ripe')[i % 2]}" for i in range(4)], "path,label,value")
    samples = [sample for split in _load(tmp_path).samples.values() for sample in split]
    assert {sample.path: sample.extra["value"] for sample in samples} == {
        "0.png": 1.5, "1.png": "ripe", "2.png": 1.5, "3.png": "ripe",
    }  # fmt: skip


def test_rows_without_a_split_among_rows_with_one_are_left_out(tmp_path):
    _write(tmp_path, [f"{i}.png,a,{('train', 'val', 'test', '')[i % 4]}" for i in range(8)], "path,label,split")
    module = _load(tmp_path)
    assert _sizes(module) == (2, 2, 2)
    assert "2 images without a split among images with one: left out." in module.report


def test_classes_without_a_single_file_are_left_out(tmp_path):
    _write(tmp_path, [f"{i}.png,{'abc'[i % 3]}" for i in range(9)])
    for i in (1, 4, 7):
        (tmp_path / f"{i}.png").unlink()
    module = _load(tmp_path)
    assert module.class_names == ["a", "c"] and {s.label for s in module.samples["train"]} == {0, 1}
    assert {s.path for split in module.samples.values() for s in split if s.label == 1} == {"2.png", "5.png", "8.png"}
    assert "No file of b exists; left out of the classes." in module.report


def test_files_of_one_name_beside_the_images_and_the_table_are_two(tmp_path):
    _write(tmp_path / "images", ["0.png,a", "1.png,b"])
    other = tmp_path / "tables" / "0.png"
    _write(other.parent, ["0.png,a", "1.png,b", f"{other},b"], images=False)
    Image.new("RGB", (8, 8)).save(other)
    module = _load(tmp_path / "images", table=str(other.parent / "labels.csv"))
    found = {s.path: module.class_names[s.label] for split in module.samples.values() for s in split}
    assert found == {"0.png": "a", "1.png": "b", other.as_posix(): "b"}


def test_other_column_names_and_suggestions(tmp_path):
    _write(tmp_path, [f"{i}.png,{'ab'[i % 2]},p{i}" for i in range(8)], "file,species,patient", "my.csv")
    config = {"table": "my.csv", "path_column": "file", "label_column": "species", "group_column": "patient"}
    assert _load(tmp_path, **config).samples["train"][0].group
    for wrong in ({"path_column": "fil"}, {"label_column": "specie"}, {"group_column": "patiens"}, {"split_column": "pateint"}):
        with pytest.raises(DataError, match="Did you mean"):
            _load(tmp_path, **{**config, **wrong})
    with pytest.raises(DataError, match=r"my\.csv.*data\.table"):
        _load(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean 'my\.csv'"):
        _load(tmp_path, table="mi.csv")


@pytest.mark.parametrize("kind", ["parquet", "semicolon", "tab", "bom"])
def test_formats(tmp_path, kind):
    rows = [f"{i}.png,{'ab'[i % 2]},{i % 2}" for i in range(8)]
    _write(tmp_path, rows, "path,class,label")
    expected = _load(tmp_path).manifest()["hash"]
    frame = pd.read_csv(tmp_path / "labels.csv")
    name = "t.parquet" if kind == "parquet" else "t.csv"
    if kind == "parquet":
        frame.to_parquet(tmp_path / name)
    else:
        separator = {"semicolon": ";", "tab": "\t", "bom": ","}[kind]
        frame.to_csv(tmp_path / name, sep=separator, index=False, encoding="utf-8-sig")
    assert _load(tmp_path, table=name).manifest()["hash"] == expected


def test_empty_cells_of_parquet_are_empty_text(tmp_path):
    _write(tmp_path, [f"{i}.png,a" for i in range(6)])
    numbers = pd.array([7, None, 7, None, 8, 8], dtype="Int64")
    frame = pd.DataFrame({"path": [f"{i}.png" for i in range(6)], "label": ["a", None, "b", "a", "b", "b"], "group": numbers})
    frame.to_parquet(tmp_path / "t.parquet")
    module = _load(tmp_path, table="t.parquet")
    found = {s.path: s.group for split in module.samples.values() for s in split}
    assert found == {"0.png": "7", "2.png": "7", "3.png": None, "4.png": "8", "5.png": "8"}
    assert "1 row of t.parquet without path or class left out." in module.report


def test_missing_files(tmp_path):
    _write(tmp_path, [f"{i}.png,{'ab'[i % 2]}" for i in range(8)])
    (tmp_path / "3.png").unlink()
    module = _load(tmp_path)
    assert sum(_sizes(module)) == 7 and any(
        "1 file of labels.csv missing" in s and "3.png" in s for s in module.report
    )
    with pytest.raises(DataError, match="strict"):
        _load(tmp_path, strict=True)
    with pytest.raises(DataError, match=r"None of the 8 images.*data\.root"):
        for i in range(8):
            (tmp_path / f"{i}.png").unlink(missing_ok=True)
        _load(tmp_path)


def test_paths_from_the_root_or_from_the_table(tmp_path):
    _write(tmp_path / "images", [f"{i}.png,{'ab'[i % 2]}" for i in range(8)], name="unused.csv")
    _write(tmp_path / "tables", [f"{i}.png,{'ab'[i % 2]}" for i in range(8)], images=False)
    table = str(tmp_path / "tables" / "labels.csv")
    assert sum(_sizes(_load(tmp_path / "images", table=table))) == 8
    _write(tmp_path / "tables", [f"..\\images\\{i}.png,{'ab'[i % 2]}" for i in range(8)], images=False)
    module = load(TableConfig(table=table, shots="all"), 1)
    module.setup()
    assert sum(_sizes(module)) == 8


def test_repeated_rows_and_several_labels(tmp_path):
    _write(tmp_path, ["0.png,a", "1.png,a", "1.png,a", "2.png,b", "3.png,"])
    module = _load(tmp_path)
    assert sum(_sizes(module)) == 3
    assert any("1 row of labels.csv repeat" in s for s in module.report) and any(
        "without" in s for s in module.report
    )
    _write(tmp_path, ["0.png,a", "0.png,b"])
    with pytest.raises(DataError, match="multi-label"):
        _load(tmp_path)


@pytest.mark.parametrize("content", ["", "path,label\n", "path\n0.png\n", "path,label\n0.png,\n"])
def test_useless_tables(tmp_path, content):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DataError):
        _load(tmp_path)


@pytest.mark.slow
def test_a_large_table_opens_in_seconds(tmp_path):
    (tmp_path / "im").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "im" / "0.png")
    for i in range(1, 2000):
        (tmp_path / "im" / f"{i}.png").hardlink_to(tmp_path / "im" / "0.png")
    rows = [f"im/{i % 2000}.png,c{i % 500},{i // 7},{i}" for i in range(2000)]
    rows += [f"no/{i}.png,c{i % 500},{i // 7},{i}" for i in range(198_000)]
    _write(tmp_path, rows, "path,label,group,value", images=False)
    start = time.monotonic()
    module = _load(tmp_path, shots=4)
    assert len(module.class_names) == 500 and time.monotonic() - start < 60


def _coop(root, folder="images"):
    entries = {"train": [], "val": [], "test": []}
    for split, count in (("train", 6), ("val", 5), ("test", 3)):
        for label, name in ((1, "sea_urchin"), (0, "moon_jelly")):
            for i in range(count):
                path = f"{name}/{split}{i}.png"
                entries[split].append([path, label, name])
                file = root / folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(file)
    (root / "split_zhou_Sea.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("folder", ["images", "data/images", "jpg", "."])
def test_coop_splits(tmp_path, folder):
    _coop(tmp_path, folder)
    module = load(CoopSplitsConfig(root=str(tmp_path), shots=4, sampling="dassl"), 1)
    module.setup()
    assert module.class_names == ["moon_jelly", "sea_urchin"]
    assert module.class_texts["sea_urchin"] == ["sea urchin"]
    assert _sizes(module) == (8, 8, 6)
    assert [s.label for s in module.samples["train"]] == [1] * 4 + [0] * 4


def test_coop_splits_draw_as_dassl_does(tmp_path):
    import random

    _coop(tmp_path)
    module = load(CoopSplitsConfig(root=str(tmp_path), shots=4, sampling="dassl"), 3)
    module.setup()
    rng = random.Random(3)
    expected = [
        f"{name}/train{i}.png" for name in ("sea_urchin", "moon_jelly") for i in rng.sample(range(6), 4)
    ]
    assert [s.path for s in module.samples["train"]] == expected


def test_coop_splits_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"split_zhou_\*\.json"):
        load(CoopSplitsConfig(root=str(tmp_path)), 1).setup()
    _coop(tmp_path, "somewhere/deep/below")
    with pytest.raises(DataError, match=r"data\.image_dir"):
        load(CoopSplitsConfig(root=str(tmp_path)), 1).setup()
    module = load(CoopSplitsConfig(root=str(tmp_path), image_dir="somewhere/deep/below"), 1)
    module.setup()
    (tmp_path / "split_zhou_Sea.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="is not a split file"):
        load(CoopSplitsConfig(root=str(tmp_path)), 1).setup()
    with pytest.raises(DataError, match=r"Did you mean 'split_zhou_Sea\.json'"):
        load(CoopSplitsConfig(root=str(tmp_path), split_file="split_zhou_See.json"), 1).setup()


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"train": [["a.png", 0, "cod"], ["b.png", 0, "ray"]]}, "the label 0 stands for 'cod' and 'ray'"),
        ({"train": [["a.png", 0, "cod"], ["b.png", 1, "cod"]]}, "cod is the name of several labels"),
        ({"Train": [["a.png", 0, "cod"]]}, "no images under train, val or test; it has Train"),
        ({}, "no images under train, val or test; it has nothing"),
    ],
)
def test_coop_splits_that_contradict_themselves(tmp_path, split, said):
    (tmp_path / "split_zhou_Sea.json").write_text(json.dumps(split))
    with pytest.raises(DataError, match=said):
        load(CoopSplitsConfig(root=str(tmp_path)), 1).setup()


def test_coop_splits_with_images_listed_twice_or_missing(tmp_path):
    _coop(tmp_path)
    (tmp_path / "images/sea_urchin/test0.png").unlink()
    file = tmp_path / "split_zhou_Sea.json"
    split = json.loads(file.read_text())
    split["test"].append(split["train"][0])
    file = file.rename(tmp_path / "my_split.json")
    file.write_text(json.dumps(split))
    for given in ("my_split.json", str(file)):
        module = load(CoopSplitsConfig(root=str(tmp_path), split_file=given, shots="all"), 1)
        module.setup()
        assert _sizes(module) == (12, 10, 5)
        report = " ".join(module.report)
        assert "1 image listed again in my_split.json, left out: sea_urchin/train0.png." in report
        assert "1 file missing in" in report and "sea_urchin/test0.png." in report
    with pytest.raises(DataError, match=r"1 file missing.*data\.strict"):
        load(CoopSplitsConfig(root=str(tmp_path), split_file=str(file), strict=True), 1).setup()


@pytest.mark.parametrize("header", ["path,label,label", "path,label, label", '\ufeffpath,"label",label'])
def test_two_columns_of_one_name_are_refused(tmp_path, header):
    _write(tmp_path, [f"{i}.png,{'ab'[i % 2]},x" for i in range(8)], header)
    with pytest.raises(DataError, match=r"labels\.csv has several columns 'label'; rename or remove all but one"):
        _load(tmp_path)


def test_two_columns_without_a_name_are_nothing(tmp_path):
    _write(tmp_path, [f"{i}.png,{'ab'[i % 2]},," for i in range(8)], "path,label,,")
    assert _load(tmp_path).class_names == ["a", "b"]


def test_two_columns_of_one_name_in_classnames_are_refused(tmp_path):
    _write(tmp_path, [f"{i}.png,{'ab'[i % 2]}" for i in range(8)])
    (tmp_path / "classnames.csv").write_text("folder,name,name\na,x,y\n")
    with pytest.raises(DataError, match=r"classnames\.csv has several columns 'name'"):
        _load(tmp_path)
