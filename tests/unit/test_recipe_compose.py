"""Extending, swapping, grids, origins, references, and the packaged recipes."""

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any, Literal

import pytest
from limpet.errors import RecipeError, RunError
from limpet.recipe import Recipe, load, load_recipe, packaged_folder, packaged_names


@dataclasses.dataclass
class Config:
    """Like a method's own dataclass."""

    context_length: int = 16
    init: str | None = None
    position: Literal["end", "middle", "front"] = "end"
    scale: list[float] = dataclasses.field(default_factory=lambda: [7.0, 3.0])
    C: float | None = None
    words: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", packaged_names())
def test_every_packaged_recipe_loads_and_round_trips(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = load(name, ["seed=1", "method=coop"] if name.startswith("benchmarks/") else [])[0]  # a cell of a grid
        for origins in (False, True):
            (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(origins), encoding="utf-8")
            again = Recipe.from_run(tmp_path)
            assert again.to_dict() == recipe.to_dict()
            assert again.name == recipe.name == name.rpartition("/")[2]
            assert again.to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("name", packaged_names())
def test_every_key_of_a_packaged_recipe_has_a_comment(name):
    lines = (packaged_folder() / f"{name}.yaml").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    for before, line in itertools.pairwise(lines):
        key = line.strip()
        if (
            ":" not in key
            or key.startswith(("#", "-", "extends"))
            or (key.endswith(":") and "templates" not in key)
        ):
            continue
        if key.startswith("name: ") or key == "texts: {}" or "{dataset: " in key:
            continue
        if len(line) - len(line.lstrip()) > 4:  # entries of a table of the user's own words: class names, attributes
            continue
        assert before.strip().startswith("#"), f"{name}: no comment above '{key}'"


def test_method_recipes_set_only_what_they_may():
    allowed = ("method.", "optim.", "data.augment.", "data.batch_size", "trainer.epochs")
    for name in packaged_names():
        if name.startswith("method/"):
            own = [k for k, place in load_recipe(name).origins.items() if place.startswith(f"{name}.yaml")]
            assert own and all(key.startswith(allowed) for key in own)


def test_base_holds_exactly_the_defaults():
    recipe = load_recipe("base")
    for key in ("backbone", "classes", "optim", "trainer", "evaluate"):
        section = getattr(recipe, key)
        assert section == type(section)()
        for field in dataclasses.fields(section):
            name = f"{key}.{field.name}"
            places = [place for at, place in recipe.origins.items() if at == name or at.startswith(f"{name}.")]
            assert places and all(place.startswith("base.yaml:") for place in places), name
    assert recipe.data == type(recipe.data)()
    assert (recipe.seed, recipe.protocol, recipe.run.dir, recipe.run.name) == (1, "all", "runs", "base")


def test_extends_merges_in_order_and_relative_to_the_file():
    write("lab/common.yaml", "optim:\n  lr: 0.1\n  momentum: 0.5\n")
    write("lab/mine.yaml", "extends: [base, data/reef, common, method/coop]\noptim:\n  momentum: 0.8\n")
    recipe = load_recipe("lab/mine.yaml")
    assert recipe.name == "mine"
    assert (recipe.optim.lr, recipe.optim.momentum) == (0.002, 0.8)  # method/coop comes after common
    assert recipe.origins["optim.momentum"] == "lab/mine.yaml:3"
    assert recipe.origins["optim.lr"].startswith("method/coop.yaml:")
    assert recipe.origins["data.species"].startswith("data/reef.yaml:")
    write("other.yaml", "extends: [data/reef, method/coop, lab/common]\n")
    assert load_recipe("other").optim.lr == 0.1
    assert load_recipe("./other.yaml").optim.lr == 0.1


def test_a_file_that_two_others_extend_counts_once():
    write("mine.yaml", "extends: [quickstart, base]\n")
    assert load_recipe("mine").protocol == "base_to_new"


def test_swap_replaces_the_parent_and_drops_own_keys():
    write("mine.yaml", "extends: [base, data/reef, method/coop]\nmethod:\n  init: a b\noptim:\n  lr: 0.5\n")
    recipe = load_recipe("mine", ["method=tip_adapter_f", "method.init_beta=3"])
    assert recipe.method["name"] == "tip_adapter"
    assert "init" not in recipe.method and "context_length" not in recipe.method
    assert recipe.method["init_beta"] == 3
    assert (recipe.optim.name, recipe.optim.lr, recipe.trainer.epochs) == ("adamw", 0.5, 20)
    assert recipe.data.augment.views == 10
    notes = " | ".join(recipe.notes)
    assert "method=tip_adapter_f drops the recipe's own method.init (mine.yaml:3)" in notes
    assert "optim.lr: 0.5 (mine.yaml:5) stays in force over the 0.001 of method/tip_adapter_f.yaml" in notes


def test_swap_reaches_a_parent_of_a_parent():
    write("mine.yaml", "extends: [quickstart]\nseed: 4\n")
    recipe = load_recipe("mine", ["method=zero_shot", "data=folder", "trainer=gpu"])
    assert recipe.method == {"name": "zero_shot"}
    assert recipe.data.name == "folder"
    assert recipe.trainer.accelerator == "gpu"
    assert recipe.protocol == "base_to_new" and recipe.seed == 4


def test_data_swap_keeps_what_the_method_recipe_asks_of_the_data():
    recipe = load_recipe("fish", ["method=tip_adapter", "data=reef"])
    assert recipe.data.name == "reef"
    assert recipe.data.augment.views == 10
    assert recipe.origins["data.augment.views"].startswith("method/tip_adapter.yaml:")


def test_backbone_word_drops_the_weights_of_the_recipe():
    recipe = load_recipe("fish", ["backbone=limpet-tiny", "backbone.precision=bf16"])
    assert (recipe.backbone.name, recipe.backbone.pretrained) == ("limpet-tiny", None)
    assert recipe.backbone.precision == "bf16"
    assert "backbone=limpet-tiny drops the recipe's own backbone.name" in recipe.notes[0]


def test_shorthands():
    assert load_recipe("fish", ["data.augment=none"]).data.augment.preset == "none"
    write("mine.yaml", "extends: [fish]\nbackbone: limpet-tiny\ndata:\n  augment: aerial\n")
    recipe = load_recipe("mine")
    assert (recipe.backbone.name, recipe.data.augment.preset) == ("limpet-tiny", "aerial")


def test_own_method_files_and_modules():
    for name in ("./my.py:MyAdapter", "pkg.mod:Class"):
        recipe = load_recipe("quickstart", [f"method={name}", "method.depth=3"])
        assert recipe.method == {"name": name, "depth": 3}
    write("mine.yaml", "extends: [quickstart]\nmethod:\n  name: ./my.py:MyAdapter\n")
    assert load_recipe("mine").method["name"] == "./my.py:MyAdapter"
    write("method/mine.yaml", "method: {name: coop, init: no}\n")
    assert load_recipe("quickstart", ["method=mine"]).method_config(Config).init == "no"


def test_grid_is_a_product_and_each_cell_knows_its_values():
    cells = load(
        "quickstart", ["seed=1,2,3", "method=coop,tip_adapter", "data.shots=4", "data.augment.scale=[0.5,1]"]
    )
    assert [c.cell for c in cells] == [
        {"seed": s, "method": m} for s in (1, 2, 3) for m in ("coop", "tip_adapter")
    ]  # fmt: skip
    assert [(c.seed, c.method["name"]) for c in cells][:2] == [(1, "coop"), (1, "tip_adapter")]
    assert cells[0].overrides == ["seed=1", "method=coop", "data.shots=4", "data.augment.scale=[0.5,1]"]
    assert all(c.data.shots == 4 and c.data.augment.scale == [0.5, 1.0] for c in cells)
    assert load("quickstart", ["seed=3"])[0].cell == {}


def test_commas_in_brackets_and_quotes_are_no_grid():
    cells = load("quickstart", ["classes.include=[a,b],[c,d]", 'method.init="x, y"'])
    assert [c.classes.include for c in cells] == [["a", "b"], ["c", "d"]]
    assert cells[0].method["init"] == "x, y"


def test_types_of_values():
    recipe = load_recipe(
        "quickstart", ["optim.lr=1e-3", "data.shots=all", "data.strict=yes", "trainer.gradient_clip=1"]
    )
    assert recipe.optim.lr == 0.001
    assert recipe.data.shots == "all"
    assert recipe.data.strict is True
    assert recipe.trainer.gradient_clip == 1.0 and isinstance(recipe.trainer.gradient_clip, float)


@pytest.mark.filterwarnings("error")
def test_numbers_in_quotes_are_numbers_without_a_word():
    recipe = load_recipe("quickstart", ['trainer.epochs="5"', 'optim.lr="0.1"', "data.strict=1"])
    assert (recipe.trainer.epochs, recipe.optim.lr, recipe.data.strict) == (5, 0.1, True)
    with pytest.raises(RecipeError, match="trainer.epochs must be a whole number; found '5.5'"):
        load_recipe("quickstart", ['trainer.epochs="5.5"'])


def test_references_to_other_keys(tmp_path):
    words = ["optim.warmup_lr=${optim.lr}", "run.name=${method.name}-${seed}", "method.C=${optim.lr}"]
    recipe = load_recipe("quickstart", words)
    assert (recipe.optim.warmup_lr, recipe.name) == (0.002, "coop-1")
    assert recipe.method["C"] == 0.002
    assert load_recipe("quickstart", ["method.C=${optim.lr}", "method.words=['${x}']", "method=tip_adapter"]
                       ).method["words"] == ["${x}"]  # fmt: skip
    recipe.data.root = "/data/${odd}"
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_run(tmp_path).to_dict() == recipe.to_dict()


def test_method_config_fills_the_methods_own_dataclass():
    words = ["method.init=no", "method.scale=[7,3]", "method.words=[no, 007, ${x}]", "method.C=${optim.lr}"]
    recipe = load_recipe("quickstart", [*words, "method.class_specific=false"])
    with pytest.raises(RecipeError, match="Key 'class_specific' is not in 'method'"):
        recipe.method_config(Config)
    del recipe.method_written.items["class_specific"]
    config = recipe.method_config(Config)
    assert config == Config(4, "no", "end", [7.0, 3.0], 0.002, ["no", "007", "${x}"])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "method.contxt_length=4",
            "command line: Key 'contxt_length' is not in 'method'. Did you mean: 'context_length'?",
        ),
        (
            "method.context_length=four",
            "command line: method.context_length must be a whole number; found 'four'",
        ),
        (
            "method.position=back",
            "command line: method.position must be one of end, middle, front; found 'back'",
        ),
        ("method.scale=3", "command line: method.scale must be a list of numbers; found '3'"),
        (
            "method.context_length=null",
            "command line: method.context_length must be a whole number, but it is empty",
        ),
    ],
)
def test_method_config_errors_have_a_place(word, expected):
    recipe = load_recipe("quickstart", [word])
    recipe.method_written.items.pop("class_specific")
    with pytest.raises(RecipeError) as caught:
        recipe.method_config(Config)
    assert expected in str(caught.value)


def test_from_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder: it has no recipe\.yaml"):
        Recipe.from_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text(
        load_recipe("fish", ["method=tip_adapter"]).to_yaml(), encoding="utf-8"
    )
    recipe = Recipe.from_run(tmp_path, ["data.root=/elsewhere"])
    assert (recipe.name, recipe.data.root, recipe.method["name"]) == ("fish", "/elsewhere", "tip_adapter")
    assert load_recipe(str(tmp_path / "recipe.yaml")).name == "fish"


def test_origins_are_shown():
    shown = load_recipe("fish", ["optim.lr=0.1"]).to_yaml(origins=True).splitlines()
    by_key: dict[str, Any] = {line.split(":")[0].strip(): line for line in shown}
    assert by_key["lr"].endswith("# command line")
    assert "# fish.yaml:" in by_key["pretrained"]
    assert all("#" in line for line in shown if not line.endswith(":") and "- " not in line)


def test_a_cell_of_a_grid_is_the_recipe_with_its_words():
    cells = load("fish", ["method=tip_adapter_f,coop,zero_shot", "seed=1,2", "backbone=limpet-tiny"])
    for cell in cells:
        alone = load_recipe("fish", [f"{k}={v}" for k, v in cell.cell.items()] + ["backbone=limpet-tiny"])
        assert cell.to_dict() == alone.to_dict()
        assert cell.notes == alone.notes
