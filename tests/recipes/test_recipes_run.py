"""Every packaged recipe runs: on drawn fish, with limpet-tiny, at most two steps a stage."""

import csv
import json
import time

import pytest
from limpet.adapter import find
from limpet.recipe import load, packaged_names
from limpet.runner import fit

METHODS = sorted(n.partition("/")[2] for n in packaged_names() if n.startswith("method/"))
DATA = sorted(n.partition("/")[2] for n in packaged_names() if n.startswith("data/") and n != "data/pretraining")
STREAMS = ("cil_cifar100", "continual_reef", "mtil")  # test_continual_recipes.py runs these
RUNNABLE = sorted(n for n in packaged_names() if "/" not in n and n != "base" and n not in STREAMS)
ORDERING = ("ordering", "reef_ordering", "ordering_benchmark")


def task(method):
    """Task of a method recipe."""
    return find(load("order_reef", [f"method={method}"])[0].method["name"]).task


OF_TASK = {"ordering": ORDERING, "referring": ("reef_scenes",), "anomaly": ("reef_defects",)}


def fits(method, data):
    """Whether a method is for such data: tasks other than classification have their own."""
    if method == "descriptions" and data in ("shapes", "benchmark"):
        return False  # its packaged descriptions are of reef fish
    own = OF_TASK.get(task(method))
    return data not in (*ORDERING, "reef_defects") if own is None else data in own


PAIRS = [(method, data) for method in METHODS for data in [*DATA, "parquet"] if fits(method, data)]
SMALL = ["backbone=limpet-tiny", "trainer.max_steps=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def sources(fish, fakes, tmp_path_factory):
    """Settings of each kind of data, all from one folder of drawings."""
    root = tmp_path_factory.mktemp("sources")
    rows, split = [], {"train": [], "val": [], "test": []}
    for label, folder in enumerate(sorted(p for p in fish.iterdir())):
        for i, image in enumerate(sorted(folder.iterdir())):
            part = "train" if i < 4 else "val" if i < 6 else "test"
            path = image.relative_to(fish).as_posix()
            rows.append({"path": path, "label": folder.name, "split": part, "group": f"{folder.name}{i // 2}", "value": i})
            split[part].append([path, label, folder.name])
    with (root / "fish.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    import pandas as pd

    pd.DataFrame(rows).to_parquet(root / "fish.parquet")
    (root / "coop").mkdir()
    (root / "coop" / "images").symlink_to(fish)
    (root / "coop" / "split_zhou_Fish.json").write_text(json.dumps(split))
    for name in ("dtd", "utkface"):
        fakes.write(name, root)
    return {
        "benchmark": ["data.dataset=dtd", f"data.root={root}"],
        "ordering_benchmark": [f"data.root={root}"],
        "folder": [f"data.root={fish}"],
        "table": [f"data.root={fish}", f"data.table={root}/fish.csv"],
        "parquet": [f"data.root={fish}", f"data.table={root}/fish.parquet"],
        "coop_splits": [f"data.root={root}/coop"],
        "ordering": [f"data.root={fish}", f"data.table={root}/fish.csv", "data.instruction=Sort by number."],
        "reef_ordering": ["data.train=16", "data.val=4", "data.test=8"],
        "pretraining": [
            f"data.root={fish}", "data.photos=.", "data.test_photos=.", "data.shapes=4", "data.fish=2", "data.batch_size=8",
            "data.epoch_images=16", "trainer.precision=32-true",
        ],
        "shapes": ["data.attribute=pattern", "data.train=2", "data.val=2", "data.test=2"],
        "reef_scenes": ["data.species=4", "data.train=2", "data.val=2", "data.test=2"],
        "reef_defects": ["data.species=4", "data.test=2"],
        "reef": ["data.species=4", "data.train=4", "data.val=2", "data.test=2"],
    }


def shots(data):
    """Few shots where there are classes."""
    return [] if data in ORDERING else ["data.shots=2"]


def check(run, images=None):
    metrics = json.loads((run / "metrics.json").read_text())
    for values in metrics["results"].values():
        known = [values[key] for key in ("accuracy", "image_auroc") if key in values]
        assert "spearman" in values or (all(0 <= value <= 1 for value in known) and known)
        assert images is None or values["images"] == images
    assert (run / "adapter" / "v1" / "adapter.json").is_file()
    return metrics


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_packaged_recipe_runs(name, sources, tmp_path):
    (plain,) = load(name)
    data = sources[plain.data.name]
    (recipe,) = load(name, [*SMALL, *data, *shots(plain.data.name), f"run.dir={tmp_path}"])
    assert check(fit(recipe))["recipe"] == name


@pytest.mark.slow  # a minute in all
@pytest.mark.parametrize(("method", "data"), PAIRS)
def test_every_method_runs_on_every_kind_of_data(method, data, sources, tmp_path):
    kind = "table" if data == "parquet" else data
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: [base, data/{kind}, trainer/cpu, method/{method}]\n")
    (recipe,) = load(str(file), [*SMALL, *sources[data], *shots(data), f"run.dir={tmp_path}"])
    own = {"folder": None, "ordering": None, "benchmark": 9, "ordering_benchmark": None}
    images = own.get(data, 8 if data in ("reef", "shapes", "reef_scenes", "reef_defects", "reef_ordering") else 16)
    metrics = check(fit(recipe), images)
    assert metrics["method"] == ("coop" if method == "coop_words" else method)
    assert data in ORDERING or metrics["results"]["all"]["classes"] == (3 if data == "benchmark" else 4)


def test_quickstart_in_full_beats_zero_shot(tmp_path):
    started = time.monotonic()
    (recipe,) = load("quickstart", [f"run.dir={tmp_path}"])
    metrics = check(fit(recipe))
    assert metrics["results"]["base"]["accuracy"] >= metrics["zero_shot"]["base"]["accuracy"] + 0.05
    assert metrics["harmonic_mean"] > 0
    print(f"quickstart took {time.monotonic() - started:.0f} s")
