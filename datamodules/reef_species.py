"""The drawn species: names, colours and patterns."""

from __future__ import annotations

from dataclasses import dataclass, field

Colour = tuple[int, int, int]

YELLOW, GOLD, ORANGE, RED = (250, 212, 40), (236, 168, 44), (245, 124, 22), (214, 42, 40)
PINK, PURPLE, BLUE, NAVY = (245, 130, 170), (132, 62, 176), (36, 104, 222), (24, 40, 112)
SKY, TURQUOISE, GREEN, BROWN = (120, 196, 250), (40, 190, 180), (82, 150, 50), (138, 96, 58)
BLACK, GREY, SILVER, WHITE = (32, 30, 36), (124, 134, 146), (196, 206, 216), (246, 246, 240)


@dataclass(frozen=True)
class Species:
    """One species: a name that describes it, and how it is drawn.

    Attributes:
        name: "yellow striped angelfish".
        kind: key of `SHAPES`, or eel, seahorse or ray.
        body, fin, tail: colours; the tail's defaults to the fins'.
        pattern: plain | stripes | bands | spots | rear | back | rings.
        mark: colour of the pattern.
        edge: colour of a thin border of each mark, or None.
        number: how many stripes or bands, or rows of spots.
        width: width of a mark, as a share of its spacing.
        belly: colour of the belly, or None.
    """

    name: str
    kind: str
    body: Colour
    fin: Colour
    pattern: str = "plain"
    mark: Colour = BLACK
    edge: Colour | None = None
    number: int = 4
    width: float = 0.4
    tail: Colour | None = None
    belly: Colour | None = None
    extra: tuple[str, ...] = field(default=())


SPECIES: tuple[Species, ...] = (
    Species(
        "yellow striped angelfish", "angelfish", YELLOW, (255, 190, 30), "stripes", BLUE, number=5, width=0.42
    ),
    Species(
        "red spotted grouper", "grouper", RED, (176, 28, 34), "spots", (190, 220, 255), number=5, width=0.34
    ),
    Species("blue crescent wrasse", "wrasse", BLUE, NAVY, "back", SKY, tail=YELLOW, width=0.3),
    Species("orange banded clownfish", "clownfish", ORANGE, (232, 96, 10), "bands", WHITE, BLACK, 3, 0.34),
    Species("green moray eel", "eel", GREEN, (60, 118, 36), "plain", (50, 100, 34), belly=(172, 196, 96)),
    Species("brown spotted stingray", "ray", BROWN, (116, 78, 46), "spots", SKY, number=6, width=0.36),
    Species("purple and yellow basslet", "basslet", PURPLE, PURPLE, "rear", YELLOW, tail=YELLOW),
    Species(
        "black spotted pufferfish", "pufferfish", WHITE, (226, 214, 150), "spots", BLACK, number=6, width=0.4
    ),
    Species(
        "golden seahorse", "seahorse", GOLD, (250, 206, 110), "rings", (186, 116, 24), number=13, width=0.26
    ),
    Species("silver barracuda", "barracuda", SILVER, GREY, "back", (104, 122, 144), width=0.34, belly=WHITE),
    Species("black banded butterflyfish", "butterflyfish", WHITE, YELLOW, "bands", BLACK, None, 4, 0.42),
    Species("pink forktail anthias", "anthias", PINK, (255, 96, 128), "plain", PURPLE, tail=(255, 112, 120)),
    Species(
        "turquoise scaled parrotfish",
        "parrotfish",
        TURQUOISE,
        PINK,
        "scales",
        (20, 138, 150),
        extra=("cheek",),
    ),
    Species(
        "red striped lionfish",
        "lionfish",
        WHITE,
        (190, 60, 44),
        "bands",
        (172, 40, 34),
        None,
        9,
        0.56,
        extra=("spines",),
    ),
    Species(
        "yellow spotted boxfish", "boxfish", YELLOW, (255, 190, 60), "spots", BLACK, number=5, width=0.26
    ),
    Species("grey reef shark", "shark", GREY, (96, 106, 118), "plain", BLACK, belly=(226, 230, 232)),
    Species("blue palette tang", "tang", BLUE, NAVY, "palette", BLACK, tail=YELLOW),
    Species(
        "orange striped triggerfish",
        "triggerfish",
        (44, 84, 92),
        ORANGE,
        "slanted",
        ORANGE,
        number=7,
        width=0.36,
    ),
    Species(
        "white ringed angelfish",
        "angelfish",
        NAVY,
        (30, 60, 150),
        "bows",
        WHITE,
        number=5,
        width=0.3,
        tail=WHITE,
    ),
    Species("green eyespot wrasse", "wrasse", (120, 190, 70), (240, 120, 90), "eyespot", BLACK, YELLOW),
)
NAMES: tuple[str, ...] = tuple(species.name for species in SPECIES)
