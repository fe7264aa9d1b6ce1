"""Orders of a fitted adapter: Python, command line, contact sheets."""

import csv

import pytest
import torch
from limpet.cli import main
from limpet.errors import LimpetError
from limpet.inference import Classifier
from limpet.methods.prompt_pair import poles
from limpet.ranker import Ranker
from limpet.recipe import load
from limpet.runner import fit
from limpet.show import console
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SMALL = ["data.train=16", "data.val=6", "data.test=10", "data.batch_size=8", "trainer.epochs=1", "trainer.accelerator=cpu",
         "data.augment.preset=none", "data.augment.views=1"]  # fmt: skip


@pytest.fixture(scope="module")
def ordering_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (recipe,) = load("order_reef", [*SMALL, f"run.dir={folder}"])
    return fit(recipe)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    (recipe,) = load("order_reef", [*SMALL, f"run.dir={folder}", "data.attributes=[count,size]", "method=ranknet"])
    return fit(recipe)


@pytest.fixture
def folder(tmp_path):
    """Six pictures, one broken, with known values."""
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(6):
        Image.new("RGB", (90, 60), (40 * i, 90, 200 - 30 * i)).save(place / f"<b>{i}.png")
    (place / "broken.jpg").write_bytes(b"no picture")
    rows = "".join(f"<b>{i}.png,{5 - i}\n" for i in range(6))
    (place / "labels.csv").write_text("path,value\n" + rows)
    return place


def test_a_run_writes_order_report_and_figures(ordering_run):
    import json

    metrics = json.loads((ordering_run / "metrics.json").read_text())
    values = metrics["results"]["all"]
    assert -1 <= values["spearman"] <= 1 and 0 <= values["pairwise_accuracy"] <= 1
    assert values["confidence"]["spearman"][0] <= values["spearman"] <= values["confidence"]["spearman"][1]
    assert {"spearman", "pairwise_accuracy"} <= set(metrics["zero_shot"]["all"])
    rows = list(csv.DictReader((ordering_run / "predictions.csv").open()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and [int(row["rank"]) for row in rows] == list(range(1, 11))
    page = (ordering_run / "report.html").read_text()
    assert "Worst mistakes" in page and page.count("<figure") == 20 and "http" not in page


def test_images_are_ordered_by_score(ordering_run, folder):
    ranker = Ranker.load(ordering_run)
    found = ranker.rank(sorted(folder.glob("*.*g")))
    assert [one.rank for one in found] == [1, 2, 3, 4, 5, 6, 0]
    assert [one.score for one in found[:-1]] == sorted((one.score for one in found[:-1]), reverse=True)
    assert found[-1].error and found[-1].path.endswith("broken.jpg")
    alone = ranker.rank([found[2].path])[0]
    assert alone.score == pytest.approx(found[2].score, rel=1e-3, abs=1e-4)
    assert all(one.in_units for one in found[:-1]) and 0 < found[0].score < 10  # a number of fish
    assert not ranker.rank([found[0].path], "Sort the images by how blue they are.")[0].in_units


def test_the_predict_command_writes_order_and_contact_sheet(ordering_run, folder, capsys):
    assert main(["predict", str(ordering_run), str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "Spearman" in shown and "broken.jpg" in shown
    rows = list(csv.DictReader((ordering_run / "ordered-1.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "6", ""]
    assert {float(row["value"]) for row in rows[:6]} == set(map(float, range(6)))
    with Image.open(ordering_run / "ordered-1.png") as sheet:
        assert sheet.width > 400
    page = (ordering_run / "ordered-1.html").read_text()
    assert page.index("Worst mistakes") < page.index("In order")
    assert "<b>0.png" not in page and "&lt;b&gt;0.png" in page and page.count("data:image/jpeg;base64") == 12


def test_new_instructions_are_used_and_come_with_a_note(ordering_run, folder, tmp_path, capsys):
    out = tmp_path / "mine.csv"
    (folder / "labels.csv").unlink()
    main(["predict", str(ordering_run), str(folder), "--instruction", "Sort the images by how blue they are.", "--out", str(out)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "This instruction is" in shown and "nothing was measured" in shown and "Spearman" in shown
    assert "Worst mistakes" not in out.with_suffix(".html").read_text()
    main(["predict", str(ordering_run), str(folder), "--instruction", "sort the images by the NUMBER of fish", "--out", str(out)])
    assert "nothing was measured" not in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_asked_is_answered_in_a_sentence(ordering_run, several, folder, capsys):
    assert main(["predict", str(several), str(folder)]) == 2
    assert "choose one with --instruction" in " ".join(capsys.readouterr().err.split())
    assert main(["predict", str(ordering_run), str(folder), "--top", "3"]) == 2
    assert main(["predict", str(ordering_run), str(folder), "--labels", "nowhere.csv"]) == 2
    assert main(["predict", str(several), str(folder), "--instruction", "Sort the images by age."]) == 1
    assert "does not read instructions" in " ".join(capsys.readouterr().out.split())


def test_a_classifier_is_not_a_ranker_and_tasks_do_not_mix(tiny, ordering_run):
    from limpet.classes import ClassSet
    from limpet.methods.zero_shot import Config, ZeroShot
    from limpet.session import prepare

    with pytest.raises(LimpetError, match="does not order images"):
        Ranker(ZeroShot(Config()).setup(tiny, ClassSet(("fish",))))
    for words in (["quickstart", ["method=ranking", "protocol=all"]], ["order_reef", ["method=coop"]]):
        (recipe,) = load(*words)
        with pytest.raises(LimpetError, match="value"):
            prepare(recipe)
    assert Classifier and console


@pytest.mark.parametrize(
    ("instruction", "low", "high"),
    [
        ("Sort the images by the number of cats.", "few cats", "many cats"),
        ("Rank the numbers of horse.", "few horse", "many horse"),
        ("Order by how murky the water is", "the water that is not murky", "the water that is very murky"),
        ("Sort photos by age", "low age", "high age"),
    ],
)
def test_antonyms_come_from_the_instruction(instruction, low, high):
    assert poles(instruction) == (f"a photo of {low}.", f"a photo of {high}.")


def test_prompts_may_be_given(tiny):
    from limpet.classes import ClassSet
    from limpet.methods.prompt_pair import Config, PromptPair

    adapter = PromptPair(Config(low="a photo of a cat", high="a photo of a dog"))
    adapter.setup(tiny, ClassSet(("value",), {"value": ("Sort by x",)}))
    features = tiny.encode_text(["a photo of a cat", "a photo of a dog"])
    scores = adapter.scores({"feature": features, "label": torch.zeros(2, dtype=torch.long)})
    gap = tiny.logit_scale * (1 - float(features[0] @ features[1]))
    torch.testing.assert_close(scores, torch.tensor([-gap, gap]), rtol=1e-4, atol=1e-4)
