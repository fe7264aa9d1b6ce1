"""Drawing one fish of a species in any pose: outline, fins, pattern, shading and eye."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from .reef_patterns import Mark, marks
from .reef_species import BLACK, SHAPES, WHITE, Colour, Point, Shape, Species

Points = NDArray[np.float64]


@dataclass
class Pose:
    """Where a fish is on the canvas, in canvas pixels.

    Attributes:
        x, y: centre.
        scale: half the length of a fish of length 1.
        angle: tilt in radians, nose up.
        left: whether it faces left.
    """

    x: float
    y: float
    scale: float
    angle: float
    left: bool

    def __post_init__(self) -> None:
        cosine, sine = self.scale * math.cos(self.angle), self.scale * math.sin(self.angle)
        side = -1.0 if self.left else 1.0
        self._matrix = np.array([[side * cosine, -sine], [-side * sine, -cosine]])
        self._centre = np.array([self.x, self.y])

    def apply(self, points: Iterable[Sequence[float]] | Points) -> Points:
        """Bring points (n, 2) from the fish's coordinates (y up) to the canvas (y down)."""
        return np.asarray(np.asarray(points, dtype=np.float64) @ self._matrix + self._centre)


@dataclass
class _Brush:
    """Draws polygons of one fish and remembers how far they reach."""

    pose: Pose
    draw: ImageDraw.ImageDraw
    corners: list[Points] = field(default_factory=list)

    def polygon(self, points: Sequence[Point] | Points, colour: Colour, line: Colour | None = None) -> None:
        placed = self.pose.apply(points)
        self.corners.append(placed)
        flat = placed.ravel().tolist()
        self.draw.polygon(flat, fill=colour)
        if line is not None:
            self.draw.line(flat + flat[:2], fill=line, width=max(2, round(self.pose.scale / 45)))

    def marks(self, pattern: Sequence[Mark]) -> None:
        """Fill many polygons, transformed in one go."""
        if not pattern:
            return
        placed = self.pose.apply([point for mark in pattern for point in mark.points]).ravel().tolist()
        start = 0
        for mark in pattern:
            end = start + 2 * len(mark.points)
            self.draw.polygon(placed[start:end], fill=mark.colour)
            start = end

    def lines(self, pairs: Sequence[tuple[Point, Point]], colour: Colour, width: float = 0.02) -> None:
        thickness = max(1, round(width * self.pose.scale))
        placed = self.pose.apply([point for pair in pairs for point in pair]).ravel().tolist()
        for i in range(0, len(placed), 4):
            self.draw.line(placed[i : i + 4], fill=colour, width=thickness)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        (cx, cy), r = self.pose.apply([(x, y)])[0], radius * self.pose.scale
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)


@cache
def _blend(steps: int) -> Points:
    """Weights of four neighbours at each step of a Catmull-Rom curve: (steps, 4)."""
    t = np.arange(steps) / steps
    weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
    return np.asarray(np.stack(weights, axis=1) / 2)


def smooth(points: Sequence[Point], steps: int = 6, closed: bool = True) -> Points:
    """A Catmull-Rom curve through the points: (n * steps, 2)."""
    p = list(points)
    p = [p[-1], *p, p[0], p[1]] if closed else [p[0], *p, p[-1], p[-1]]
    known = np.asarray(p, dtype=np.float64)
    near = np.stack([known[:-3], known[1:-2], known[2:-1], known[3:]], axis=1)
    return np.asarray((_blend(steps) @ near).reshape(-1, 2))


@cache
def _outline(kind: str) -> Points:
    shape = SHAPES[kind]
    return smooth([*shape.upper, *reversed(shape.lower)])


def darker(colour: Colour, share: float = 0.6) -> Colour:
    """The colour times a share of its brightness."""
    return (round(colour[0] * share), round(colour[1] * share), round(colour[2] * share))


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """A colour between two; share 0 gives the first."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(one, other, strict=True))
    return (r, g, b)


def jittered(colour: Colour, rng: random.Random, amount: float) -> Colour:
    """The colour a little brighter or darker and a little off its hue."""
    light = 1 + rng.uniform(-amount, amount)
    r, g, b = (max(0, min(255, round(c * light + rng.uniform(-60, 60) * amount))) for c in colour)
    return (r, g, b)


def draw_fish(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> tuple[float, ...]:
    """Draw a fish onto an RGB canvas.

    Args:
        canvas: drawn on in place.
        species: what to draw.
        pose: where.
        rng: source of the fish's own variation (colour, fins, pattern).

    Returns:
        Its box on the canvas: left, top, right, bottom.
    """
    special: dict[str, Callable[[Image.Image, Species, Pose, random.Random], _Brush]] = {
        "eel": _draw_eel,
        "seahorse": _draw_seahorse,
        "ray": _draw_ray,
    }
    brush = special.get(species.kind, _draw_side)(canvas, species, pose, rng)
    corners = np.concatenate(brush.corners)
    low, high = corners.min(0), corners.max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _draw_side(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> _Brush:
    shape = SHAPES[species.kind]
    pose = Pose(pose.x, pose.y, pose.scale * shape.length, pose.angle, pose.left)
    brush = _Brush(pose, ImageDraw.Draw(canvas))
    body, fin = jittered(species.body, rng, 0.1), jittered(species.fin, rng, 0.1)
    tail = jittered(species.tail or species.fin, rng, 0.08)
    swing = rng.uniform(-0.1, 0.1)
    if "spines" in species.extra:
        _spines(brush, species, rng)
    _fin(brush, [(x, y + swing * max(0.0, -x - 0.7) * 2) for x, y in shape.tail], tail, (-0.6, 0.0))
    for outline in shape.fins:
        middle = sum(x for x, _ in outline) / len(outline)
        _fin(brush, outline, fin, (middle + 0.25, 0.0))
    outline_points = _outline(species.kind)
    brush.corners.append(pose.apply(outline_points))
    _body(
        canvas, brush, outline_points, body, pattern=marks(species, shape, rng), belly=_belly(species, shape)
    )
    if "cheek" in species.extra:
        brush.polygon(smooth([(0.98, -0.06), (0.7, -0.02), (0.52, -0.16), (0.7, -0.26)]), fin)
    _fin(brush, shape.pectoral, mixed(fin, body, 0.25), (0.35, -0.05))
    _mouth_and_eye(brush, shape, body)
    return brush


def _fin(brush: _Brush, outline: Sequence[Point], colour: Colour, root: Point) -> None:
    """A fin with rays that run from near its root to its edge."""
    curve = smooth(outline, 4)
    brush.polygon(curve, colour, darker(colour, 0.62))
    edge = curve[:: max(1, len(curve) // 7)]
    rays = [((root[0] * 0.45 + x * 0.55, root[1] * 0.45 + y * 0.55), (x, y)) for x, y in edge.tolist()]
    brush.lines(rays, darker(colour, 0.78), 0.018)


def _body(
    canvas: Image.Image,
    brush: _Brush,
    outline: Points,
    colour: Colour,
    *,
    pattern: Sequence[Mark],
    belly: Mark | None = None,
) -> None:
    """Fill an outline with colour, pattern and shading, all clipped to it, and draw its rim."""
    placed = brush.pose.apply(outline)
    left, top = np.floor(placed.min(0)).astype(int) - 1
    right, bottom = np.ceil(placed.max(0)).astype(int) + 2
    size = (int(right - left), int(bottom - top))
    if size[0] > 4 * canvas.width or size[1] > 4 * canvas.height:
        return
    layer = Image.new("RGB", size, colour)
    moved = Pose(brush.pose.x - left, brush.pose.y - top, brush.pose.scale, brush.pose.angle, brush.pose.left)
    inner = _Brush(moved, ImageDraw.Draw(layer))
    inner.marks(([belly] if belly else []) + list(pattern))
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).polygon(moved.apply(outline).ravel().tolist(), fill=255)
    layer = ImageChops.soft_light(layer, _shade(size, moved, outline))
    canvas.paste(layer, (int(left), int(top)), mask)
    rim = placed.ravel().tolist()
    width = max(2, round(brush.pose.scale / 40))
    brush.draw.line(rim + rim[:2], fill=darker(colour, 0.5), width=width)


def _shade(size: tuple[int, int], pose: Pose, outline: Points) -> Image.Image:
    """Light from above: a smooth ramp along the fish's own upward direction, as an RGB layer."""
    small = (max(2, size[0] // 8), max(2, size[1] // 8))
    xs = (np.arange(small[0]) + 0.5) * size[0] / small[0] - pose.x
    ys = pose.y - (np.arange(small[1]) + 0.5) * size[1] / small[1]
    across = (-xs if pose.left else xs)[None, :]
    up = (-math.sin(pose.angle) * across + math.cos(pose.angle) * ys[:, None]) / pose.scale
    height = max(float(np.abs(outline[:, 1]).max()), 0.05)
    relative = np.clip(up / height, -1, 1)
    light = 132 + 62 * np.exp(-(((relative - 0.42) / 0.4) ** 2)) - 62 * np.clip(-relative - 0.1, 0, 1)
    grey = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return Image.merge("RGB", (grey, grey, grey))


def _belly(species: Species, shape: Shape) -> Mark | None:
    if species.belly is None:
        return None
    xs = np.linspace(1.3, -1.0, 16)
    ends = [x for x, _ in shape.lower]
    low = np.interp(-xs, [-x for x in ends], [y for _, y in shape.lower])
    line = [(float(x), float(y)) for x, y in zip(xs, low * 0.3, strict=True)]
    return Mark([*line, (-1.1, -1.5), (1.5, -1.5)], species.belly)


def _mouth_and_eye(brush: _Brush, shape: Shape, body: Colour) -> None:
    x, y, radius = shape.eye
    snout = shape.upper[0][0]
    brush.lines(
        [((snout, shape.upper[0][1] - 0.03), (snout - 0.16, shape.upper[0][1] - 0.1))],
        darker(body, 0.4),
        0.03,
    )
    gill = [(x - 0.2 - 0.06 * math.cos(t), y - 0.1 + 0.2 * math.sin(t)) for t in np.linspace(-1.2, 1.2, 7)]
    brush.lines(list(pairwise(gill)), darker(body, 0.66), 0.022)
    _eye(brush, x, y, radius)


def _eye(brush: _Brush, x: float, y: float, radius: float) -> None:
    brush.disc(x, y, radius * 1.18, BLACK)
    brush.disc(x, y, radius, WHITE)
    brush.disc(x + radius * 0.15, y, radius * 0.62, BLACK)
    brush.disc(x + radius * 0.35, y + radius * 0.3, radius * 0.22, WHITE)


def _spines(brush: _Brush, species: Species, rng: random.Random) -> None:
    """The lionfish's fans: long banded spines joined by a thin web."""
    web = mixed(species.fin, WHITE, 0.35)
    spread = rng.uniform(0.9, 1.1)
    fans = (
        [(0.42 - 0.1 * i, 0.28, 0.52 - 0.2 * i, (0.86 - 0.03 * abs(i - 3)) * spread) for i in range(9)],
        [(0.4 - 0.06 * i, -0.2, 0.56 - 0.24 * i, (-0.8 - 0.04 * (i % 2)) * spread) for i in range(7)],
    )
    for fan in fans:
        inner = [(x0 * 0.45 + x1 * 0.55, y0 * 0.45 + y1 * 0.55) for x0, y0, x1, y1 in fan]
        brush.polygon([*inner, *reversed([(x0, y0) for x0, y0, _, _ in fan])], web, darker(web, 0.7))
        for x0, y0, x1, y1 in fan:
            stops = [(x0 + (x1 - x0) * i / 6, y0 + (y1 - y0) * i / 6) for i in range(7)]
            parts = list(pairwise(stops))
            brush.lines(parts[::2], WHITE, 0.05)
            brush.lines(parts[1::2], species.fin, 0.05)
        brush.corners.append(brush.pose.apply([(x1, y1) for _, _, x1, y1 in fan]))


def _tube(centre: Points, widths: NDArray[np.float64]) -> tuple[Points, Points]:
    """Both sides of a tube around a centre line."""
    along = np.gradient(centre, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    return centre + normal * widths[:, None], centre - normal * widths[:, None]


def _draw_eel(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> _Brush:
    brush = _Brush(pose, ImageDraw.Draw(canvas))
    body, fin = jittered(species.body, rng, 0.12), jittered(species.fin, rng, 0.1)
    t = np.linspace(0, 1, 44)
    phase, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.22, 0.36)
    bend = height * (0.35 + 0.65 * t) * np.sin(phase + t * rng.uniform(6.0, 8.5))
    centre = np.stack([1.15 - 2.35 * t, bend - bend.mean()], axis=1)
    widths = 0.15 * np.clip(np.minimum(0.62 + 5 * t, 1.06 - t**2.2), 0.02, 1)
    upper, lower = _tube(centre, widths)
    ridge, keel = _tube(centre, widths + 0.09 * np.clip(t * 6 - 0.8, 0, 1) * (1.05 - t**6))
    brush.polygon(np.concatenate([ridge, keel[::-1]]), fin, darker(fin))
    side = upper if upper[0, 1] < lower[0, 1] else lower  # the side below the head
    light = Mark(
        [tuple(p) for p in np.concatenate([side, (centre * 0.5 + side * 0.5)[::-1]]).tolist()],
        species.belly or fin,
    )
    specks = [
        Mark(_speck(centre[i] + rng.uniform(-0.6, 0.6) * (upper[i] - centre[i])), species.mark)
        for i in range(4, 42)
        for _ in range(2)
    ]
    nose = [tuple(centre[0] + np.array([0.1, 0.02]))]
    outline = np.concatenate([upper, lower[::-1], nose])
    brush.corners.append(pose.apply(outline))
    _body(canvas, brush, outline, body, pattern=[light, *specks])
    head = centre[0]
    brush.lines(
        [((head[0] + 0.1, head[1] - 0.01), (head[0] - 0.14, head[1] - 0.05))], darker(body, 0.35), 0.03
    )
    _eye(brush, float(centre[2, 0]), float(centre[2, 1]) + 0.06, 0.045)
    return brush


def _speck(at: Points) -> list[Point]:
    return [
        (float(at[0]) + dx, float(at[1]) + dy)
        for dx, dy in ((0.022, 0), (0, 0.022), (-0.022, 0), (0, -0.022))
    ]


_SEAHORSE_LINE = smooth(
    (
        (0.2, 0.98),
        (0.02, 0.86),
        (-0.1, 0.62),
        (-0.06, 0.34),
        (0.06, 0.06),
        (0.04, -0.28),
        (-0.1, -0.58),
        (-0.1, -0.86),
        (0.1, -1.04),
        (0.32, -0.96),
        (0.36, -0.78),
        (0.24, -0.74),
    ),
    5,
    closed=False,
)


def _draw_seahorse(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> _Brush:
    pose = Pose(pose.x, pose.y, pose.scale * 0.9, pose.angle * 0.7, pose.left)
    brush = _Brush(pose, ImageDraw.Draw(canvas))
    body, fin = jittered(species.body, rng, 0.1), jittered(species.fin, rng, 0.1)
    t = np.linspace(0, 1, len(_SEAHORSE_LINE))
    widths = np.interp(
        t, [0, 0.1, 0.2, 0.38, 0.5, 0.62, 0.75, 0.9, 1], [0.1, 0.15, 0.13, 0.25, 0.2, 0.11, 0.08, 0.05, 0.03]
    )
    back, front = _tube(_SEAHORSE_LINE, widths)
    if back[10, 0] > front[10, 0]:
        back, front = front, back
    _fin(brush, ((-0.2, 0.34), (-0.5, 0.32), (-0.54, 0.02), (-0.16, -0.06)), fin, (0.0, 0.14))
    spikes = [
        tuple(p)
        for p in (
            _SEAHORSE_LINE + (back - _SEAHORSE_LINE) * np.where(np.arange(len(t)) % 3, 1, 1.3)[:, None]
        ).tolist()
    ]
    brush.polygon([*spikes, *[tuple(p) for p in front[::-1].tolist()]], darker(body, 0.8), darker(body, 0.5))
    rings = []
    for i in range(4, len(t) - 2, max(1, len(t) // (2 * species.number))):
        if i % 4 < 2:
            rings.append(
                Mark([tuple(p) for p in (back[i], front[i], front[i + 1], back[i + 1])], species.mark)
            )
    outline = np.concatenate([back, front[::-1]])
    brush.corners.append(pose.apply(outline))
    _body(canvas, brush, outline, body, pattern=rings)
    crown = [(0.02, 1.02), (-0.08, 1.22), (0.04, 1.14), (0.1, 1.26), (0.16, 1.12), (0.26, 1.18), (0.28, 1.0)]
    brush.polygon(crown, fin, darker(body, 0.5))
    head = smooth(
        [
            (0.02, 0.96),
            (0.1, 1.1),
            (0.28, 1.1),
            (0.4, 0.98),
            (0.72, 0.86),
            (0.78, 0.8),
            (0.7, 0.74),
            (0.36, 0.8),
            (0.14, 0.74),
            (0.0, 0.8),
        ],
        5,
    )
    brush.polygon(head, body, darker(body, 0.5))
    _fin(brush, ((0.06, 0.72), (-0.1, 0.78), (-0.14, 0.62), (0.0, 0.6)), fin, (0.1, 0.7))
    _eye(brush, 0.26, 0.96, 0.065)
    return brush


def _draw_ray(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> _Brush:
    flap = rng.uniform(0.82, 1.0)
    pose = Pose(pose.x, pose.y, pose.scale * 0.84, pose.angle * 1.6, pose.left)
    brush = _Brush(pose, ImageDraw.Draw(canvas))
    body = jittered(species.body, rng, 0.12)
    sway = rng.uniform(-0.35, 0.35)
    t = np.linspace(0, 1, 14)
    centre = np.stack([-0.55 - 1.15 * t, sway * t**1.5 + 0.1 * np.sin(5 * t) * t], axis=1)
    upper, lower = _tube(centre, 0.075 * (1.05 - t))
    brush.polygon(np.concatenate([upper, lower[::-1]]), darker(body, 0.75), darker(body, 0.45))
    for side in (1, -1):
        brush.polygon(
            smooth([(-0.4, side * 0.1), (-0.6, side * 0.3), (-0.76, side * 0.24), (-0.66, side * 0.06)]),
            darker(body, 0.85),
            darker(body, 0.5),
        )
    half = [
        (0.92, 0.0),
        (0.8, 0.2),
        (0.5, 0.56 * flap),
        (0.08, 0.98 * flap),
        (-0.12, 0.98 * flap),
        (-0.3, 0.56 * flap),
        (-0.6, 0.14),
    ]
    outline = smooth([*half, *[(x, -y) for x, y in reversed(half[1:])]], 5)
    shape = Shape(upper=tuple(half), lower=tuple((x, -y) for x, y in half), tail=(), fins=())
    brush.corners.append(pose.apply(outline))
    edge = Mark(
        [*((x * 0.84 + 0.02, y * 0.82) for x, y in outline.tolist())], mixed(body, (255, 236, 200), 0.16)
    )
    _body(canvas, brush, outline, body, pattern=[edge, *marks(species, shape, rng)])
    brush.lines([((0.7, 0.0), (-0.5, 0.0))], darker(body, 0.72), 0.03)
    for side in (1, -1):
        brush.disc(0.6, side * 0.17, 0.085, darker(body, 0.6))
        _eye(brush, 0.62, side * 0.18, 0.055)
    return brush
