"""Published data sets in miniature, in their real folders: names, splits, order, and sentences where something is missing."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torchvision.datasets as published
from limpet.datamodules import DataError, load
from limpet.datamodules.benchmarks.facts import data_sets, imagenet_names, read_json, templates
from limpet.datamodules.configs import BenchmarkConfig, OrderingBenchmarkConfig
from torchvision.datasets import cifar

# text names in label order, and how many images the splits have
EXPECTED = {
    "caltech101": (["face", "leopard", "motorbike", "airplane", "sea horse"], (25, 10, 15)),
    "oxford_pets": (["abyssinian", "american bulldog", "bengal", "yorkshire terrier"], (16, 4, 12)),
    "stanford_cars": (["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 smart fortwo Convertible"], (12, 3, 9)),
    "oxford_flowers": (["pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea"], (12, 8, 16)),
    "food101": (["apple pie", "baby back ribs", "waffles"], (15, 3, 9)),
    "fgvc_aircraft": (["707-320", "727-200", "Cessna 172"], (12, 6, 9)),
    "sun397": (["abbey", "outdoor apartment building", "zen garden"], (12, 3, 9)),
    "dtd": (["banded", "polka-dotted", "zigzagged"], (12, 6, 9)),
    "eurosat": (["Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"], (20, 8, 12)),
    "ucf101": (["Apply Eye Makeup", "Baby Crawling", "Yo Yo"], (15, 3, 6)),
    "imagenet": (["tench", "goldfish", "missile", "missile"], (20, 4, 12)),
    "imagenetv2": (["tench", "goldfish", "missile"], (0, 0, 6)),
    "imagenet_sketch": (["goldfish", "missile"], (0, 0, 4)),
    "imagenet_a": (["goldfish", "missile"], (0, 0, 4)),
    "imagenet_r": (["goldfish", "missile"], (0, 0, 4)),
    "cifar100": (["apple", "aquarium fish", "worm"], (15, 3, 9)),
    "cifar10": (["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"], (80, 20, 20)),
    "tiny_imagenet": (["goldfish", "made-up thing"], (8, 2, 4)),
    "medmnist": (read_json("class_names.json")["medmnist"]["bloodmnist"], (16, 8, 8)),
    "ucmerced": (["agricultural", "dense residential area", "tennis court"], (12, 6, 6)),
    "resisc45": (["airplane", "baseball diamond", "wetland"], (12, 6, 6)),
    "fish4knowledge": (["Dascyllus reticulatus", "Plectroglyphidodon dickii", "Siganus fuscescens"], None),
    "ham10000": (["melanoma", "melanocytic nevus", "vascular lesion"], None),
    "isic": (["melanoma", "melanocytic nevus"], None),
}


@pytest.fixture(autouse=True)
def checksums(monkeypatch):
    """The fake batches of CIFAR have others than torchvision knows."""
    monkeypatch.setattr(cifar, "check_integrity", lambda file, md5=None: Path(file).is_file())


def module(name, root, seed=1, **keys):
    return load(BenchmarkConfig(dataset=name, root=root and str(root), **{"shots": "all", **keys}), seed)


def ready(name, root, **keys):
    data = module(name, root, **keys)
    data.setup()
    return data


def texts(data):
    return [" ".join(data.class_texts[name]) for name in data.class_names]


def test_every_benchmark_has_a_miniature(fakes):
    assert set(fakes.NAMES) == set(data_sets())
    assert set(EXPECTED) == {name for name, facts in data_sets().items() if facts.ordering is None}


@pytest.mark.parametrize("name", EXPECTED)
def test_names_order_splits_and_images(fakes, name, tmp_path):
    fakes.write(name, tmp_path)
    data = ready(name, tmp_path)
    words, sizes = EXPECTED[name]
    assert texts(data) == words
    found = tuple(len(data.samples[split]) for split in ("train", "val", "test"))
    if sizes:
        if name in ("ucmerced", "resisc45"):  # 50/20/30 of eight
            assert sum(found) == 24 and found[0] > found[1]
        else:
            assert found == sizes
    item = data.dataset("test")[0]
    assert item["image"].shape[0] == 3 and 0 <= item["label"] < len(words)
    assert len(data.content_key(data.samples["test"][0])) == 64
    assert data.facts.title in data.report[0]
    if data.facts.split_file:
        assert data.facts.split_file in data.report[0] and "official split" in data.report[0]
    # the folder of the data set itself does as root, too
    inner = next((tmp_path / f for f in data.facts.folders if (tmp_path / f).is_dir()), tmp_path)
    assert ready(name, inner).manifest()["hash"] == data.manifest()["hash"]


@pytest.mark.parametrize("name", ["fish4knowledge", "ham10000", "isic", "ucf101"])
def test_what_belongs_together_stays_on_one_side(fakes, name, tmp_path):
    fakes.write(name, tmp_path)
    data = ready(name, tmp_path)
    where = {}
    for split, samples in data.samples.items():
        for sample in samples:
            assert sample.group
            where.setdefault(sample.group, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert len({s for splits in where.values() for s in splits}) == 3


def test_labels_of_folders_are_right(fakes, tmp_path):
    for name in ("fgvc_aircraft", "ucf101", "stanford_cars", "imagenetv2", "medmnist"):
        fakes.write(name, tmp_path)
    ucf = ready("ucf101", tmp_path)
    assert all(f"/{ucf.class_names[s.label]}/" in s.path for split in ucf.samples.values() for s in split)
    planes = ready("fgvc_aircraft", tmp_path)
    first = {s.path: planes.class_names[s.label] for s in planes.samples["train"]}
    assert first["images/1000001.jpg"] == "Cessna 172" and first["images/1000003.jpg"] == "707-320"
    v2 = ready("imagenetv2", tmp_path)
    assert {(s.path.split("/")[0], v2.class_names[s.label]) for s in v2.samples["test"]} == {
        ("0", "n01440764"), ("1", "n01443537"), ("744", "n04008634"),
    }  # fmt: skip
    cars = ready("stanford_cars", tmp_path)
    assert Counter(s.label for s in cars.samples["test"]) == {0: 3, 1: 3, 2: 3}
    assert {s.path for s in cars.samples["test"] if s.label == 1} == {f"cars_test/{n:05d}.jpg" for n in (2, 5, 8)}
    blood = ready("medmnist", tmp_path)
    assert all(int(s.path.split("/")[1]) % 8 == s.label for s in blood.samples["test"])


def test_the_fields_split_file_is_used_in_place(fakes, tmp_path):
    fakes.write("eurosat", tmp_path)
    top = tmp_path / "eurosat"
    split = {
        part: [[f"{name}/{name}_{n}.jpg", label, name] for label, name in ((1, "AnnualCrop"), (0, "Forest")) for n in numbers]
        for part, numbers in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5, 6)))
    }
    (top / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    data = ready("eurosat", tmp_path)
    assert data.class_names == ["Forest", "Annual Crop Land"]
    assert [len(data.samples[part]) for part in ("train", "val", "test")] == [6, 2, 4]
    assert "field's split, split_zhou_EuroSAT.json" in data.report[0]
    assert "in papers it has 13500/5400/8100" in " ".join(data.report)
    assert next(s.path for s in data.samples["train"]) == "AnnualCrop/AnnualCrop_1.jpg"  # the order of the file
    assert len(ready("eurosat", tmp_path, split_file="official").class_names) == 4
    with pytest.raises(DataError, match="There is no other.json for EuroSAT"):
        ready("eurosat", tmp_path, split_file="other.json")


def test_manifest_says_images_names_templates_and_seed(fakes, tmp_path):
    fakes.write("oxford_pets", tmp_path)
    data = ready("oxford_pets", tmp_path, shots=2, seed=3)
    manifest = data.manifest()
    assert manifest["dataset"] == "oxford_pets" and manifest["seed"] == 3 and manifest["sampling"] == "dassl"
    assert manifest["templates"] == ["a photo of a {}, a type of pet."]
    assert manifest["texts"]["american_bulldog"] == ["american bulldog"]
    assert len(manifest["splits"]["train"]["paths"]) == 8
    json.dumps(manifest)


TEMPLATES = {
    "a photo of a {}.": ["imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r",
                          "stanford_cars", "sun397", "caltech101"],
    "a photo of a {}, a type of pet.": ["oxford_pets"],
    "a photo of a {}, a type of flower.": ["oxford_flowers"],
    "a photo of a {}, a type of aircraft.": ["fgvc_aircraft"],
    "{} texture.": ["dtd"],
    "a centered satellite photo of {}.": ["eurosat"],
    "a photo of {}, a type of food.": ["food101"],
    "a photo of a person doing {}.": ["ucf101"],
}  # fmt: skip


def test_templates_are_the_fields():
    for template, names in TEMPLATES.items():
        for name in names:
            assert templates(name, "hand_crafted") == [template]
            assert templates(name, "recipe") is None
            ensemble = templates(name, "ensemble")
            assert len(ensemble) == (7 if name.startswith("imagenet") else 8) and "itap of a {}." in ensemble
    assert len(templates("dtd", "ensemble")) == 8  # a fresh list each time
    with pytest.raises(DataError, match="data.templates is 'handcrafted'.*Did you mean 'hand_crafted'"):
        module("dtd", ".", templates="handcrafted")


def test_the_names_of_imagenet():
    names = imagenet_names()
    assert len(names) == 1000 and list(names) == sorted(names) and len(set(names.values())) == 998
    assert names["n01440764"] == "tench" and names["n15075141"] == "toilet paper"


def test_eleven_data_sets_have_the_sizes_of_the_papers():
    facts = data_sets()
    eleven = read_json("data_sets.json")["few_shot_11"]
    assert len(eleven) == 11 and [facts[n].classes for n in eleven] == [1000, 100, 37, 196, 102, 101, 100, 397, 47, 10, 101]
    assert facts["sun397"].sizes == [15880, 3970, 19850] and facts["oxford_flowers"].sizes == [4093, 1633, 2463]


@pytest.mark.parametrize("name", sorted(data_sets()))
def test_a_missing_data_set_is_a_sentence(name, tmp_path):
    facts = data_sets()[name]
    kind = OrderingBenchmarkConfig if facts.ordering else BenchmarkConfig
    for root in (tmp_path, tmp_path / "nowhere", None):
        with pytest.raises(DataError) as caught:
            load(kind(dataset=name, root=str(root) if root else None), 1).setup()
        message = str(caught.value)
        assert facts.title in message and facts.home in message and facts.folders[0] in message
    (tmp_path / facts.folders[0]).mkdir(parents=True)
    with pytest.raises(DataError, match="was not found: there is no"):
        load(kind(dataset=name, root=str(tmp_path)), 1).setup()


def test_nothing_is_downloaded_unless_asked_for(fakes, tmp_path, monkeypatch):
    fetched = []

    def fetch(root, download=False):
        fetched.append(root)
        fakes.write("food101", root)

    monkeypatch.setattr(published, "Food101", fetch)
    with pytest.raises(DataError, match="data.download=true"):
        ready("food101", tmp_path)
    assert not fetched
    data = ready("food101", tmp_path / "new", download=True)
    assert fetched == [str(tmp_path / "new")] and len(data.class_names) == 3
    monkeypatch.setattr(published, "Food101", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(DataError, match="could not be downloaded.*no network"):
        ready("food101", tmp_path / "other", download=True)
    with pytest.raises(DataError, match="cannot be downloaded"):
        ready("ucf101", tmp_path, download=True)


def test_missing_files_are_listed(fakes, tmp_path):
    fakes.write("dtd", tmp_path)
    (tmp_path / "dtd/images/banded/banded_0000.jpg").unlink()
    report = " ".join(ready("dtd", tmp_path).report)
    assert "1 file of DTD missing" in report and "banded_0000.jpg" in report
    with pytest.raises(DataError, match="banded_0000.jpg.*data.strict"):
        ready("dtd", tmp_path, strict=True)


def test_medmnist_is_chosen_by_name_and_refuses_what_is_no_image(fakes, tmp_path):
    import numpy as np

    fakes.write("medmnist", tmp_path)
    folder = tmp_path / "medmnist"
    keys = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("images", "labels")]
    volumes = {k: np.zeros((2, 8, 8, 8) if "images" in k else (2, 1), np.uint8) for k in keys}
    np.savez(folder / "organmnist3d.npz", **volumes)
    with pytest.raises(DataError, match="holds bloodmnist, organmnist3d: name one with data.variant"):
        ready("medmnist", tmp_path)
    assert len(ready("medmnist", tmp_path, variant="bloodmnist").class_names) == 8
    with pytest.raises(DataError, match="volumes"):
        ready("medmnist", tmp_path, variant="organmnist3d")
    np.savez(folder / "chestmnist.npz", **{k: np.zeros((2, 8, 8) if "images" in k else (2, 14), np.uint8) for k in volumes})
    with pytest.raises(DataError, match="several labels"):
        ready("medmnist", tmp_path, variant="chestmnist")


def test_members_of_an_archive_that_are_damaged_are_listed(fakes, tmp_path):
    fakes.write("cifar100", tmp_path)
    import zipfile

    with zipfile.ZipFile(tmp_path / "cifar100_test.zip", "a") as archive:
        archive.writestr("apple/broken.png", b"no picture")
    data = ready("cifar100", tmp_path)
    list(data.test_dataloader())
    assert len(data.unreadable) == 1 and "broken.png" in data.unreadable[0]
    overwritten = (tmp_path / "cifar100_test.zip").read_bytes().replace(b"no picture", b"no p\xffcture")
    (tmp_path / "cifar100_test.zip").write_bytes(overwritten)
    data = ready("cifar100", tmp_path)
    list(data.test_dataloader())
    assert len(data.unreadable) == 1 and "Bad CRC-32 for file 'apple/broken.png'" in data.unreadable[0]
    with zipfile.ZipFile(tmp_path / "cifar100_test.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("apple/squeezed.png", b"to be squeezed" * 99)
    content = (tmp_path / "cifar100_test.zip").read_bytes()
    start = content.index(b"squeezed.png") + len(b"squeezed.png")
    (tmp_path / "cifar100_test.zip").write_bytes(content[:start] + b"\xff" * 9 + content[start + 9 :])
    data = ready("cifar100", tmp_path)
    list(data.test_dataloader())
    assert len(data.unreadable) == 1 and "decompressing" in data.unreadable[0]
    with zipfile.ZipFile(tmp_path / "cifar100_test.zip", "w") as archive:
        archive.writestr("loose.png", b"no class")
    with pytest.raises(DataError, match="cifar100_test.zip holds no class folders with images"):
        ready("cifar100", tmp_path)
    (tmp_path / "cifar100_train.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as a ZIP archive"):
        ready("cifar100", tmp_path)


def test_faces_are_ordered_by_age(fakes, tmp_path):
    fakes.write("utkface", tmp_path)
    fakes.write("adience", tmp_path)
    faces = load(OrderingBenchmarkConfig(dataset="utkface", root=str(tmp_path)), 1)
    faces.setup()
    assert sum(len(s) for s in faces.samples.values()) == 40
    assert all(s.extra["value"] == int(Path(s.path).name.split("_")[0]) for s in faces.samples["train"])
    assert faces.class_texts == {"age": ["Sort the images by age."]} and "1 images without an age" in " ".join(faces.report)
    groups = load(OrderingBenchmarkConfig(dataset="adience", root=str(tmp_path), variant="2"), 1)
    groups.setup()
    assert {s.group for s in groups.samples["test"]} == {f"user2{n}" for n in range(9)}
    assert sorted(s.extra["value"] for s in groups.samples["test"]) == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    with pytest.raises(DataError, match="folds of Adience are 0 to 4"):
        load(OrderingBenchmarkConfig(dataset="adience", root=str(tmp_path), variant="9"), 1).setup()
    with pytest.raises(DataError, match="write data=ordering_benchmark data.dataset=adience"):
        module("adience", tmp_path)
    with pytest.raises(DataError, match="Did you mean 'eurosat'"):
        module("eurosta", tmp_path)


def damaged(content):
    return lambda file: file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "file", "change", "said"),
    [
        ("dtd", "dtd/labels/val1.txt", damaged(b"banded/\xff.jpg"), "val1.txt is not a text in UTF-8"),
        ("oxford_flowers", "oxford_flowers/setid.mat", cut, "Flowers102 in .* cannot be read.*Wanted: jpg/, imagelabels.mat"),
        ("stanford_cars", "stanford_cars/devkit/cars_meta.mat", damaged(b""), "StanfordCars in .* cannot be read.*truncated"),
        ("medmnist", "medmnist/bloodmnist.npz", cut, "MedMNIST in .* cannot be read.*not a zip file"),
        ("oxford_pets", "oxford_pets/annotations/test.txt", damaged(b"no list\n"), "OxfordPets in .* damaged, or not as published"),
        ("cifar10", "cifar-10-batches-py/data_batch_2", cut, "CIFAR-10 in .* cannot be read.*pickle data was truncated"),
        ("cifar10", "cifar-10-batches-py/data_batch_2", Path.unlink, "Python batches of CIFAR10 in .* are not whole"),
        ("fgvc_aircraft", "fgvc_aircraft/variants.txt", damaged(b"727-200\n"), "images of 707-320, Cessna 172, which its own list"),
        ("ham10000", "ham10000/HAM10000_metadata.csv", damaged(b"image_id,dx\n"), "needs the columns lesion_id, image_id and dx"),
        ("ham10000", "ham10000/HAM10000_metadata.csv", damaged(b"lesion_id,image_id,dx\n"), "list no images"),
        ("ham10000", "ham10000/HAM10000_metadata.csv", damaged(b"lesion_id,image_id,dx\nL,x,mel\n"), "None of the 1 images.*x.jpg"),
    ],
)
def test_files_that_are_not_as_published_are_a_sentence(fakes, name, file, change, said, tmp_path):
    fakes.write(name, tmp_path)
    change(tmp_path / file)
    with pytest.raises(DataError, match=said):
        ready(name, tmp_path)


def test_arrays_that_medmnist_lacks_are_named(fakes, tmp_path):
    import numpy as np

    (tmp_path / "medmnist").mkdir()
    np.savez(tmp_path / "medmnist/bloodmnist.npz", train_images=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(DataError, match="lacks the arrays train_labels, val_images.*it has train_images"):
        ready("medmnist", tmp_path)


GROUND_TRUTH = "ISIC2018/ISIC2018_Task3_Training_GroundTruth.csv"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,MEL,NV\nISIC_0000000,1.0,1.0\n", "ISIC_0000000 has 2 diagnoses; one is needed"),
        ("image,MEL,NV\nISIC_0000000,0.0,\n", "ISIC_0000000 has 0 diagnoses"),
        ("image,patient,target\nISIC_0000000,IP_7,1\n", "column patient holds 'IP_7', where 0 or 1.*data=table"),
    ],
)
def test_diagnoses_that_are_not_one_of_several_are_refused(fakes, text, said, tmp_path):
    fakes.write("isic", tmp_path)
    (tmp_path / GROUND_TRUTH).write_text(text)
    with pytest.raises(DataError, match=said):
        ready("isic", tmp_path)


def test_one_of_several_ground_truths_is_chosen_by_name(fakes, tmp_path):
    fakes.write("isic", tmp_path)
    first = tmp_path / GROUND_TRUTH
    lines = first.read_text().splitlines(keepends=True)
    first.with_name("ISIC2019_Training_GroundTruth.csv").write_text("".join(lines[:7]))
    with pytest.raises(DataError, match="holds ISIC2018.*, ISIC2019.*: name one with data.variant"):
        ready("isic", tmp_path)
    assert sum(map(len, ready("isic", tmp_path, variant="ISIC2019").samples.values())) == 6


def test_lesions_without_a_table_are_said_to_be_on_both_sides(fakes, tmp_path):
    fakes.write("isic", tmp_path)
    assert "lesion" not in " ".join(ready("isic", tmp_path).report)
    next(tmp_path.rglob("*LesionGroupings.csv")).unlink()
    data = ready("isic", tmp_path)
    assert "no table of lesions" in " ".join(data.report) and all(s.group is None for s in data.samples["test"])


def test_class_names_beside_the_images_come_before_the_packaged_ones(fakes, tmp_path):
    for name in ("oxford_flowers", "imagenet"):
        fakes.write(name, tmp_path)
    (tmp_path / "oxford_flowers/cat_to_name.json").write_text('{"2": "orchid"}')
    assert texts(ready("oxford_flowers", tmp_path)) == ["pink primrose", "orchid", "canterbury bells", "sweet pea"]
    (tmp_path / "imagenet/classnames.txt").write_text("n01440764 tench fish\nn01443537 gold fish\nn03773504 rocket\n")
    assert texts(ready("imagenet", tmp_path)) == ["tench fish", "gold fish", "rocket", "n04008634"]


def test_what_lies_beside_the_class_folders_is_no_class(fakes, tmp_path):
    fakes.write("imagenet", tmp_path)
    train = tmp_path / "imagenet/images/train"
    (train / "notes.txt").write_text("read me")
    (train / ".cache").mkdir()
    fakes.save(train / ".cache/0.jpg")
    assert len(ready("imagenet", tmp_path).class_names) == 4


def test_images_that_are_listed_twice_count_once(fakes, tmp_path):
    fakes.write("dtd", tmp_path)
    labels = tmp_path / "dtd/labels"
    first = (labels / "train1.txt").read_text().splitlines()[0]
    with (labels / "test1.txt").open("a") as file:
        file.write(f"{first}\n")
    data = ready("dtd", tmp_path)
    assert [len(data.samples[split]) for split in ("train", "val", "test")] == [12, 6, 9]
    assert "1 image listed again, left out." in data.report


def test_a_download_needs_a_folder():
    with pytest.raises(DataError, match="data.root is not set: Food101 would be downloaded into that folder"):
        module("food101", None, download=True).setup()
