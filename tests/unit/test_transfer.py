"""Further test data: how a recipe names it, how classes are matched, what is measured."""

import csv
import json

import lightning
import pytest
import torch
from limpet.callbacks.cross_dataset import CrossDataset, Target, measure_targets, other_target
from limpet.callbacks.shift import DomainShift, match_classes, shift_target
from limpet.classes import ClassSet
from limpet.cli import main
from limpet.compare import heading, summarise
from limpet.datamodules import load as load_module
from limpet.datamodules.configs import ReefConfig
from limpet.errors import LimpetError, RecipeError
from limpet.methods.zero_shot import Config as ZeroShotConfig
from limpet.methods.zero_shot import ZeroShot
from limpet.module import AdaptationModule
from limpet.recipe import Recipe, load_recipe
from limpet.runner import fit
from limpet.session import prepare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SMALL = ["data.shots=2", "data.test=2", "data.val=2", "data.train=4", "classes.first=6", "trainer.epochs=1", "data.batch_size=6"]


def reef(**settings):
    data = load_module(ReefConfig(**{"shots": "all", "train": 1, "val": 1, "test": 2, **settings}), seed=1)
    data.setup()
    return data


def recipe(*words):
    return load_recipe("quickstart", [*SMALL, *words])


# recipes


def test_keys_left_out_are_those_of_the_data():
    shift = recipe("evaluate.shift.murky.look=murky", "data.size=80").evaluate.shift["murky"]
    assert (shift.name, shift.look, shift.size, shift.test, shift.images, shift.candidates) == (
        "reef", "murky", 80, 2, "test", "named",
    )  # fmt: skip
    other = recipe("evaluate.others={x: {name: folder, root: /x}}", "data.strict=true").evaluate.others["x"]
    assert (other.name, other.root, other.batch_size, other.classnames) == ("folder", "/x", 6, "classnames.csv")
    assert other.strict and other.shots == 16


def test_a_recipe_with_further_data_reads_back(tmp_path):
    first = recipe("evaluate.shift.murky.look=murky", "evaluate.others={far: {species: 8}, f: {name: folder, root: a b}}")
    (tmp_path / "recipe.yaml").write_text(first.to_yaml(), "utf-8")
    again = Recipe.from_run(tmp_path)
    assert again.evaluate == first.evaluate
    assert "# command line" in next(x for x in first.to_yaml(origins=True).splitlines() if "look: murky" in x)
    assert "quickstart.yaml" in [x for x in first.to_yaml(origins=True).splitlines() if "preset: none" in x][-1]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("evaluate.shift.murky.lok=murky", "Key 'lok' is not in 'evaluate.shift.murky'. Did you mean: 'look'"),
        ("evaluate.shift=murky", "'evaluate.shift' is a section of keys"),
        ("evaluate.others.x=/path", "'evaluate.others.x' is a section of keys"),
        ("evaluate.others.x.name=tabel", "Did you mean 'table'"),
        ("evaluate.others.x.images=some", "not one of test, all"),
        ("evaluate.others.x.candidates=all", "Key 'candidates' is not in"),
        ("evaluate.others.x.test=many", "evaluate.others.x.test must be a whole number"),
        ("protocol=cross_dataset", "evaluate.others names none"),
    ],
)
def test_mistakes_are_sentences(word, sentence):
    with pytest.raises(RecipeError, match="command line") as caught:
        recipe(word)
    assert sentence in str(caught.value)


def test_references_reach_the_rest_of_the_recipe():
    assert recipe("data.root=/a", "evaluate.others.x.root=${data.root}/b").evaluate.others["x"].root == "/a/b"


# classes


class Named:
    """Data with nothing but class names and texts."""

    def __init__(self, **texts):
        self.class_texts = {name: list(words) for name, words in texts.items()}
        self.class_names = list(texts)
        self.asked = None

    def restrict(self, names):
        self.asked = list(names)
        return self


def test_classes_match_by_name_and_then_by_text():
    trained = ClassSet(("n01", "cat", "sea_lion", "owl"), texts={"n01": ("great white shark", "shark")})
    data = Named(cat=["domestic cat"], Shark=["Shark"], b=["sea lion"], c=["Sea Lion"], wolf=["wolf"])
    assert match_classes(trained, data) == {"n01": "Shark", "cat": "cat", "sea_lion": "b"}


@pytest.mark.parametrize(("candidates", "expected"), [("named", ("b", "c")), ("all", ("b", "c", "a"))])
def test_candidates_of_a_shift(candidates, expected):
    trained = ClassSet(("a", "b", "c"))
    data = Named(z=["z"], c=["c"], b=["b"])
    target = shift_target("x", data, trained, candidates)
    assert target.classes.names == expected
    assert data.asked == ["b", "c"]  # labels count in the candidates
    assert "2 of 3 trained classes" in target.note and "left out: z" in target.note
    assert ("stay possible answers" in target.note) is (candidates == "all")


def test_a_shift_without_trained_classes_is_refused():
    with pytest.raises(LimpetError, match="names none of the trained classes: it has z; trained were a"):
        shift_target("x", Named(z=["z"]), ClassSet(("a",)))


# measuring


@pytest.fixture
def zero_shot(tiny):
    return ZeroShot(ZeroShotConfig()).setup(tiny, ClassSet(tuple(reef(species=4).class_names)))


def with_transforms(data, tiny):
    data.set_transforms(tiny.transform(), tiny.transform())
    return data


def test_a_missing_class_can_only_cost_accuracy(tiny, zero_shot):
    """With `all`, the candidates beyond the data's classes get columns, and labels still point to the right ones."""
    data = with_transforms(reef(species=3, look="murky", test=4), tiny)
    trained = zero_shot.classes.only(list(reversed(zero_shot.classes.names)))
    found = measure_targets(
        zero_shot, [shift_target(f"{c}", data, trained, c) for c in ("named", "all")]
    )
    named, every = found.outcomes["shift:named"], found.outcomes["shift:all"]
    assert (named.logits.shape, every.logits.shape) == ((12, 3), (12, 4))
    torch.testing.assert_close(named.logits, every.logits[:, :3])
    for outcome in (named, every):
        right = [path.split("/")[1] for path in outcome.paths]
        assert [outcome.classes.names[i] for i in outcome.labels.tolist()] == right
    assert every.metrics()["accuracy"] <= named.metrics()["accuracy"]
    assert zero_shot.classes.names == tuple(reversed(trained.names))  # its own classes stay


def test_the_mean_needs_every_data_set(tiny, zero_shot):
    data = with_transforms(reef(species=4), tiny)
    found = measure_targets(zero_shot, [other_target("a", data), other_target("b", data)])
    accuracy = found.results()["other:a"]["accuracy"]
    assert found.mean("other:") == pytest.approx(accuracy)
    assert found.mean("shift:") is None
    found.unanswered["other:c"] = "it needs images of the new classes."
    assert found.mean("other:") is None


def test_callbacks_for_a_trainer_of_ones_own(tiny, tmp_path):
    from limpet.methods.coop import Config, CoOp

    data = with_transforms(reef(species=3), tiny)
    adapter = CoOp(Config(init="a photo of a")).setup(tiny, ClassSet(tuple(data.class_names)))
    callbacks = [CrossDataset({"x": with_transforms(reef(species=5), tiny)}), DomainShift({"y": data})]
    trainer = lightning.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=tmp_path, accelerator="cpu",
                                enable_progress_bar=False, enable_model_summary=False, logger=False)  # fmt: skip
    trainer.fit(AdaptationModule(adapter), data.train_dataloader())
    assert callbacks[0].spaces.results()["other:x"]["classes"] == 5
    assert callbacks[1].spaces.results()["shift:y"]["classes"] == 3


def test_images_all_tests_on_every_image():
    session = prepare(recipe("evaluate.others.x={images: all, train: 3, val: 2, test: 1, species: 2}"))
    (target,) = session.targets
    assert isinstance(target, Target)
    assert len(target.data.samples["test"]) == 2 * 6 and not target.data.samples["train"]


# runs


def test_a_folder_with_a_table_is_further_data_like_any_other(tmp_path, draw):
    names = prepare(recipe()).data.class_names[:2]
    root = draw(tmp_path / "more", species=2, images=3, names=names)
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    entry = f"{{x: {{name: folder, root: {root}, images: all}}}}"
    session = prepare(recipe(f"evaluate.shift={entry}", f"evaluate.others={entry}"))
    assert [len(target.data.samples["test"]) for target in session.targets] == [6, 6]
    assert [target.classes.names for target in session.targets] == [tuple(sorted(names)), tuple(n for n in names)]


@pytest.mark.parametrize("method", ["coop", "zero_shot", "tip_adapter"])
def test_a_run_measures_further_data(tmp_path, method):
    words = ["evaluate.shift.murky.look=murky", "evaluate.others={far: {species: 3}, near: {drawing_seed: 2}}", f"method={method}"]
    folder = fit(recipe("protocol=cross_dataset", *words), tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    spaces = ["all", "other:far", "other:near", "shift:murky"]
    assert list(metrics["results"]) == list(metrics["zero_shot"]) == spaces
    assert [metrics["results"][s]["classes"] for s in spaces] == [6, 3, 16, 6]
    assert metrics["other_mean"] == pytest.approx(sum(metrics["results"][s]["accuracy"] for s in spaces[1:3]) / 2)
    assert metrics["transfer"]["other:far"]["images"] == 6
    if method == "zero_shot":
        assert metrics["results"] == metrics["zero_shot"]
    for name, least in (("per_class.csv", 6 + 3 + 16 + 6), ("predictions.csv", 12 + 6 + 32 + 12)):
        with (folder / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == least and [*dict.fromkeys(row["space"] for row in rows)] == spaces
    assert "Other data: far" in (folder / "report.html").read_text("utf-8")


def test_a_method_that_needs_images_says_so(tmp_path):
    words = ["evaluate.others.far.species=8", "evaluate.shift.murky.look=murky", "method=linear_probe", "protocol=all"]
    folder = fit(recipe(*words), tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics["results"]) == ["all", "shift:murky"]
    assert "other:far" in metrics["zero_shot"]
    assert metrics["other_mean"] is None
    assert any(n.startswith("other:far: ") and "needs images of the new classes" in n for n in metrics["notes"])


def test_compare_shows_further_data_and_their_mean():
    def run(method, seed, a, b):
        results = {"all": {"accuracy": 0.5}, "other:a": {"accuracy": a}, "other:b": {"accuracy": b}}
        facts = {"recipe": "r", "backbone": "x", "protocol": "cross_dataset", "shots": 16, "cell": {}}
        return {**facts, "method": method, "seed": seed, "results": results, "zero_shot": results, "run": f"{method}{seed}"}

    rows = summarise([run("coop", 1, 0.2, 0.4), run("coop", 2, 0.4, 0.6)])
    coop = next(row for row in rows if row.group["method"] == "coop")
    assert coop.mean("other:a") == pytest.approx(0.3)
    assert coop.mean("other_mean") == pytest.approx(0.4)
    assert [heading(c) for c in ("accuracy", "other:a", "other_mean", "shift_mean")] == ["Accuracy", "a", "Others", "Shifts"]


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["protocol=cross_dataset", "evaluate.others.far.species=3", "evaluate.shift.murky.look=murky"]
    assert main(["fit", "quickstart", *SMALL, *words]) == 0
    out = capsys.readouterr().out
    assert "other:far (6 images)" in out and "shift:murky has images of 6 of 6 trained classes" in " ".join(out.split())
    assert main(["evaluate", "quickstart", "evaluate.shift.clear.drawing_seed=9"]) == 0
    out = capsys.readouterr().out
    assert all(f"{space}: accuracy" in out for space in ("all", "other:far", "shift:murky", "shift:clear"))
    assert "shift (mean)" in out
    assert main(["compare", "quickstart"]) == 0
    assert main(["fit", "quickstart", "protocol=cross_dataset"]) == 2
    assert "evaluate.others names none" in capsys.readouterr().err
