"""Descriptors of classes, {class: [phrase, ...]}: reading them, and the sentences they are put into.

Files of published work (one JSON object, lists of phrases) are read as they are; YAML of the same form, too, its texts
exactly as written.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RecipeError, nearest
from .nodes import plain_data, read_text

Descriptors = dict[str, list[str]]
CLAUSE = "{clause}"


def packaged() -> list[str]:
    """Names of the descriptors that come with Limpet."""
    return sorted(p.stem.removeprefix("descriptors_") for p in _assets().glob("descriptors_*.json"))


def find(name: str) -> Path:
    """The file of that path, or the packaged descriptors of that name.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name in packaged():
        return _assets() / f"descriptors_{name}.json"
    raise RecipeError(
        f"There is no file of descriptors '{name}' in {Path.cwd()}, and none of that name comes with Limpet."
        f"{nearest(name, packaged())} A file holds {{class: [phrase, ...]}} as JSON or YAML; packaged: {', '.join(packaged())}."
    )


def read(name: str) -> Descriptors:
    """Read descriptors from a file, or packaged ones by name; an empty list where a class has none.

    Raises:
        RecipeError: the file is missing or not of the form {class: [phrase, ...]}.
    """
    path = find(name)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a UTF-8 text file (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}.") from None
    content = _json(text, path) if path.suffix.lower() == ".json" else plain_data(read_text(text, str(path)), literal=True)
    if not isinstance(content, dict) or not content:
        raise RecipeError(f"{path} does not hold descriptors: {{class: [phrase, ...]}} is wanted.")
    return {name: _phrases(name, value, path) for name, value in content.items()}


def _json(text: str, path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        again = next((name for i, name in enumerate(names) if name in names[:i]), None) if len(set(names)) < len(names) else None
        if again is not None:
            raise RecipeError(f"{path} describes '{again}' twice; keep one.")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not JSON: {error}.") from None


def _phrases(name: str, value: Any, path: Path) -> list[str]:
    """The phrases of a class; a text alone is a list of one, nothing is none."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise RecipeError(f"{path}: the descriptors of '{name}' are not a list of texts; found {value!r}.")
    return [phrase for v in values if (phrase := " ".join(v.split()).removeprefix("- "))]


def plain(name: str) -> str:
    """A class name as names are compared: without case, underscores or surplus spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def key_of(name: str, texts: Sequence[str], descriptors: Mapping[str, Any]) -> str | None:
    """Key under which a class is described: its name, else its name or its text names but for case and underscores."""
    if name in descriptors:
        return name
    known = {plain(key): key for key in descriptors}
    return next((known[plain(word)] for word in (name, *texts) if plain(word) in known), None)


def clause(descriptor: str) -> str:
    """A descriptor as a relative clause: "which has wings", "which is a bird", "which often flies".

    Source: the released code of classification by description (Menon and Vondrick, ICLR 2023); its rules look at the first
    letters only, but "a" is taken here as a word ("a", "an"), so that antennae are had and not been.
    """
    first = descriptor.split(" ", 1)[0].lower()
    if first in ("a", "an", "used"):
        return f"which is {descriptor}"
    if first in ("has", "often", "typically", "may", "can"):
        return f"which {descriptor}"
    return f"which has {descriptor}"


def sentence(phrase: str, name: str, descriptor: str) -> str:
    """Fill {class}, {clause} and {descriptor} of a phrase; without a descriptor the name stands alone."""
    words = {"class": " ".join(name.replace("_", " ").split()), "descriptor": descriptor,
             "clause": clause(descriptor) if descriptor else ""}  # fmt: skip
    text = re.sub(r"\{(class|descriptor|clause)\}", lambda match: words[match[1]], phrase)
    return text if descriptor else re.sub(r"[\s,;:]+(?=[.!?]?$)", "", text.strip())


def random_words(descriptors: Mapping[str, Sequence[str]], count: int, seed: int) -> list[str]:
    """`count` descriptors of random words: as long as given ones, of the words of all of them.

    They say nothing about any class, as they are the same for all (WaffleCLIP, arXiv 2306.07282).
    """
    phrases = sorted(phrase for listed in descriptors.values() for phrase in listed)
    words = sorted(word for phrase in phrases for word in phrase.split())
    if not words:
        return [""] * count
    rng = random.Random(f"random words {seed}")
    return [" ".join(rng.choice(words) for _ in rng.choice(phrases).split()) for _ in range(count)]


def _assets() -> Path:
    return Path(__file__).parent / "assets"
