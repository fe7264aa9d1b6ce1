"""The classes of a task: their order, the words that stand for them, and the base/new split."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import RecipeError, nearest
from .files import is_text

DEFAULT_TEMPLATES = ("a photo of a {}.",)


def _spaced(text: str) -> str:
    """Underscores stand for spaces in folder names, never in what a text tower reads."""
    return " ".join(text.replace("_", " ").split())


@dataclass(frozen=True)
class ClassSet:
    """Ordered class names with the texts and templates that describe them.

    The order is the label order: label `i` means `names[i]`. Names are kept exactly as given (also `no`,
    `007` or `12:30`); only the text handed to a text tower has its underscores turned into spaces.

    Attributes:
        names: unique class names, in label order.
        texts: for each name the words that stand for it; a name that is not listed stands for itself.
        templates: sentences with one `{}`.
        base_names: classes seen in training under the base-to-new protocol; default: the first ceil(n/2).
        new_names: the others.

    Raises:
        RecipeError: names that are not text, are empty or occur twice; templates without `{}`; texts or
            base/new lists that mention unknown classes.
    """

    names: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    base_names: tuple[str, ...] = ()
    new_names: tuple[str, ...] = ()
    _place: Mapping[str, int] = field(init=False, repr=False, compare=False)  # name -> label

    def __post_init__(self) -> None:
        names = tuple(self.names)
        for name in names:
            if not isinstance(name, str):
                raise RecipeError(
                    f"The class name {name!r} was read as {type(name).__name__}, not as text: write it in "
                    "quotes."
                )
            if not name.strip():
                raise RecipeError("A class name is empty: give every class a name.")
            if not is_text(name):
                raise RecipeError(f"The class name {name!a} is not valid text (UTF-8): give it another name.")
        repeated = (
            sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        )
        if repeated:
            raise RecipeError(
                f"Class names occur more than once: {', '.join(map(repr, repeated))}. Every class needs its "
                "own name; several words for one class belong in `classes.texts`."
            )
        composed: dict[str, str] = {}
        for name in names:
            other = composed.setdefault(unicodedata.normalize("NFC", name), name)
            if other != name:
                raise RecipeError(
                    f"The class names {other!a} and {name!a} look the same ('{name}'; accents in one sign or in two). "
                    "Every class needs a name of its own."
                )
        if not self.templates:
            raise RecipeError(
                "No templates were given: `classes.templates` needs at least one, such as 'a photo of a {}.'."
            )
        for template in self.templates:
            if template.count("{}") != 1:
                raise RecipeError(
                    f"The template {template!r} needs exactly one {{}}, the place of the class name."
                )
        self._check_known(self.texts, "classes.texts")
        self._check_known(self.base_names, "classes.base")
        self._check_known(self.new_names, "classes.new")
        base, new = tuple(self.base_names), tuple(self.new_names)
        both = set(base) & set(new)
        if both:
            raise RecipeError(
                f"Classes are listed as base and as new: {', '.join(map(repr, sorted(both)))}. Choose one."
            )
        if not base and not new:
            half = (len(names) + 1) // 2
            base, new = names[:half], names[half:]
        elif not new:
            new = tuple(n for n in names if n not in set(base))
        elif not base:
            base = tuple(n for n in names if n not in set(new))
        texts = {name: self._words(name) for name in names}
        for key, value in {
            "names": names,
            "texts": texts,
            "templates": tuple(self.templates),
            "base_names": base,
            "new_names": new,
            "_place": {name: label for label, name in enumerate(names)},
        }.items():
            object.__setattr__(self, key, value)

    def _check_known(self, mentioned: Iterable[str], where: str) -> None:
        known = set(self.names)
        for name in mentioned:
            if name not in known:
                raise RecipeError(
                    f"`{where}` mentions {name!r}, which is not among the {len(known)} "
                    f"classes.{nearest(str(name), self.names)}"
                )

    def _words(self, name: str) -> tuple[str, ...]:
        words = self.texts.get(name, (name,))
        words = (words,) if isinstance(words, str) else tuple(words)
        if not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise RecipeError(
                f"`classes.texts` of {name!r} needs at least one non-empty text; it is {list(words)!r}."
            )
        return words

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.texts

    def index(self, name: str) -> int:
        """Return the label of a class.

        Raises:
            RecipeError: there is no such class.
        """
        if name not in self._place:
            raise RecipeError(
                f"There is no class {name!r} among the {len(self)} classes.{nearest(name, self.names)}"
            )
        return self._place[name]

    def text(self, name: str) -> str:
        """Return the first text of a class, with spaces for underscores."""
        self.index(name)
        return _spaced(self.texts[name][0])

    def prompts(self, name: str) -> list[str]:
        """Return every template filled with every text of a class, template by template."""
        self.index(name)
        return [t.replace("{}", _spaced(w)) for t in self.templates for w in self.texts[name]]

    def base(self) -> ClassSet:
        """Return the base classes as a class set of their own."""
        return self.only(self.base_names)

    def new(self) -> ClassSet:
        """Return the new classes as a class set of their own."""
        return self.only(self.new_names)

    def only(self, names: Sequence[str]) -> ClassSet:
        """Return the named classes, in the order given (labels are renumbered)."""
        for name in names:
            self.index(name)
        kept = set(names)
        return replace(
            self,
            names=tuple(names),
            texts={n: self.texts[n] for n in names},
            base_names=tuple(n for n in self.base_names if n in kept),
            new_names=tuple(n for n in self.new_names if n in kept),
        )

    def without(self, names: Sequence[str] | str) -> ClassSet:
        """Return the classes that are not named."""
        dropped = {names} if isinstance(names, str) else set(names)
        for name in dropped:
            self.index(name)
        return self.only([n for n in self.names if n not in dropped])

    def extended(self, names: Sequence[str], texts: Mapping[str, Sequence[str]] | None = None) -> ClassSet:
        """Return this set with further classes behind the present ones; they count as new classes.

        Args:
            names: names of the added classes; none may exist already.
            texts: words for some of them.

        Raises:
            RecipeError: a name exists already, or `texts` names a class that is not added.
        """
        texts = dict(texts or {})
        unknown = [n for n in texts if n not in names]
        if unknown:
            raise RecipeError(f"Texts were given for {unknown[0]!r}, which is not among the added classes.")
        present = [n for n in names if n in self]
        if present:
            raise RecipeError(f"The class {present[0]!r} exists already; every class needs its own name.")
        added = {n: (w,) if isinstance(w, str) else tuple(w) for n, w in texts.items()}
        return replace(
            self,
            names=(*self.names, *names),
            texts={**self.texts, **added},
            new_names=(*self.new_names, *names),
        )

    def renamed(self, names: Mapping[str, str]) -> ClassSet:
        """Return the same classes with some names changed, `{old: new}`.

        A class that stood for itself then stands for its new name; texts given explicitly stay.
        """
        for old in names:
            self.index(old)

        def new(name: str) -> str:
            return names.get(name, name)

        return replace(
            self,
            names=tuple(map(new, self.names)),
            texts={new(n): (new(n),) if self.texts[n] == (n,) else self.texts[n] for n in self.names},
            base_names=tuple(map(new, self.base_names)),
            new_names=tuple(map(new, self.new_names)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dicts, fit for JSON."""
        return {
            "names": list(self.names),
            "texts": {n: list(self.texts[n]) for n in self.names},
            "templates": list(self.templates),
            "base_names": list(self.base_names),
            "new_names": list(self.new_names),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassSet:
        """Rebuild a class set from `to_dict`.

        Raises:
            RecipeError: a text stands where a list of texts is due: its characters would be taken for names, say.
        """
        texts = data.get("texts", {})
        lists = {key: data.get(key) for key in ("names", "templates", "base_names", "new_names")}
        for key, value in {**lists, **{f"texts of {name!a}": words for name, words in texts.items()}}.items():
            if isinstance(value, str):
                raise RecipeError(f"`classes`: {key} is the text {value!a} where a list of texts is due: write [{value!a}].")
        return cls(
            names=tuple(data["names"]),
            texts={n: tuple(t) for n, t in texts.items()},
            templates=tuple(data.get("templates", DEFAULT_TEMPLATES)),
            base_names=tuple(data.get("base_names", ())),
            new_names=tuple(data.get("new_names", ())),
        )
