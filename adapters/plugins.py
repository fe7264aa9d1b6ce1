"""Whether code of the user's own may be imported: `--no-plugins`, or LIMPET_NO_PLUGINS=1, says that it may not.

Code comes in by two documented ways alone: a method named `./file.py:Class` or `package.module:Class` (in a recipe, or in
an artefact fitted with one), and a logger named by its dotted path. Both ask here before anything is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RecipeError

VARIABLE = "LIMPET_NO_PLUGINS"  # an environment variable, so that the processes of a run inherit the refusal


def allowed() -> bool:
    """Whether plugins may be imported in this process."""
    return os.environ.get(VARIABLE, "").strip().lower() in ("", "0", "no", "false")


def demand(what: str) -> None:
    """Stop where plugins are refused.

    Args:
        what: the beginning of the sentence, like "The method ./mine.py:Mine".

    Raises:
        RecipeError: they are.
    """
    if not allowed():
        raise RecipeError(
            f"{what} is code of your own, which --no-plugins (or {VARIABLE}) refuses to import. Where you trust it, leave "
            "that out."
        )


@contextmanager
def refused(refuse: bool = True) -> Iterator[None]:
    """Refuse plugins for a while, in this process and those it starts."""
    before = os.environ.get(VARIABLE)
    if refuse:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
