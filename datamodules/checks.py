"""Checks before anything is trained: values of the config, and images that can be decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from .configs import DataConfig
from .errors import DataError, nearest
from .images import UnreadableImage, check_image
from .listing import Sample
from .sharing import checked

SAMPLINGS = ("limpet", "dassl")
PRESETS = ("natural", "aerial", "microscopy", "mirror", "none")


def parse_shots(shots: object) -> int | None:
    """Read `data.shots`: a positive number, or None for "all".

    Raises:
        DataError: neither a positive whole number nor "all".
    """
    text = str(shots).strip().lower()
    if text == "all":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise DataError(
        f"data.shots is '{shots}'; give the number of training images of each class (1 or more), or all."
        f"{nearest(text, ['all'])}"
    )


def undecodable(
    samples: Sequence[Sample], progress: Callable[[str, int, int], None] | None = None
) -> dict[str, str]:
    """Decode the files of samples, several at a time.

    Args:
        samples: drawn images (without a file) pass.
        progress: called with (what, done, total).

    Returns:
        {path: "path: reason"} of those that cannot be decoded.
    """
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for done, (sample, reason) in enumerate(
            zip(samples, threads.map(_failure, samples), strict=True), start=1
        ):
            if reason:
                failures[sample.path] = f"{sample.path}: {reason}"
            if progress:
                progress("checking images", done, len(samples))
    return failures


def _failure(sample: Sample) -> str | None:
    if sample.file is None:
        return None
    file = sample.file

    def check() -> str | None:
        try:
            check_image(file)
        except UnreadableImage as error:
            return error.reason
        return None

    return checked(str(file), check)


def check_config(config: DataConfig) -> None:
    """Check the values that every data module shares.

    Raises:
        DataError: one cannot be used.
    """
    for key, value, known in (
        ("sampling", config.sampling, SAMPLINGS),
        ("augment.preset", config.augment.preset, PRESETS),
    ):
        if value not in known:
            raise DataError(
                f"data.{key} is '{value}'; known are {', '.join(known)}.{nearest(str(value), known)}"
            )
    for key, number, least in (
        ("batch_size", config.batch_size, 1),
        ("num_workers", config.num_workers, 0),
        ("augment.views", config.augment.views, 0),
    ):
        if number < least:
            raise DataError(f"data.{key} is {number}; it must be {least} or more.")
