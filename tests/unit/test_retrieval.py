"""Retrieval: metrics, poolings, whitening, and what they give on drawn fish."""

import csv
import json

import numpy as np
import pytest
import torch
from limpet.classes import ClassSet
from limpet.errors import LimpetError, RecipeError
from limpet.methods.clip_adapter import ClipAdapter
from limpet.methods.clip_adapter import Config as ClipAdapterConfig
from limpet.methods.zero_shot import Config, ZeroShot
from limpet.pooling import MultiCrop, check_pooling, grid_of, pooled, regional_max, regions
from limpet.recipe import load
from limpet.retrieval import by_labels, captions_of, groups, retrieve
from limpet.retrieval_metrics import RankingTally
from limpet.runner import fit
from limpet.sections import RetrievalConfig
from limpet.session import prepare
from limpet.whitening import Whitening, unit
from PIL import Image
from sklearn.metrics import average_precision_score, ndcg_score


def rng(seed=0):
    return np.random.default_rng(seed)


def test_metrics_are_those_of_scikit_learn():
    scores, relevant = rng().normal(size=(20, 30)), rng(1).random((20, 30)) < 0.2
    relevant[3] = False
    tally = RankingTally((1, 5))
    tally.add(scores[:7], relevant[:7])
    tally.add(scores[7:], relevant[7:])
    found, have = tally.result(), relevant.any(1)
    pairs = list(zip(scores[have], relevant[have], strict=True))
    assert found["map"] == pytest.approx(np.mean([average_precision_score(r, s) for s, r in pairs]))
    assert found["ndcg"] == pytest.approx(np.mean([ndcg_score([r.astype(float)], [s]) for s, r in pairs]))
    assert found["r@1"] == pytest.approx(np.mean([r[s.argmax()] for s, r in pairs]))
    assert found["r@5"] == pytest.approx(np.mean([r[np.argsort(-s)[:5]].any() for s, r in pairs]))
    assert (found["queries"], found["unmatched"]) == (int(have.sum()), int((~have).sum()))


def test_excluded_items_and_ties():
    tally = RankingTally((1,))
    tally.add(np.array([[9.0, 1, 2]]), np.array([[True, True, False]]), np.array([[True, False, False]]))
    assert tally.result()["map"] == 0.5 and tally.result()["r@1"] == 0
    tied = RankingTally((1,))
    tied.add(np.zeros((1, 3)), np.array([[True, False, False]]))
    assert tied.result()["map"] == 1  # in the order of the items
    empty = RankingTally((1,))
    empty.add(np.zeros((2, 3)), np.zeros((2, 3), bool))
    assert empty.result() == {"queries": 0, "unmatched": 2}


def test_an_image_is_not_found_by_itself():
    vectors = unit(rng().normal(size=(6, 4)))
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = by_labels(vectors, labels, (1, 5))
    scores = vectors @ vectors.T
    expected = []
    for i in range(6):
        others = np.delete(np.arange(6), i)
        expected.append(average_precision_score(labels[others] == labels[i], scores[i, others]))
    assert found["map"] == pytest.approx(np.mean(expected)) and found["r@5"] == 1
    other = by_labels(vectors[:2], labels[:2], (1,), vectors[2:], labels[2:])
    assert other == {"queries": 0, "unmatched": 2}


def test_regions_follow_the_published_rule():
    assert regions(1, 1) == [(0, 0, 1)]
    # two scales of side 1: rounding makes regions fall together, and they count as often
    assert regions(2, 2) == [(0, 0, 2), *((i, j, 1) for i in (0, 1) for j in (0, 1)),
                             *((i, j, 1) for i in (0, 0, 1) for j in (0, 0, 1))]  # fmt: skip
    assert regions(3, 3) == [(0, 0, 3), *((i, j, 2) for i in (0, 1) for j in (0, 1)),
                             *((i, j, 1) for i in (0, 1, 2) for j in (0, 1, 2))]  # fmt: skip
    assert regions(4, 4)[1:5] == [(0, 0, 2), (0, 2, 2), (2, 0, 2), (2, 2, 2)]
    assert regions(4, 4)[5:] == [(i, j, 2) for i in (0, 1, 2) for j in (0, 1, 2)]
    # 8 x 8: sides 8, 5, 4
    assert [r[2] for r in regions(8, 8)] == [8] + [5] * 4 + [4] * 9
    assert [r[:2] for r in regions(8, 8, 2)[1:]] == [(0, 0), (0, 3), (3, 0), (3, 3)]
    # of a long grid 3 squares along its side come nearest to 40 % overlap: 1 - (15 - 7) / 2 / 7
    assert [r for r in regions(7, 15) if r[2] == 7] == [(0, 0, 7), (0, 4, 7), (0, 8, 7)]
    assert [(j, i, s) for i, j, s in regions(15, 7, 1)] == regions(7, 15, 1)
    for shape in ((1, 5), (2, 3), (5, 4), (14, 14), (3, 20)):
        assert all(0 <= t <= shape[0] - s and 0 <= x <= shape[1] - s for t, x, s in regions(*shape))


def test_regional_max_is_the_sum_of_unit_maxima():
    tokens = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    grid = tokens.reshape(2, 2, 3, 5)
    expected = sum(
        torch.nn.functional.normalize(grid[:, t : t + s, x : x + s].flatten(1, 2).max(1).values, dim=-1)
        for t, x, s in regions(2, 3)
    )
    torch.testing.assert_close(regional_max(tokens, (2, 3)), expected)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_whitened_training_features_are_decorrelated(ridge):
    x = rng().normal(size=(300, 12)) @ rng(1).normal(size=(12, 12)) + 3
    whitening = Whitening.fit(x, ridge=ridge)
    y = whitening(x)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    expected = variances / (variances + ridge * variances.mean())
    np.testing.assert_allclose(np.cov(y.T), np.diag(expected), atol=1e-6)
    if ridge == 0:
        np.testing.assert_allclose(np.cov(y.T), np.eye(12), atol=1e-6)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    kept = Whitening.fit(x, dimensions=3, ridge=ridge)(x)
    np.testing.assert_allclose(kept, y[:, :3], atol=1e-9)


def test_whitening_with_few_or_equal_images():
    few = rng().normal(size=(5, 30))
    assert np.cov(Whitening.fit(few, ridge=0)(few).T) == pytest.approx(np.eye(4), abs=1e-6)  # 5 points span 4 directions
    for features, message in ((few[:1], "there are 1"), (np.ones((4, 3)), "are equal")):
        with pytest.raises(LimpetError, match=message):
            Whitening.fit(features)


def test_groups_of_separate_clouds_are_the_classes():
    labels = np.repeat(np.arange(3), 20)
    cloud = rng().normal(size=(60, 4)) * 0.01 + np.eye(4)[labels]
    assert groups(cloud, labels, 3) == pytest.approx({"ari": 1.0, "nmi": 1.0})


def test_poolings_of_an_image(tiny):
    adapter = ZeroShot(Config()).setup(tiny, ClassSet(("a", "b"))).eval()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    from limpet.tokens import image_token_features

    tokens = image_token_features(tiny, images)
    torch.testing.assert_close(pooled(adapter, {"image": images}, "mean"), tokens.mean(1))
    torch.testing.assert_close(pooled(adapter, {"image": images}, "max"), tokens.max(1).values)
    torch.testing.assert_close(pooled(adapter, {"image": images}, "rmac"), regional_max(tokens, (8, 8)))
    whole = pooled(adapter, {"image": images}, "class")
    torch.testing.assert_close(whole, tiny.encode_image(images, normalize=False))
    same = pooled(adapter, {"image": images[:, None].expand(-1, 4, -1, -1, -1)}, "multi_crop")
    torch.testing.assert_close(same, torch.nn.functional.normalize(whole, dim=-1), rtol=1e-4, atol=1e-5)
    assert grid_of(tiny, 64) == (8, 8)
    picture = Image.fromarray(rng().integers(0, 255, (70, 90, 3), dtype=np.uint8))
    views = MultiCrop(tiny.transform(), 0.5)(picture)
    assert views.shape == (6, 3, 64, 64)
    torch.testing.assert_close(views[0], tiny.transform()(picture))
    torch.testing.assert_close(views[4], tiny.transform()(picture.crop((45, 35, 90, 70))))
    changed = ClipAdapter(ClipAdapterConfig()).setup(tiny, ClassSet(("a", "b")))
    with pytest.raises(RecipeError, match="image features of its own"):
        check_pooling(changed, "rmac")
    check_pooling(changed, "multi_crop")


SMALL = ["data.species=4", "data.train=6", "data.val=2", "data.test=4", "data.shots=all", "data.augment=none", "protocol=all",
         "trainer=cpu", "method=zero_shot"]  # fmt: skip


def test_a_run_measures_every_pooling(tmp_path):
    words = ["evaluate.task=retrieval", "evaluate.retrieval.pooling=[class,mean,max,rmac,multi_crop]", f"run.dir={tmp_path}"]
    (recipe,) = load("quickstart", [*SMALL, *words])
    folder = fit(recipe)
    found = json.loads((folder / "metrics.json").read_text())["retrieval"]
    assert list(found["image_to_image"]) == ["class", "mean", "max", "rmac", "multi_crop"]
    for forms in found["image_to_image"].values():
        assert list(forms) == ["plain", "whitened"]
        assert all(0 <= v["map"] <= 1 and v["queries"] == 16 for v in forms.values())
    accuracy = json.loads((folder / "metrics.json").read_text())["results"]["all"]["accuracy"]
    assert found["image_to_text"]["r@1"] == pytest.approx(accuracy)  # the class found first is the answer
    assert found["text_to_image"]["queries"] == 4
    assert "multi_crop" in (folder / "report.html").read_text()
    with (folder / "retrieval.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["what"] for row in rows} == {"image_to_image", "image_to_text", "text_to_image"}


def test_options_change_what_they_say(tmp_path):
    (recipe,) = load("quickstart", SMALL)
    session = prepare(recipe)

    def run(**settings):
        return retrieve(session.adapter, session.data, session.classes, RetrievalConfig(**settings))

    plain = run()
    assert list(run(whitening=False)["image_to_image"]["class"]) == ["plain"]
    assert run(gallery="train")["image_to_image"]["class"]["plain"] != plain["image_to_image"]["class"]["plain"]
    assert run(k=[2])["image_to_image"]["class"]["plain"].keys() >= {"r@2"}
    for other in (run(dimensions=2), run(ridge=1.0)):
        assert other["image_to_image"]["class"]["plain"] == plain["image_to_image"]["class"]["plain"]
        assert other["image_to_image"]["class"]["whitened"] != plain["image_to_image"]["class"]["whitened"]
    inner = run(similarity="inner")["image_to_image"]["class"]["plain"]
    features = np.concatenate([b["image"] for b in session.data.test_dataloader()])
    raw = session.backbone.encode_image(torch.from_numpy(features), normalize=False).double().numpy()
    labels = np.array([s.label for s in session.data.samples["test"]])
    assert inner == pytest.approx(by_labels(raw, labels, (1, 5, 10)), abs=1e-6)
    assert run(clusters=2)["groups"] != plain["groups"]


@pytest.fixture
def captioned(tmp_path, fish):
    """A table with two captions of each image, a row each, one caption shared by two images."""
    rows = ["path,label,split,caption"]
    for folder in sorted(fish.iterdir()):
        for i, image in enumerate(sorted(folder.iterdir())[:4]):
            split = "train" if i < 2 else "test"
            path = image.relative_to(fish).as_posix()
            rows += [f"{path},{folder.name},{split},a {folder.name} number {i}", f"{path},{folder.name},{split},a {folder.name}"]
            rows += [f"{path},{folder.name},{split},a {folder.name}"]  # said twice
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return [f"data.root={fish}", f"data.table={tmp_path}/captions.csv", "data.shots=all", "data.augment=none"]


def test_pairs_with_several_captions_an_image(captioned, tmp_path):
    (tmp_path / "my.yaml").write_text("extends: [base, data/table, trainer/cpu, method/zero_shot]\n")
    (recipe,) = load(str(tmp_path / "my.yaml"), captioned)
    session = prepare(recipe)
    assert any("a further caption" in line for line in session.data.report)
    assert all(len(captions_of(sample)) == 2 for sample in session.data.samples["test"])
    found = retrieve(session.adapter, session.data, session.classes, RetrievalConfig(by="pairs"))
    assert found["captions"] == 12 and "image_to_image" not in found  # 8 of one image each, 4 of two
    assert found["image_to_text"]["queries"] == 8 and found["text_to_image"]["queries"] == 12
    texts = [f"a {n} number {i}" for n in session.classes.names for i in (2, 3)] + [f"a {n}" for n in session.classes.names]
    images = torch.cat([b["image"] for b in session.data.test_dataloader()])
    names = [session.classes.names[s.label] for s in session.data.samples["test"]]
    scores = session.backbone.encode_image(images) @ session.backbone.encode_text(texts).T
    own = [captions_of(sample) for sample in session.data.samples["test"]]
    hits = [texts[int(row.argmax())] in captions for row, captions in zip(scores, own, strict=True)]
    assert found["image_to_text"]["r@1"] == pytest.approx(np.mean(hits)) and len(names) == 8


def test_retrieval_that_cannot_be_measured(captioned, tmp_path):
    (recipe,) = load("quickstart", [*SMALL, "evaluate.retrieval.by=pairs"])
    session = prepare(recipe)
    with pytest.raises(LimpetError, match="no test image has any"):
        retrieve(session.adapter, session.data, session.classes, recipe.evaluate.retrieval)
    with pytest.raises(RecipeError, match="compares images and texts in one space"):
        prepare(load("order_reef", ["evaluate.task=retrieval", "data.train=8", "data.val=2", "data.test=4"])[0])
    for word, message in (
        ("pooling=[clas]", "Did you mean 'class'"),
        ("pooling=[class,class]", "each pooling once"),
        ("k=[0]", "numbers from 1 on"),
        ("crop_share=1.5", "the most it can be is 1"),
        ("ridge=-1", "the least it can be is 0"),
        ("similarity=dot", "not one of cosine, inner"),
    ):
        with pytest.raises(RecipeError, match=message):
            load("quickstart", [f"evaluate.retrieval.{word}"])
