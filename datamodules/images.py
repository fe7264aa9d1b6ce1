"""Decoding one image file robustly into 8-bit RGB (Pillow and numpy only)."""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .errors import DataError

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".jp2",
        ".avif",
    ]
)
DICOM_SUFFIXES = frozenset((".dcm", ".dicom"))
MAX_PIXELS = 178_956_970  # the size at which Pillow itself suspects an attack
_SAMPLES_PER_PIXEL, _BITS_PER_SAMPLE = 277, 258  # TIFF tags
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class UnreadableImage(DataError):
    """A file that cannot be turned into an RGB image.

    Attributes:
        path: the file.
        reason: why, as the end of a sentence.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"Cannot read the image {path}: {reason}.")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.path, self.reason)  # the default would call __init__ with the message alone


def refuse_exhaustion(error: BaseException, path: str | Path) -> None:
    """Stop where the process has used up its file descriptors or memory: that says nothing about the image.

    Raises:
        DataError: it has.
    """
    number = getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE):
        raise DataError(
            f"The image {path} cannot be opened: too many files are open. Allow more (ulimit -n 4096, in the shell "
            "that starts Limpet) or use fewer data.num_workers."
        ) from error
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        raise DataError(
            f"There is not enough memory to read the image {path}. Close other programs, or use fewer "
            "data.num_workers or a smaller data.batch_size."
        ) from error


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats of `SUFFIXES`, of those that this Pillow can read."""
    known = Image.registered_extensions()
    return tuple(sorted({known[suffix] for suffix in SUFFIXES if known.get(suffix) in Image.OPEN}))


def open_image(source: Any) -> Image.Image:
    """`PIL.Image.open` for images of anybody's: of the formats of `SUFFIXES` only, whatever the file is called.

    Pillow knows many more by their content, some rarely used and one, EPS, by starting another program on it.

    Raises:
        PIL.UnidentifiedImageError: it is of no such format.
    """
    return Image.open(source, formats=_formats())


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def read_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Decode one image as 8-bit RGB, the way a person would see it.

    The EXIF rotation is applied; the first frame of an animation is taken; transparent parts become white.
    16-bit grey is scaled linearly from its range to 0-255: the range its file declares, else the smallest of
    8, 12 and 16 bits that holds its brightest pixel. Floating-point pixels are taken as 0-1 or 0-255 where
    they fit, else stretched from smallest to largest.

    Args:
        path: the file.
        content: its bytes, where they do not lie on disk (a member of an archive); `path` is then only its name.

    Returns:
        A PIL image of mode RGB that no longer needs the file; `info["several_frames"]` is True where there were more
        frames or pages than the one taken.

    Raises:
        UnreadableImage: missing, empty, damaged, too large, or of a kind that is not a picture in three
            bands.
        DataError: the process has used up its file descriptors or memory.
    """
    return _decode(path, check_only=False, content=content)


def check_image(path: str | Path) -> None:
    """Decode an image only to see that it can be: faster than `read_image` for JPEG.

    Raises:
        UnreadableImage: as `read_image`.
    """
    _decode(path, check_only=True)


def _decode(path: str | Path, check_only: bool, content: bytes | None = None) -> Image.Image:
    try:
        size = os.stat(path).st_size if content is None else len(content)  # noqa: PTH116
        if size == 0:
            raise UnreadableImage(path, "the file is empty")
        with open_image(path if content is None else io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(path, f"{image.width}x{image.height} pixels are too many")
            _refuse_bands(image, path)
            if check_only and image.format == "JPEG":
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            if check_only:
                return image
            result = _to_rgb(_upright(image), _declared_maximum(image))
            if _several_frames(image):
                result.info["several_frames"] = True
            return result
    except UnreadableImage:
        raise
    except FileNotFoundError:
        raise UnreadableImage(path, "there is no such file") from None
    except IsADirectoryError:
        raise UnreadableImage(path, "it is a folder") from None
    except UnidentifiedImageError:
        raise UnreadableImage(path, _unidentified(path, content)) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(path, "it has too many pixels (a decompression bomb?)") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        refuse_exhaustion(error, path)
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise UnreadableImage(path, f"the file is damaged ({reason})") from error


def _several_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame says nothing about the first
        return False


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow writes the other tags again, and a damaged one says nothing about how the picture stands
        with suppress(Exception):
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            return image if turn is None else image.transpose(turn)
        return image


def _to_rgb(image: Image.Image, declared: float | None) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image, declared)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, declared: float | None) -> Image.Image:
    """Bring 16-bit, 32-bit and floating-point grey to 8 bits by their range."""
    pixels: Any = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F":
        low, high = (
            (0.0, 1.0)
            if low >= 0 and high <= 1
            else (0.0, 255.0)
            if low >= 0 and high <= 255
            else (low, high)
        )
    else:
        low = min(low, 0.0)
        ranges = [float(2**bits - 1) for bits in (8, 12, 16)]
        if declared is not None and high <= declared:
            ranges = [declared]
        high = next((limit for limit in ranges if high <= limit), high)
    grey = np.zeros_like(pixels) if high <= low else (pixels - low) * (255.0 / (high - low))
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _declared_maximum(image: Image.Image) -> float | None:
    """The largest value that a TIFF with an odd number of bits (10, 12, 14) can hold."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    bits = bits[0] if isinstance(bits, tuple) and bits else bits
    return float(2**bits - 1) if isinstance(bits, int) and 8 < bits < 16 else None


def _refuse_bands(image: Image.Image, path: str | Path) -> None:
    bands = getattr(image, "tag_v2", {}).get(_SAMPLES_PER_PIXEL, 1)
    if isinstance(bands, int) and bands > 4:
        raise UnreadableImage(path, f"it is a multi-band image with {bands} bands; {_THREE_BANDS}")


_THREE_BANDS = (
    "CLIP sees three: choose red, green and blue (or three others) and save them as 8-bit PNG or JPEG first, "
    "for instance with gdal_translate -b 4 -b 3 -b 2 -ot Byte -scale"
)


def _unidentified(path: str | Path, content: bytes | None = None) -> str:
    """Name the kinds of files that people do have but that are not pictures."""
    if content is None:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(132)
    else:
        head = content[:132]
    if head[128:132] == b"DICM" or Path(path).suffix.lower() in DICOM_SUFFIXES:
        return "it is a DICOM file; export it as 8-bit PNG or JPEG with the window you want to see first"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return f"it is a TIFF of a layout that cannot be read, multi-band perhaps; {_THREE_BANDS}"
    if head[:4] in (b"%!PS", b"\xc5\xd0\xd3\xc6"):
        return "it is a PostScript file; save it as PNG or JPEG first"
    return "it is not an image of a known format"
