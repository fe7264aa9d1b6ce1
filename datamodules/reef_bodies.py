"""Fish that are no flat ovals: eel, seahorse and ray; and the choice of how a species is drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .reef_fish import (
    Brush,
    Points,
    Pose,
    darker,
    draw_body,
    draw_eye,
    draw_fin,
    draw_side,
    jittered,
    mixed,
    smooth,
)
from .reef_patterns import Mark, marks
from .reef_shapes import Point, Shape
from .reef_species import Species


def _tube(centre: Points, widths: NDArray[np.float64]) -> tuple[Points, Points]:
    """Both sides of a tube around a centre line."""
    along = np.gradient(centre, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    return centre + normal * widths[:, None], centre - normal * widths[:, None]


def draw_eel(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> Brush:
    """Draw an eel: a tube along a wave, with a ridge."""
    brush = Brush(pose, ImageDraw.Draw(canvas))
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
    draw_body(canvas, brush, outline, body, pattern=[light, *specks])
    head = centre[0]
    brush.lines(
        [((head[0] + 0.1, head[1] - 0.01), (head[0] - 0.14, head[1] - 0.05))], darker(body, 0.35), 0.03
    )
    draw_eye(brush, float(centre[2, 0]), float(centre[2, 1]) + 0.06, 0.045)
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


def draw_seahorse(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> Brush:
    """Draw a seahorse: an upright, ringed tube with a curled tail."""
    pose = Pose(pose.x, pose.y, pose.scale * 0.9, pose.angle * 0.7, pose.left)
    brush = Brush(pose, ImageDraw.Draw(canvas))
    body, fin = jittered(species.body, rng, 0.1), jittered(species.fin, rng, 0.1)
    t = np.linspace(0, 1, len(_SEAHORSE_LINE))
    widths = np.interp(
        t, [0, 0.1, 0.2, 0.38, 0.5, 0.62, 0.75, 0.9, 1], [0.1, 0.15, 0.13, 0.25, 0.2, 0.11, 0.08, 0.05, 0.03]
    )
    back, front = _tube(_SEAHORSE_LINE, widths)
    if back[10, 0] > front[10, 0]:
        back, front = front, back
    draw_fin(brush, ((-0.2, 0.34), (-0.5, 0.32), (-0.54, 0.02), (-0.16, -0.06)), fin, (0.0, 0.14))
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
    draw_body(canvas, brush, outline, body, pattern=rings)
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
    draw_fin(brush, ((0.06, 0.72), (-0.1, 0.78), (-0.14, 0.62), (0.0, 0.6)), fin, (0.1, 0.7))
    draw_eye(brush, 0.26, 0.96, 0.065)
    return brush


def draw_ray(canvas: Image.Image, species: Species, pose: Pose, rng: random.Random) -> Brush:
    """Draw a ray, seen from above."""
    flap = rng.uniform(0.82, 1.0)
    pose = Pose(pose.x, pose.y, pose.scale * 0.84, pose.angle * 1.6, pose.left)
    brush = Brush(pose, ImageDraw.Draw(canvas))
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
    draw_body(canvas, brush, outline, body, pattern=[edge, *marks(species, shape, rng)])
    brush.lines([((0.7, 0.0), (-0.5, 0.0))], darker(body, 0.72), 0.03)
    for side in (1, -1):
        brush.disc(0.6, side * 0.17, 0.085, darker(body, 0.6))
        draw_eye(brush, 0.62, side * 0.18, 0.055)
    return brush


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
    special: dict[str, Callable[[Image.Image, Species, Pose, random.Random], Brush]] = {
        "eel": draw_eel,
        "seahorse": draw_seahorse,
        "ray": draw_ray,
    }
    brush = special.get(species.kind, draw_side)(canvas, species, pose, rng)
    corners = np.concatenate(brush.corners)
    low, high = corners.min(0), corners.max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])
