"""Names of files, folders and runs that are not UTF-8, as old archives hold them: images are used, other names are refused."""

import csv
import json
import os
import shutil

import pytest

QUICK = ("backbone=limpet-tiny", "data.shots=2", "data.augment=none", "trainer.accelerator=cpu", "trainer.epochs=1")
ODD = os.fsdecode(b"\xe9l\xe9gant")  # latin-1


@pytest.fixture
def odd(draw, tmp_path, monkeypatch):
    """A folder of drawn fish in which every image has a latin-1 name, and the working folder beside it."""
    fish = draw(tmp_path / "fish", species=3, images=6)
    for path in sorted(fish.rglob("*.png")):
        path.rename(path.with_name(f"{ODD}-{path.name}"))
    monkeypatch.chdir(tmp_path)
    return fish


@pytest.mark.parametrize("method", ["gda", "coop"])
def test_images_with_names_that_are_not_utf8_are_used(ask, odd, tmp_path, method):
    broken = next(p for p in sorted(odd.rglob("*.png")) if p.name.endswith("0.png"))
    broken.write_bytes(b"no image")
    (broken.parent / f"{ODD}.{ODD}").write_bytes(b"something else")
    answer = ask("fit", "fish", f"data.root={odd}", f"method={method}", *QUICK)
    assert answer.code == 0, answer.err
    run = tmp_path / "runs/fish/001"
    rows = list(csv.DictReader((run / "predictions.csv").open(encoding="utf-8")))
    assert rows and all("\ufffdl\ufffdgant-" in row["path"] for row in rows)
    paths = [path for split in json.loads((run / "split.json").read_text())["splits"].values() for path in split["paths"]]
    assert all((odd / path).is_file() for path in paths)  # the manifest still leads to the files
    assert "\ufffdl\ufffdgant" in (run / "report.html").read_text(encoding="utf-8") or method == "coop"
    for words in (("compare", run), ("evaluate", run), ("predict", run, odd), ("index", odd), ("export", run, "--to", "adapter")):
        answer = ask(*words, good=(0, 1))
        assert answer.code in (0, 1), answer.err
    (run / "metrics.json").unlink()
    assert ask("resume", run).code == 0


def test_a_class_folder_that_is_not_utf8_is_named(ask, odd):
    folder = next(p for p in sorted(odd.iterdir()) if p.is_dir())
    folder.rename(folder.with_name(ODD))
    for command in ("check", "fit"):
        sentence = ask(command, "fish", f"data.root={odd}", *QUICK).sentence
        assert "'\ufffdl\ufffdgant' is not UTF-8: rename its folder" in sentence


@pytest.mark.parametrize("word", ["run.name={}", "run.dir={}", "data.root={}", "classes.include=[{}, b]", "classes.texts.{}=a"])
def test_settings_that_are_not_utf8_are_refused_at_once(ask, odd, word):
    for command in ("check", "fit"):
        words = [command, "fish", *QUICK, word.format(ODD)]
        assert "is not valid text (UTF-8)" in ask(*words, *([] if "root" in word else [f"data.root={odd}"])).sentence


def test_a_recipe_file_that_is_not_utf8_needs_a_name(ask, odd):
    (odd.parent / f"{ODD}.yaml").write_text("extends: fish\n")
    assert "run.name=NAME" in ask("check", f"{ODD}.yaml", f"data.root={odd}", *QUICK).sentence
    assert ask("check", f"{ODD}.yaml", f"data.root={odd}", "run.name=mine", *QUICK).code == 0


def test_a_text_of_half_a_character_is_refused(ask, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text('extends: quickstart\nrun:\n  name: "\\ud800"\n')
    assert "r.yaml:3: '\\ud800' is not valid text" in ask("check", recipe).sentence


def test_an_added_class_that_is_not_text_or_looks_like_another_is_refused(ask, finished, tmp_path):
    _, run = finished
    copied = tmp_path / "001"
    shutil.copytree(run, copied)
    assert "is not valid text (UTF-8)" in ask("add-classes", copied, ODD).sentence
    assert "look the same" in ask("add-classes", copied, "\u00e9", "e\u0301").sentence
    assert sorted(p.name for p in (copied / "adapter").iterdir()) == ["v1"]
    assert ask("add-classes", copied, "\u00e9").code == 0
    assert "look the same" in ask("add-classes", copied, "e\u0301").sentence
