"""ClassSet: order, subsets, texts, and mistakes answered in sentences."""

import json

import pytest
from limpet.classes import ClassSet
from limpet.errors import RecipeError


def test_order_and_base_new():
    classes = ClassSet(("d", "a", "c", "b", "e"))
    assert len(classes) == 5 and list(classes) == ["d", "a", "c", "b", "e"] and classes.index("c") == 2
    assert classes.base_names == ("d", "a", "c") and classes.new_names == ("b", "e")
    assert classes.base().names == ("d", "a", "c") and classes.new().names == ("b", "e")
    assert classes.base().base() == classes.base() and len(classes.base().new_names) == 0
    explicit = ClassSet(("a", "b", "c"), base_names=("c",))
    assert explicit.new_names == ("a", "b") and explicit.base().names == ("c",)


def test_texts_templates_and_underscores():
    classes = ClassSet(
        ("annual_crop", "sea"), {"sea": ("sea", "open_ocean")}, ("a photo of a {}.", "{} from above")
    )
    assert classes.text("annual_crop") == "annual crop"
    assert classes.prompts("annual_crop") == ["a photo of a annual crop.", "annual crop from above"]
    assert classes.prompts("sea") == [
        "a photo of a sea.", "a photo of a open ocean.", "sea from above", "open ocean from above",
    ]  # fmt: skip


def test_names_that_look_like_other_things_stay_text():
    names = ("no", "007", "1e3", "12:30", "null", "${x}", "{}", "Épée à l'eau")
    classes = ClassSet(names)
    assert classes.names == names
    assert classes.prompts("{}") == ["a photo of a {}."]
    assert classes.prompts("${x}") == ["a photo of a ${x}."]
    assert ClassSet.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes


def test_subsets_and_growth():
    classes = ClassSet(("a", "b", "c"), {"b": ("bee",)})
    assert classes.only(["c", "b"]).names == ("c", "b") and classes.only(["b"]).text("b") == "bee"
    assert classes.without("a").names == ("b", "c")
    grown = classes.extended(["d"], {"d": ["dee", "day"]})
    assert grown.names == ("a", "b", "c", "d") and grown.texts["d"] == ("dee", "day")
    assert grown.new_names[-1] == "d" and classes.names == ("a", "b", "c")
    renamed = classes.renamed({"a": "x", "b": "y"})
    assert renamed.names == ("x", "y", "c") and renamed.text("x") == "x" and renamed.text("y") == "bee"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClassSet(("a", "b", "a")), "more than once: 'a'"),
        (lambda: ClassSet((False, "b")), "write it in quotes"),
        (lambda: ClassSet((" ", "b")), "empty"),
        (lambda: ClassSet(("a",), templates=("a photo",)), r"exactly one \{\}"),
        (lambda: ClassSet(("cat", "dog"), {"cta": ("x",)}), "Did you mean 'cat'"),
        (lambda: ClassSet(("cat", "dog"), base_names=("cat",), new_names=("cat",)), "base and as new"),
        (lambda: ClassSet(("cat",), {"cat": ()}), "at least one"),
        (lambda: ClassSet(("cat",)).only(["cot"]), "Did you mean 'cat'"),
        (lambda: ClassSet(("cat",)).extended(["cat"]), "exists already"),
    ],
)
def test_mistakes_are_sentences(make, said):
    with pytest.raises(RecipeError, match=said):
        make()


def test_names_that_look_the_same_are_refused():
    with pytest.raises(RecipeError, match="look the same"):
        ClassSet(("caf\u00e9", "cafe\u0301"))
    with pytest.raises(RecipeError, match="look the same"):
        ClassSet(("caf\u00e9",)).extended(["cafe\u0301"])
    assert ClassSet(("cafe\u0301", "cafe")).names == ("cafe\u0301", "cafe")


def test_a_name_that_cannot_be_written_is_refused():
    with pytest.raises(RecipeError, match="not valid text"):
        ClassSet(("a\udcff",))
