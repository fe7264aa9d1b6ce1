"""What a small CLIP is pretrained on: photographs named by class, drawn shapes and drawn fish, each with what is true of it.

A source holds its images in memory, and for each a set of facts. A caption claims some facts, and is true of every image
that has them all: so a batch knows all its positive pairs, not only the pairs it was drawn as.
"""

from __future__ import annotations

import random
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError
from .fewshot import digest
from .images import is_image_name, read_image
from .reef_drawing import draw_scene
from .reef_species import NAMES, SPECIES, Species
from .shapes_drawing import (
    COLOURS,
    FACES,
    FACING,
    NUMBERS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    draw_shapes,
    random_scene,
    unnamed_colour,
)
from .stored import Member

Caption = tuple[str, frozenset[str]]
"""A text and the facts it claims."""

PHOTO_TEMPLATES = (
    "a photo of a {}.", "a photo of a {}.", "a {}.", "a picture of a {}.", "a small photo of a {}.", "a blurry photo of a {}.",
    "a good photo of the {}.", "a close-up photo of a {}.", "the {}.", "{}",
)  # fmt: skip
PEOPLE = ("baby", "boy", "girl", "man", "woman")  # whose file names in CIFAR-100 hold slurs: only class names are used
FACING_TWINS = 0.25  # share of pairs of scenes that show a shape with a left and a right
DRAWN_TEMPLATES = ("a photo of {}.", "a drawing of {}.", "{}.", "a picture of {}.", "{}")


@dataclass
class Source:
    """Images with facts and a way to caption them.

    Attributes:
        name: for messages.
        images: (N, 3, S, S) uint8.
        facts: what is true of each image.
        caption: (number of the image, source of randomness) -> a caption that is true of it.
        together: so many images after each other belong into the same batch.
    """

    name: str
    images: NDArray[np.uint8]
    facts: list[frozenset[str]]
    caption: Callable[[int, random.Random], Caption]
    together: int = 1

    def __len__(self) -> int:
        return len(self.facts)


@dataclass(frozen=True)
class Photo:
    """A photograph: its class and, where the file's name has one, a finer name; both as words."""

    path: str
    label: str
    fine: str
    data: bytes


def words_of(name: str) -> str:
    """`aquarium_fish` as words."""
    return " ".join(name.replace("_", " ").split())


def read_photos(place: Path) -> list[Photo]:
    """Photographs of a zip or a folder with a sub-folder for each class, in the order of their paths.

    A file called `some_name_s_000123.jpg` (as CIFAR-100 names them) has a finer name than its class, but for people.

    Raises:
        DataError: there is no such zip or folder, no images in it, or one that is damaged in the zip.
    """
    if place.is_file() and zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            names = sorted(n for n in archive.namelist() if is_image_name(Path(n).name) and "/" in n)
            found = [(name, Member(place, name).content()) for name in names]
    elif place.is_dir():
        paths = sorted(p for p in place.glob("*/*") if is_image_name(p.name))
        found = [(f"{p.parent.name}/{p.name}", p.read_bytes()) for p in paths]
    else:
        raise DataError(
            f"Photographs were looked for in {place}, which is neither a folder with a sub-folder for each class nor a zip of "
            "one. Set data.root to the folder that holds it, and data.photos and data.test_photos to its name."
        )
    if not found:
        raise DataError(f"There are no images in sub-folders of {place}. Each class has a folder there: apple/0001.jpg.")
    photos = []
    for name, data in found:
        label = words_of(name.split("/")[-2])
        match = re.fullmatch(r"(.+?)_s_\d+", Path(name).stem)
        fine = words_of(match.group(1)) if match and label not in PEOPLE else label
        photos.append(Photo("/".join(name.split("/")[-2:]), label, fine, data))
    return photos


def decode(photo: Photo, size: int) -> NDArray[np.uint8]:
    """A photograph as (3, size, size) uint8, its middle square brought to size.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    image = read_image(photo.path, photo.data)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def photo_source(photos: Sequence[Photo], size: int, fine_share: float = 0.4) -> Source:
    """Photographs captioned by their class, a share of the time by the finer name of the file."""
    images = np.stack([decode(photo, size) for photo in photos])
    facts = [frozenset({f"class {photo.label}", f"name {photo.fine}"}) for photo in photos]

    def caption(number: int, rng: random.Random) -> Caption:
        photo = photos[number]
        fine = photo.fine != photo.label and rng.random() < fine_share
        template = rng.choice(PHOTO_TEMPLATES)
        text = template.format(photo.fine if fine else photo.label)
        # A finer name is usually that of a kind: an image with another one may still show it, so only equals are positive.
        return _article(text), frozenset({f"name {photo.fine}" if fine else f"class {photo.label}"})

    return Source("photographs", images, facts, caption)


def _article(text: str) -> str:
    return re.sub(r"\ba(?= [aeiou])", "an", text)


# Shapes


def held_out(colour: str, shape: str) -> bool:
    """Whether a combination is kept from pretraining: a fifth of them, spread so that each colour and shape loses some.

    A colour without a name is in none of them.
    """
    return colour in COLOURS and (list(COLOURS).index(colour) + 2 * list(SHAPES).index(shape)) % 5 == 0


def shape_facts(scene: Scene) -> frozenset[str]:
    """Everything true of a scene of shapes."""
    facts = {f"shape {scene.shape}", f"pattern {scene.pattern}", f"count {scene.count}"}
    facts |= {f"colour {scene.colour}"} if scene.colour in COLOURS else set()
    for key in ("size", "position", "facing"):
        value = getattr(scene, key)
        facts |= {f"{key} {value}"} if value else set()
    return frozenset(facts)


def shape_caption(scene: Scene, rng: random.Random, about: str = "") -> Caption:
    """A caption that names some of the attributes of a scene: always the one it is `about`, without one the shape or colour."""
    told = {key for key in ("colour", "shape", "pattern", "count", "size", "position", "facing") if rng.random() < 0.55}
    told |= {about or rng.choice(("shape", "shape", "colour"))}
    if scene.colour not in COLOURS:
        told -= {"colour"}
        told |= set() if about else {"shape"}
    claims: set[str] = set()
    words: list[str] = []
    many = scene.count > 1
    if "count" in told:
        words.append(NUMBERS[scene.count - 1])
        claims.add(f"count {scene.count}")
    if "size" in told and scene.size:
        words.append(scene.size)
        claims.add(f"size {scene.size}")
    if "pattern" in told:
        words.append(scene.pattern)
        claims.add(f"pattern {scene.pattern}")
    if "colour" in told:
        words.append(scene.colour)
        claims.add(f"colour {scene.colour}")
    if "shape" in told:
        words.append(plural(scene.shape) if many else scene.shape)
        claims.add(f"shape {scene.shape}")
    else:
        words.append("things" if many else "thing")
    if "facing" in told and scene.facing:
        words.append(f"facing {scene.facing}")
        claims.add(f"facing {scene.facing}")
    if "position" in told and scene.position:
        words.append(place_words(scene.position))
        claims.add(f"position {scene.position}")
    text = " ".join(words)
    if not many and "count" not in told:
        text = f"a {text}"
    elif many and "count" not in told:
        text = f"some {text}"
    return _article(rng.choice(DRAWN_TEMPLATES).format(text)), frozenset(claims)


def plural(shape: str) -> str:
    """Several of a shape."""
    return {"cross": "crosses", "leaf": "leaves", "fish": "fish"}.get(shape, f"{shape}s")


def place_words(position: str) -> str:
    """A position as words: "on the left"."""
    return {"top": "at the top", "bottom": "at the bottom", "centre": "in the centre"}.get(position, f"on the {position}")


def shape_source(number: int, size: int, seed: int, unnamed: float = 0.0, twins: bool = False) -> Source:
    """Drawn scenes of shapes, without the held-out combinations of colour and shape.

    Args:
        number: of scenes.
        size: height and width in pixels.
        seed: of the drawings.
        unnamed: share of the scenes in a colour that no word is used for, so that shapes are learned apart from colours.
        twins: whether each second scene is the one before but for one attribute, which the captions of both tell.
    """
    rng = random.Random(digest("pretraining shapes", seed))
    scenes: list[Scene] = []
    about: list[str] = []
    while len(scenes) < number:
        given: dict[str, object] = {}
        if unnamed and rng.random() < unnamed:
            given["colour"] = unnamed_colour(rng)
        if twins and rng.random() < FACING_TWINS:
            given["facing"] = rng.choice(FACING)
        scene = random_scene(rng, held_out, **given)
        other, key = twin(scene, rng) if twins else (scene, "")
        scenes += [scene, other] if twins else [scene]
        about += [key] * (1 + twins)
    del scenes[number:]
    images = np.stack([np.asarray(draw_shapes(s, f"{seed}/{i}", size)).transpose(2, 0, 1) for i, s in enumerate(scenes)])
    facts = [shape_facts(s) for s in scenes]
    return Source("shapes", images, facts, lambda n, rng: shape_caption(scenes[n], rng, about[n]), together=1 + twins)


def twin(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    """A scene that differs in one attribute, and the name of that attribute; never a held-out combination."""
    choices: dict[str, list[object]] = {
        "shape": [s for s in (FACES if scene.facing else SHAPES) if not held_out(scene.colour, s)],
        "colour": [c for c in COLOURS if not held_out(c, scene.shape)] if scene.colour in COLOURS else [],
        "pattern": list(PATTERNS),
        "count": [] if scene.size or scene.position else [1, 2, 3, 4, 5],
        "size": list(SIZES) if scene.size else [],
        "position": list(POSITIONS) if scene.position else [],
        "facing": list(FACING) if scene.facing else [],
    }
    different = {key: [v for v in values if v != getattr(scene, key)] for key, values in choices.items()}
    keys = [key for key, values in different.items() if values]
    key = "facing" if scene.facing and rng.random() < 0.5 else rng.choice(keys)
    other = replace(scene, **{key: rng.choice(different[key])})  # type: ignore[arg-type]
    return (replace(other, position=None) if other.size == "large" else other), key


# Fish

FISH_COLOURS: dict[str, tuple[int, int, int]] = {
    "yellow": (250, 212, 40), "golden": (236, 168, 44), "orange": (245, 124, 22), "red": (214, 42, 40),
    "pink": (245, 130, 170), "purple": (132, 62, 176), "blue": (36, 104, 222), "turquoise": (40, 190, 180),
    "green": (82, 150, 50), "brown": (138, 96, 58), "black": (40, 38, 44), "grey": (124, 134, 146),
    "silver": (196, 206, 216), "white": (246, 246, 240),
}  # fmt: skip
FISH_PATTERNS = {"": "plain", "striped": "stripes", "banded": "bands", "spotted": "spots", "scaled": "scales", "ringed": "bows"}
KINDS = {
    **{s.kind: s.name.split()[-1] for s in SPECIES},
    "eel": "moray eel", "ray": "stingray", "shark": "reef shark", "anthias": "forktail anthias",
}  # fmt: skip


def invented_species(rng: random.Random) -> Species:
    """A fish that none of the drawn species of the reef is: another colour or pattern of one of their kinds."""
    known = {(NAMES[i].split()[0], s.kind) for i, s in enumerate(SPECIES)}
    while True:
        model = rng.choice(SPECIES)
        colour, pattern = rng.choice(list(FISH_COLOURS)), rng.choice(list(FISH_PATTERNS))
        if (colour, model.kind) not in known:
            break
    body = FISH_COLOURS[colour]
    mark = FISH_COLOURS[rng.choice([c for c in FISH_COLOURS if c != colour])]
    fin = tuple(round(0.75 * c) for c in body) if rng.random() < 0.6 else FISH_COLOURS[rng.choice(list(FISH_COLOURS))]
    kind = model.kind
    drawn = FISH_PATTERNS[pattern]
    if kind in ("eel", "ray", "seahorse") and drawn not in ("plain", "spots"):
        drawn, pattern = "plain", ""
    name = " ".join(filter(None, (colour, pattern, KINDS[kind])))
    return replace(
        model, name=name, body=body, fin=(fin[0], fin[1], fin[2]), pattern=drawn, mark=mark, tail=None, belly=None, edge=None,
        number=rng.randint(3, 7), width=rng.uniform(0.28, 0.5),
    )  # fmt: skip


def fish_source(number: int, size: int, seed: int, named: int) -> Source:
    """Drawn reef scenes: invented fish, and a quarter of them the first `named` species under their own names."""
    rng = random.Random(digest("pretraining fish", seed))
    images, facts, known = [], [], []
    for i in range(number):
        own = named and rng.random() < 0.25
        species = SPECIES[rng.randrange(named)] if own else invented_species(rng)
        count = rng.choice((1, 1, 1, 1, 2, 3, 4, 5))
        murky = rng.random() < 0.15
        scene = draw_scene(species, f"pretraining/{seed}/{i}", count=count, size=size, murkiness=rng.uniform(0.5, 0.9) * murky)
        images.append(np.asarray(scene.image).transpose(2, 0, 1))
        said = {f"fish {species.name}", f"kind {species.kind}", f"count {count}", "a fish"}
        said |= {f"colour {w}" for w in species.name.split() if w in FISH_COLOURS}
        said |= {f"pattern {w}" for w in species.name.split() if w in FISH_PATTERNS and w}
        if count == 1:
            said.add(f"facing {scene.facing[0]}")
        facts.append(frozenset(said))
        known.append((species, count, scene.facing[0]))

    def caption(n: int, rng: random.Random) -> Caption:
        species, count, facing = known[n]
        claims = {f"fish {species.name}"}
        what = species.name
        draw = rng.random()
        kind = KINDS[species.kind]
        words = species.name.split()
        if draw < 0.15:
            what, claims = kind, {f"kind {species.kind}"}
        elif draw < 0.35 and words[0] in FISH_COLOURS:
            looks = [w for w in words if w in FISH_COLOURS or w in FISH_PATTERNS]
            what = " ".join([*looks, "fish"])
            claims = {f"colour {w}" if w in FISH_COLOURS else f"pattern {w}" for w in looks} | {"a fish"}
        if count > 1 and rng.random() < 0.7:
            text = f"{NUMBERS[count - 1]} {what}"
            claims.add(f"count {count}")
        elif count == 1 and rng.random() < 0.3:
            text = f"a {what} facing {facing}"
            claims.add(f"facing {facing}")
        else:
            text = f"a {what}"
        return _article(rng.choice(DRAWN_TEMPLATES).format(text)), frozenset(claims)

    return Source("fish", np.stack(images), facts, caption)
