"""Which blocks of a tower: `all`, a paper's named range, numbers from either end, or shares of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import RecipeError, nearest

PAPER_DEPTH = 12  # papers name ranges of ViT-B's and the text tower's 12 blocks
RANGES = {  # first block, and the one after the last, of 12
    "bottom": (0, 4),
    "mid": (4, 8),
    "up": (8, 12),
    "half-bottom": (0, 6),
    "half-up": (6, 12),
    "top3": (9, 12),
}


@dataclass(frozen=True)
class Layers:
    """Blocks of one tower, ascending, and a sentence where a paper's range was fitted to another depth."""

    blocks: tuple[int, ...]
    note: str | None = None

    @property
    def first(self) -> int:
        """The lowest of the blocks."""
        return self.blocks[0]


def choose(choice: Any, depth: int, key: str = "method.layers") -> Layers:
    """Blocks that a recipe's value means on a tower of `depth` blocks.

    Args:
        choice: "all"; a range of the papers ("top3", "up", "mid", "bottom", "half-up", "half-bottom"), scaled as a share of
            12 blocks; "6-11", both ends included; a whole number, one block (-1 is the last); a fraction f, the uppermost
            share f; a list of whole numbers; or a list of two fractions [a, b], the part of the tower between them.
        depth: number of blocks of the tower.
        key: what the value is called in errors.

    Raises:
        RecipeError: the choice means nothing, or names a block that the tower does not have.
    """
    if isinstance(choice, str):
        return _word(choice.strip(), depth, key)
    if isinstance(choice, bool) or choice is None:
        raise RecipeError(_meaning(key, choice))
    if isinstance(choice, int):
        return Layers((_block(choice, depth, key),))
    if isinstance(choice, float):
        return _share(1 - choice, 1.0, depth, key, choice)
    if isinstance(choice, Sequence) and choice:
        if len(choice) == 2 and all(isinstance(c, int | float) for c in choice) and any(isinstance(c, float) for c in choice):
            return _share(float(choice[0]), float(choice[1]), depth, key, list(choice))
        if all(isinstance(c, int) and not isinstance(c, bool) for c in choice):
            return Layers(tuple(sorted({_block(c, depth, key) for c in choice})))
    raise RecipeError(_meaning(key, choice))


def per_tower(choice: Any, tower: str, depth: int, key: str = "method.layers") -> Layers:
    """The same for one tower ("image" or "text"); `choice` may be a table with a choice for each of them.

    Raises:
        RecipeError: as `choose`, or the table leaves the tower out.
    """
    if not hasattr(choice, "keys"):
        return choose(choice, depth, key)
    odd = [word for word in choice if word not in ("image", "text")]
    if odd:
        raise RecipeError(f"{key} has a key '{odd[0]}'.{nearest(odd[0], ('image', 'text'))} It has layers for image and text.")
    if tower not in choice:
        raise RecipeError(f"{key} says nothing about the {tower} tower, which is to be trained: add `{tower}: all`.")
    return choose(choice[tower], depth, f"{key}.{tower}")


def _word(word: str, depth: int, key: str) -> Layers:
    if word == "all":
        return Layers(tuple(range(depth)))
    if word in RANGES:
        start, stop = RANGES[word]
        found = _share(start / PAPER_DEPTH, stop / PAPER_DEPTH, depth, key, word)
        if depth == PAPER_DEPTH:
            return found
        here = f"{found.blocks[0]}-{found.blocks[-1]} of {depth}"
        return Layers(found.blocks, f"{key}: '{word}', blocks {start}-{stop - 1} of {PAPER_DEPTH}, is {here} here.")
    first, dash, last = word.partition("-")
    if dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
        return Layers(tuple(range(_block(int(first), depth, key), _block(int(last), depth, key) + 1)))
    raise RecipeError(_meaning(key, word, nearest(word, ("all", *RANGES))))


def _block(number: int, depth: int, key: str) -> int:
    if not -depth <= number < depth:
        raise RecipeError(f"{key} names block {number}, but the tower has {depth}: 0 to {depth - 1}, or -1 (last) to {-depth}.")
    return number % depth


def _share(start: float, stop: float, depth: int, key: str, given: Any) -> Layers:
    if not 0 <= start < stop <= 1:
        raise RecipeError(f"{key} is {given}; shares of a tower lie between 0 and 1, in order, like [0.5, 1.0].")
    end = max(1, _nearest_whole(stop * depth))
    begin = min(_nearest_whole(start * depth), end - 1)  # never empty
    return Layers(tuple(range(begin, end)))


def _nearest_whole(value: float) -> int:
    return int(value + 0.5)  # halves up, unlike round()


def _meaning(key: str, choice: Any, hint: str = "") -> str:
    words = ", ".join(("all", *RANGES))
    return (
        f"{key} is '{choice}'.{hint} It is one of {words}; a block (-1 is the last), a list of blocks, a range like 6-11; "
        "or a share of the tower, 0.5 (the upper half) or [0.25, 0.75]."
    )
