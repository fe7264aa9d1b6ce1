"""From a PIL image to network input: the model's own preprocessing, and augmentation for training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from .errors import RecipeError, nearest

PRESETS = ("natural", "aerial", "microscopy", "mirror", "none")
RATIO = (3 / 4, 4 / 3)
# Stains differ a little in strength and tint between laboratories; stronger changes would cross class
# borders.
STAIN = {"brightness": 0.15, "contrast": 0.15, "saturation": 0.15, "hue": 0.03}
# Images of extreme shapes are scaled in ways that need little memory: plainly, a million pixels in a row would take 16 GB.
# These ways round differently, so ordinary images do not go through them.
LONG = 32  # times the area of the result: what an image becomes before its centre is cut out
SIDE = 2**16  # of an image that is squashed: a JPEG's is smaller


@dataclass(frozen=True)
class ImageTransform:
    """A picklable preprocessing function; randomness comes from torch's global generator only.

    Attributes:
        size: height and width of the result.
        mean: of each channel, subtracted after scaling to [0, 1].
        std: of each channel, divided by.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (short side to size, centre crop), "squash" (both sides to size) or "longest"
            (long side to size, padded with `fill`).
        fill: grey value of the padding.
        preset: augmentation; "none" gives the evaluation transform.
        scale: range of the share of the image's area that a random crop keeps.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill: int = 0
    preset: str = "none"
    scale: tuple[float, float] = (0.08, 1.0)

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any], train: bool = False, augment: Any = None) -> ImageTransform:
        """Make a transform from a spec's preprocessing.

        Args:
            preprocessing: size, mean, std, interpolation, resize_mode, fill.
            train: whether to augment; False ignores `augment`.
            augment: an object with `preset` and `scale`; None means natural images.

        Raises:
            RecipeError: an unknown preset or an impossible scale.
        """
        size = preprocessing["size"]
        preset, scale = "none", (0.08, 1.0)
        if train:
            preset = str(getattr(augment, "preset", "natural"))
            low, high = getattr(augment, "scale", scale) or scale
            scale = (float(low), float(high))
        if preset not in PRESETS:
            raise RecipeError(
                f"There is no augmentation preset {preset!r}; known are "
                f"{', '.join(PRESETS)}.{nearest(preset, PRESETS)}"
            )
        if not 0 < scale[0] <= scale[1] <= 1:
            raise RecipeError(
                f"`data.augment.scale` is {list(scale)}; it needs two shares of the image, 0 < low <= high "
                "<= 1."
            )
        return cls(
            size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
            mean=tuple(preprocessing["mean"]),
            std=tuple(preprocessing["std"]),
            interpolation=preprocessing["interpolation"],
            resize_mode=preprocessing["resize_mode"],
            fill=preprocessing["fill"],
            preset=preset,
            scale=scale,
        )

    def __call__(self, image: Any) -> Tensor:
        """Return network input (3, H, W), float32, of a PIL image."""
        image = self._augmented(image) if self.preset != "none" else self._resized(image)
        tensor: Tensor = F.normalize(F.to_tensor(image.convert("RGB")), self.mean, self.std)
        return tensor

    @property
    def _mode(self) -> InterpolationMode:
        return InterpolationMode.BILINEAR if self.interpolation == "bilinear" else InterpolationMode.BICUBIC

    def _resized(self, image: Any) -> Any:
        height, width = self.size
        if self.resize_mode == "squash":
            return squashed(image, height, width, self._mode)
        if self.resize_mode == "longest":
            high, wide = (max(1, side) for side in self._scaled(image, max))  # a side of a pixel or two would round to none
            return _crop_or_pad(squashed(image, high, wide, self._mode), height, width, self.fill)
        if height == width:  # torchvision cuts off the fraction of a pixel here
            short = min(image.size)
            scaled, mode = [int(height * image.height / short), int(width * image.width / short)], self._mode
        else:
            scaled, mode = self._scaled(image, min), InterpolationMode.BICUBIC
        if scaled[0] * scaled[1] > LONG * height * width:
            return _middle(image, scaled, height, width, mode)
        return F.center_crop(F.resize(image, scaled, mode), [height, width])

    def _scaled(self, image: Any, side: Any) -> list[int]:
        """Height and width of an image whose longer (max) or shorter (min) side, relative to the target, fits."""
        width, height = image.size
        ratio = side(height / self.size[0], width / self.size[1])
        return [round(height / ratio), round(width / ratio)]

    def _augmented(self, image: Any) -> Any:
        if self.preset == "mirror":  # nothing may be cut off where the image is a quantity
            image = self._resized(image)
            return F.hflip(image) if _coin() else image
        box = RandomResizedCrop.get_params(image, list(self.scale), list(RATIO))
        image = F.resized_crop(image, *box, size=list(self.size), interpolation=InterpolationMode.BICUBIC)
        if _coin():
            image = F.hflip(image)
        if self.preset in ("aerial", "microscopy"):  # there is no up or down seen from above
            if _coin():
                image = F.vflip(image)
            quarter = int(torch.randint(4, ()).item())
            if self.size[0] == self.size[1] and quarter:
                image = F.rotate(image, 90 * quarter)
        if self.preset == "microscopy":
            image = ColorJitter(**STAIN)(image.convert("RGB"))
        return image


def squashed(image: Any, height: int, width: int, mode: InterpolationMode = InterpolationMode.BICUBIC) -> Any:
    """An image brought to a height and a width, whatever its own are."""
    if max(image.size) <= SIDE:
        return F.resize(image, [height, width], mode)
    return image.resize((width, height), _resampling(mode), reducing_gap=32.0)  # averaged to 32 times the size first


def _resampling(mode: InterpolationMode) -> Resampling:
    return Resampling.BILINEAR if mode is InterpolationMode.BILINEAR else Resampling.BICUBIC


def _coin() -> bool:
    return bool(torch.rand(()).item() < 0.5)


def _middle(image: Any, scaled: Sequence[int], height: int, width: int, mode: InterpolationMode) -> Any:
    """What a centre crop leaves of an image resized to `scaled` (height, width); nothing else is computed."""
    box, around = [0.0] * 4, [0] * 4  # left, top, right, bottom of what is left, and of what has a part in it
    for i, (have, whole, wanted) in enumerate(zip(image.size, scaled[::-1], (width, height), strict=True)):
        step, start = have / whole, round((whole - wanted) / 2)
        reach = 2 * max(step, 1.0) + 1  # of the bicubic filter
        around[i], around[i + 2] = max(0, int(start * step - reach)), min(have, math.ceil((start + wanted) * step + reach))
        # Pillow counts in float32, so from near by
        box[i], box[i + 2] = start * step - around[i], min((start + wanted) * step, have) - around[i]
    return image.crop(around).resize((width, height), _resampling(mode), box=box)


def _crop_or_pad(image: Any, height: int, width: int, fill: int) -> Any:
    """Cut or pad an image to a size, centred."""
    have_width, have_height = image.size
    extra_w, extra_h = max(width - have_width, 0), max(height - have_height, 0)
    if extra_w or extra_h:
        image = F.pad(
            image, [extra_w // 2, extra_h // 2, extra_w - extra_w // 2, extra_h - extra_h // 2], fill=fill
        )
    return F.center_crop(image, [height, width])
