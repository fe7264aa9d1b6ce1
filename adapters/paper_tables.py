"""The tables of the field's papers from runs on benchmarks, with published figures beside ours (no torch).

Averages are over data sets, each the mean of its seeds. The average row's H is that of the averaged base and new
accuracies, as papers report it; the mean of the data sets' own H is said below the table.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

AVERAGE = "average"
Figures = dict[str, dict[str, float]]  # method -> data set -> per cent
_TITLES = {
    "few_shot": "Few-shot, {} shots, all classes",
    "cross_dataset": "Cross-dataset, learned on imagenet ({} shots)",
    "domain_generalisation": "Domain generalisation, learned on imagenet ({} shots)",
}


@dataclass
class PaperTable:
    """A table as papers print it.

    Attributes:
        title: its heading.
        head: headings of the columns.
        rows: texts, a list for each row; the average last.
        notes: sentences below it: what a figure in brackets is, where it is from.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def rich(self) -> Table:
        """As a table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title), title_justify="left")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            if row[0].startswith(AVERAGE):
                table.add_section()
            table.add_row(*(Text(text) for text in row))
        return table

    def markdown(self) -> str:
        """In Markdown."""
        lines = [f"### {self.title}", "", "| " + " | ".join(self.head) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.head) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *self.notes]) + "\n"


@functools.cache
def published() -> dict[str, Any]:
    """Figures of the papers, in per cent, by protocol, method and data set, and where they are from."""
    text = resources.files(f"{__package__}.assets").joinpath("published.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def paper_tables(runs: Sequence[Mapping[str, Any]]) -> list[PaperTable]:
    """The papers' tables that runs give: those on data sets that papers report on, by recipe, backbone and protocol."""
    known = set(published()["zero_shot"]) - {AVERAGE}
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        if run.get("data") in known:
            groups[tuple(str(run.get(key)) for key in ("recipe", "backbone", "protocol", "shots"))].append(run)
    found = []
    for (_, backbone, protocol, shots), group in groups.items():
        if protocol == "base_to_new":
            found += base_to_new(group, backbone)
        for kind in _kinds(group, protocol):
            table = matrix(kind, group, backbone, shots)
            found += [table] if table else []
    return found


def base_to_new(runs: Sequence[Mapping[str, Any]], backbone: str) -> list[PaperTable]:
    """A table for each method: base, new and H of each data set and on average."""
    tables = []
    for method in dict.fromkeys(str(run["method"]) for run in runs):
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for run in runs:
            if run["method"] == method and {"base", "new"} <= set(run["results"]):
                sides = [run["results"][side].get("accuracy") for side in ("base", "new")]
                if None not in sides:
                    pairs[str(run["data"])].append((100 * float(sides[0]), 100 * float(sides[1])))
        ours = {name: (_mean(x for x, _ in both), _mean(y for _, y in both)) for name, both in pairs.items()}
        theirs = published()["base_to_new"].get(method, {})
        if not ours:
            continue
        rows = [
            [name, str(len(pairs[name])), *_three(*ours[name]), *(_two(x) for x in theirs.get(name, ()))] for name in _order(ours)
        ]
        base, new = (_mean(pair[side] for pair in ours.values()) for side in (0, 1))
        same = [theirs[name] for name in ours if name in theirs]
        beside = _three(*(_mean(row[side] for row in same) for side in (0, 1))) if len(same) == len(ours) else []
        rows.append([f"{AVERAGE} of {len(ours)}", "", *_three(base, new), *beside])
        head = ["data", "n", "Base", "New", "H"] + (["Base*", "New*", "H*"] if theirs else [])
        rows = [row + [""] * (len(head) - len(row)) for row in rows]
        own = _mean(harmonic(*pair) for pair in ours.values())
        notes = [f"H of the averages, as in papers; the mean of the data sets' own H is {_two(own)}."]
        if theirs:
            notes.append(_provenance("*", "base_to_new", backbone))
        tables.append(PaperTable(f"Base to new: {method} on {backbone}, %, mean of n seeds", head, rows, notes))
    return tables


def matrix(kind: str, runs: Sequence[Mapping[str, Any]], backbone: str, shots: str) -> PaperTable | None:
    """Data sets by methods, ours and in brackets the papers'; None where there is nothing to put into it."""
    ours = _accuracies(kind, runs)
    if not ours:
        return None
    names = _order({name: 0 for figures in ours.values() for name in figures})
    theirs: Figures = {method: _published(kind, method, shots) for method in ours}
    averaged = [name for name in names if kind == "few_shot" or name != "imagenet"]  # the source does not count
    rows = [[name, *(_beside(ours[m].get(name), theirs[m].get(name)) for m in ours)] for name in names]
    if len(averaged) > 1:
        last = [f"{AVERAGE} of {len(averaged)}"]
        for method, figures in ours.items():
            have = [figures[name] for name in averaged if name in figures]
            given = [theirs[method][name] for name in averaged if name in theirs[method]]
            whole = AVERAGE in theirs[method] and len(averaged) == {"few_shot": 11, "cross_dataset": 10}.get(kind, 4)
            mean = theirs[method][AVERAGE] if whole else _mean(given) if len(given) == len(averaged) else None
            last.append(_beside(_mean(have) if len(have) == len(averaged) else None, mean))
        rows.append(last)
    notes = [_provenance("In brackets", kind, backbone)] if any(theirs.values()) else []
    title = f"{_TITLES[kind].format(shots)}, {backbone}: accuracy, %, mean of seeds"
    return PaperTable(title, ["data", *ours], rows, notes)


def harmonic(base: float, new: float) -> float:
    """Harmonic mean; 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def _kinds(runs: Sequence[Mapping[str, Any]], protocol: str) -> list[str]:
    if protocol == "base_to_new":
        return []
    spaces = {space for run in runs for space in run["results"]}
    kinds = [k for k, prefix in (("cross_dataset", "other:"), ("domain_generalisation", "shift:"))
             if any(space.startswith(prefix) for space in spaces)]  # fmt: skip
    return kinds or ["few_shot"]


def _accuracies(kind: str, runs: Sequence[Mapping[str, Any]]) -> Figures:
    """Method -> data set -> per cent, mean of seeds."""
    every: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    prefix = {"cross_dataset": "other:", "domain_generalisation": "shift:"}.get(kind)
    for run in runs:
        for space, values in run["results"].items():
            name = str(run["data"]) if space == "all" else space.partition(":")[2]
            if values.get("accuracy") is not None and (space == "all" or (prefix and space.startswith(prefix))):
                every[str(run["method"])][name].append(100 * float(values["accuracy"]))
    return {method: {name: _mean(x) for name, x in figures.items()} for method, figures in every.items()}


def _published(kind: str, method: str, shots: str) -> dict[str, float]:
    if kind != "few_shot":
        return dict(published()[kind].get(method, {})) if shots == "16" or method == "zero_shot" else {}
    if method == "zero_shot":
        return dict(published()["zero_shot"])
    return dict(published()["few_shot"].get(method, {}).get(shots, {}))


def _provenance(mark: str, kind: str, backbone: str) -> str:
    given = published()
    other = "" if "B-16" in backbone else f" Yours are of {backbone}: the two cannot be compared."
    return f"{mark}: published, {given['sources'][kind]}; {given['backbone']}.{other}"


def _order(names: Mapping[str, Any]) -> list[str]:
    """Data sets in the order of papers' tables, others behind."""
    usual = [*published()["base_to_new"]["coop"], *published()["domain_generalisation"]["coop"]]
    return sorted(names, key=lambda name: (usual.index(name) if name in usual else len(usual), name))


def _three(base: float, new: float) -> list[str]:
    return [_two(base), _two(new), _two(harmonic(base, new))]


def _beside(ours: float | None, theirs: float | None) -> str:
    own = "–" if ours is None else _two(ours)
    return own if theirs is None else f"{own} ({_two(theirs)})"


def _two(number: float) -> str:
    return f"{number:.2f}"


def _mean(numbers: Any) -> float:
    return statistics.fmean(numbers)
