"""`grid` and `cases`: a recipe that stands for many runs."""

import pytest
import yaml
from limpet import recipe
from limpet.datamodules.benchmarks import facts
from limpet.errors import RecipeError, RunError
from limpet.runner import write_recipe

RECIPE = """
extends: [base, data/reef, method/coop]
grid:
  method: [zero_shot, coop]
  data.shots: [1, 2]
  seed: [1, 2, 3]
cases:
  - {when: {method: coop, data.shots: [2, 4]}, set: {trainer.epochs: 7, method.init: "a photo of a"}}
  - {when: {seed: 3, method: coop}, set: {trainer.epochs: 9}}
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return make


def test_a_recipe_stands_for_all_combinations(write):
    cells = recipe.load(write(RECIPE))
    assert len(cells) == 12
    assert [c.cell for c in cells][:2] == [{"method": "zero_shot", "data.shots": 1, "seed": n} for n in (1, 2)]
    epochs = {(c.method["name"], c.data.shots, c.seed): c.trainer.epochs for c in cells}
    assert epochs["coop", 2, 1] == 7 and epochs["coop", 2, 3] == 9
    assert epochs["coop", 1, 1] == 200 and epochs["zero_shot", 2, 1] == 0
    assert {c.method.get("init") for c in cells if c.method["name"] == "coop" and c.data.shots == 2} == {"a photo of a"}
    coop = next(c for c in cells if (c.method["name"], c.data.shots, c.seed) == ("coop", 2, 1))
    assert coop.origins["trainer.epochs"].endswith("mine.yaml:8")


def test_the_command_line_replaces_values_of_the_grid_and_overrules_cases(write):
    path = write(RECIPE)
    cells = recipe.load(path, ["method=coop", "data.shots=4,8", "trainer.epochs=3"])
    assert [(c.data.shots, c.seed) for c in cells] == [(4, 1), (4, 2), (4, 3), (8, 1), (8, 2), (8, 3)]
    assert {c.trainer.epochs for c in cells} == {3}
    one = recipe.load_recipe(path, ["method=coop", "data.shots=4", "seed=1"])
    assert one.trainer.epochs == 7 and one.cell == {}


@pytest.mark.parametrize("more", ["", "run: {name: 'seed${seed}'}\n"])
def test_cells_are_what_they_are_alone(write, more):
    """What cells of a grid share is read once; none of it may pass from one to another."""
    name = write(RECIPE + more)
    cells = recipe.load(name, ["seed=2,3"])
    for cell in cells[::3]:
        alone = recipe.load_recipe(name, cell.overrides)
        assert (cell.to_dict(), cell.origins, cell.notes) == (alone.to_dict(), alone.origins, alone.notes)
    cells[0].data.augment.scale.append("changed")
    assert not any("changed" in cell.data.augment.scale for cell in cells[1:])
    assert {cell.name for cell in cells} == ({"seed2", "seed3"} if more else {"mine"})


def test_a_grid_reads_each_file_once(write, monkeypatch):
    read = []
    parse = yaml.compose
    monkeypatch.setattr(yaml, "compose", lambda text, **how: read.append(text) or parse(text, **how))
    assert len(recipe.load(write(RECIPE))) == 12
    assert len(read) == len(set(read)) + 1  # the method that the recipe extends is one of the grid's, too


def test_a_cell_reads_back_from_its_run_folder(write, tmp_path):
    cell = recipe.load(write(RECIPE))[-1]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(cell.to_yaml())
    assert recipe.Recipe.from_run(tmp_path / "run").to_dict() == cell.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: 3", "'grid' is a section"),
        ("grid: {seed: []}", "empty list"),
        ("grid: {seed: {a: 1}}", "can vary"),
        ("grid: {sede: [1, 2]}", "sede"),
        ("seed: -1\noptim: {lr: fast}\ndata: {shots: [1]}", "yaml:3: optim.lr must be"),
        ("cases: {when: {}}", "'cases' is a list"),
        ("cases: [{when: {seed: 1}}]", "when and set"),
        ("cases: [{when: {}, set: {trainer.epoch: 3}}]", "Did you mean.*epochs"),
    ],
)
def test_mistakes_are_sentences(write, text, message):
    with pytest.raises(RecipeError, match=message):
        recipe.load(write(f"extends: [base, data/reef, method/coop]\n{text}\n"))


def test_packaged_benchmarks_follow_the_papers():
    folder = recipe.packaged_folder() / "benchmarks"
    eleven = facts.read_json("data_sets.json")["few_shot_11"]
    cells = {path.stem: recipe.load(f"benchmarks/{path.stem}") for path in folder.glob("*.yaml")}
    sizes = {name: len(grid) for name, grid in cells.items()}
    own = {"own_images": 300, "continual": 30}  # of a folder of one's own, by no paper
    assert sizes == {
        "few_shot_11": 1485, "base_to_new_11": 231, "cross_dataset": 15, "domain_generalisation": 15, "cifar100": 90, **own
    }  # fmt: skip
    assert {(c.cell["method"], c.continual.name) for c in cells["continual"]} == {
        (m, r) for m in ("lora", "coop") for r in ("none", "lwf", "vr_lwf", "zscl", "replay")
    }
    assert {c.cell["method"]: c.trainer.epochs for c in cells["continual"]} == {"lora": 12, "coop": 20}
    assert {c.trainer.epochs for c in cells["own_images"] if c.cell["method"] in ("lora", "maple")} == {10}
    few = [cell for cell in cells["few_shot_11"] if cell.seed == 1]
    assert {c.data.dataset for c in few} == set(eleven) and {c.data.sampling for c in few} == {"dassl"}
    epochs = {(c.data.dataset, c.data.shots): c.trainer.epochs for c in few if c.cell["method"] == "coop"}
    for name in eleven:  # CoOp's epochs by shots
        wanted = [50] * 5 if name == "imagenet" else [50, 100, 100, 200, 200]
        assert [epochs[name, shots] for shots in (1, 2, 4, 8, 16)] == wanted
    base = [cell for cell in cells["base_to_new_11"] if cell.seed == 1]
    assert {c.protocol for c in base} == {"base_to_new"} and {c.data.shots for c in base} == {16}
    assert {c.cell["method"]: c.trainer.epochs for c in base if c.data.dataset == "dtd"} == {
        "zero_shot": 0, "coop": 200, "cocoop": 10, "kgcoop": 100, "maple": 5, "promptsrc": 20, "gda_base_to_new": 0,
    }  # fmt: skip
    cross = recipe.load_recipe("benchmarks/cross_dataset", ["method=maple", "seed=1"])
    assert (cross.data.dataset, cross.trainer.epochs, cross.optim.lr, cross.method["depth"]) == ("imagenet", 2, 0.0026, 3)
    assert [entry.dataset for entry in cross.evaluate.others.values()] == [n for n in eleven if n != "imagenet"]
    shift = recipe.load_recipe("benchmarks/domain_generalisation", ["method=coop", "seed=1", "data.root=/d"])
    assert {k: (e.dataset, e.root) for k, e in shift.evaluate.shift.items()} == {
        k: (k, "/d") for k in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    }
    assert shift.method["init"] == "a photo of a" and shift.trainer.epochs == 50


def test_packaged_benchmarks_follow_the_papers_of_prompts():
    new = next((recipe.packaged_folder() / "benchmarks").glob("base_to_new*.yaml")).stem

    def one(name, *words):
        return recipe.load_recipe(f"benchmarks/{name}", [*words, "seed=1", "data.root=/d"])

    late = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")
    for data in facts.read_json("data_sets.json")["few_shot_11"]:
        for shots in (1, 16):
            cell = one("few_shot_11", "method=promptsrc", f"data.dataset={data}", f"data.shots={shots}")
            wanted = (45, 5) if data in late else (30, 30)
            assert (cell.method["aggregation_mean"], cell.method["aggregation_sd"]) == wanted and cell.trainer.epochs == 50
            cell = one("few_shot_11", "method=prograd", f"data.dataset={data}", f"data.shots={shots}")
            little = shots == 16 and data in ("oxford_flowers", "dtd", "eurosat")
            assert cell.method["strength"] == (0.8 if little else 1.0)
            assert cell.trainer.epochs == (50 if shots == 1 or data == "imagenet" else 200)
    for protocol in ("cross_dataset", "domain_generalisation"):
        cell = one(protocol, "method=promptsrc")
        assert (cell.method["aggregation_mean"], cell.method["aggregation_sd"], cell.trainer.epochs) == (6, 10, 20)
        assert (cell.method["text_depth"], cell.method["image_depth"]) == (3, 3)
    cell = one(new, "method=promptsrc", "data.dataset=dtd")
    assert (cell.method["aggregation_mean"], cell.method["aggregation_sd"], cell.method["text_depth"]) == (15.0, 1.0, None)
    for name in (new, "few_shot_11"):
        cell = one(name, "method=kgcoop", "data.dataset=dtd", "data.shots=16")
        assert (cell.data.templates, cell.classes.templates) == ("recipe", ["a photo of a {}, a type of texture."])
        assert one(name, "method=kgcoop", "data.dataset=eurosat", "data.shots=16").data.templates == "hand_crafted"
        assert one(name, "method=vpt", "data.dataset=dtd", "data.shots=16").data.templates == "recipe"


def test_a_cell_is_resumed_as_the_cell_it_was(tmp_path, write):
    cell = recipe.load(write(RECIPE))[0]
    write_recipe(cell, tmp_path)
    assert recipe.Recipe.from_run(tmp_path).cell == cell.cell == {"method": "zero_shot", "data.shots": 1, "seed": 1}
    (tmp_path / "cell.json").write_text("[")
    with pytest.raises(RunError, match="cell.json is damaged"):
        recipe.Recipe.from_run(tmp_path)
