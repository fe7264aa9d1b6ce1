"""Folders and tables with everything users put into them, from fit to the predictions."""

import csv
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

TRAPS = ["no", "007", "1e3", "Käfer ñ", "null", "a, b"]


def rows(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table_of(folder, to, **columns):
    """A CSV that lists a folder of class folders; `columns` are functions of (class, number)."""
    found = []
    for group in sorted(p for p in folder.iterdir() if p.is_dir()):
        for i, image in enumerate(sorted(group.iterdir())):
            row = {"path": image.relative_to(folder).as_posix(), "label": group.name}
            found.append({**row, **{key: make(group.name, i) for key, make in columns.items()}})
    pd.DataFrame(found).to_csv(to, index=False)
    return to


@pytest.mark.parametrize("how", ["folder", "csv", "parquet"])
def test_names_that_yaml_would_change_stay_what_they_are(how, fit_fish, limpet, draw, place):
    root, names = draw(place / "traps", species=4, images=6, names=TRAPS), TRAPS[:4]
    settings = []
    if how != "folder":
        table_of(root, place / "labels.csv")
        if how == "parquet":
            pd.read_csv(place / "labels.csv", dtype=str, keep_default_na=False).to_parquet(place / "labels.parquet")
        settings = ["data=table", f"data.table={place}/labels.{how}"]
    run, _ = fit_fish(*settings, "method=linear_probe", "classes.texts={no: [norwegian fish], '007': [bond fish]}",
                            "classes.include=[no,'007',1e3,Käfer ñ]", root=root)  # fmt: skip
    assert json.loads((run / "split.json").read_text("utf-8"))["classes"] == names
    assert {r["label"] for r in rows(run / "predictions.csv")} == set(names)
    assert [r["text"] for r in rows(run / "per_class.csv")][:2] == ["norwegian fish", "bond fish"]
    limpet("predict", run, root, "--out", "p.csv")
    assert {r["label"] for r in rows("p.csv")} <= set(names)
    assert "Käfer ñ" in (run / "report.html").read_text("utf-8")


def test_more_traps(fit_fish, draw, place):
    run, _ = fit_fish("method=zero_shot", root=draw(place / "traps", species=6, images=6, names=TRAPS))
    assert {r["label"] for r in rows(run / "predictions.csv")} == set(TRAPS)


def test_unreadable_images_are_reported_or_stop(fish, fit_fish, limpet, place):
    root = place / "broken"
    shutil.copytree(fish, root)
    for folder in root.iterdir():
        (folder / "03.png").write_bytes(b"")
        (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:200])
    _, metrics = fit_fish("data.shots=all", root=root)
    assert len(metrics["unreadable"]) == 8 and any("could not be read" in note for note in metrics["notes"])
    assert metrics["results"]["all"]["images"] > 0
    assert "strict" in limpet("fit", "fish", f"data.root={root}", "data.strict=true", "data.shots=all", code=2)


@pytest.mark.parametrize("method", ["coop", "linear_probe", "tip_adapter", "zero_shot"])
def test_every_image_of_every_class_may_be_used(method, fit_fish):
    _, metrics = fit_fish("data.shots=all", f"method={method}")
    assert metrics["shots"] == "all"


def test_a_class_without_test_images(fit_fish, fish, place):
    table = table_of(fish, place / "t.csv", split=lambda name, i: "test" if i > 6 and "wrasse" not in name else "train")
    run, metrics = fit_fish("data=table", f"data.table={table}", "method=linear_probe")
    assert any("No test images" in note for note in metrics["notes"]), metrics["notes"]
    (empty,) = [r for r in rows(run / "per_class.csv") if "wrasse" in r["class"]]
    assert empty["images"] == "0" and empty["accuracy"] == ""


def test_a_class_without_training_images(fit_fish, fish, place):
    table = table_of(fish, place / "t.csv", split=lambda name, i: "test" if i > 6 or "wrasse" in name else "train")
    for method in ("coop", "linear_probe", "tip_adapter"):
        _, metrics = fit_fish("data=table", f"data.table={table}", f"method={method}")
        assert metrics["results"]["all"]["classes"] == 4


@pytest.mark.parametrize("method", ["coop", "linear_probe", "tip_adapter", "tip_adapter_f"])
@pytest.mark.parametrize("species", [1, 2])
def test_one_class_or_two(method, species, fit_fish, draw, place):
    root = draw(place / "few", species=species, images=8)
    _, metrics = fit_fish(f"method={method}", root=root)
    assert "top5" not in metrics["results"]["all"]
    assert any("only class" in note for note in metrics["notes"]) == (species == 1)


def test_groups_stay_on_one_side(fit_fish, fish, place):
    table = table_of(fish, place / "t.csv", group=lambda name, i: f"{name} {i // 3}")
    run, _ = fit_fish("data=table", f"data.table={table}")
    splits = json.loads((run / "split.json").read_text())["splits"]
    groups = [set(splits[s]["groups"]) for s in ("train", "val", "test")]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_domains(fit_fish, fish, limpet, place):
    table = table_of(fish, place / "t.csv", camera=lambda name, i: "day" if i % 2 else "night")
    data = ["data=table", f"data.table={table}", "data.domain_column=camera"]
    run, _ = fit_fish(*data, "data.train_domains=[day]", "data.test_domains=[night]")
    splits = json.loads((run / "split.json").read_text())["splits"]
    assert set(splits["train"]["domains"]) == {"day"} and set(splits["test"]["domains"]) == {"night"}
    out = limpet("check", "fish", f"data.root={fish}", *data, "data.train_domains=[dya]", code=2)
    assert "dya" in out and "day" in out


def test_classes_of_the_recipe(fit_fish, fish):
    names = sorted(p.name for p in fish.iterdir())
    _, metrics = fit_fish("classes.first=2")
    assert metrics["results"]["all"]["classes"] == 2
    _, metrics = fit_fish(f"classes.base=[{names[3]}]", f"classes.new=[{names[0]},{names[1]}]", "protocol=base_to_new")
    assert [metrics["results"][s]["classes"] for s in ("base", "new")] == [1, 2]
    run, _ = fit_fish(f"classes.include=[{names[2]},{names[0]}]", "method=zero_shot")
    assert [r["class"] for r in rows(run / "per_class.csv")] == [names[2], names[0]]
    several = f"classes.texts={{{names[0]}: [fish, small fish]}}"
    assert fit_fish(several, "method=zero_shot")[1]["results"] != fit_fish("method=zero_shot")[1]["results"]


def test_several_texts_from_a_classnames_file(fit_fish, fish, limpet, place):
    root = place / "named"
    shutil.copytree(fish, root)
    folders = sorted(p.name for p in root.iterdir())
    (root / "classnames.csv").write_text("folder,name\n" + "".join(f"{f},{f} a\n{f},{f} b\n" for f in folders))
    run, _ = fit_fish("method=zero_shot", root=root)
    classes = json.loads((run / "adapter" / "v1" / "adapter.json").read_text())["classes"]
    assert list(classes["texts"][folders[0]]) == [f"{folders[0]} a", f"{folders[0]} b"]


MISTAKES = {
    "data.root is not set": ["data.root=null"],
    "nearest that exists": ["data.root=nowhere"],
    "no images in": ["data.root=empty"],
    "domain_column=split": ["data=table", "data.table=t.csv"],
    "has no column": ["data=table", "data.table=t.csv", "data.label_column=species"],
    "names 'cod'": ["classes.include=[cod]"],
    "did you mean 'coop'": ["method=copo"],
    "did you mean: 'shots'": ["data.shotz=3"],
    "context_length": ["method.context_lenght=3"],
    "one of last, val": ["evaluate.select=best"],
    "limpet-tiny": ["backbone=limpet-tinny"],
    "convert": ["backbone.name=ViT-B-32", "backbone.pretrained=script.pt", "backbone.activation=gelu"],
    "is 0": ["optim.lr=0"],
    "32-true": ["trainer.precision=half"],
    "auto, cpu": ["trainer.accelerator=quantum"],
    "no new ones": ["protocol=base_to_new", "classes.first=1"],
    "lower optim.lr": ["optim.lr=1e30", "trainer.epochs=4"],
    "not found": ["method.name=./my.py:MyAdapter"],
    "csv, tensorboard": ["trainer.loggers=[wandb]"],
    "lightning refuses": ["trainer.strategy=foo"],
    "under protocol all": ["init_from=x", "protocol=base_to_new"],
    "is written run@v2": ["init_from=x@vv"],
    "a single one has none": ["init_from=x", "continual=replay"],
    "on one device": ["stream.by=classes", "stream.increment=2", "trainer.devices=2"],
    "remove classes.include": ["stream.by=tasks", "classes.first=2"],
    "not measured after every session": ["stream.by=classes", "stream.increment=2", "evaluate.task=retrieval"],
    "use evaluate.others": ["stream.by=classes", "stream.increment=2", "evaluate.shift={venus: {name: reef}}"],
    "'prompt_pair' is a method of ordering": ["method=prompt_pair", "data=reef_ordering", "stream.by=classes"],
    "compares images and texts in one space": ["method=prompt_pair", "data=reef_ordering", "evaluate.task=retrieval"],
    "and 'coop' learns from some": ["data=reef", "data.train=0", "data.shots=all", "method=coop"],
    "whitening=false": ["data=reef", "data.train=0", "data.shots=all", "method=zero_shot", "evaluate.task=retrieval"],
}


@pytest.mark.parametrize("said", MISTAKES)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_mistake_gets_a_sentence(said, fish, place, capsys):
    import torch
    from limpet.cli import main

    (place / "empty").mkdir()
    table_of(fish, place / "t.csv", split=lambda name, i: "mars" if i % 2 else "venus")
    if said == "convert":
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(place / "script.pt"))
    given = {word.partition("=")[0] for word in MISTAKES[said]}
    usual = [f"data.root={fish}", "backbone=limpet-tiny", "data.augment=none", "trainer.epochs=1", "data.shots=2"]
    if "backbone.name" in given:
        usual.remove("backbone=limpet-tiny")
    words = [word for word in usual if word.partition("=")[0] not in given]
    assert main(["fit", "fish", *words, *MISTAKES[said]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err.lower() and len(err.strip().splitlines()) == 1
