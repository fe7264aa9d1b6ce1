"""What metrics.json has to hold for those that read it: kinds and ranges of its fields, checked once where it is read (no torch)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import RunError
from .files import is_text

Kind = Callable[[Any, str], None]
"""Checks a value of the field of that name."""
_DEEPEST = 20  # levels of lists and groups; a run's own have six
_LARGEST = sys.float_info.max
_ROUNDING = 1e-6  # by which a correlation may be above 1


class _Wrong(Exception):
    """A field that is not what it should be; the text says so."""


def check(metrics: Mapping[str, Any], path: Path) -> None:
    """Check the content of a run's metrics.json.

    Raises:
        RunError: A field is missing or something else than a run writes there.
    """
    try:
        _sound(metrics, "", 0)
        _RUN(metrics, "")
        _same_lengths(metrics.get("continual") or {})
    except _Wrong as wrong:
        raise RunError(f"{path} is damaged: {wrong}. Leave this run out, or make it again.") from None


def _sound(value: Any, name: str, depth: int) -> None:
    """Whatever it means: numbers that can be calculated with, texts that can be printed, an end to the nesting."""
    if depth > _DEEPEST:
        raise _Wrong(f"{name[:60]}... is nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            _sound(key, f"a name in {name or 'it'}", depth)
            _sound(item, f"{name}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _sound(item, f"{name}[{number}]", depth + 1)
    elif isinstance(value, str):
        if not is_text(value):
            raise _Wrong(f"{name} is {_shown(value)}, which is no valid Unicode")
    elif isinstance(value, int | float) and abs(value) > _LARGEST:
        raise _Wrong(f"{name} is {_shown(value)}, too large a number")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _wrong(name: str, value: Any, wanted: str) -> _Wrong:
    return _Wrong(f"{name or 'its content'} is {'empty' if value == '' else _shown(value)} where {wanted} is expected")


def _number(low: float = -_LARGEST, high: float = _LARGEST) -> Kind:
    """A number in a range. What cannot be computed is NaN (the rank correlation of a single image, say)."""
    limits = "" if high == _LARGEST else f" from {low:g} to {high:g}"

    def kind(value: Any, name: str) -> None:
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine or value < low - _ROUNDING or value > high + _ROUNDING:  # neither is true of NaN
            raise _wrong(name, value, f"a number{limits}")

    return kind


def _whole(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(name, value, "a whole number from 0")


def _shots(value: Any, name: str) -> None:
    if value != "all" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise _wrong(name, value, "a whole number from 0, or 'all',")


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str) or not value:
        raise _wrong(name, value, "a text")


def _words(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")


def _flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")


def _maybe(kind: Kind) -> Kind:
    return lambda value, name: None if value is None else kind(value, name)


def _list(kind: Kind, length: int | None = None) -> Kind:
    def check_list(value: Any, name: str) -> None:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise _wrong(name, value, "a list" if length is None else f"a list of {length}")
        for number, item in enumerate(value):
            kind(item, f"{name}[{number}]")

    return check_list


def _group(kind: Kind | None = None, known: Mapping[str, Kind] | None = None, required: tuple[str, ...] = ()) -> Kind:
    """Named values: each of a kind, those of `known` names of their own kinds."""

    def check_group(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(name, value, "a group of named values")
        for key in required:
            if key not in value:
                raise _Wrong(f"{name}.{key} is missing".lstrip("."))
        for key, item in value.items():
            own = (known or {}).get(key, kind)
            if own is not None:
                own(item, f"{name}.{key}".lstrip("."))

    return check_group


def _figure(value: Any, name: str) -> None:
    """A figure without a range of its own; also several (an interval's ends, one for each way of asking), or none."""
    if isinstance(value, list):
        _list(_number())(value, name)
    elif isinstance(value, dict):
        _group(_figure)(value, name)
    else:
        _maybe(_number())(value, name)


def _same_lengths(stream: Mapping[str, Any]) -> None:
    """A stream has as many rows, columns and points as sessions."""
    matrix, kept = stream.get("matrix"), (stream.get("retention") or {}).get("data") or {}
    if matrix is None:
        return
    lists = {key: stream[key] for key in ("sessions", "seen", "zero_shot_seen") if key in stream}
    lists |= {f"matrix[{number}]": row for number, row in enumerate(matrix)}
    lists |= {f"retention.data.{name}.after": entry["after"] for name, entry in kept.items()}
    for name, found in lists.items():
        if len(found) != len(matrix):
            raise _Wrong(f"continual.{name} has {len(found)} entries where continual.matrix has {len(matrix)}")


_SHARE, _SIGNED = _maybe(_number(0, 1)), _maybe(_number(-1, 1))
_SHARES = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "pairwise_accuracy", "image_auroc", "pixel_auroc"), _SHARE)
_SIGNS = dict.fromkeys(("spearman", "pearson", "kendall"), _SIGNED)
_SPACE = _group(_figure, {**_SHARES, **_SIGNS, "images": _whole, "classes": _whole})
_SPACES = _maybe(_group(_SPACE))
_WORDING = _group(
    _figure,
    {
        **_SHARES, "images": _whole,
        "confidence": _group(_figure, {"accuracy": _list(_SHARE, 2)}, ("accuracy",)),
        "difference": _maybe(_group(_figure, {"accuracy": _SIGNED, "confidence": _list(_SIGNED, 2)}, ("accuracy", "confidence"))),
    },
    ("images", "accuracy", "balanced_accuracy", "macro_f1", "confidence"),
)  # fmt: skip
_CONTINUAL = _group(
    None,
    {
        "by": _text, "regulariser": _text, "sessions": _list(_group(None, {"name": _text}, ("name",))),
        "matrix": _list(_list(_SHARE)), "seen": _list(_SHARE), "zero_shot_seen": _list(_SHARE), "last": _SHARE,
        "average_incremental": _SHARE, "task_last": _SHARE, "task_average": _SHARE, "transfer": _SHARE, "forgetting": _SIGNED,
        "backward_transfer": _SIGNED,
        "retention": _maybe(_group(None, {
            "data": _group(_group(None, {"zero_shot": _SHARE, "after": _list(_SHARE)}, ("zero_shot", "after"))),
            "mean": _group(_SHARE),
        })),
    },
)  # fmt: skip
_RUN = _group(
    None,
    {
        "format": _whole, "limpet": _text, "recipe": _text, "method": _text, "backbone": _text, "protocol": _text, "data": _text,
        "fingerprint": _text, "split_hash": _text, "seed": _whole, "shots": _maybe(_shots), "cell": _maybe(_group()),
        "trainable_parameters": _whole, "results": _group(_SPACE), "zero_shot": _SPACES, "zero_shot_columns": _flag,
        "notes": _list(_words), "unreadable": _list(_words), "harmonic_mean": _SHARE, "zero_shot_harmonic_mean": _SHARE,
        "other_mean": _SHARE, "shift_mean": _SHARE, "zero_shot_other_mean": _SHARE, "zero_shot_shift_mean": _SHARE,
        "controls": _maybe(_group(_SPACES)), "selected": _group(), "wordings": _maybe(_group(_group(_WORDING))),
        "calibration": _maybe(_group(None, {"temperature": _maybe(_number(0)), "images": _whole, "ece": _group(_SHARE)})),
        "retrieval": _maybe(_group(None, {"image_to_image": _group(_group(_group())), "groups": _group(_group(_group())),
                                          "image_to_text": _group(), "text_to_image": _group()})),
        "continual": _maybe(_CONTINUAL),
    },
    ("method", "results"),
)  # fmt: skip
