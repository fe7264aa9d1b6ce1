"""From a listing to train, validation and test pools: given, completed or made; restricted to domains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from .configs import DataConfig
from .errors import DataError, counted, nearest, some
from .fewshot import FRACTIONS, split_by_group
from .listing import SPLITS, Listing, Sample


@dataclass
class Pools:
    """Samples of each split before any are drawn, and what to say about how they were made."""

    samples: dict[str, list[Sample]]
    report: list[str] = field(default_factory=list)


def make_pools(listing: Listing, config: DataConfig) -> Pools:
    """Divide a listing into train, val and test.

    Splits that the data gives are kept; what is missing is carved out of train, class by class and by group.
    Without any, each class is divided 50/20/30. With `train_domains`, every domain is divided by itself,
    and the images of domains that are never trained on are all test images.

    Raises:
        DataError: a domain that does not exist, or domains asked for without a domain column.
    """
    _check_domains(listing.samples, config)
    splits, report = complete(listing, config)
    pools: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for sample, split in zip(listing.samples, splits, strict=True):
        wanted = config.test_domains if split == "test" else config.train_domains
        if split is not None and (wanted is None or sample.domain in wanted):
            pools[split].append(sample)
    report += _leaks(pools)
    for split, samples in pools.items():
        if not samples:
            report.append(f"There are no {split} images.")
    return Pools(pools, report)


def complete(listing: Listing, config: DataConfig) -> tuple[list[str | None], list[str]]:
    """Give every sample a split; returns the splits and what was done."""
    names, samples = listing.class_names, listing.samples
    if listing.splits is None:
        given: list[str | None] = [None] * len(samples)
        have: set[str] = set()
    else:
        given = list(listing.splits)
        have = {split for split in given if split}
    report = []
    if have and None in given:
        report.append(
            f"{counted(given.count(None), 'image')} without a split among images with one: left out."
        )
    if have <= {"train"} or have <= {"val"}:
        whole = [i for i, split in enumerate(given) if split or not have]
        if have:
            report.append(f"The data gives a {have.pop()} split only; it was divided 50/20/30.")
        else:
            report.append(
                "The data gives no split; each class was divided 50/20/30 into train, val and test."
            )
        return _divide(names, samples, given, whole, FRACTIONS, config=config, report=report), report
    pool = [i for i, split in enumerate(given) if split == "train"]
    if not pool:
        return given, report
    missing = {"val": 0.2, "test": 0.3}
    missing = {split: share for split, share in missing.items() if split not in have}
    if missing:
        fractions = {"train": 1 - sum(missing.values()), **missing}
        shares = " and ".join(f"{share:.0%} of it became {split}" for split, share in missing.items())
        report.append(f"The data gives train but no {' and no '.join(missing)} split: {shares}.")
        return _divide(names, samples, given, pool, fractions, config=config, report=report), report
    return given, report


def _divide(
    names: Sequence[str],
    samples: Sequence[Sample],
    given: Sequence[str | None],
    which: Sequence[int],
    fractions: dict[str, float],
    *,
    config: DataConfig,
    report: list[str],
) -> list[str | None]:
    result = list(given)
    own = config.train_domains
    foreign: list[int] = []
    if own is not None and "test" in fractions:
        foreign = [i for i in which if samples[i].domain not in own]
        which = [i for i in which if samples[i].domain in own]
    strata = [names[samples[i].label] + (f"\0{samples[i].domain}" if own is not None else "") for i in which]
    groups = [("group", samples[i].group) if samples[i].group else ("image", samples[i].path) for i in which]
    for i, split in zip(which, split_by_group(strata, groups, fractions, config.split_seed), strict=True):
        result[i] = split
    trained = {samples[i].group for i in which if samples[i].group and result[i] != "test"}
    for i in foreign:
        result[i] = None if samples[i].group in trained else "test"
    dropped = sum(result[i] is None for i in foreign)
    if dropped:
        report.append(
            f"{counted(dropped, 'image')} of other domains left out: their groups are trained on in "
            "another domain."
        )
    return result


def _check_domains(samples: Sequence[Sample], config: DataConfig) -> None:
    known = sorted({sample.domain for sample in samples if sample.domain is not None})
    for key, wanted in (("train_domains", config.train_domains), ("test_domains", config.test_domains)):
        for domain in wanted or []:
            if not known:
                raise DataError(
                    f"data.{key} asks for '{domain}', but the images have no domain; name the column "
                    "that holds it "
                    "with data.domain_column."
                )
            if domain not in known:
                raise DataError(
                    f"data.{key} asks for '{domain}'; the domains are {some(known)}.{nearest(domain, known)}"
                )


def _leaks(pools: dict[str, list[Sample]]) -> list[str]:
    """Sentences about groups that are on two sides."""
    where: dict[str, set[str]] = defaultdict(set)
    for split, samples in pools.items():
        for sample in samples:
            if sample.group:
                where[sample.group].add(split)
    report = []
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        both = sorted(group for group, splits in where.items() if {one, other} <= splits)
        if both:
            report.append(
                f"{counted(len(both), 'group')} with images in both {one} and {other} (the data's own "
                "split): "
                f"{some(both, 3)}. Results on {other} may be too good."
            )
    return report
