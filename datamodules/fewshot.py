"""Splitting and few-shot sampling: pure functions over lists, deterministic, each with its own randomness.

Choices are made by sorting SHA-256 digests of (seed, name, path) instead of by a running generator: they do
not depend on the order in which files are listed, on the other classes, or on any global random state.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

from .errors import counted, some

FRACTIONS: dict[str, float] = {
    "test": 0.3,
    "train": 0.5,
    "val": 0.2,
}  # in the order in which they get a first group
MAX_VAL_SHOTS = 4


def digest(*parts: object) -> bytes:
    """SHA-256 of the parts, separated so that ("ab", "c") and ("a", "bc") differ; a file's name counts with its own bytes."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode("utf-8", "surrogateescape")).digest()


def split_by_group(
    classes: Sequence[str],
    groups: Sequence[Hashable],
    fractions: Mapping[str, float] = FRACTIONS,
    seed: int = 1,
) -> list[str]:
    """Divide items into splits, class by class, keeping every group on one side.

    Larger groups are placed first, each where most images are still wanted, so that the shares come near to
    `fractions` also with uneven groups. A class with fewer groups than splits fills the splits in the order
    of `fractions`. A group that spans classes is placed once, with its rarest class.

    Args:
        classes: class of each item.
        groups: group of each item; give each item its own where there are none.
        fractions: share of each split, in order of precedence for the first groups.
        seed: another seed gives another division.

    Returns:
        The split of each item.
    """
    sizes: dict[str, Counter[Hashable]] = defaultdict(Counter)
    for name, group in zip(classes, groups, strict=True):
        sizes[name][group] += 1
    placed: dict[Hashable, str] = {}
    for name in sorted(sizes, key=lambda c: (len(sizes[c]), c)):
        _place(name, sizes[name], fractions, seed, placed)
    return [placed[group] for group in groups]


def _place(
    name: str,
    sizes: Counter[Hashable],
    fractions: Mapping[str, float],
    seed: int,
    placed: dict[Hashable, str],
) -> None:
    total = sum(sizes.values())
    have = dict.fromkeys(fractions, 0)
    for group, size in sizes.items():
        if group in placed:
            have[placed[group]] += size
    # Sizes count only by their power of two: among similar groups the seed decides.
    free = sorted(
        (g for g in sizes if g not in placed), key=lambda g: (-sizes[g].bit_length(), digest(seed, name, g))
    )
    for position, group in enumerate(free):
        left = len(free) - position
        empty = [split for split in fractions if not have[split]]
        candidates = empty[:left] if left <= len(empty) else list(fractions)
        chosen = max(candidates, key=lambda split: fractions[split] * total - have[split])  # ties: the first
        placed[group] = chosen
        have[chosen] += sizes[group]


def draw(
    labels: Sequence[int],
    paths: Sequence[str],
    names: Sequence[str],
    shots: int | None,
    *,
    seed: int,
    split: str,
) -> list[int]:
    """Draw up to `shots` items of each class, without repetition.

    The draw of a class depends on the seed and on its own paths only; fewer shots are a subset of more.

    Args:
        labels: label of each item.
        paths: unique path of each item.
        names: class names; `names[label]` is the class of an item.
        shots: items of each class, or None for all.
        seed: seed of the run.
        split: name of the split, so that train and val are drawn apart.

    Returns:
        Positions in the given lists, class by class in label order.
    """
    by_label: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        by_label[label].append(position)
    chosen: list[int] = []
    for label in sorted(by_label):
        key = {i: digest(seed, split, names[label], paths[i]) for i in by_label[label]}
        chosen += sorted(by_label[label], key=key.__getitem__)[:shots]
    return chosen


def draw_dassl(
    labels: Sequence[int], shots: int | None, rng: random.Random, repeat: bool = False
) -> list[int]:
    """Draw few shots in the order of Dassl, the code base under CoOp and its successors.

    Classes come in the order of their first item; each takes `rng.sample` of its items, or all of them in
    their order where there are not enough (with `repeat`, `rng.choices`). Draw train first and then val
    from one `random.Random(seed)` to get the published shots.

    Args:
        labels: label of each item, in the order of the split file.
        shots: items of each class; None keeps all.
        rng: a generator of Python's `random` module; its state moves on.
        repeat: fill classes with too few items by repetition.

    Returns:
        Positions in `labels`.
    """
    if shots is None:
        return list(range(len(labels)))
    by_label: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        by_label[label].append(position)
    chosen: list[int] = []
    for items in by_label.values():
        if len(items) >= shots:
            chosen += rng.sample(items, shots)
        else:
            chosen += rng.choices(items, k=shots) if repeat else items
    return chosen


def base_and_new(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Halve the labels that occur: the first ceil(n/2) in numeric order are base, the others new."""
    distinct = sorted(set(labels))
    middle = (len(distinct) + 1) // 2
    return distinct[:middle], distinct[middle:]


def relabel(labels: Sequence[int], keep: Sequence[int]) -> tuple[list[int], list[int]]:
    """Keep the items whose label is in `keep` and number them by its order.

    Returns:
        (positions of the kept items, their new labels).
    """
    new = {label: number for number, label in enumerate(keep)}
    positions = [i for i, label in enumerate(labels) if label in new]
    return positions, [new[labels[i]] for i in positions]


def short_classes(labels: Sequence[int], names: Sequence[str], shots: int, what: str) -> list[str]:
    """Say which classes have fewer than `shots` items (they are kept) and which none: 0 to 2 sentences."""
    have = Counter(labels)
    sentences = []
    few = [f"{name} ({have[i]})" for i, name in enumerate(names) if 0 < have[i] < shots]
    none = [name for i, name in enumerate(names) if not have[i]]
    if few:
        verb = "has" if len(few) == 1 else "have"
        sentences.append(
            f"{counted(len(few), 'class', 'classes')} {verb} fewer than {shots} {what} images and "
            f"{'is' if len(few) == 1 else 'are'} kept: {some(few)}."
        )
    if none:
        sentences.append(f"No {what} images of {counted(len(none), 'class', 'classes')}: {some(none)}.")
    return sentences
