"""Class names and templates stay what was written, in files and on the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limpet.errors import RecipeError
from limpet.recipe import Recipe, load, load_recipe

TRAPS = ["no", "yes", "on", "007", "1e3", "12:30", "null", "~", "${x}", "true", "1_000", "0x1F", "2024-01-01",
         ".5", "-", "???", "Off", "+1", "1.10", ".nan", "NULL", "=", "<<"]  # fmt: skip


def write(folder, text, name="my.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("trap", [t for t in TRAPS if t not in ("-",)])
def test_file_keeps_the_text(tmp_path, trap):
    path = write(
        tmp_path,
        f"data: {{name: reef}}\nclasses:\n  include:\n    - {trap}\n    - other\n"
        f"  base:\n    - {trap}\n  new: [b]\n"
        f"  texts:\n    {trap if trap != '<<' else 'x'}:\n      - {trap}\n      - two\n"
    )
    classes = load_recipe(path).classes
    assert classes.include == [trap, "other"]
    assert classes.base == [trap]
    assert classes.texts[trap if trap != "<<" else "x"] == [trap, "two"]


@pytest.mark.parametrize("trap", TRAPS)
def test_command_line_keeps_the_text(trap):
    recipe = load_recipe(
        "quickstart", [f"classes.include=[{trap}, other]", f"classes.texts={{{trap}: [{trap}]}}"]
    )
    assert recipe.classes.include == [trap, "other"]
    assert recipe.classes.texts == {trap: [trap]}


@pytest.mark.parametrize("trap", TRAPS)
def test_saved_recipe_keeps_the_text(tmp_path, trap):
    recipe = load_recipe("quickstart", [f"classes.include=['{trap}', b]", f"data.train_domains=[{trap}]"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.from_run(tmp_path)
    assert again.to_dict() == recipe.to_dict()
    assert again.classes.include == [trap, "b"]
    assert again.data.train_domains == [trap]


@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip() and "\x00" not in t), min_size=1, unique=True))
def test_any_text_survives_saving(tmp_path_factory, names):
    names = [n for n in names if not any(0xD800 <= ord(c) <= 0xDFFF for c in n)] or ["a"]
    recipe = load_recipe("quickstart")
    recipe.classes.include = names
    recipe.data.root = names[0]
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_bytes(recipe.to_yaml().encode())
    again = Recipe.from_run(folder)
    assert again.classes.include == names
    assert again.data.root == names[0]


def test_braces_commas_and_apostrophes_on_the_command_line():
    (recipe,) = load(
        "quickstart",
        [
            'classes.templates=["a photo of a {}, a type of fish.", {} texture., a {}]',
            "classes.include=[Grevy's zebra, b]",
        ],
    )
    assert recipe.classes.templates == ["a photo of a {}, a type of fish.", "{} texture.", "a {}"]
    assert recipe.classes.include == ["Grevy's zebra", "b"]


def test_one_text_stands_for_a_list_of_one():
    assert load_recipe("quickstart", ["classes.templates={} texture."]).classes.templates == ["{} texture."]


def test_paths_are_plain_text():
    for root in (
        "/data/fish #3",
        "C:\\photos",
        "/a: b/c",
        "@home",
        "*all*",
        "- x",
        "/x/[old] photos",
        "007",
        "no",
    ):
        assert load_recipe("fish", [f"data.root={root}"]).data.root == root


def test_null_is_no_value_for_single_texts(tmp_path):
    assert load_recipe("fish", ["backbone.pretrained=null"]).backbone.pretrained is None
    assert load_recipe("fish", ["classes.include=null"]).classes.include is None
    assert load_recipe("fish", ["backbone.pretrained='null'"]).backbone.pretrained == "null"
    quoted = write(tmp_path, "backbone:\n  pretrained: 'null'\n")
    assert load_recipe(quoted).backbone.pretrained == "null"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "classes:\n  include:\n    - #1 fish\n",
            "my.yaml:3: classes.include has an empty text (a '#' begins a comment",
        ),
        ("classes:\n  include:\n    - a: b\n", "my.yaml:3: in classes.include, {'a': 'b'} is not a text"),
        ("classes:\n  include: {a: b}\n", "my.yaml:2: classes.include must be a list of texts or null"),
        (
            "classes:\n  templates:\n    - 'a {}'\n    - a photo\n",
            "my.yaml:4: the template 'a photo' has no {}",
        ),
        ("classes:\n  templates: []\n", "my.yaml:2: classes.templates is empty"),
        ("classes:\n  templates: [a photo of a {}.]\n", "between double quotes"),
        ("classes:\n  include: [a, b, a]\n", "my.yaml:2: classes.include names 'a' twice"),
        ("classes:\n  base: [a, b]\n  new: [b]\n", "my.yaml:3: 'b' is in classes.base and in classes.new"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, text))
    assert message in str(caught.value)
