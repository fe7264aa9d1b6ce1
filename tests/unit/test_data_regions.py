"""Boxes, masks, captions and views in tables, and drawn scenes with boxes."""

import numpy as np
import pytest
import torch
from limpet.datamodules import load
from limpet.datamodules.configs import ReefConfig, ReefScenesConfig, TableConfig
from limpet.datamodules.errors import DataError
from limpet.datamodules.loading import plain_tensor
from limpet.datamodules.regions import bounding, overlaps
from PIL import Image


def picture(path, size=(80, 40), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def squash(image):
    return plain_tensor(image.resize((16, 16)))


def table(folder, text, **settings):
    (folder / "labels.csv").write_text(text)
    data = load(TableConfig(root=str(folder), shots="all", **settings), seed=1)
    data.setup()
    return data


def items(data, *keys, split="test"):
    data.ask_for(keys)
    data.set_transforms(squash, squash)
    return list(data.dataset(split))


def test_rows_that_share_image_and_class_are_one_sample(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    data = table(
        tmp_path,
        "path,label,split,x0,y0,x1,y1\na.png,cod,test,8,4,40,20\na.png,cod,test,40,20,80,40\na.png,ray,test,0,0,8,4\n"
        "b.png,cod,test,,,,\n",
    )
    found = {item["path"]: item for item in items(data, "boxes", "candidates", "crops", "masks")}
    assert set(found) == {"a.png [cod]", "a.png [ray]", "b.png"}
    cod = found["a.png [cod]"]
    torch.testing.assert_close(cod["boxes"], torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1, 1]]))
    assert len(cod["candidates"]) == 3 and cod["crops"].shape == (2, 3, 16, 16)
    assert found["b.png"]["boxes"].shape == (0, 4) and "masks" not in cod
    assert {s.group for s in data.samples["test"] if s.path.startswith("a")} == {"a.png"}


def test_regions_are_augmented_as_their_image_is():
    data = load(ReefConfig(species=2, train=2, val=1, test=1, shots="all"), seed=1)
    data.setup()
    data.ask_for(("crops",))
    data.set_transforms(lambda image: squash(image) + torch.rand(()), squash)
    one, again = (data.dataset("train", augment=True)[0] for _ in range(2))
    assert torch.equal(one["crops"], again["crops"]) and torch.equal(one["image"], again["image"])
    plain = data.dataset("train")[0]
    shifts = [(one[key] - plain[key]).mean() for key in ("image", "crops")]
    torch.testing.assert_close(shifts[0], shifts[1])


def test_relative_boxes_and_boxes_beyond_the_border(tmp_path):
    picture(tmp_path / "a.png")
    data = table(tmp_path, "path,label,split,x0,y0,x1,y1\na.png,cod,test,0.25,0,1,0.5\n")
    torch.testing.assert_close(items(data, "boxes")[0]["boxes"], torch.tensor([[0.25, 0, 1, 0.5]]))
    data = table(tmp_path, "path,label,split,x0,y0,x1,y1\na.png,cod,test,-10,0,120,20\n")
    torch.testing.assert_close(items(data, "boxes")[0]["boxes"], torch.tensor([[0, 0, 1, 0.5]]))
    data = table(tmp_path, "path,label,split,x0,y0,x1,y1\na.png,cod,test,90,0,120,20\n")
    with pytest.raises(DataError, match=r"lies outside the image.*80x40"):
        items(data, "boxes")


@pytest.mark.parametrize(
    ("header", "row", "word"),
    [
        ("x0,y0,x1,y1", "10,0,5,20", "is empty"),
        ("x0,y0,x1,y1", "10,0,,20", "needs four numbers"),
        ("x0,y0,x1,y1", "a,0,5,20", "needs four numbers"),
        ("x0,y0,x1", "1,0,5", "no 'y1'"),
        ("mask", "gone.png", "there is no mask gone.png"),
        ("anomaly", "perhaps", "neither 0"),
    ],
)
def test_cells_that_make_no_region_are_refused_with_their_place(tmp_path, header, row, word):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=word):
        table(tmp_path, f"path,label,split,{header}\na.png,cod,test,{row}\n")


def test_a_column_says_which_images_are_anomalous(tmp_path):
    words = ["0", "good", "", "Normal", "1", "bad", "YES"]
    for i in range(len(words)):
        picture(tmp_path / f"{i}.png", seed=i)
    rows = "".join(f"{i}.png,cod,test,{word}\n" for i, word in enumerate(words))
    found = items(table(tmp_path, f"path,label,split,anomaly\n{rows}"), "anomalous")
    assert [item["anomalous"] for item in found] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"box_units": "metres"}, "data.box_units is 'metres'; known are auto, pixels, relative"),
        ({"box_columns": ["x0", "y0"]}, "data.box_columns names 2 columns; it needs four"),
        ({"box_columns": ["lft", "y0", "x1", "y1"]}, "has the column 'y0' and no 'lft'"),
        ({"box_columns": ["lft", "top", "rght", "bottom"]}, r"no column 'lft' \(data.box_columns\).*Did you mean 'left'"),
    ],
)
def test_boxes_that_are_asked_for_wrongly(tmp_path, settings, said):
    picture(tmp_path / "a.png")
    header = "x0,y0,x1,y1" if settings.get("box_columns", ["x0"])[-1] != "bottom" else "left,y0_,x1_,y1_"
    with pytest.raises(DataError, match=said):
        table(tmp_path, f"path,label,split,{header}\na.png,cod,test,1,2,3,4\n", **settings)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
def test_masks_in_colour_cover_what_is_not_black(tmp_path, mode):
    picture(tmp_path / "a.png")
    mask = Image.new("L", (80, 40), 0)
    mask.paste(255, (20, 10, 60, 20))
    if mode == "P":
        mask = mask.point(lambda value: value // 255)
        mask.putpalette([0, 0, 0, 255, 0, 0])
    else:
        mask = mask.convert(mode)  # opaque everywhere
    mask.save(tmp_path / "m.png")
    (item,) = items(table(tmp_path, "path,label,split,mask\na.png,cod,test,m.png\n"), "masks")
    torch.testing.assert_close(bounding(item["masks"]), torch.tensor([[0.25, 0.25, 0.75, 0.5]]))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("content", "said"), [(b"no image", "cannot identify image file"), (None, "exceeds limit")])
def test_a_mask_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, workers, content, said):
    picture(tmp_path / "a.png")
    Image.new("1", (400, 400)).save(tmp_path / "m.png")
    if content is None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    else:
        (tmp_path / "m.png").write_bytes(content)
    data = table(tmp_path, "path,label,split,mask\na.png,cod,test,m.png\n", num_workers=workers)
    data.ask_for(("masks",))
    with pytest.raises(DataError, match=rf"^The mask [^\n]*m\.png cannot be read: [^\n]*{said}[^\n]*\.$"):
        list(data.test_dataloader())


def test_masks_captions_and_targets(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png", seed=3)
    mask = np.zeros((40, 80), np.uint8)
    mask[10:20, 20:60] = 1  # any value but 0 counts
    Image.fromarray(mask).save(tmp_path / "m.png")
    data = table(tmp_path, "path,label,split,mask\na.png,cod,test,m.png\nb.png,ray,test,\n")
    first, second = items(data, "masks", "crops", "anomalous", "defect")
    assert first["masks"].shape == (1, 224, 224) and first["anomalous"] == 1 and second["anomalous"] == 0
    torch.testing.assert_close(bounding(first["masks"]), torch.tensor([[0.25, 0.25, 0.75, 0.5]]))
    assert first["defect"].float().mean() == pytest.approx(0.125, abs=0.01) and not second["defect"].any()
    picture_of = Image.open(tmp_path / "a.png").crop((20, 10, 60, 20))
    torch.testing.assert_close(first["crops"], squash(picture_of)[None])
    data = table(
        tmp_path,
        "path,label,split,caption,x0,y0,x1,y1\na.png,cod,test,the left fish,0,0,40,40\na.png,cod,test,a small  cod,0,0,40,40\n"
        "a.png,ray,test,the ray,50,0,80,40\na.png,,test,,60,20,80,40\nb.png,ray,test,alone,0,0,9,9\n",
    )
    found = {item["caption"]: item for item in items(data, "caption", "candidates", "target")}
    assert set(found) == {"the left fish", "a small cod", "the ray", "alone"}
    assert found["the ray"]["candidates"].shape == (3, 4)
    assert [bool(t) for t in found["the ray"]["target"]] == [False, True, False]
    assert found["the left fish"]["target"].tolist() == [True, False, False]


def test_views_of_one_object(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", seed=i)
    Image.fromarray(np.eye(40, 80, dtype=np.uint8) * 255).save(tmp_path / "m.png")
    text = "path,label,split,object,weight,mask\n0.png,chair,test,c1,3,m.png\n1.png,chair,test,c1,1,\n2.png,bed,test,b1,,\n"
    data = table(tmp_path, text, view_column="object")
    bed, chair = sorted(items(data, "views", "view_masks", "view_weights"), key=lambda item: item["path"])
    assert (bed["path"], chair["path"]) == ("b1", "c1")
    assert chair["views"].shape == (2, 3, 16, 16) and chair["view_weights"].tolist() == [0.75, 0.25]
    assert chair["view_masks"][0].any() and not chair["view_masks"][1].any()
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png: it is not an image of a known format\. It is a view of c1\."):
        items(data, "views")
    with pytest.raises(DataError, match="labels 'chair' and 'bed'"):
        table(tmp_path, text.replace("b1", "c1"), view_column="object")
    with pytest.raises(DataError, match="no column 'objekt'"):
        table(tmp_path, text, view_column="objekt")
    with pytest.raises(DataError, match="weight"):
        table(tmp_path, text.replace("c1,3", "c1,-3"), view_column="object")


def test_tables_without_regions_stay_as_they_were(tmp_path):
    picture(tmp_path / "a.png")
    data = table(tmp_path, "path,label,split\na.png,cod,test\na.png,cod,test\n")
    assert data.offers == () and [s.path for s in data.samples["test"]] == ["a.png"]
    assert any("repeat an image" in sentence for sentence in data.report)


def test_scenes_have_the_boxes_of_their_fish():
    data = load(ReefScenesConfig(species=5, fish=3, train=1, val=1, test=3, shots="all"), seed=1)
    data.setup()
    assert len(data.samples["test"]) == 15 and data.manifest()["hash"] == data.manifest()["hash"]
    places = set()
    for item, sample in zip(items(data, "boxes", "candidates", "target", "caption", "crops"), data.samples["test"], strict=True):
        assert item["caption"] == data.class_names[item["label"]] == sample.extra["species"]
        assert len(set(sample.extra["fish"])) == 3 and item["candidates"].shape == (3, 4)
        assert torch.equal(item["candidates"][sample.extra["place"]], item["boxes"][0])
        assert item["target"][sample.extra["place"]]
        places.add(sample.extra["place"])
    assert places == {0, 1, 2}
    again = load(ReefScenesConfig(species=5, fish=3, train=4, val=1, test=3, shots="all"), seed=7)
    again.setup()
    one, other = items(data, "boxes")[0], items(again, "boxes")[0]
    assert torch.equal(one["image"], other["image"]) and torch.equal(one["boxes"], other["boxes"])
    for settings, word in (
        ({"fish": 1}, "data.fish"), ({"fish": 4, "species": 3}, "data.fish"), ({"size": 20}, "data.size"),
        ({"species": 1}, "data.species is 1; choose 2 to"), ({"test": -1}, "data.test count scenes"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=word):
            load(ReefScenesConfig(**settings), seed=1)


def test_single_fish_have_boxes_around_what_differs_from_the_water():
    data = load(ReefConfig(species=2, train=1, val=1, test=1, shots="all"), seed=1)
    data.setup()
    for item in items(data, "boxes", "crops"):
        x0, y0, x1, y1 = item["boxes"][0].tolist()
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and (x1 - x0) * (y1 - y0) > 0.03
        assert item["crops"].shape[:2] == (1, 3)


def test_overlap_of_boxes():
    one = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]])
    other = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.6, 0.6, 1.0, 1.0]])
    torch.testing.assert_close(overlaps(one, other), torch.tensor([[0.5, 0.16], [0.5, 0.0]]))
