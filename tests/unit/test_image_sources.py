"""Images of files, folders, patterns and archives, the odd ones included."""

from __future__ import annotations

import io
import zipfile

import pytest
from limpet import image_sources
from limpet.errors import LimpetError
from limpet.image_sources import find_sources, open_image
from PIL import Image


def picture(kind="PNG", size=(30, 20), **more):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 90)).save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.zip"
    whole = picture("JPEG", (300, 200))
    frames = [Image.new("RGB", (20, 20), (n * 60, 0, 0)) for n in range(3)]
    animated = picture("GIF", save_all=True, append_images=frames)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {
            "good.png": picture(), "deep/er/good.JPG": whole, "../out.png": picture(), "/root.png": picture(),
            "C:\\disk.png": picture(), "empty.png": b"", "cut.jpg": whole[: len(whole) // 2], "text.png": b"no image",
            "moving.gif": animated, "inner.zip": b"PK", "notes.txt": b"no image", "__MACOSX/._good.png": b"", "folder.png/": b"",
        }.items():  # fmt: skip
            file.writestr(name, content)
    return path


def outcome(source):
    try:
        return open_image(source)
    except (ValueError, OSError) as error:
        return str(error)


def test_members_of_an_archive_are_read_or_say_why_not(archive, tmp_path):
    found = {s.name: outcome(s) for s in find_sources(str(archive))}
    images = {name for name, got in found.items() if not isinstance(got, str)}
    assert images == {"good.png", "deep/er/good.JPG", "moving.gif"}
    assert found["good.png"].getpixel((3, 3)) == (200, 30, 90) and found["deep/er/good.JPG"].size == (300, 200)
    assert found["moving.gif"].info.get(image_sources.SEVERAL_FRAMES)
    assert not found["good.png"].info.get(image_sources.SEVERAL_FRAMES)
    for name in ("../out.png", "/root.png", "C:\\disk.png"):
        assert "leads out of the archive" in found[name]
    assert "empty" in found["empty.png"] and "damaged" in found["cut.jpg"]
    assert "not an image" in found["text.png"] and "unpack it first" in found["inner.zip"]
    assert len(found) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.zip"], "nothing is unpacked to disk"
    assert all(str(source) == f"{archive}/{source.name}" for source in find_sources(str(archive)))


def test_damage_encryption_and_size_of_members(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("large.png", picture() + bytes(5000))
        file.writestr("turned.png", picture())
        file.writestr("locked.png", picture())
    content = bytearray(path.read_bytes())
    content[content.index(b"turned.png") + 60] ^= 0xFF  # a byte of the content: its checksum no longer fits
    entry = content.rindex(b"locked.png") - 46
    content[entry + 8] |= 1  # the flag of encryption
    path.write_bytes(content)
    monkeypatch.setattr(image_sources, "MEMBER_BYTES", 1000)
    found = {s.name: outcome(s) for s in find_sources(str(path))}
    assert "unpacked; the limit is" in found["large.png"]
    assert "CRC" in found["turned.png"] and "encrypted" in found["locked.png"]


def test_what_holds_no_images_says_so(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as file:
        file.writestr("a.txt", "")
    with pytest.raises(LimpetError, match=r"no\.zip cannot be read as a zip archive"):
        find_sources(str(tmp_path / "no.zip"))
    with pytest.raises(LimpetError, match=r"No images found in .*none\.zip: it has 1 members"):
        find_sources(str(tmp_path / "none.zip"))


def test_several_places_at_once_each_image_once(archive, tmp_path):
    (tmp_path / "one.png").write_bytes(picture())
    found = find_sources([str(tmp_path / "one.png"), str(archive), str(tmp_path / "*.zip")])
    assert len(found) == 11 and found[0] == str(tmp_path / "one.png")
    with pytest.raises(LimpetError, match="matches none"):
        find_sources([str(tmp_path / "one.png"), str(tmp_path / "gone*")])


def test_huge_pictures_and_pages_on_disk(tmp_path, monkeypatch):
    (tmp_path / "pages.tif").write_bytes(picture("TIFF", save_all=True, append_images=[Image.new("RGB", (5, 5))]))
    (tmp_path / "huge.png").write_bytes(picture(size=(60, 40)))
    assert outcome(str(tmp_path / "pages.tif")).info[image_sources.SEVERAL_FRAMES]
    from limpet.datamodules import images

    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    assert "60x40 pixels are too many" in outcome(str(tmp_path / "huge.png"))


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_folder_one_is_in(name):
    with pytest.raises(LimpetError, match="name of the images is empty"):
        find_sources(name)
