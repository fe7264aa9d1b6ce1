"""What the `limpet` command says of a mistake: one sentence for each kind."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer

from .errors import LimpetError, nearest


def sentence(err: Exception, words: Sequence[str], app: typer.Typer) -> str | None:
    """The sentence for a mistake of the user; None for an error of ours."""
    if _is_gone():
        return "The folder that this terminal works in is gone: it was deleted or replaced. Go to another, or to it anew, with cd."
    if isinstance(err, LimpetError) or _is_data_error(err):
        return str(err)
    if type(err).__module__.startswith(("click", "typer")):  # typer brings its own copy of click, or not
        return _usage(err, words, app)
    if isinstance(err, OSError) and err.strerror and not isinstance(err, ConnectionError | TimeoutError):
        where = f"{err.filename}: " if err.filename else ""
        return f"{where}{err.strerror} (--debug shows where)."
    if isinstance(err, RuntimeError) and "home directory" in str(err):  # Path.expanduser
        return "A path begins with ~ and no user's name of this machine: write it whole, or ~/ for your own (--debug shows where)."
    if isinstance(err, MemoryError) or "can't allocate memory" in str(err):
        return "There is not enough memory: lower data.batch_size, backbone.text_memory or data.num_workers, or close other programs."
    if type(err).__name__ == "OutOfMemoryError":
        return "The GPU is out of memory: lower data.batch_size or backbone.text_memory, or set trainer=cpu."
    return None


def _is_gone() -> bool:
    """Whether there is no working folder (any more); whatever fails then fails for that."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return True
    return False


def _is_data_error(err: Exception) -> bool:
    loaded = sys.modules.get(f"{__package__}.datamodules.errors")
    return loaded is not None and isinstance(err, loaded.DataError)


def _usage(err: Any, words: Sequence[str], app: typer.Typer) -> str:
    """A sentence for a command line that typer cannot read."""
    message = str(getattr(err, "message", "") or err).rstrip(".")
    if message.startswith("No such command"):
        word = re.findall(r"'([^']*)'", message)[0]
        group = words[0] if words and words[0] in ("recipes", "cache") and words[0] != word else ""
        known = _commands(group, app)
        hint = nearest(word, known)
        if group == "recipes" and not hint:
            hint = f" To see a recipe: limpet recipes show {word}"
        place = f"limpet {group}" if group else "limpet"
        return f"There is no command '{place} {word}'.{hint} Commands of {place}: {', '.join(known)}."
    if type(err).__name__ == "Abort":  # typer makes it of an EOFError, wherever that comes from
        return "A file that was read ends too early; it is damaged, or was not copied whole (--debug shows which)."
    if type(err).__name__ == "MissingParameter" and getattr(err, "param", None) is not None:
        message = f"{str(err.param.name).upper()} is missing"
    elif type(err).__name__ == "BadParameter" and getattr(err, "param", None) is not None:
        message = (
            f"{err.param.opts[0] if err.param.opts[0][:1] == '-' else err.param.name.upper()}: {message}"
        )
    option = getattr(err, "option_name", "")
    dashed = next((w for w in words if "=" in w and option and w.startswith(f"{option}=")), None)
    if dashed is not None:
        return f"Settings are written without dashes: {dashed.lstrip('-')}"
    command = " ".join(w for w in words[:1] if not w.startswith("-"))
    return f"{message}. See: limpet {command + ' ' if command else ''}--help"


def _commands(group: str, app: typer.Typer) -> list[str]:
    root: Any = typer.main.get_command(app)
    return sorted(root.commands[group].commands if group else root.commands)
