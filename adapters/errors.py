"""Errors that are the user's to mend: each is a sentence, shown without a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class LimpetError(ValueError):
    """A mistake in a recipe, a file or a command; the message says what was looked for, found, and what to do."""


class RecipeError(LimpetError):
    """A recipe, or an override of it, that cannot be used."""


class BackboneError(LimpetError):
    """A backbone that cannot be found, loaded or used by the chosen method."""


class ArtifactError(LimpetError):
    """An adapter that cannot be read, or does not fit the backbone it is loaded on."""


class RunError(LimpetError):
    """A run folder that is missing, unfinished or not usable for what was asked."""


class NeedsImages(LimpetError):
    """A method was asked about classes for which it needs images of those classes."""


def exhausted(error: BaseException | None) -> str:
    """Return "descriptors" or "memory" where an error (or its cause) says that the process has used these up, else ""."""
    while error is not None:
        number = getattr(error, "errno", None)
        if number in (errno.EMFILE, errno.ENFILE):
            return "descriptors"
        if number == errno.ENOMEM or isinstance(error, MemoryError):
            return "memory"
        error = error.__cause__
    return ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word closest to `word`, or an empty string."""
    matches = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""
