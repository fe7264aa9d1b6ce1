"""Damaged, hostile and mislabelled images, tables of images and names of classes."""

import csv
import io
import json
import os
import shutil
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limpet.datamodules import load
from limpet.datamodules.configs import TableConfig
from limpet.datamodules.errors import DataError
from limpet.datamodules.images import UnreadableImage, read_image
from PIL import Image

FULL = os.environ.get("LIMPET_ROBUST") == "full"
IMAGES, TABLES, NAMED = (1_400, 600, 300) if FULL else (120, 30, 30)
QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"]
SUFFIXES = [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".tga", ".JPEG"]


def picture(number, mode="RGB", size=(24, 18)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(number, kind, mode="RGB", frames=1):
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [picture(number + i, mode) for i in range(1, frames)]} if frames > 1 else {}
    picture(number, mode).save(buffer, kind, **more)
    return buffer.getvalue()


def bomb(width, height):
    """A PNG of a few hundred bytes that promises width x height pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@st.composite
def damaged(draw):
    """Bytes of an image after mutations, or of something else altogether."""
    kind = draw(st.sampled_from(FORMATS))
    frames = draw(st.sampled_from([1, 1, 1, 3])) if kind in ("GIF", "TIFF", "WEBP") else 1
    modes = {"JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "RGBA", "L", "P", "1", "I;16"], "TIFF": ["RGB", "F", "I;16", "CMYK"]}
    mode = draw(st.sampled_from(modes.get(kind, ["RGB"])))
    if mode == "I;16":
        buffer = io.BytesIO()
        Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(buffer, kind)
        content = buffer.getvalue()
    else:
        content = encoded(draw(st.integers(0, 5)), kind, mode, frames)
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["cut", "flip", "insert", "zeros", "head", "twice", "other", "empty", "number"]))
        at = draw(st.integers(0, len(content)))
        if what == "cut":
            content = content[:at]
        elif what == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        elif what == "insert":
            content = content[:at] + draw(st.binary(max_size=8)) + content[at:]
        elif what == "zeros":
            content = content[:at] + bytes(draw(st.integers(1, 64))) + content[at + 64 :]
        elif what == "head":
            content = draw(st.binary(max_size=16)) + content[16:]
        elif what == "twice":
            content = content + content[at:]
        elif what == "other":
            content = content[:at] + encoded(1, draw(st.sampled_from(FORMATS)))[at:]
        elif what == "number":
            near = min(at, 40)
            number = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]))
            content = content[:near] + number + content[near + 4 :]
        else:
            content = draw(st.sampled_from([b"", b"<svg/>", b"%PDF-1.4", bytes(128) + b"DICM", b"II*\0", bomb(60_000, 60_000)]))
    return content


@settings(max_examples=IMAGES, **QUIET)
@given(content=damaged(), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_are_an_image_or_refused(content, suffix, tmp_path_factory, tally):
    file = tmp_path_factory.getbasetemp() / f"mutated{suffix}"
    file.write_bytes(content)
    try:
        image = read_image(file)
    except UnreadableImage as error:
        assert str(file) in str(error) and str(error).endswith(".")
        tally("refused")
        return
    tally("answered")
    assert image.mode == "RGB" and image.width * image.height > 0
    assert np.array_equal(np.asarray(image), np.asarray(read_image(file.name, content)))  # as in an archive


def rows(file):
    with Path(file).open(encoding="utf-8", newline="") as opened:
        return {Path(row["path"]).name: row for row in csv.DictReader(opened)}


def test_hostile_images_among_good_ones_cost_nothing_but_themselves(ask, finished, tmp_path):
    fish, run = finished
    good = next(fish.rglob("*.png"))
    bad = {
        "empty.png": b"", "cut.png": good.read_bytes()[:60], "bomb.png": bomb(60_000, 60_000), "tall.png": bomb(1, 400_000_000),
        "text.jpg": b"no image", "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "script.gif": b"GIF89a" + bytes(20),
    }  # fmt: skip
    fine = {"good.png": good.read_bytes(), "mislabelled.jpg": good.read_bytes(), "animated.gif": encoded(3, "GIF", frames=3)}
    place = tmp_path / "new"
    place.mkdir()
    for name, content in {**bad, **fine}.items():
        (place / name).write_bytes(content)
    answer = ask("predict", run, place, "--out", tmp_path / "p.csv", good=(1,))
    assert answer.code == 1 and f"{len(bad)} of {len(bad) + len(fine)} images could not be read" in " ".join(answer.out.split())
    found = rows(tmp_path / "p.csv")
    assert {name for name, row in found.items() if row["label"]} == set(fine)
    assert found["good.png"]["label"] == found["mislabelled.jpg"]["label"]
    assert found["good.png"]["probability"] == found["mislabelled.jpg"]["probability"]
    assert "animated.gif" in answer.out  # said, not silent: only its first frame is answered about


def copies(fish, root):
    """The class folders of a data set, copied below `root`."""
    folders = sorted(p for p in fish.iterdir() if p.is_dir())
    return [shutil.copytree(folder, root / folder.name) for folder in folders]


@pytest.mark.parametrize("method", ["zero_shot", "vpt"])
def test_images_of_extreme_shapes_are_answered_like_others(method, ask, finished, tmp_path):
    fish, _ = finished
    root = tmp_path / "fish"
    for folder, size in zip(copies(fish, root), [(1_000_000, 1), (1, 1_000_000), (300_000, 3)], strict=True):
        Image.new("L", size).save(folder / "long.png")
    words = [f"data.root={root}", f"run.dir={tmp_path / 'runs'}", "backbone=limpet-tiny", "data.shots=all", f"method={method}",
             "trainer.accelerator=cpu", "trainer.epochs=1"]  # fmt: skip
    assert ask("fit", "fish", *words).code == 0
    run = tmp_path / "runs/fish/001"
    assert ask("predict", run, root, "--out", tmp_path / "p.csv").code == 0
    assert all(row["label"] for row in rows(tmp_path / "p.csv").values())
    long = next(root.rglob("long.png"))
    if method == "zero_shot":
        assert ask("index", root, "backbone=limpet-tiny", "--out", tmp_path / "index", "--pooling", "multi_crop").code == 0
    else:
        assert ask("explain", run, long, "--out", tmp_path / "e.png").code == 0


def test_memory_that_is_used_up_is_not_an_images_fault(ask, finished, tmp_path, monkeypatch):
    """It is said of the machine: nothing is indexed as if the images could not be read."""
    from limpet.transforms import ImageTransform

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(ImageTransform, "__call__", full)
    answer = ask("index", finished[0], "backbone=limpet-tiny", "--out", tmp_path / "index")
    assert answer.code == 2 and "not enough memory" in answer.sentence
    assert not (tmp_path / "index").exists()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nnewpath 0 0 moveto 9 9 lineto stroke\nshowpage\n%%EOF\n"


def test_no_image_starts_another_program(ask, finished, tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    from limpet.datamodules.regions import read_mask
    from limpet.report import _finder
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    file = tmp_path / "photo.png"
    file.write_bytes(POSTSCRIPT)
    for content in (None, POSTSCRIPT):
        with pytest.raises(UnreadableImage, match="PostScript"):
            read_image(file, content)
    with pytest.raises(DataError, match="mask"):
        read_mask(file)
    with pytest.raises(OSError, match="cannot identify"):
        _finder("")(str(file))
    ask("predict", finished[1], file, "--out", tmp_path / "p.csv", good=(1,))
    assert not started


@pytest.mark.parametrize("kind", [*FORMATS, "MPO", "JPEG2000", "AVIF"])
def test_every_known_format_is_read(kind, tmp_path):
    from PIL import Image as Pillow

    Pillow.init()
    if kind not in Pillow.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    content = encoded(1, kind, frames=2 if kind == "MPO" else 1)
    assert read_image(tmp_path / "x", content).size == (24, 18)


def test_all_images_are_opened_in_one_place():
    import limpet

    root = Path(limpet.__file__).parent
    files = [*root.rglob("*.py"), *Path(limpet.datamodules.__file__).parent.rglob("*.py")]
    opening = {path.name for path in files if "Image.open(" in path.read_text(encoding="utf-8")}
    assert opening == {"images.py", "export_loading.py"}  # the latter writes it into the user's instructions


def test_training_on_a_folder_with_hostile_images_lists_them(ask, finished, tmp_path):
    fish, _ = finished
    root = tmp_path / "fish"
    for folder, content in zip(copies(fish, root), [b"", bomb(60_000, 60_000), b"II*\0" + bytes(9)], strict=True):
        (folder / "zero.png").write_bytes(content)
    answer = ask("check", "fish", f"data.root={root}", "backbone=limpet-tiny", "data.shots=2", "trainer.accelerator=cpu")
    assert answer.code == 0
    words = ["fish", f"data.root={root}", f"run.dir={tmp_path / 'runs'}", "backbone=limpet-tiny", "data.shots=all", "method=gda",
             "trainer.accelerator=cpu"]  # fmt: skip
    answer = ask("fit", *words)
    metrics = json.loads((tmp_path / "runs/fish/001/metrics.json").read_text())
    assert answer.code == 0 and sum("zero.png" in path for path in metrics["unreadable"]) == 3
    assert "zero.png" in ask("fit", *words, "data.strict=true").sentence


def test_archives_that_lie_are_refused_member_by_member(ask, finished, tmp_path):
    fish, run = finished
    good = next(fish.rglob("*.png")).read_bytes()
    archive = tmp_path / "new.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("good.png", good)
        file.writestr("../../escaped.png", good)
        file.writestr("/absolute.png", good)
        file.writestr("bomb.png", bomb(60_000, 60_000))
        with file.open("zeros.png", "w", force_zip64=True) as member:  # 600 MiB of zeros in 600 kB
            for _ in range(600):
                member.write(bytes(2**20))
    answer = ask("predict", run, archive, "--out", tmp_path / "p.csv", good=(1,))
    assert answer.code == 1
    found = rows(tmp_path / "p.csv")
    assert [name for name, row in found.items() if row["label"]] == ["good.png"]
    assert not list(tmp_path.parent.rglob("escaped.png")) and not Path("/absolute.png").exists()
    assert "MiB unpacked" in " ".join(answer.out.split()) and "out of the archive" in " ".join(answer.out.split())


names = st.one_of(
    st.sampled_from(["no", "007", "1e3", "null", "NA", "nan", "12:30", "a,b", 'say "x"', "{}", "${x}", "é", "e\u0301", "💥", "x" * 200,
                     "{0}", "%s", "../x", "a\nb", "-", "#", "'", "=1+1", "a;b", "\ufeffx", "A", "a", "straße", "ﬁsh", "[red]x[/red]"]),
    st.text(min_size=1, max_size=10).filter(lambda text: text.strip() and "\x00" not in text and text.isprintable()),
)  # fmt: skip


def written(name):
    """A name as it is kept: without spaces around it, accents composed."""
    return unicodedata.normalize("NFC", name.strip())


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        picture(number).save(folder / f"{number:02d}.png")
    return folder


@settings(max_examples=NAMED, **QUIET)
@given(given_names=st.lists(names, min_size=1, max_size=4, unique_by=written))
def test_class_names_of_a_table_are_texts_as_written(given_names, pictures, tally):
    """Whatever the name, each image keeps its own, and the order of rows says nothing."""
    table = [(f"{number:02d}.png", given_names[number % len(given_names)]) for number in range(12)]
    found = []
    for order in (table, table[::-1]):
        with (pictures / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *order])
        data = load(TableConfig(root=str(pictures), shots="all"), 1)
        data.setup()
        samples = [sample for split in data.samples.values() for sample in split]
        found.append({sample.path: data.class_names[sample.label] for sample in samples})
        assert set(data.class_names) == set(map(written, given_names))
    tally("answered")
    assert found[0] == found[1] == {path: written(name) for path, name in table}


@st.composite
def tables(draw):
    """A table of the pictures after mutations of cells, rows, separators and bytes."""
    further = st.sampled_from(["split", "group", "value", "caption", "x0", "domain", "class", "mask", "path", ""])
    head = ["path", "label", *draw(st.lists(further, max_size=3))]
    cells = [[f"{n:02d}.png", "ab"[n % 2], *(["train", "7", ""][n % 3] for _ in head[2:])] for n in range(12)]
    lines = [head, *cells]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.integers(0, len(lines) - 1))
        column = draw(st.integers(0, len(head) - 1))
        what = draw(st.sampled_from(["cell", "cell", "drop", "shorter", "longer"]))
        if what == "cell" and column < len(lines[row]):
            odd = st.sampled_from(["", " ", "../../etc/passwd", "/dev/zero", "00.png\x00", "01.png", "1e999", "nan"])
            lines[row][column] = draw(st.one_of(names, odd))
        elif what == "drop":
            del lines[row][column : column + 1]
        elif what == "shorter":
            lines = lines[: row + 1]
        else:
            lines[row] = lines[row] * 2
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=draw(st.sampled_from(",,,;\t|"))).writerows(lines)
    content = buffer.getvalue().encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(content)))
        odd = draw(st.sampled_from([b"\x00", b'"', b"\xff\xfe", b"\r", b"\n\n", b"'", b"\xef\xbb\xbf"]))
        content = content[:at] + odd + content[at:]
    return content


@settings(max_examples=TABLES, **QUIET)
@given(content=tables())
def test_a_mutated_table_is_read_as_it_says_or_refused(content, pictures, tally):
    (pictures / "labels.csv").write_bytes(content)
    try:
        data = load(TableConfig(root=str(pictures), shots="all"), 1)
        data.setup()
    except DataError as error:
        assert len(str(error)) > 20
        tally("refused")
        return
    tally("answered")
    samples = [sample for split in data.samples.values() for sample in split]
    assert samples and len({sample.index for sample in samples}) == len(samples)
    assert {sample.label for sample in samples} <= set(range(len(data.class_names)))
    assert all(sample.file.is_relative_to(pictures) or b".." in content or b"/" in content for sample in samples)


@pytest.mark.parametrize("shown", ["no", "007", "a b", "[red]x", "{}", "%s", "é💥", "=1+1"])
def test_class_names_of_folders_go_through_a_whole_command(shown, ask, tmp_path):
    for name in (shown, "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            picture(number, size=(32, 32)).save(tmp_path / "data" / name / f"{number}.png")
    answer = ask("fit", "quickstart", "data=folder", f"data.root={tmp_path / 'data'}", "method=zero_shot", "data.shots=2",
                 f"run.dir={tmp_path / 'runs'}", "trainer.accelerator=cpu", "protocol=all")  # fmt: skip
    assert answer.code == 0
    with (tmp_path / "runs/quickstart/001/per_class.csv").open(encoding="utf-8", newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {shown, "other"}
    ask("predict", tmp_path / "runs/quickstart/001", tmp_path / "data", "--out", tmp_path / "p.csv")
    safe = "'=1+1" if shown == "=1+1" else shown  # a table of answers is opened in spreadsheets: nothing in it is a formula
    assert {row["label"] for row in rows(tmp_path / "p.csv").values()} <= {safe, "other"}
