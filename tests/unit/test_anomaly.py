"""Anomaly scores: value-value attention, the areas under the curves, drawn defects, and whole runs."""

import csv
import json

import numpy as np
import open_clip
import pytest
import torch
from limpet import blocks
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.cli import main
from limpet.datamodules import load as load_data
from limpet.datamodules.configs import ReefDefectsConfig
from limpet.datamodules.errors import DataError
from limpet.errors import RecipeError
from limpet.methods.anomaly import Anomaly, Config, smoothed
from limpet.recipe import load
from limpet.runner import fit
from limpet.session import prepare
from limpet.tasks.anomaly import auroc
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

SMALL = [
    "method=anomaly", "data=reef_defects", "protocol=all", "data.species=2", "data.test=6", "trainer.accelerator=cpu",
    "method.normal=['{}']", "method.abnormal=['red spotted {}']",
]  # fmt: skip


def clip(pool="tok", patch=8):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        16,
        vision_cfg={"image_size": 32, "patch_size": patch, "width": 32, "layers": 3, "head_width": 16, "pool_type": pool},
        text_cfg={"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    return FrozenClip.from_model(model.double().eval(), name="small")


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def adapter_of(backbone, **settings):
    return Anomaly(Config(**settings)).setup(backbone, ClassSet(("cod", "ray"))).eval()


@pytest.mark.parametrize(("choice", "first"), [("all", 0), ([1, 2], 1), ([2], 2)])
def test_the_local_stream_is_its_start_and_the_value_attention_of_each_block(choice, first):
    backbone, pictures = clip(), images()
    visual = backbone.model.visual
    inputs, x = [], blocks.embed_image(backbone, pictures)
    for block in visual.transformer.resblocks:
        inputs.append(x)
        x = block(x)
    local = inputs[first]
    for block, entering in list(zip(visual.transformer.resblocks, inputs, strict=True))[first:]:
        attention, h = block.attn, block.ln_1(entering)
        v = h @ attention.in_proj_weight[-32:].T + attention.in_proj_bias[-32:]
        heads = v.view(2, 17, 2, 16).transpose(1, 2)
        weights = (heads @ heads.transpose(-1, -2) / 4).softmax(-1)
        assert (weights.diagonal(dim1=-2, dim2=-1) > 0).all()
        local = local + attention.out_proj((weights @ heads).transpose(1, 2).flatten(2))
    feature, patches = adapter_of(backbone, blocks=choice).features(pictures)
    expected = F.normalize((visual.ln_post(local) @ visual.proj)[:, 1:], dim=-1)
    torch.testing.assert_close(patches, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(feature, backbone.encode_image(pictures), rtol=1e-9, atol=1e-11)


def test_the_tower_itself_is_only_looked_at():
    backbone, pictures = clip(), images()
    with_stream, _ = adapter_of(backbone).features(pictures)
    without, patches = adapter_of(backbone, stream="tokens").features(pictures)
    assert torch.equal(with_stream, without)
    visual = backbone.model.visual
    expected = F.normalize(visual.ln_post(visual.transformer(blocks.embed_image(backbone, pictures)))[:, 1:] @ visual.proj, dim=-1)
    torch.testing.assert_close(patches, expected, rtol=1e-9, atol=1e-11)


def test_equal_projections_make_value_attention_self_attention():
    backbone, pictures = clip(), images()
    attention = backbone.model.visual.transformer.resblocks[0].attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(attention.in_proj_weight[-32:].repeat(3, 1))
        attention.in_proj_bias.copy_(attention.in_proj_bias[-32:].repeat(3))
    x = blocks.embed_image(backbone, pictures)
    torch.testing.assert_close(blocks.value_attention(attention, x), blocks.self_attention(attention, x))


def test_scores_are_probabilities_of_the_abnormal_state():
    backbone, pictures = clip(), images()
    adapter = adapter_of(backbone, normal=["{}"], abnormal=["damaged {}", "{} with a flaw"], scale=3.0, smooth=1)
    batch = {"image": pictures, "label": torch.tensor([1, 0])}
    scores, maps = adapter.anomaly(batch)
    texts = [[["a photo of a ray."], ["a photo of a damaged ray.", "a photo of a ray with a flaw."]],
             [["a photo of a cod."], ["a photo of a damaged cod.", "a photo of a cod with a flaw."]]]  # fmt: skip
    for i, states in enumerate(texts):
        mean = torch.stack([F.normalize(backbone.encode_text(prompts).mean(0), dim=-1) for prompts in states])
        feature, patches = adapter.features(pictures[i : i + 1])
        expected = (3 * patches[0] @ mean.T).softmax(-1)[:, 1].view(4, 4)
        torch.testing.assert_close(maps[i], expected)
        torch.testing.assert_close(scores[i], ((3 * feature[0] @ mean.T).softmax(-1)[1] + expected.max()) / 2)
    without = adapter.anomaly({"image": pictures})[0]
    assert ((without == scores) | ~torch.isclose(without, scores)).all() and without.shape == (2,)
    torch.testing.assert_close(adapter.logits(batch)[:, 0], scores)
    classes = adapter.classes
    with adapter.answering(classes.only(["ray", "cod"])):
        torch.testing.assert_close(adapter.anomaly({"image": pictures, "label": torch.tensor([0, 1])})[0], scores)


def test_smoothing_repeats_the_border():
    maps = torch.arange(9.0).view(1, 3, 3)
    padded = np.pad(maps[0].numpy(), 1, mode="edge")
    expected = [[padded[i : i + 3, j : j + 3].mean() for j in range(3)] for i in range(3)]
    torch.testing.assert_close(smoothed(maps, 3)[0], torch.tensor(np.array(expected), dtype=torch.float32))
    assert torch.equal(smoothed(maps, 1), maps)


def test_area_under_the_curve_counts_ties_half():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 200).astype(float), rng.integers(0, 2, 200)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert auroc(np.ones(10), truth[:10]) == 0.5
    assert auroc(scores, np.zeros(200)) is None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"stream": "values"}, "method.stream"),
        ({"image_score": "mean"}, "method.image_score"),
        ({"smooth": 2}, "odd number"),
        ({"normal": []}, "method.normal"),
        ({"abnormal": ["damaged"]}, "place of the class"),
        ({"blocks": [0, 2]}, "on to the last"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, word):
    with pytest.raises(RecipeError, match=word):
        Anomaly.supports(Config(**settings), clip().spec)


@pytest.mark.parametrize("defect", ["sore", "scratch", "mixed"])
def test_defects_are_where_their_mask_says(defect):
    data = load_data(ReefDefectsConfig(species=3, test=4, defect=defect), seed=1)
    data.setup()
    data.ask_for(("anomalous", "defect", "boxes"))
    for item in data.dataset("test"):
        assert item["anomalous"] == int(bool(item["defect"].any()))
        if item["anomalous"]:
            share = item["defect"].float().mean()
            assert 0.001 < share < 0.06
            rows, columns = item["defect"].any(1).nonzero(), item["defect"].any(0).nonzero()
            x0, y0, x1, y1 = (item["boxes"][0] * 224).tolist()
            assert x0 - 9 <= columns.min() and columns.max() <= x1 + 9 and y0 - 9 <= rows.min() and rows.max() <= y1 + 9


def test_a_defect_changes_the_image_inside_its_mask_alone():
    import random

    from limpet.datamodules.reef_defects import damaged
    from limpet.datamodules.reef_drawing import draw_scene

    scene = draw_scene(2, 7, size=128)
    found, mask = damaged(scene.image, scene.boxes[0], "sore", random.Random(1))
    changed = (np.asarray(found) != np.asarray(scene.image)).any(-1)
    near = np.asarray(Image.fromarray(mask).convert("L").resize((64, 64), Image.Resampling.BOX).resize((128, 128))) > 0
    assert changed[mask].mean() > 0.9 and not changed[~near].any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"defect": "scrach"}, "data.defect is 'scrach'.*Did you mean 'scratch'"),
        ({"size": 32}, "data.size is 32; drawn fish are 64 to 224"),
        ({"species": 99}, "data.species is 99; choose 1 to"),
        ({"val": -1}, "data.train, data.val and data.test count images"),
    ],
)
def test_defects_that_cannot_be_drawn_are_refused(settings, said):
    with pytest.raises(DataError, match=said):
        load_data(ReefDefectsConfig(**settings), seed=1)


def test_the_key_of_a_drawing_follows_what_is_drawn():
    def keys(**settings):
        data = load_data(ReefDefectsConfig(**{"species": 2, "train": 2, "test": 4, "shots": "all", **settings}), seed=1)
        data.setup()
        return {sample.path: data.content_key(sample) for samples in data.samples.values() for sample in samples}

    first = keys()
    assert len(set(first.values())) == len(first) > 8 and keys(species=3).items() >= first.items()
    for settings in ({"size": 96}, {"drawing_seed": 2}, {"defect": "scratch"}):
        assert not set(keys(**settings).values()) & set(first.values())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(load("quickstart", SMALL)[0], tmp_path_factory.mktemp("runs") / "anomaly")


def test_a_run_writes_areas_and_heat_maps(run):
    metrics = json.loads((run / "metrics.json").read_text())
    values, tokens = metrics["results"]["all"], metrics["zero_shot"]["all"]
    assert values["images"] == 12 and values["anomalous"] == 6 and values["classes"] == 2
    assert 0 <= values["image_auroc"] <= 1 and 0 <= values["pixel_auroc"] <= 1
    assert tokens["pixel_auroc"] != values["pixel_auroc"]
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert [int(row["rank"]) for row in rows] == list(range(1, 13))
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    pictures = sorted((run / "heatmaps").iterdir())
    assert len(pictures) == 12 and {row["heat_map"] for row in rows} == {f"heatmaps/{p.name}" for p in pictures}
    assert Image.open(pictures[0]).size == (452, 224)
    assert (run / "report.html").read_text().count("data:image/jpeg") == 12
    per_class = list(csv.DictReader((run / "per_class.csv").open()))
    assert [row["images"] for row in per_class] == ["6", "6"]
    assert np.mean([float(row["image_auroc"]) for row in per_class]) == pytest.approx(values["image_auroc"], abs=1e-6)


def test_the_card_says_how_to_load_and_what_was_measured(run):
    card = (run / "adapter" / "v1" / "README.md").read_text()
    assert "AUROC of pixels" in card and "adapter.anomaly" in card and "2 objects" in card


def test_predicting_a_folder(run, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((40, 30), 40 + 10 * i).save(folder / f"{i}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "found.csv")]) == 1
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", ""] and "bad.png" in capsys.readouterr().out
    assert all((tmp_path / row["heat_map"]).is_file() for row in rows[:3])


def test_what_makes_no_sense_is_refused_before_work():
    for words, word in (
        ((*SMALL[:2], "protocol=base_to_new"), "Use protocol=all"),
        (("method=anomaly", "protocol=all"), "data=reef_defects"),
    ):
        with pytest.raises(RecipeError, match=word):
            prepare(load("quickstart", list(words))[0])


def test_wordings_the_backbone_never_saw_are_said():
    session = prepare(load("quickstart", [*SMALL[:6]])[0])
    session.adapter.select([])
    assert "never saw" in session.adapter.notes[0]
