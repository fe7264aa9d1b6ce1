"""The water around the fish: gradient, light, sand, corals, plants; bubbles in front; murkiness over all."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .reef_species import Colour

_WATERS: tuple[tuple[Colour, Colour], ...] = (
    ((150, 222, 236), (22, 92, 150)),
    ((120, 206, 228), (16, 74, 128)),
    ((168, 228, 218), (34, 118, 138)),
    ((96, 176, 224), (18, 52, 112)),
    ((196, 230, 224), (70, 146, 162)),
)
_SANDS: tuple[Colour, ...] = ((226, 208, 164), (206, 188, 150), (236, 222, 190), (188, 172, 148))
_PLANTS: tuple[Colour, ...] = ((58, 124, 62), (92, 140, 52), (40, 104, 84), (128, 128, 58))
_CORALS: tuple[Colour, ...] = (
    (206, 104, 96),
    (186, 120, 160),
    (214, 150, 88),
    (150, 110, 130),
    (110, 112, 118),
)


def draw_water(size: int, rng: random.Random) -> Image.Image:
    """A background of size x size, drawn at a third of the size so that it lies softly behind the fish."""
    half = size // 3
    top, bottom = rng.choice(_WATERS)
    ramp = np.linspace(0, 1, half) ** rng.uniform(0.7, 1.3)
    column = np.asarray(top)[None] * (1 - ramp[:, None]) + np.asarray(bottom)[None] * ramp[:, None]
    column = column * rng.uniform(0.86, 1.08) + np.array([rng.uniform(-10, 10) for _ in range(3)])
    pixels = np.clip(column, 0, 255).astype(np.uint8)[:, None].repeat(half, axis=1)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    draw = ImageDraw.Draw(image, "RGBA")
    if rng.random() < 0.6:
        for _ in range(rng.randint(2, 4)):
            x, width, lean = (
                rng.uniform(-0.2, 1.1) * half,
                rng.uniform(0.04, 0.14) * half,
                rng.uniform(-0.4, 0.4) * half,
            )
            ray = [(x, 0), (x + width, 0), (x + lean + 2.2 * width, half), (x + lean, half)]
            draw.polygon(ray, fill=(255, 255, 255, rng.randint(14, 34)))
    if rng.random() < 0.75:
        _sea_floor(draw, half, rng)
    image = image.filter(ImageFilter.BoxBlur(0.9))  # polygons have hard edges
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _sea_floor(draw: ImageDraw.ImageDraw, half: int, rng: random.Random) -> None:
    level, wave, phase = rng.uniform(0.74, 0.92) * half, rng.uniform(0.01, 0.04) * half, rng.uniform(0, 6)
    for _ in range(rng.randint(0, 3)):
        _coral(draw, rng.uniform(0, half), level + 0.05 * half, rng.uniform(0.08, 0.2) * half, rng)
    for _ in range(rng.randint(0, 4)):
        _plant(draw, rng.uniform(0, half), level + 0.06 * half, rng.uniform(0.2, 0.5) * half, rng)
    sand = rng.choice(_SANDS)
    edge = [(x, level + wave * math.sin(phase + 7 * x / half)) for x in np.linspace(0, half, 12).tolist()]
    draw.polygon([*edge, (half, half), (0, half)], fill=sand)
    dark = (sand[0] - 34, sand[1] - 34, sand[2] - 34)
    for _ in range(rng.randint(5, 16)):
        x, y, r = rng.uniform(0, half), rng.uniform(level + wave, half), rng.uniform(0.004, 0.018) * half
        draw.ellipse((x - 2 * r, y - r, x + 2 * r, y + r), fill=dark)


def _plant(draw: ImageDraw.ImageDraw, x: float, y: float, height: float, rng: random.Random) -> None:
    colour, phase = rng.choice(_PLANTS), rng.uniform(0, 6)
    for _ in range(rng.randint(2, 4)):
        tall, width, lean = height * rng.uniform(0.6, 1), height * 0.05, rng.uniform(-0.25, 0.25)
        steps = [i / 9 for i in range(10)]
        line = [
            (x + tall * (lean * t + 0.07 * math.sin(phase + 6 * t)), y - tall * t, width * (1.05 - t))
            for t in steps
        ]
        blade = [(a - w, b) for a, b, w in line] + [(a + w, b) for a, b, w in reversed(line)]
        light = rng.uniform(0.75, 1.15)
        draw.polygon(
            blade, fill=(round(colour[0] * light), round(colour[1] * light), round(colour[2] * light))
        )
        x += rng.uniform(-0.14, 0.14) * height


def _coral(draw: ImageDraw.ImageDraw, x: float, y: float, size: float, rng: random.Random) -> None:
    base = rng.choice(_CORALS)
    for _ in range(rng.randint(3, 6)):
        dx, dy, r = rng.uniform(-1, 1) * size, rng.uniform(-0.8, 0.1) * size, rng.uniform(0.3, 0.6) * size
        light = rng.uniform(0.65, 1.0)
        fill = (round(base[0] * light), round(base[1] * light), round(base[2] * light))
        draw.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=fill)


def draw_bubbles(image: Image.Image, rng: random.Random) -> None:
    """Bubbles, and now and then a plant, in front of the fish (in place)."""
    size = image.width
    draw = ImageDraw.Draw(image, "RGBA")
    if rng.random() < 0.15:
        _plant(draw, rng.uniform(0, size), size, rng.uniform(0.25, 0.45) * size, rng)
    if rng.random() < 0.5:
        x = rng.uniform(0, size)
        for _ in range(rng.randint(2, 7)):
            y, r = rng.uniform(0, size), rng.uniform(0.008, 0.024) * size
            box = (x - r, y - r, x + r, y + r)
            draw.ellipse(
                box, fill=(235, 250, 255, 70), outline=(245, 252, 255, 190), width=max(1, round(r / 4))
            )
            x += rng.uniform(-0.06, 0.06) * size


def make_murky(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """Green haze, low contrast, blur and drifting particles.

    Args:
        image: the clear scene.
        strength: 0 leaves it clear, 1 is hard to see through.
        rng: source of the haze's own variation.
    """
    if strength <= 0:
        return image
    size = image.width
    image = image.filter(ImageFilter.GaussianBlur(strength * size * rng.uniform(0.009, 0.016)))
    haze = np.array([rng.uniform(84, 116), rng.uniform(122, 146), rng.uniform(70, 96)])
    cells = np.array([[rng.uniform(-0.12, 0.12) for _ in range(4)] for _ in range(4)], dtype=np.float32)
    clouds = np.asarray(Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC))
    depth = strength * (rng.uniform(0.5, 0.64) + np.linspace(-0.06, 0.12, size)[:, None] + clouds)
    depth = np.clip(depth, 0, 0.86)[:, :, None]
    pixels = np.asarray(image, dtype=np.float32)
    grey = pixels.mean(2, keepdims=True)
    pixels = pixels + 0.3 * strength * (grey - pixels)
    light = rng.uniform(0.78, 1.0)
    image = Image.fromarray(np.clip((pixels * (1 - depth) + haze * depth) * light, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(round(strength * rng.uniform(6, 22))):
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.004, 0.012) * size
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(214, 220, 190, rng.randint(50, 130)))
    return image


def make_deep(image: Image.Image, rng: random.Random) -> Image.Image:
    """Deep water: hardly any red light, low contrast, and the noise of a camera that sees little.

    Args:
        image: the clear scene.
        rng: source of the noise.
    """
    pixels = np.asarray(image, dtype=np.float32)
    grey = pixels @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    pixels = 0.9 * pixels + 0.1 * grey[:, :, None]
    pixels = (90 + 0.7 * (pixels - pixels.mean())) * np.array([0.6, 0.9, 1.05], dtype=np.float32)
    pixels += np.random.default_rng(rng.getrandbits(64)).normal(0, 8, grey.shape)[:, :, None]
    deep = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return deep.filter(ImageFilter.GaussianBlur(0.5 * image.width / 64))
