"""Streams: data that arrive in sessions, each with images of its own (class-, domain- or task-incremental)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import DataModule
from .configs import StreamConfig
from .errors import DataError, counted, nearest, some


@dataclass(frozen=True)
class StreamSession:
    """What one session brings.

    Attributes:
        name: what it is called.
        data: its own images: train, val and test.
        settings: what a task sets for itself (`TaskData`); empty elsewhere.
    """

    name: str
    data: DataModule
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes, in label order."""
        return tuple(self.data.class_names)


@dataclass
class Stream:
    """Sessions in their order.

    Attributes:
        by: "classes", "domains" or "tasks".
        sessions: the sessions.
        report: sentences for the plan.
    """

    by: str
    sessions: list[StreamSession]
    report: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sessions)

    def classes(self, count: int | None = None) -> tuple[str, ...]:
        """Names of the classes of the first `count` sessions (None: of all), each once, in order of appearance."""
        return tuple(dict.fromkeys(name for session in self.sessions[:count] for name in session.classes))

    def candidates(self, after: int, session: int) -> tuple[str, ...]:
        """Classes an image of `session` may be, asked after session `after` (both from 0).

        Tasks know which task an image is from: its own classes. Else all classes so far and, of a session that is still
        to come, its own.
        """
        if self.by == "tasks":
            return self.sessions[session].classes
        return tuple(dict.fromkeys((*self.classes(after + 1), *self.sessions[session].classes)))

    def manifest(self) -> dict[str, Any]:
        """The plan, JSON-able: {"by", "sessions": [{"name", "classes", "splits": {split: paths}, "hash"}], "hash"}."""
        sessions = []
        for session in self.sessions:
            own = session.data.manifest()
            splits = {split: content["paths"] for split, content in own["splits"].items()}
            sessions.append({"name": session.name, "classes": list(session.classes), "splits": splits, "hash": own["hash"]})
        text = json.dumps([self.by, [[s["name"], s["hash"]] for s in sessions]], ensure_ascii=False)
        return {
            "by": self.by,
            "sessions": sessions,
            "hash": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
        }


def class_sessions(names: Sequence[str], increment: int, first: int = 0) -> list[list[str]]:
    """B-m Inc-n: `first` classes, then `increment` at a time; B0 (first = 0) begins with an increment, too.

    The last session holds what is left.
    """
    start = first or increment
    rest = [list(names[i : i + increment]) for i in range(start, len(names), increment)]
    return [list(names[:start]), *rest]


def make_stream(
    config: StreamConfig, data: DataModule, tasks: Callable[[str], DataModule] | None = None, least: int = 2
) -> Stream:
    """Cut data into sessions; the same recipe gives the same ones.

    Args:
        config: the `stream` section.
        data: the data, set up; for "tasks" they are not looked at.
        tasks: gives the data module of a task by its name, set up.
        least: sessions that there must be; one is enough where something was trained before.

    Raises:
        DataError: the sessions asked for cannot be made of these data.
    """
    if config.by == "classes":
        stream = _by_classes(config, data)
    elif config.by == "domains":
        stream = _by_domains(config, data)
    elif config.by == "tasks":
        stream = _by_tasks(config, tasks)
    else:
        raise DataError("stream.by says nothing: it is classes, domains or tasks.")
    if len(stream) < least:
        more = "Lower stream.increment"
        if config.sessions:
            more = "List another in stream.sessions"
        elif config.by != "classes":
            more = "Name another in stream.tasks" if config.by == "tasks" else "Give images of another domain"
        raise DataError(
            f"The stream has one session only ({stream.sessions[0].name}): it needs two or more. {more}, or leave the stream out."
        )
    for session in stream.sessions:
        if not session.data.samples["test"]:
            stream.report.append(f"Session {session.name} has no test images: nothing can be measured on it.")
    return stream


def _ordered(names: Sequence[str], config: StreamConfig) -> list[str]:
    order = list(names)
    if config.order == "random":
        random.Random(config.order_seed).shuffle(order)
    return order


def _by_classes(config: StreamConfig, data: DataModule) -> Stream:
    names, report = _ordered(data.class_names, config), []
    if config.sessions:
        groups = _listed(config, data.class_names, "class", "classes")
        left = [name for name in data.class_names if not any(name in group for group in groups.values())]
        if left:
            report.append(f"{counted(len(left), 'class', 'classes')} in no session of the stream: {some(left)}.")
    else:
        if config.increment is None:
            raise DataError("stream.increment is missing: how many classes does each session bring? Or list stream.sessions.")
        if config.first >= len(names):
            raise DataError(f"stream.first is {config.first}, and there are only {len(names)} classes: none would be left.")
        cut = class_sessions(names, config.increment, config.first)
        groups = {str(number): group for number, group in enumerate(cut, 1)}
        if len(cut) > 2 and len(cut[-1]) < config.increment:
            report.append(f"The last session has {counted(len(cut[-1]), 'class', 'classes')} instead of {config.increment}.")
    return Stream("classes", [StreamSession(name, data.restrict(group)) for name, group in groups.items()], report)


def _by_domains(config: StreamConfig, data: DataModule) -> Stream:
    known = sorted({s.domain for samples in data.samples.values() for s in samples if s.domain is not None})
    if not known:
        raise DataError(
            "stream.by is domains, but the images have no domain; name the column that holds it with data.domain_column."
        )
    groups = _listed(config, known, "domain", "domains") if config.sessions else {n: [n] for n in _ordered(known, config)}
    return Stream("domains", [StreamSession(name, data.of_domains(group)) for name, group in groups.items()])


def _by_tasks(config: StreamConfig, tasks: Callable[[str], DataModule] | None) -> Stream:
    if not config.tasks or tasks is None:
        raise DataError("stream.by is tasks, and stream.tasks names none: give a name and a data section for each.")
    sessions = []
    for name in _ordered(list(config.tasks), config):
        settings = {"lr": lr} if (lr := getattr(config.tasks[name], "lr", None)) is not None else {}
        sessions.append(StreamSession(name, tasks(name), settings))
    return Stream("tasks", sessions)


def _listed(config: StreamConfig, known: Sequence[str], what: str, plural: str) -> dict[str, list[str]]:
    """The sessions as listed, after a check; `order: random` shuffles the sessions."""
    seen: dict[str, str] = {}
    for session, names in config.sessions.items():
        if not names:
            raise DataError(f"stream.sessions.{session} is empty: it needs at least one {what}.")
        for name in names:
            if name not in known:
                raise DataError(
                    f"stream.sessions.{session} names '{name}', which is no {what} of the data.{nearest(name, known)} "
                    f"Found: {some(list(known))}."
                )
            if name in seen:
                raise DataError(
                    f"The {what} '{name}' is in stream.sessions.{seen[name]} and in stream.sessions.{session}: "
                    f"sessions do not share {plural}."
                )
            seen[name] = session
    return {session: list(config.sessions[session]) for session in _ordered(list(config.sessions), config)}
