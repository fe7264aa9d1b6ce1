"""Classification by description: its files, sentences and identities."""

import csv
import json

import pytest
import torch
from limpet.classes import ClassSet
from limpet.descriptors import clause, read, sentence
from limpet.errors import RecipeError
from limpet.methods.descriptions import Config, Descriptions
from limpet.methods.zero_shot import Config as ZeroConfig
from limpet.methods.zero_shot import ZeroShot

NAMES = ("cat", "polar_bear", "blue shark")
WORDS = {"cat": ["whiskers", "a tail"], "polar bear": ["white fur"], "blue shark": ["fins", "used to water", "typically grey"]}


@pytest.fixture
def batch(tiny):
    generator = torch.Generator().manual_seed(0)
    return {"feature": torch.randn(6, tiny.embed_dim, generator=generator), "path": [""] * 6, "index": torch.arange(6)}


def made(tiny, classes=None, **config):
    config.setdefault("descriptors", WORDS)
    return Descriptions(Config(**config)).setup(tiny, classes or ClassSet(NAMES)).eval()


def test_sentences_are_the_published_ones():
    assert clause("a short tail") == "which is a short tail"
    assert clause("an orange beak") == "which is an orange beak"
    assert clause("antennae") == "which has antennae"
    assert clause("often found near water") == "which often found near water"
    assert clause("used for cutting") == "which is used for cutting"
    assert sentence("{class}, {clause}", "polar_bear", "white fur") == "polar bear, which has white fur"
    assert sentence("a photo of a {class}: {descriptor}.", "cat", "fur") == "a photo of a cat: fur."
    for phrase, text in (("{class}, {clause}", "cat"), ("{class}, {clause}.", "cat."), ("a {class}, {clause}", "a cat")):
        assert sentence(phrase, "cat", "") == text
    assert sentence("{class} {clause}", "{clause}", "x") == "{clause} which has x"  # a name is no place to fill


def test_scores_are_means_of_cosines(tiny, batch):
    adapter = made(tiny)
    texts = {"cat": ["cat, which has whiskers", "cat, which is a tail"], "polar_bear": ["polar bear, which has white fur"]}
    features = torch.nn.functional.normalize(batch["feature"], dim=-1)
    logits = adapter.logits(batch)
    for column, name in enumerate(texts):
        cosines = features @ tiny.encode_text(texts[name]).T
        torch.testing.assert_close(logits[:, column], tiny.logit_scale * cosines.mean(1), rtol=1e-5, atol=1e-5)
    highest = made(tiny, aggregate="max").logits(batch)
    assert (highest >= logits - 1e-5).all() and (highest[:, 0] > logits[:, 0]).any()
    torch.testing.assert_close(highest[:, 1], logits[:, 1], rtol=1e-5, atol=1e-5)  # one text: both are its cosine


def test_one_descriptor_is_zero_shot_with_that_prompt(tiny, batch):
    one = {name: [f"word {i}"] for i, name in enumerate(NAMES)}
    classes = ClassSet(NAMES, {n: (f"{n.replace('_', ' ')}, which has word {i}",) for i, n in enumerate(NAMES)}, ("{}",))
    plain = ZeroShot(ZeroConfig()).setup(tiny, classes).eval()
    for settings in ({}, {"aggregate": "max"}, {"renormalise": True}):
        ours = made(tiny, descriptors=one, **settings).logits(batch)
        torch.testing.assert_close(ours, plain.logits(batch), rtol=1e-5, atol=1e-4)


def test_order_and_repetition_of_descriptors(tiny, batch):
    before = made(tiny).logits(batch)
    turned = made(tiny, descriptors={k: v[::-1] for k, v in reversed(WORDS.items())}).logits(batch)
    torch.testing.assert_close(turned, before, rtol=1e-5, atol=1e-5)
    twice = made(tiny, descriptors={k: v * 2 for k, v in WORDS.items()}).logits(batch)
    torch.testing.assert_close(twice, before, rtol=1e-5, atol=1e-5)
    same = made(tiny, ClassSet(("a", "b")), descriptors={"a": ["x"], "b": ["x"]}, phrases=["{descriptor}"]).logits(batch)
    torch.testing.assert_close(same[:, 0], same[:, 1])
    # texts that point apart have a short mean; brought to length 1 it scores otherwise
    assert not torch.allclose(made(tiny, renormalise=True).logits(batch), before)


def test_controls_have_the_same_number_of_texts_and_say_nothing_of_a_class(tiny, batch):
    adapter = made(tiny)
    controls = {name: Descriptions(c).setup(tiny, adapter.classes).eval() for name, c in adapter.controls().items()}
    assert set(controls) == {"random_words", "class_name_only"}
    random = controls["random_words"]
    assert [len(random.prompts(n)) for n in NAMES] == [2, 1, 3]
    said = [[text.partition(", ")[2] for text in random.prompts(n)] for n in NAMES]
    assert said[0] == said[2][:2] and said[1] == said[2][:1]
    pool = {word for phrases in WORDS.values() for phrase in phrases for word in phrase.split()}
    assert {w for text in said[2] for w in text.split()} <= pool | {"which", "has", "is"}
    assert not random.controls()
    bare = controls["class_name_only"].logits(batch)
    plain = ZeroShot(ZeroConfig()).setup(tiny, ClassSet(NAMES, templates=("{}",))).eval().logits(batch)
    torch.testing.assert_close(bare, plain, rtol=1e-5, atol=1e-4)
    other = made(tiny, words="random_words", seed=2)
    assert [other.prompts(n) for n in NAMES] != [random.prompts(n) for n in NAMES]


def test_evidence_names_the_texts_of_the_class(tiny, batch):
    adapter = made(tiny)
    logits = adapter.logits(batch)
    labels = logits.argmax(1).tolist()
    for row, label, reasons in zip(logits, labels, adapter.evidence(batch, labels), strict=True):
        assert sorted(text for text, _ in reasons) == sorted(adapter.prompts(NAMES[label]))
        values = [value for _, value in reasons]
        assert values == sorted(values, reverse=True)
        assert tiny.logit_scale * sum(values) / len(values) == pytest.approx(float(row[label]), abs=1e-3)


def test_classes_that_are_not_described_are_asked_by_name(tiny, batch):
    adapter = made(tiny, ClassSet((*NAMES, "blue sharc")))
    assert adapter.prompts("blue sharc") == ["blue sharc"]
    assert any("by name alone: blue sharc" in note for note in adapter.notes)
    before = adapter.logits(batch)
    adapter.add_classes(adapter.classes.extended(["zebra"], {"zebra": ["striped horse"]}))
    assert adapter.prompts("zebra") == ["striped horse"]
    assert any("zebra" in note for note in adapter.notes)
    torch.testing.assert_close(adapter.logits(batch)[:, :-1], before, rtol=1e-5, atol=1e-5)
    known = made(tiny, ClassSet(NAMES[:2]))
    known.add_classes(known.classes.extended(["blue shark"]))
    assert len(known.prompts("blue shark")) == 3  # described in the file all along


@pytest.mark.parametrize("words", ["descriptors", "random_words"])
def test_renaming_takes_descriptors_along(tiny, batch, words):
    adapter = made(tiny, words=words)
    before = adapter.logits(batch)
    adapter.rename_classes({"cat": "blue shark", "blue shark": "cat", "polar_bear": "Ursus"})
    torch.testing.assert_close(adapter.logits(batch), before, rtol=0, atol=0)


def test_text_names_find_descriptors_too(tiny):
    adapter = made(tiny, ClassSet(("007", "x"), {"007": ("Polar Bear",)}), descriptors={"polar_bear": ["fur"], "x": ["y"]})
    assert adapter.prompts("007") == ["Polar Bear, which has fur"]


def test_files_are_read_as_they_are(tmp_path):
    content = {"Ærfugl 鳥": ["møre", " - a   tail "], "no": [], "007": "licence", "none": None}
    expected = {"Ærfugl 鳥": ["møre", "a tail"], "no": [], "007": ["licence"], "none": []}
    path = tmp_path / "d.json"
    path.write_text("\ufeff" + json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert read(str(path)) == expected
    (tmp_path / "d.yaml").write_text("no: [yes, 1e3, '- a tail']\n007:\n  - 12:30\nb: []\n", encoding="utf-8")
    assert read(str(tmp_path / "d.yaml")) == {"no": ["yes", "1e3", "a tail"], "007": ["12:30"], "b": []}
    assert all(3 <= len(phrases) <= 6 for phrases in read("reef").values())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", "[1]", "does not hold descriptors"),
        ("d.json", "{}", "does not hold descriptors"),
        ("d.json", '{"a": ', "is not JSON"),
        ("d.json", '{"a": [], "b": [], "a": []}', "describes 'a' twice"),
        ("d.json", '{"a": [1]}', "descriptors of 'a' are not a list of texts"),
        ("d.yaml", "a: {b: c}\n", "descriptors of 'a' are not a list of texts"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, tiny, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        read(str(tmp_path / name))
    assert message in Descriptions.supports(Config(file=str(tmp_path / name)), tiny.spec)


def test_mistakes_are_answered_with_a_sentence(tmp_path, tiny):
    (tmp_path / "d.json").write_bytes(b'{"a": ["\xff"]}')
    with pytest.raises(RecipeError, match="not a UTF-8"):
        read(str(tmp_path / "d.json"))
    assert "Did you mean 'reef'" in Descriptions.supports(Config(file="reff"), tiny.spec)
    assert "no descriptors" in made(tiny, descriptors={}).notes[0]
    assert "no {class}" in Descriptions.supports(Config(descriptors=WORDS, phrases=["a photo"]), tiny.spec)
    with pytest.raises(RecipeError, match=r"None of the 2 classes is described.*'cat'"):
        made(tiny, ClassSet(("x", "y")))


def test_predictions_say_why(tiny, tmp_path, fish, monkeypatch, capsys):
    from limpet import artifact
    from limpet.explain import explain_command
    from limpet.inference import Classifier
    from limpet.predict import predict_command

    names = tuple(sorted(p.name for p in fish.iterdir()))
    adapter = Descriptions(Config(file="reef")).setup(tiny, ClassSet(names)).eval()
    artifact.save(adapter, tmp_path / "run", {})
    monkeypatch.chdir(tmp_path)
    assert predict_command("run", str(fish / names[0]), tmp_path / "why.csv") == 0
    assert "because" in capsys.readouterr().out
    with (tmp_path / "why.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (one, *_) = Classifier(adapter).predict(rows[0]["path"])
    assert {text for text, _ in one.because} == set(adapter.prompts(one.label))
    assert rows[0]["because"].startswith(f"{one.because[0][0]} ({one.because[0][1]:.3f}); ")
    explain_command(tmp_path / "run", rows[0]["path"], tmp_path / "why.png")
    assert one.because[0][0] in capsys.readouterr().out and (tmp_path / "why.png").stat().st_size > 5000
