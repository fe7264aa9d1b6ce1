"""Choosing the box that a caption means: ties, captions of one image, the bank, whole runs and tables of boxes."""

import csv
import json

import pytest
import torch
from limpet.cli import main
from limpet.errors import LimpetError, RecipeError
from limpet.methods.falip_refer import Config, FalipRefer
from limpet.recipe import load
from limpet.runner import fit
from limpet.session import prepare
from limpet.tasks.referring import evaluate
from PIL import Image

SMALL = [
    "method=falip_refer", "data=reef_scenes", "protocol=all", "data.species=4", "data.fish=3", "data.train=0", "data.val=1",
    "data.test=3", "data.size=64", "data.shots=all", "trainer.accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def session():
    return prepare(load("quickstart", SMALL)[0])


@pytest.fixture(scope="module")
def batch(session):
    return next(iter(session.data.test_dataloader()))


def adapter_of(session, **settings):
    return FalipRefer(Config(**settings)).setup(session.backbone, session.classes).eval()


def test_scores_are_cosines_of_each_box_with_the_caption(session, batch):
    adapter = adapter_of(session, alpha=2.0)
    scores = adapter.logits(batch)
    assert scores.shape == (12, 3)
    rows = adapter.rows(batch["candidates"][4])
    feature = adapter.foveal_features(batch["image"][4:5], [rows[1:2]])[0]
    text = adapter.encode_text([f"a photo of {batch['caption'][4]}"])[0]
    torch.testing.assert_close(scores[4, 1], session.backbone.logit_scale * feature @ text, rtol=1e-4, atol=1e-4)


def test_without_looking_every_box_is_as_good_as_the_other(session, batch):
    outcome = evaluate(adapter_of(session, region="none"), [batch], session.classes)
    assert outcome.metrics()["accuracy"] == pytest.approx(outcome.metrics()["chance"], abs=1e-12)
    assert {row["ties"] for row in outcome.predictions()} == {2}
    plain = evaluate(adapter_of(session, alpha=0.0), [batch], session.classes)
    assert plain.metrics()["accuracy"] == outcome.metrics()["accuracy"]


def test_subtracting_the_bank(session, batch):
    adapter = adapter_of(session, alpha=2.0, subtract=True)
    features = adapter.box_features(batch)
    captions = adapter.captions(batch)
    scale, text = session.backbone.logit_scale, adapter.caption_features(captions)
    bank = adapter.caption_features(list(session.classes.names)).mean(0)
    expected = [scale * (one @ text[i] - one @ bank) for i, one in enumerate(features)]
    torch.testing.assert_close(torch.stack(adapter.box_scores(features, captions)), torch.stack(expected), rtol=1e-4, atol=1e-4)
    adapter.select([{"caption": ["a red fish", "", "a red fish", "the shark"]}])
    torch.testing.assert_close(adapter.mean_caption(), adapter.caption_features(["a red fish", "the shark"]).mean(0))
    assert adapter.selected == {"captions in the bank": 2}
    copy = adapter_of(session, subtract=True)
    copy.load_state_dict(adapter.state_dict())
    assert torch.equal(copy.mean_caption(), adapter.mean_caption())


def test_images_may_have_different_numbers_of_boxes_and_no_caption(session, batch):
    adapter = adapter_of(session, alpha=2.0)
    whole = adapter.logits(batch)
    part = {key: [value[i] for i in range(3)] for key, value in batch.items()}
    part |= {"image": batch["image"][:3], "label": batch["label"][:3], "caption": [batch["caption"][0], "", batch["caption"][2]]}
    for key in ("candidates", "candidate_crops", "target"):
        part[key][2] = part[key][2][:2]
    part["target"][2] = torch.tensor([False, False])
    ragged = adapter.logits(part)
    torch.testing.assert_close(ragged[2, :2], whole[2, :2], rtol=1e-4, atol=1e-4)
    assert ragged[2, 2] == -torch.inf
    outcome = evaluate(adapter, [part], session.classes)
    assert len(outcome.found) == 1 and outcome.without == 1


def test_a_template_needs_a_place(session):
    with pytest.raises(RecipeError, match="place of the caption"):
        FalipRefer.supports(Config(template="a photo"), session.backbone.spec)


def test_data_without_boxes_are_refused():
    with pytest.raises(RecipeError, match=r"chooses among boxes.*reef_scenes"):
        prepare(load("quickstart", ["method=falip_refer", "protocol=all"])[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return fit(load("quickstart", [*SMALL, "method.alpha=2.0"])[0], folder / "refer")


def test_a_run_says_how_often_the_box_is_right_in_each_way(run):
    values = json.loads((run / "metrics.json").read_text())["results"]["all"]
    assert list(values["ways"]) == ["foveal", "foveal_subtract", "crop", "no_mask"]
    assert values["accuracy"] == values["ways"]["foveal"] and values["images"] == 12 and values["boxes"] == 3
    assert values["ways"]["no_mask"] == pytest.approx(values["chance"])
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert {"caption", "chosen", "x0", "x1", "probability", "ties", "correct"} <= set(rows[0]) and len(rows) == 12
    assert sum(float(row["correct"]) for row in rows) / 12 == pytest.approx(values["accuracy"], abs=1e-4)
    page = (run / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 12 and "mean caption subtracted" in page


def test_base_to_new_compares_captions_of_seen_and_unseen_species(tmp_path):
    words = [word for word in SMALL if not word.startswith("protocol")]
    found = fit(load("quickstart", [*words, "protocol=base_to_new"])[0], tmp_path / "run")
    metrics = json.loads((found / "metrics.json").read_text())
    assert set(metrics["results"]) == {"base", "new", "joint"} and metrics["harmonic_mean"] is not None


def predict(run, table, *words):
    return main(["predict", str(run), str(table), *words])


def test_predicting_boxes_of_several_captions(run, session, tmp_path, capsys):
    sample = session.data.samples["test"][0]
    image = session.data.reader(sample)
    image.save(tmp_path / "scene.png")
    names, boxes = sample.extra["fish"], image.info["candidates"]
    lines = ["path,caption,x0,y0,x1,y1"]
    lines += [f"scene.png,{name},{','.join(str(v) for v in box)}" for name, box in zip(names, boxes, strict=True)]
    lines += [f"scene.png,the {names[0]},,,,", "gone.png,a fish,0,0,5,5"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    assert predict(run, tmp_path / "boxes.csv", "--out", str(tmp_path / "found.csv")) == 1
    assert "gone.png" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert len(rows) == 5 and rows[4]["found_x0"] == ""
    listed = {tuple(f"{v:g}" for v in box) for box in boxes}
    assert all(tuple(row[f"found_{k}"] for k in ("x0", "y0", "x1", "y1")) in listed for row in rows[:4])
    (tmp_path / "none.csv").write_text("path,caption\nscene.png,a fish\n")
    for table, word in (("none.csv", "has no regions"), ("scene.png", "give a CSV")):
        assert predict(run, tmp_path / table) == 2
        assert word in capsys.readouterr().err.replace("\n", " ")


def test_classifying_regions_of_a_table(tmp_path, session, capsys):
    words = ["method=falip", "data=reef_scenes", "protocol=all", *SMALL[3:], "method.alpha=2.0"]
    run = fit(load("quickstart", words)[0], tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["results"]["all"]["images"] == 12 and (run / "report.html").is_file()
    sample = session.data.samples["test"][0]
    image = session.data.reader(sample)
    image.save(tmp_path / "scene.png")
    Image.new("L", image.size, 255).save(tmp_path / "mask.png")
    lines = ["path,x0,y0,x1,y1,mask"]
    lines += [f"scene.png,{','.join(str(v) for v in box)}," for box in image.info["candidates"]]
    lines += ["scene.png,,,,,mask.png", "scene.png,,,,,"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    assert predict(run, tmp_path / "boxes.csv", "--out", str(tmp_path / "found.csv"), "--top", "2") == 0
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert len(rows) == 5 and all(row["label"] and row["top2"] for row in rows)
    assert len({row["probability"] for row in rows}) >= 4  # regions change the answer, if only a little
    from limpet import artifact
    from limpet.inference import Classifier

    adapter = artifact.load(run)
    batch = {"image": adapter.backbone.transform(resize_mode="squash")(image)[None]}
    whole = adapter.logits(batch).softmax(-1).max()
    assert float(rows[4]["probability"]) == pytest.approx(float(whole), abs=1e-5)
    assert main(["explain", str(run), str(tmp_path / "scene.png"), "--out", str(tmp_path / "why.png")]) == 0
    assert Image.open(tmp_path / "why.png").width > 100
    (alone,) = Classifier.load(run).predict([image])
    assert alone.probability == pytest.approx(float(whole), abs=1e-5)


def test_a_run_that_chooses_boxes_is_no_classifier(run):
    from limpet.inference import Classifier

    with pytest.raises(LimpetError, match="does not classify"):
        Classifier.load(run)


def test_an_export_of_images_alone_is_refused(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "onnx")]) == 2
    assert "the image alone is not enough" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "onnx").exists()
    assert main(["export", str(run), "--to", "adapter", "--out", str(tmp_path / "adapter")]) == 0
