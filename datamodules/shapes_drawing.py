"""Drawing scenes of coloured, patterned, counted, sized, placed and facing things."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .errors import DataError
from .fewshot import digest

VERSION = 1  # part of every content key: raise it when a drawing changes
FACTOR = 2  # drawn so many times larger, then reduced

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40), "orange": (247, 140, 24), "yellow": (250, 218, 50), "green": (52, 158, 62),
    "blue": (36, 96, 222), "purple": (128, 54, 176), "pink": (248, 142, 182), "brown": (126, 80, 44),
    "black": (26, 26, 28), "white": (248, 248, 244),
}  # fmt: skip
PATTERNS = ("plain", "striped", "spotted", "checkered")
SIZES = {"small": (0.17, 0.26), "large": (0.52, 0.70)}  # diameter as a share of the image's width
MEDIUM = (0.30, 0.46)
POSITIONS = {"left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76), "centre": (0.5, 0.5)}
FACING = ("left", "right")
UNNAMED = 60  # distance of a colour without a name from the named ones
NUMBERS = ("one", "two", "three", "four", "five")
Point = tuple[float, float]


def _ring(places: Sequence[Point]) -> Callable[[ImageDraw.ImageDraw, float], None]:
    """A polygon given in the square from -1 to 1."""

    def draw(pen: ImageDraw.ImageDraw, half: float) -> None:
        pen.polygon([(half + x * half * 0.96, half + y * half * 0.96) for x, y in places], fill=255)

    return draw


def _regular(corners: int, inner: float = 1.0, turn: float = -90.0) -> list[Point]:
    """Corners of a regular polygon, or with `inner` below 1 of a star."""
    steps = corners if inner == 1.0 else 2 * corners
    found = []
    for i in range(steps):
        radius = 1.0 if inner == 1.0 or i % 2 == 0 else inner
        angle = math.radians(turn + 360 * i / steps)
        found.append((radius * math.cos(angle), radius * math.sin(angle)))
    return found


def _circle(pen: ImageDraw.ImageDraw, half: float) -> None:
    pen.ellipse([half * 0.06, half * 0.06, half * 1.94, half * 1.94], fill=255)


def _hoop(pen: ImageDraw.ImageDraw, half: float) -> None:
    _circle(pen, half)
    pen.ellipse([half * 0.55, half * 0.55, half * 1.45, half * 1.45], fill=0)


def _moon(pen: ImageDraw.ImageDraw, half: float) -> None:
    _circle(pen, half)
    pen.ellipse([half * 0.62, half * 0.16, half * 2.3, half * 1.84], fill=0)


def _heart(pen: ImageDraw.ImageDraw, half: float) -> None:
    places = []
    for i in range(48):
        t = 2 * math.pi * i / 48
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        places.append((x / 17, -(y + 2.5) / 16))
    _ring(places)(pen, half)


def _leaf(pen: ImageDraw.ImageDraw, half: float) -> None:
    upper = [(x / 10, -0.55 * math.cos(x / 10 * math.pi / 2)) for x in range(-10, 11)]
    _ring([*upper, *[(-x, -y) for x, y in upper]])(pen, half)


def _fish(pen: ImageDraw.ImageDraw, half: float) -> None:
    pen.ellipse([half * 0.04, half * 0.5, half * 1.45, half * 1.5], fill=255)
    pen.polygon([(half * 1.3, half), (half * 1.95, half * 0.45), (half * 1.95, half * 1.55)], fill=255)
    pen.ellipse([half * 0.3, half * 0.8, half * 0.46, half * 0.96], fill=0)


# Those of FACES look to the left; the others look the same from both sides.
SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, float], None]] = {
    "circle": _circle,
    "square": _ring([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": _ring([(0, -0.95), (0.95, 0.8), (-0.95, 0.8)]),
    "star": _ring(_regular(5, 0.42)),
    "cross": _ring(
        [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
         (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)]
    ),
    "heart": _heart,
    "ring": _hoop,
    "diamond": _ring([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]),
    "leaf": _leaf,
    "moon": _moon,
    "arrow": _ring([(-1, 0), (-0.1, -0.8), (-0.1, -0.32), (1, -0.32), (1, 0.32), (-0.1, 0.32), (-0.1, 0.8)]),
    "fish": _fish,
}  # fmt: skip
FACES = ("moon", "arrow", "fish")


@dataclass(frozen=True)
class Scene:
    """What is on a drawing; None where an attribute takes no definite value.

    Attributes:
        shape: key of `SHAPES`.
        colour: key of `COLOURS`, or "#rrggbb" for a colour that none of them names.
        pattern: one of `PATTERNS`.
        count: how many, 1 to 5.
        size: "small", "large", or None in between.
        position: key of `POSITIONS`, for a single thing; None anywhere.
        facing: "left" or "right", for the shapes of `FACES`.
    """

    shape: str
    colour: str
    pattern: str = "plain"
    count: int = 1
    size: str | None = None
    position: str | None = None
    facing: str | None = None


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of the colour of a scene."""
    if colour in COLOURS:
        return COLOURS[colour]
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def unnamed_colour(rng: random.Random) -> str:
    """A colour as "#rrggbb" that lies apart from all of `COLOURS`: at least 60 in red, green and blue together."""
    while True:
        drawn = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if min(math.dist(drawn, named) for named in COLOURS.values()) >= UNNAMED:
            return "#" + bytes(drawn).hex()


def random_scene(rng: random.Random, avoid: Callable[[str, str], bool] | None = None, **given: object) -> Scene:
    """A scene with every attribute drawn, those in `given` excepted.

    Args:
        rng: source of randomness.
        avoid: (colour, shape) -> whether this combination must not appear.
        given: attributes that are fixed.
    """
    names, colours = list(SHAPES), list(COLOURS)
    if given.get("facing"):
        names = list(FACES)
    while True:
        shape = str(given.get("shape") or rng.choice(names))
        colour = str(given.get("colour") or rng.choice(colours))
        if avoid is None or not avoid(colour, shape):
            break
    count = given.get("count")
    single = any(given.get(key) for key in ("position", "size"))
    number = int(str(count)) if count else 1 if single or rng.random() < 0.55 else rng.randint(2, 5)
    scene = Scene(
        shape,
        colour,
        rng.choice(("plain", *PATTERNS)),
        number,
        rng.choice(("small", "large", None)) if number == 1 else None,
        rng.choice((*POSITIONS, None)) if number == 1 else None,
        rng.choice(FACING) if shape in FACES else None,
    )
    scene = replace(scene, **given)  # type: ignore[arg-type]
    # A large thing fills the image, so that no place in it could be told.
    return replace(scene, position=None) if scene.size == "large" and not given.get("position") else scene


def draw_shapes(scene: Scene, seed: int | str = 0, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB image of size x size; the same arguments always give the same picture.

    Raises:
        DataError: an attribute has a value that cannot be drawn.
    """
    if (
        scene.shape not in SHAPES or not (scene.colour in COLOURS or re.fullmatch("#[0-9a-f]{6}", scene.colour))
        or scene.pattern not in PATTERNS or not 1 <= scene.count <= 5 or scene.size not in (None, *SIZES)
        or scene.position not in (None, *POSITIONS) or scene.facing not in (None, *FACING)
    ):  # fmt: skip
        raise DataError(f"A scene of shapes cannot be drawn from {scene}.")
    rng = random.Random(digest("shapes", VERSION, seed, scene))
    side = size * FACTOR
    canvas = _background(side, rgb(scene.colour), rng)
    taken: list[tuple[float, float, float]] = []
    for _ in range(scene.count):
        low, high = SIZES[scene.size] if scene.size else MEDIUM if scene.count == 1 else (0.2, 0.27)
        diameter = rng.uniform(low, high)
        x, y = _place(scene, diameter, taken, rng)
        taken.append((x, y, diameter))
        _stamp(canvas, scene, (x * side, y * side), max(6, round(diameter * side)), rng)
    return canvas.reduce(FACTOR)


def _place(scene: Scene, diameter: float, taken: Sequence[tuple[float, float, float]], rng: random.Random) -> Point:
    """A centre for a thing, apart from those already placed."""
    half = diameter / 2
    if scene.position:
        x, y = POSITIONS[scene.position]
        slack = 0.05 if diameter < 0.5 else 0.0
        x, y = x + rng.uniform(-slack, slack), y + rng.uniform(-slack, slack)
        return min(max(x, half), 1 - half), min(max(y, half), 1 - half)
    best, distance = (0.5, 0.5), -1.0
    for _ in range(20):
        x, y = rng.uniform(half, 1 - half), rng.uniform(half, 1 - half)
        nearest = min((math.hypot(x - a, y - b) - (diameter + d) / 2 for a, b, d in taken), default=1.0)
        if nearest > distance:
            best, distance = (x, y), nearest
        if nearest > 0.02:
            break
    return best


def _background(side: int, colour: tuple[int, int, int], rng: random.Random) -> Image.Image:
    """A soft two-coloured background that the thing's colour stands out from."""
    while True:
        one = tuple(rng.randint(30, 225) for _ in range(3))
        grey = sum(one) / 3
        one = tuple(round(grey + 0.45 * (c - grey)) for c in one)
        if math.dist(one, colour) > 110:
            break
    other = tuple(min(255, max(0, c + rng.randint(-30, 30))) for c in one)
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((side, side))
    canvas = Image.composite(Image.new("RGB", (side, side), one), Image.new("RGB", (side, side), other), ramp)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(128, rng.uniform(6, 22), (side // FACTOR, side // FACTOR))
    grain = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((side, side))
    return Image.blend(canvas, Image.merge("RGB", [grain] * 3), 0.12)


def _stamp(canvas: Image.Image, scene: Scene, centre: Point, diameter: int, rng: random.Random) -> None:
    """Draw one thing."""
    mask = Image.new("L", (diameter, diameter), 0)
    SHAPES[scene.shape](ImageDraw.Draw(mask), diameter / 2)
    if scene.facing == "right" or (scene.facing is None and rng.random() < 0.5):
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mask = mask.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    base = tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in rgb(scene.colour))
    light = sum(base) > 330
    mark = tuple(round(0.22 * c) for c in base) if light else tuple(round(255 - 0.25 * (255 - c)) for c in base)
    texture = Image.composite(Image.new("RGB", mask.size, mark), Image.new("RGB", mask.size, base), _pattern(scene, diameter, rng))
    left, top = round(centre[0] - diameter / 2), round(centre[1] - diameter / 2)
    edge = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(3)), mask)
    canvas.paste(Image.new("RGB", mask.size, tuple(round(0.45 * c) for c in base)), (left, top), edge)
    canvas.paste(texture, (left, top), mask)


def _pattern(scene: Scene, diameter: int, rng: random.Random) -> Image.Image:
    """Where the marks of a pattern are, as a mask."""
    marks = Image.new("L", (diameter, diameter), 0)
    pen = ImageDraw.Draw(marks)
    step = diameter / rng.uniform(3.6, 4.8)
    cells = int(diameter / step) + 2
    if scene.pattern == "striped":
        for i in range(-1, cells):
            pen.rectangle([i * step, 0, i * step + 0.42 * step, diameter], fill=255)
        marks = marks.rotate(rng.choice((0, 0, 90, 45)), Image.Resampling.BILINEAR)
    elif scene.pattern == "spotted":
        radius = 0.27 * step
        for i in range(cells):
            for j in range(cells):
                x, y = (i + 0.5 * (j % 2)) * step, j * step
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    elif scene.pattern == "checkered":
        for i in range(cells):
            for j in range(i % 2, cells, 2):
                pen.rectangle([i * step, j * step, (i + 1) * step, (j + 1) * step], fill=255)
    return marks
