"""`limpet index` and `limpet search` as a user types them."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from limpet import ImageIndex, image_index
from limpet.cli import main
from limpet.errors import LimpetError
from PIL import Image


@pytest.fixture
def mine(fish, place):
    """A folder of one's own: drawn fish, a copy of one of them, and a broken file."""
    root = place / "mine"
    shutil.copytree(fish, root)
    first = sorted(root.rglob("*.png"))[3]
    shutil.copy(first, root / "copy.png")
    (root / "broken.jpg").write_bytes(b"no image")
    return root


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_indexed_and_searched(limpet, mine, place):
    shown = limpet("index", "mine", code=1)  # as predict: one image could not be read
    assert "41 images, 128 numbers each" in shown and "broken.jpg" in shown and "limpet search indexes/mine" in shown
    index = ImageIndex.load("indexes/mine")
    assert index.vectors.shape == (41, 128) and len(index.paths) == 41
    assert [name for name, _ in index.info["unreadable"]] == ["mine/broken.jpg"]
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)

    shown = limpet("search", "indexes/mine", "a yellow fish", "--top", "5")
    assert "a yellow fish: the 5 nearest of 41 images" in shown
    (found,) = (place / "indexes/mine/searches").glob("*.csv")
    assert found.name == "001-a-yellow-fish.csv"
    table = rows(found)
    clip = index.classifier.backbone
    scores = index.vectors.astype(np.float64) @ clip.encode_text(["a yellow fish"]).double().numpy()[0]
    order = np.lexsort((np.arange(41), -scores))[:5]
    assert [row["path"] for row in table] == [index.paths[i] for i in order]
    assert Image.open(found.with_suffix(".png")).size[0] > 400 and "a yellow fish" in found.with_suffix(".html").read_text()

    shown = limpet("search", "indexes/mine", "mine/copy.png", "--out", "near.csv")
    near = rows(place / "near.csv")
    assert [float(row["similarity"]) for row in near[:2]] == pytest.approx([1, 1], abs=1e-5)
    assert near[0]["path"].endswith("copy.png")  # of equal images the first in the index
    assert float(near[2]["similarity"]) < 0.9999


def test_groups_have_a_page(limpet, fish, place):
    shown = limpet("index", fish, "--groups", "3", "--out", "grouped")
    assert "groups.html" in shown
    table = rows(place / "grouped/groups.csv")
    assert len(table) == 40 and {row["group"] for row in table} == {"1", "2", "3"}
    sizes = [sum(row["group"] == g for row in table) for g in "123"]
    assert sizes == sorted(sizes, reverse=True)
    assert (place / "grouped/groups.html").read_text().count("<h2>") == 3
    limpet("index", fish, "--groups", "41", "--out", "more", code=2)
    assert not (place / "more").exists()


@pytest.mark.parametrize("pooling", ["mean", "rmac", "multi_crop"])
def test_poolings(limpet, fish, place, pooling):
    limpet("index", fish, "--pooling", pooling, "--out", "it")
    index = ImageIndex.load("it")
    path = index.paths[7]
    assert index.search(image_index.Path(path), 1)[0].path == path
    assert len(index.search("a fish", 3)) == 3  # patches of limpet-tiny lie in the joint space


def test_an_index_of_a_run_has_its_features_and_preprocessing(limpet, fit_fish, fish, place):
    run, _ = fit_fish("method=clip_adapter")
    limpet("index", fish, "--run", run, "--out", "adapted")
    index = ImageIndex.load("adapted")
    adapter = index.classifier.adapter
    assert adapter.name == "clip_adapter"
    images = torch.stack([index.classifier.transform(Image.open(p).convert("RGB")) for p in index.paths[:4]])
    with torch.no_grad():
        expected = adapter.encode_image({"image": images}).numpy()
    np.testing.assert_allclose(index.vectors[:4], expected, atol=1e-5)
    shutil.rmtree(run)  # the index has its own copy of the adapter
    assert index.paths and ImageIndex.load("adapted").search("a fish", 1)


def test_preprocessing_is_the_adapters_own(tiny, fish, tmp_path):
    from limpet.classes import ClassSet
    from limpet.inference import Classifier
    from limpet.methods.zero_shot import Config, ZeroShot

    wide = Image.open(next(iter(sorted(fish.rglob("*.png"))))).resize((128, 64))
    (tmp_path / "in").mkdir()
    wide.save(tmp_path / "in/wide.png")
    vectors = {}
    for mode in ("shortest", "squash"):
        classifier = Classifier(ZeroShot(Config()).setup(tiny, ClassSet(("image",))))
        classifier.transform = tiny.transform(resize_mode=mode)
        index, _ = image_index.build([str(tmp_path / "in/wide.png")], tmp_path / "in", tmp_path / mode, classifier)
        expected = tiny.encode_image(tiny.transform(resize_mode=mode)(wide)[None]).numpy()
        np.testing.assert_allclose(index.vectors, expected, atol=1e-5)
        vectors[mode] = index.vectors
    assert not np.allclose(vectors["shortest"], vectors["squash"], atol=1e-3)


def test_an_interrupted_index_leaves_the_good_one(limpet, fish, place, monkeypatch):
    limpet("index", fish, "--out", "good")
    before = {p.name: p.read_bytes() for p in (place / "good").iterdir() if p.is_file()}
    encode = image_index._vectors
    calls = []

    def fail(*given):
        calls.append(1)
        if len(calls) > 1 or len(given[1]) < 64:
            raise KeyboardInterrupt
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(image_index, "_vectors", fail)
        limpet("index", fish, "--out", "good", code=130)
        with patch.context() as inner:
            inner.setattr(image_index, "_vectors", encode)
            inner.setattr(image_index, "_swap", fail)
            limpet("index", fish, "--out", "good", code=130)
    assert {p.name: p.read_bytes() for p in (place / "good").iterdir() if p.is_file()} == before
    assert sorted(p.name for p in place.iterdir()) == ["good"]
    assert ImageIndex.load("good").search("a fish", 2)


def test_the_index_does_not_hold_its_own_pictures(limpet, fish, place):
    root = place / "mine"
    shutil.copytree(fish, root)
    limpet("index", "mine", "--out", "mine/index")
    limpet("search", "mine/index", "a fish")
    limpet("index", "mine", "--out", "mine/index")
    assert len(ImageIndex.load("mine/index").paths) == 40


def test_mistakes_are_answered_with_a_sentence(limpet, fish, place):
    limpet("index", fish, "--out", "it")
    (place / "other").mkdir()
    (place / "other/notes.txt").write_text("x")
    (place / "empty").mkdir()
    (place / "bad.png").write_bytes(b"x")
    for words, message in (
        (("index", "nowhere"), "There is no folder nowhere"),
        (("index", "empty"), "No images found in empty"),
        (("index", fish, "--out", "other"), "is not an index"),
        (("index", fish, "--pooling", "cls"), "There is no pooling 'cls'"),
        (("index", fish, "data.root=x"), "data.root has no part in an index"),
        (("index", fish, "backbone=limpet-tinny"), "limpet-tinny"),
        (("search", "nowhere", "a fish"), "there is no such folder"),
        (("search", "other", "a fish"), "holds no index.json"),
        (("search", "it", " "), "text to search for is empty"),
        (("search", "it", "none.png"), "There is no image none.png"),
        (("search", "it", "bad.png"), "cannot be read"),
        (("search", "it", "a fish", "--out", "found.png"), "found.png should end in .csv"),
    ):
        assert message in " ".join(limpet(*words, code=2).split())
    info = json.loads((place / "it/index.json").read_text())
    (place / "it/index.json").write_text(json.dumps({**info, "format": 99}))
    with pytest.raises(LimpetError, match="format 99"):
        ImageIndex.load("it")
    (place / "it/index.json").write_text(json.dumps(info))
    (place / "it/vectors.npy").write_bytes(b"x")
    assert "is damaged" in limpet("search", "it", "a fish", code=2)


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(fish, tmp_path_factory):
    """The folder of an index; treat it as read-only."""
    folder = tmp_path_factory.mktemp("whole") / "it"
    assert main(["index", str(fish), "--out", str(folder)]) == 0
    return folder


def damaged(whole, place, name, content, old=False):
    """A copy of an index with another file in it; `old`: as Limpet wrote it before there were checksums."""
    folder = place / "it"
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(content)
    if old:
        info = json.loads((folder / "index.json").read_text())
        info.pop("sha256", None)
        (folder / "index.json").write_text(json.dumps(info))
    return folder


def with_row(value):
    def change(vectors):
        vectors[3] = value
        return vectors

    return change


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v * np.float32("nan"), "row 0 of vectors.npy is no vector of length 1"),
        (lambda v: v * np.float32("inf"), "row 0 of vectors.npy is no vector of length 1"),
        (with_row(np.nan), "row 3 of vectors.npy is no vector of length 1"),
        (lambda v: v[:5], "vectors.npy has 5 rows, paths.json 40 paths, and index.json says 40 images"),
        (lambda v: v.astype(np.float64), "does not hold rows of numbers in float32"),
        (lambda v: v[:, :0], "damaged: "),
    ],
)  # fmt: skip
def test_damaged_vectors_are_refused(limpet, whole, place, change, said, old):
    damaged(whole, place, "vectors.npy", saved(change(np.load(whole / "vectors.npy"))), old)
    assert said in " ".join(limpet("search", "it", "a fish", code=2).split())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vectors.npy", b"", "vectors.npy cannot be read"),
        ("vectors.npy", b"PK\3\4", "vectors.npy cannot be read"),
        ("vectors.npy", b"\x80\x04c__builtin__\nexec\n.", "vectors.npy cannot be read"),
        ("paths.json", b"null", "paths.json is not a list of paths"),
        ("paths.json", json.dumps([1] * 40).encode(), "paths.json is not a list of paths"),
        ("paths.json", json.dumps(["a\0b"] * 40).encode(), "paths.json is not a list of paths"),
        ("paths.json", json.dumps(["\ud800"] * 40).encode(), "paths.json is not a list of paths"),
        ("paths.json", b"[" * 100_000, "nested too deeply"),
        ("paths.json", json.dumps(["other.png"] * 40).encode(), "the checksum of paths.json is another"),
    ],
)  # fmt: skip
def test_damaged_files_of_an_index_are_refused(limpet, whole, place, name, content, said):
    damaged(whole, place, name, content)
    answer = " ".join(limpet("search", "it", "a fish", code=2).split())
    assert (said in answer or said == "vectors.npy cannot be read") and "error: The index it is damaged: " in answer


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("root", None, "'root' in index.json"), ("root", [], "'root' in index.json"), ("images", 3, "index.json says 3 images"),
     ("images", None, "index.json says None images"), ("pooling", "x", "'pooling' in index.json is none of"),
     ("sha256", 3, "'sha256' in index.json")],
)  # fmt: skip
def test_a_damaged_description_of_an_index_is_refused(limpet, whole, place, key, value, said):
    info = {**json.loads((whole / "index.json").read_text()), key: value}
    damaged(whole, place, "index.json", json.dumps(info).encode())
    assert said in " ".join(limpet("search", "it", "a fish", code=2).split())


def test_turned_vectors_are_noticed_and_an_index_without_checksums_is_read(limpet, whole, place):
    turned = saved(np.load(whole / "vectors.npy")[::-1])
    folder = damaged(whole, place, "vectors.npy", turned)
    assert "the checksum of vectors.npy is another" in " ".join(limpet("search", "it", "a fish", code=2).split())
    shutil.rmtree(folder)
    damaged(whole, place, "vectors.npy", turned, old=True)
    limpet("search", "it", "a fish")


def test_an_end_of_file_of_any_command_reads_well(limpet, monkeypatch):
    def fail(*_):
        raise EOFError

    monkeypatch.setattr(ImageIndex, "load", fail)
    assert "error: A file that was read ends too early" in limpet("search", "it", "a fish", code=2)
