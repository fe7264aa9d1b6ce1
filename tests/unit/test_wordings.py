"""Wordings compared on one data set."""

import json

import numpy as np
import pytest
import torch
from limpet.classes import ClassSet
from limpet.errors import RecipeError
from limpet.evaluate import evaluate_run
from limpet.recipe import Recipe, load
from limpet.runner import fit
from limpet.sections import WordingConfig
from limpet.session import prepare
from limpet.wordings import check, resampled, worded

SMALL = ["data.species=4", "data.train=4", "data.val=2", "data.test=6", "data.shots=2"]


def test_a_wording_changes_what_it_names(tmp_path):
    classes = ClassSet(("cat", "polar_bear", "dog"), {"dog": ("hound",)})
    (tmp_path / "d.json").write_text(json.dumps({"polar bear": ["a white bear", "a bear of the arctic"], "dog": ["a barker"]}))
    same = worded(classes, WordingConfig())
    assert same == classes
    both = worded(classes, WordingConfig(["{}"], {"dog": ["no"]}, str(tmp_path / "d.json")))
    assert both.prompts("polar_bear") == ["a white bear", "a bear of the arctic"]
    assert both.prompts("dog") == ["no"] and both.prompts("cat") == ["cat"]
    assert both.names == classes.names


def test_wordings_are_read_as_written(tmp_path):
    text = """
extends: [base, data/reef, method/zero_shot]
evaluate:
  wordings:
    no: "{}"
    two: ["a {}.", "an ${x} {}"]
    007: {texts: {no: [12:30, null], on: yes}, templates: ["{}"], file: a.json}
"""
    (tmp_path / "my.yaml").write_text(text)
    (recipe,) = load(str(tmp_path / "my.yaml"))
    wordings = recipe.evaluate.wordings
    assert wordings["no"] == WordingConfig(["{}"])
    assert wordings["two"].templates == ["a {}.", "an ${x} {}"]
    assert wordings["007"] == WordingConfig(["{}"], {"no": ["12:30", "null"], "on": ["yes"]}, "a.json")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_run(tmp_path).evaluate.wordings == wordings


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{a: no place}", "'no place' of evaluate.wordings.a needs one {}"),
        ("{a: {template: '{}'}}", "Did you mean: 'templates'"),
        ("[a]", "is a section of keys"),
    ],
)
def test_wordings_that_cannot_be_read(word, message):
    with pytest.raises(RecipeError) as caught:
        load("quickstart", [f"evaluate.wordings={word}"])
    assert message in str(caught.value)


def test_names_that_are_no_classes(tmp_path):
    classes = ClassSet(("blue shark", "red cat"))
    with pytest.raises(RecipeError, match=r"words none of the 2 classes.*Did you mean 'blue sharc'"):
        check({"a": WordingConfig(texts={"blue sharc": ["x"]})}, classes)
    (note,) = check({"a": WordingConfig(texts={"red cat": ["x"], "blue sharc": ["y"]})}, classes)
    assert "leaves 'blue shark' as they are. Did you mean 'blue sharc'?" in note
    with pytest.raises(RecipeError, match=r"evaluate.wordings.a.file: There is no file"):
        check({"a": WordingConfig(file=str(tmp_path / "none.json"))}, classes)
    with pytest.raises(RecipeError, match="orders images by an instruction"):
        prepare(load("order_reef", ["evaluate.wordings={a: '{}'}", "data.train=8", "data.val=2", "data.test=4"])[0])


def test_intervals_cover_and_differences_are_paired():
    labels = np.repeat([0, 1], [150, 50])
    right = np.arange(200) % 4 != 0
    accuracy, balanced = resampled(right, labels)
    assert accuracy.mean() == pytest.approx(0.75, abs=0.01)
    assert accuracy.std() == pytest.approx(np.sqrt(0.75 * 0.25 / 200), rel=0.1)
    assert balanced.mean() == pytest.approx((right[:150].mean() + right[150:].mean()) / 2, abs=0.01)
    again, _ = resampled(~right, labels)
    np.testing.assert_allclose(accuracy + again, 1)  # the same draws


def test_a_run_compares_wordings(tmp_path, capsys):
    (recipe,) = load("wordings", [*SMALL, f"run.dir={tmp_path}"])
    folder = fit(recipe)
    shown = capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["wordings"]["all"]
    assert list(found) == list(recipe.evaluate.wordings)
    first, *others = found.values()
    assert first["accuracy"] == metrics["results"]["all"]["accuracy"] and "difference" not in first
    for values in others:
        low, high = values["difference"]["confidence"]
        assert values["difference"]["accuracy"] == pytest.approx(values["accuracy"] - first["accuracy"])
        assert low <= values["difference"]["accuracy"] <= high
        assert values["confidence"]["accuracy"][0] <= values["accuracy"] <= values["confidence"]["accuracy"][1]
    assert "edited description" in shown and (folder / "wordings.csv").read_text().count("\n") == 1 + len(found)
    page = (folder / "report.html").read_text()
    assert "The same in other words" in page and "several prompts" in page
    asked = evaluate_run(folder, ["evaluate.wordings={plain: '{}'}", "data.species=4"])
    assert asked["wordings"]["all"].keys() >= {"plain"}


def test_wordings_in_each_label_space(tmp_path):
    words = ["evaluate.wordings={a: 'a photo of a {}.', b: '{}'}", "method=zero_shot", f"run.dir={tmp_path}", "trainer=cpu"]
    (recipe,) = load("quickstart", [*SMALL, *words])
    torch.manual_seed(0)
    metrics = json.loads((fit(recipe) / "metrics.json").read_text())
    assert list(metrics["wordings"]) == ["base", "new", "joint"]
    for space, values in metrics["wordings"].items():
        assert values["a"]["accuracy"] == metrics["results"][space]["accuracy"]
