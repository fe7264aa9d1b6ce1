"""Decoding: every kind of file becomes 8-bit RGB as a person would see it, or a sentence."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from limpet.datamodules.images import UnreadableImage, check_image, is_image_name, read_image
from PIL import Image


def _pixel(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (0, 255), (0, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
    ],
)
def test_modes(tmp_path, mode, colour, expected):
    path = tmp_path / "x.png"
    Image.new(mode, (4, 3), colour).save(path)
    assert _pixel(path) == expected


def test_half_transparent_is_mixed_with_white(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(path)
    assert all(abs(value - 127) <= 1 for value in _pixel(path))


def test_palette_with_transparency(tmp_path):
    path = tmp_path / "x.png"
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=0)
    decoded = read_image(path)
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (0, 255, 0)


def test_cmyk(tmp_path):
    path = tmp_path / "x.jpg"
    Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK").save(path, quality=95)
    assert np.allclose(_pixel(path), (200, 40, 40), atol=12)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (4, 1))).save(path)
    grey = np.asarray(read_image(path))[0, :, 0]
    assert np.array_equal(grey, np.arange(256))


def test_12_bits_in_a_16_bit_file(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 4095], [2048, 1000]], dtype=np.uint16)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.0, 255.0), (-3.0, 900.0)])
def test_floating_point(tmp_path, low, high):
    path = tmp_path / "x.tif"
    Image.fromarray(np.array([[low, high]], dtype=np.float32)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 255]


def test_exif_rotation(tmp_path):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert read_image(path).size == (10, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_though_another_exif_tag_is_damaged(tmp_path, orientation):
    upright = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    good, damaged = tmp_path / "good.png", tmp_path / "damaged.png"
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 3, b"ab\0")  # a text, where a number belongs
    for path, entries in ((good, [tags]), (damaged, [tags, resolution])):
        block = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<I", 0)
        upright.save(path, exif=b"Exif\0\0" + block)
    assert np.array_equal(read_image(damaged), read_image(good))
    assert read_image(damaged).size == ((20, 10) if orientation < 5 else (10, 20))


def test_the_bits_that_a_tiff_declares_are_its_range(tmp_path):
    entries = [
        (256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 200), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 3),
    ]  # fmt: skip
    header = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path = tmp_path / "x.tif"
    path.write_bytes(header.ljust(200, b"\0") + bytes([0x0C, 0x80, 0x00]))  # 200 and 0, of at most 4095
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [12, 0]


def test_a_damaged_second_frame_says_nothing_about_the_first(tmp_path):
    path = tmp_path / "x.gif"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(path, save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 255))])
    path.write_bytes(path.read_bytes()[:-20])
    assert _pixel(path) == (255, 0, 0) and "several_frames" not in read_image(path).info


def test_first_frame_of_an_animation(tmp_path):
    path = tmp_path / "x.gif"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(
        path, save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 255))]
    )
    assert _pixel(path) == (255, 0, 0)


def _huge_png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def _truncated_jpeg():
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()[:900]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"hello, this is not an image", "not an image"),
        ("cut.jpg", _truncated_jpeg(), "damaged"),
        ("bomb.png", _huge_png(), "pixels"),
        ("scan.dcm", b"\0" * 128 + b"DICM" + b"\0" * 40, "DICOM"),
        ("odd.tif", b"II*\0\x08\0\0\0\0\0\0\0\0\0", "TIFF"),
    ],
)
@pytest.mark.parametrize("read", [read_image, check_image])
def test_unreadable(tmp_path, name, content, reason, read):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read(path)
    assert caught.value.path == str(path) and reason in caught.value.reason
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.path, copy.reason, str(copy)) == (caught.value.path, caught.value.reason, str(caught.value))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(UnreadableImage):
        read_image(tmp_path)


def test_multi_band_tiff_says_so(tmp_path):
    bands, size = 6, 8
    data = bytes(size * size * bands)
    entries = [
        (256, 3, 1, size), (257, 3, 1, size), (258, 3, bands, 150), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 200), (277, 3, 1, bands), (278, 3, 1, size), (279, 4, 1, len(data)), (338, 3, 3, 170),
    ]  # fmt: skip
    file = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    for tag, kind, count, value in entries:
        file += struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
    file = file + struct.pack("<I", 0)
    file = file.ljust(150, b"\0") + struct.pack("<6H", *[8] * 6)
    file = file.ljust(170, b"\0") + struct.pack("<3H", 0, 0, 0)
    path = tmp_path / "x.tif"
    path.write_bytes(file.ljust(200, b"\0") + data)
    with pytest.raises(UnreadableImage, match="multi-band"):
        read_image(path)


def test_image_names():
    assert is_image_name("a.JPG") and is_image_name("with space.tiff")
    assert not is_image_name("._a.jpg") and not is_image_name("Thumbs.db") and not is_image_name("jpg")
