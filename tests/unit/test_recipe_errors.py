"""What is wrong in a recipe is said in one sentence, with its place."""

import pytest
from limpet.errors import LimpetError, RecipeError
from limpet.recipe import load, load_recipe


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def message(text, overrides=(), name="fish.yaml"):
    from pathlib import Path

    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load(name, list(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\n\n\noptim:\n  lrr: 3\n", "fish.yaml:5: Key 'lrr' is not in 'optim'. Did you mean: 'lr'?"),
        ("optimm:\n  lr: 3\n", "fish.yaml:1: Key 'optimm' is not in a recipe. Did you mean: 'optim'?"),
        (
            "data:\n  augment:\n    vews: 3\n",
            "fish.yaml:3: Key 'vews' is not in 'data.augment'. Did you mean: 'views'?",
        ),
        ("optim:\n  lr: fast\n", "fish.yaml:2: optim.lr must be a number; found 'fast'"),
        ("optim:\n  lr:\n", "fish.yaml:2: optim.lr must be a number, but it is empty"),
        ("optim:\n  lr: .nan\n", "fish.yaml:2: optim.lr is nan; it must be a finite number"),
        ("optim:\n  lr: -1\n", "fish.yaml:2: optim.lr is -1.0; the least it can be is 0"),
        (
            "optim:\n  name: sdg\n",
            "fish.yaml:2: optim.name is 'sdg', not one of sgd, adam, adamw, muon. Did you mean 'sgd'?",
        ),
        ("optim:\n  betas: [0.9, x]\n", "fish.yaml:2: optim.betas must be a list of numbers"),
        ("seed: 1.5\n", "fish.yaml:1: seed must be a whole number"),
        ("seed: true\n", "fish.yaml:1: seed must be a whole number"),
        ("seed: -1\n", "fish.yaml:1: seed is -1"),
        ("protocol: base2new\n", "fish.yaml:1: protocol is 'base2new', not one of all, base_to_new"),
        (
            "trainer: fast\n",
            "fish.yaml:1: 'trainer' is a section. Write 'trainer: {name: fast}', or add 'trainer/fast'",
        ),
        ("optim: fast\n", "fish.yaml:1: 'optim' is a section of keys; found 'fast'"),
        ("data:\n  root: [a, b]\n", "fish.yaml:2: data.root must be a text or null; found a list"),
        ("data:\n  name: folde\n", "fish.yaml:2: there is no data 'folde'. Did you mean 'folder'?"),
        ("data:\n  shots: many\n", "fish.yaml:2: data.shots is 'many'; it is a number from 1 on, or 'all'"),
        ("data:\n  shots: 0\n", "fish.yaml:2: data.shots is '0'"),
        (
            "data:\n  augment:\n    preset: arial\n",
            "fish.yaml:3: data.augment.preset is 'arial', not one of natural, aerial",
        ),
        ("data:\n  strict: maybe\n", "fish.yaml:2: data.strict must be true or false"),
        ("data:\n  strict: 7\n", "fish.yaml:2: data.strict must be true or false"),
        ("data:\n  strict: 0.5\n", "fish.yaml:2: data.strict must be true or false"),
        ("stream:\n  sessions: 3\n", "fish.yaml:2: stream.sessions must be keys with a list of texts each"),
        ("stream:\n  increment: 2\n", "fish.yaml:2: stream.increment would not be read: stream.by is not set"),
        ("stream:\n  by: domains\n  first: 2\n", "fish.yaml:3: stream.first would not be read: stream.by is domains"),
        ("stream:\n  by: class\n", "fish.yaml:2: stream.by is 'class', not one of classes, domains, tasks"),
        ("continual:\n  name: vrlwf\n", "fish.yaml:2: there is no continual 'vrlwf'. Did you mean 'vr_lwf'?"),
        ("run:\n  name: a/b\n", "fish.yaml:2: run.name 'a/b' cannot be the name of a folder"),
        ("run:\n  name: ???\n", "fish.yaml:2: run.name is still '???'"),
        ("seed: 1\nseed: 2\n", "fish.yaml:2: the key 'seed' is already given at fish.yaml:1"),
        ("optim:\n  lr: 1\n  lr: 2\n", "fish.yaml:3: the key 'lr' is already given at fish.yaml:2"),
        ("seed: [1\noptim: 2\n", "fish.yaml:2: this is not valid YAML"),
        ("optim:\n\tlr: 1\n", "a tab is used for indentation"),
        ("seed: 1\n---\nseed: 2\n", "fish.yaml:2: this is not valid YAML: a second document begins"),
        ("- a\n- b\n", "fish.yaml:1: a recipe is made of 'key: value' lines; found a list"),
        ("just words\n", "fish.yaml:1: a recipe is made of 'key: value' lines; found 'just words'"),
        ("seed: !!python/object:os.system 1\n", "fish.yaml:1: the tag"),
        ("seed: &a [*a]\n", "fish.yaml:1: aliases refer to each other"),
        ("<<: {seed: 1}\n", "fish.yaml:1: YAML's '<<' is not used here"),
        ("? [a, b]\n: 1\n", "fish.yaml:1: a key must be a word"),
        (b"seed: \xff\xfe\n", "fish.yaml is not a UTF-8 text file (byte 6)"),
        ("seed: \x01\n", "fish.yaml is not a YAML text"),
        ("extends: {a: b}\n", "fish.yaml:1: 'extends' is a list of recipe names"),
        (
            "extends:\n  - base\n  - method/cop\n",
            "fish.yaml:3: There is no recipe 'method/cop'. Did you mean 'method/coop'?",
        ),
        (
            "extends: [fish.yaml]\n",
            "fish.yaml:1: the recipes extend each other in a circle (fish.yaml -> fish.yaml)",
        ),
        ("optim:\n  lr: ${optim.lrr}\n", "fish.yaml:2: optim.lr: '${optim.lrr}' cannot be resolved"),
        ("optim:\n  lr: ${optim.lr}\n", "fish.yaml:2: optim.lr: '${optim.lr}' cannot be resolved"),
        ("optim:\n  lr: ${\n", "fish.yaml:2: optim.lr"),
        ("optim:\n  lr: *fast\n", "fish.yaml:2: this is not valid YAML: found undefined alias"),
        ("name: mine\n", "fish.yaml:1: Key 'name' is not in a recipe. Did you mean: 'run.name'?"),
        ("method: [coop]\n", "fish.yaml:1: 'method' is a section of keys"),
        ("method:\n  name: ''\n", "fish.yaml:2: method.name is missing: add a method to 'extends', like method/coop."),
        ("data:\n  name:\n", "fish.yaml:2: data.name is missing: add one of data/benchmark"),
        ("classes:\n  texts: {a: {b: c}}\n", "fish.yaml:2: classes.texts.a must be a list of texts; found a section with keys"),
        ("classes:\n  texts:\n    a: [x, {b: c}]\n", "fish.yaml:3: in classes.texts.a, {'b': 'c'} is not a text"),
        ("stream: {by: classes, sessions: {a: [x]}, first: 2}\n", "so stream.first and stream.increment would not be read"),
        ("protocol: base_to_new\nstream: {by: classes, increment: 2}\n", "fish.yaml:1: a stream goes with protocol all"),
    ],
)
def test_sentence(text, expected):
    found = message(text)
    assert expected in found
    assert "\n" not in found


def test_nested_too_deeply():
    assert "nested too deeply" in message("a: " + "[" * 5000 + "]" * 5000)


def test_billion_laughs():
    text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    text += "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    assert "aliases refer to each other too often" in message(text)


def test_circle_through_two_files(tmp_path):
    (tmp_path / "b.yaml").write_text("extends: [fish]\n")
    assert "in a circle (fish.yaml -> b.yaml -> fish.yaml)" in message("extends: [b]\n")


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, expected in {
        "nothere.yaml": "There is no recipe file nothere.yaml",
        "quikstart": "There is no recipe 'quikstart'. Did you mean 'quickstart'?",
        "photos": "photos is a folder; a recipe is a YAML file. For images in it: data.root=photos",
        "": "The name of the recipe is empty",
    }.items():
        with pytest.raises(RecipeError, match="^" + expected.replace("?", r"\?")):
            load(name)


def test_a_folder_does_not_hide_a_packaged_recipe(tmp_path):
    (tmp_path / "fish").mkdir()
    assert load_recipe("fish").name == "fish"


def test_empty_file_and_empty_sections_are_the_base(tmp_path):
    base = load_recipe("base").to_dict()
    for text in ("", "# nothing\n", "optim:\n#  lr: 3\ntrainer:\n", "---\n", "null\n"):
        (tmp_path / "base2.yaml").write_text(text)
        found = load_recipe("base2").to_dict()
        found["run"]["name"] = "base"
        assert found == base


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.lrr=1"], "command line: Key 'lrr' is not in 'optim'. Did you mean: 'lr'?"),
        (["lr"], "'lr' is not an override of the form key=value"),
        (["--seed=1"], "Overrides are written without dashes: seed=1"),
        (["=3"], "'' is not a key"),
        (["optim..lr=3"], "'optim..lr' is not a key"),
        (["seed=1,,2"], "one of its values is empty"),
        (["seed=1,1"], "one of its values is there twice"),
        (["seed=1", "seed=2"], "seed is given twice"),
        (["seed=[1"], "has no closing ]"),
        (["method=coo"], "command line: there is no method 'coo'. Did you mean 'coop'?"),
        (["data=ref"], "command line: there is no data 'ref'. Did you mean 'reef'?"),
        (["trainer=tpu"], "command line: there is no trainer 'tpu'."),
        (["backbone="], "command line: backbone= names nothing"),
        (["data.augment=null"], "Write data.augment=none for no augmentation"),
        (["data=[a]"], "command line: 'data' is a section of keys; found a list"),
        (["data.augment.scale=[0.5]"], "command line: data.augment.scale is [0.5]; it is two shares"),
        (["data.augment.scale=[0.9,0.1]"], "command line: data.augment.scale is [0.9, 0.1]"),
        (["optim.betas=[0.9,2]"], "command line: optim.betas is [0.9, 2.0]; it is two numbers below 1"),
        (["extends=base"], "'extends' belongs into a recipe file"),
        (["optim=3"], "command line: 'optim' is a section of keys; found '3'"),
        (["optim.lr.x=3"], "command line: optim.lr must be a number; found a section with keys"),
        (["classes.texts={a}"], "'a' in '{a}' is not 'key: value'"),
        (["classes.include=" + "[" * 900 + "]" * 900], "brackets stand in brackets more than 50 deep"),
        (["classes.texts=" + "{a: " * 1500 + "1" + "}" * 1500], "brackets stand in brackets more than 50 deep"),
        ([".".join("a" * 800) + "=1"], "has 800 parts; no setting is as deep"),
        (["classes.texts={a: b, a: c}"], "'a' in '{a: b, a: c}' is not a key, or is given twice"),
    ],
)
def test_command_line(words, expected):
    with pytest.raises(RecipeError) as caught:
        load("quickstart", words)
    assert expected in str(caught.value)


def test_data_word_that_is_a_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(LimpetError, match=r"write data\.root=photos"):
        load("quickstart", ["data=photos"])


def test_one_recipe_is_wanted():
    with pytest.raises(RecipeError, match="a grid of 2 recipes"):
        load_recipe("quickstart", ["seed=1,2"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nseed: " + "9" * 5000 + "\n", "fish.yaml:2: the whole number 99999999999999999999... (5000 digits) is too large"),
        ("optim:\n  lr: " + "9" * 5000 + "\n", "fish.yaml:2: the whole number 99999999999999999999... (5000 digits) is too large"),
        ("seed: 99999999999999999999\n", "fish.yaml:1: the whole number 99999999999999999999 is too large; the largest is 922337203"),
        ("seed: '99999999999999999999'\n", "fish.yaml:1: seed is 99999999999999999999; the most it can be is 4294967295"),
        ("seed: 4294967296\n", "fish.yaml:1: seed is 4294967296; the most it can be is 4294967295"),
        ("trainer:\n  threads: 99999999\n", "fish.yaml:2: trainer.threads is 99999999; the most it can be is 4096"),
        ("method:\n  name: coop\n  context_length: -99999999999999999999\n", "fish.yaml:3: the whole number -9999"),
        (
            "grid:\n" + "".join(f"  {key}: [{','.join(map(str, range(1, 1001)))}]\n" for key in ("seed", "data.shots", "optim.lr")),
            "This grid has 1,000,000,000 cells (1,000 values of seed, 1,000 values of data.shots, 1,000 values of optim.lr)",
        ),
        ("extends: [" + ",".join(["quickstart"] * 5000) + "]\n", "the recipe extends more than 200 others"),
    ],
)
def test_numbers_and_recipes_without_end(text, expected):
    assert expected in message(text)


def test_names_of_many_digits_are_texts():
    from pathlib import Path

    digits = "9" * 5000
    Path("mine.yaml").write_text(f"extends: fish\nclasses:\n  include: [{digits}, 99999999999999999999]\nrun:\n  name: {'9' * 30}\n")
    (recipe,) = load("mine.yaml", ["data.root=x", "seed=4294967295", "trainer.threads=4096"])
    assert recipe.classes.include == [digits, "99999999999999999999"] and recipe.run.name == "9" * 30


def test_recipes_that_extend_each_other_many_times_end(tmp_path):
    for n in range(30):
        (tmp_path / f"r{n}.yaml").write_text(f"extends: [r{n + 1}, r{n + 1}]\n")
    (tmp_path / "r30.yaml").write_text("extends: base\n")
    assert "extends more than 200 others" in message("extends: r0\n")


@pytest.mark.parametrize(
    ("method", "key"),
    [("coop", "context_length"), ("prograd", "context_length"), ("cocoop", "context_length"), ("vpt", "length"), ("maple", "length"),
     ("ivlp", "image_length")],
)  # fmt: skip
def test_a_prompt_longer_than_any_tower_is_refused_before_it_is_made(method, key, capsys):
    from limpet.cli import main

    words = ["trainer=cpu", f"method={method}", f"method.{key}={2**63 - 1}"]
    words += ["method.init=null"] if method in ("cocoop", "prograd") else []  # words to start from would decide the length
    assert main(["check", "quickstart", *words]) == 2
    assert f"method.{key} is 9223372036854775807" in " ".join(capsys.readouterr().err.split())
