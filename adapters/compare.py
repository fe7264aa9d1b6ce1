"""Tables and plots across runs, from their metrics.json alone (no torch)."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import files, metrics_file
from . import runs as run_folders
from .csv_files import cell
from .errors import RunError
from .paper_tables import PaperTable, paper_tables
from .seen import MARK, pair, sentences

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# column key -> (heading, label space or None, metric)
COLUMNS: dict[str, tuple[str, str | None, str]] = {
    "accuracy": ("Accuracy", "all", "accuracy"),
    "balanced_accuracy": ("Balanced", "all", "balanced_accuracy"),
    "macro_f1": ("Macro F1", "all", "macro_f1"),
    "base": ("Base", "base", "accuracy"),
    "new": ("New", "new", "accuracy"),
    "harmonic_mean": ("H", None, "harmonic_mean"),
    "joint": ("Joint", "joint", "accuracy"),
    "joint_balanced": ("Joint balanced", "joint", "balanced_accuracy"),
    "joint_f1": ("Joint macro F1", "joint", "macro_f1"),
    "spearman": ("Spearman", "all", "spearman"),
    "pairwise_accuracy": ("Pairs", "all", "pairwise_accuracy"),
    "kendall": ("Kendall", "all", "kendall"),
    "image_auroc": ("Image AUROC", "all", "image_auroc"),
    "pixel_auroc": ("Pixel AUROC", "all", "pixel_auroc"),
    "stream_last": ("Last", "continual", "last"),
    "stream_average": ("Avg", "continual", "average_incremental"),
    "forgetting": ("Forgetting", "continual", "forgetting"),
    "transfer": ("Transfer", "continual", "transfer"),
    "retention": ("Retention", "continual", "retention"),
}
LESS_IS_BETTER = ("forgetting",)
_WIDE = ("joint_balanced", "joint_f1")  # in the files only: a terminal has 80 columns
MEANS = {"other": "Others", "shift": "Shifts"}  # kind of further data -> heading of the mean over its data sets
Groups = dict[tuple[str, ...], dict[Any, Mapping[str, Any]]]
_GROUP = ("recipe", "method", "backbone", "protocol", "shots", "variant")


@dataclass
class Row:
    """Runs that differ in their seed only.

    Attributes:
        group: recipe, method, backbone, protocol, shots (and `variant`: other values of the grid cell).
        seeds: Seed of each run, sorted; values have the same order.
        values: For each column the numbers in [0, 1] of the runs that have it.
        runs: The run folders.
        stands_for_all: Whether this is the zero-shot row taken from the runs of other methods.
        seen: A sentence for each data set that the backbone saw in pretraining.
    """

    group: dict[str, str]
    seeds: list[Any] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    stands_for_all: bool = False
    seen: list[str] = field(default_factory=list)

    def label(self, name: str) -> str:
        """A value of the group as shown; the method with a mark where the backbone saw the data in pretraining."""
        return self.group[name] + (f" {MARK}" if self.seen and name == "method" else "")

    def mean(self, column: str) -> float | None:
        """Mean over seeds, or None."""
        numbers = self.values.get(column)
        return statistics.fmean(numbers) if numbers else None

    def sd(self, column: str) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for fewer than two."""
        numbers = self.values.get(column, ())
        return statistics.stdev(numbers) if len(numbers) > 1 else None

    def show(self, column: str) -> str:
        """Percent as `mean ± sd`, or the mean alone for one seed."""
        mean, sd = self.mean(column), self.sd(column)
        if mean is None:
            return ""
        return f"{100 * mean:.1f}" if sd is None else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def load_runs(paths: Iterable[str | Path], notes: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the metrics of the finished runs that `paths` stand for (a folder stands for the runs below it).

    Each gets a key `run`, its folder. Runs that are missing, unfinished or damaged go to `notes`, a sentence each.

    Raises:
        RunError: If no run is left.
    """
    notes = notes if notes is not None else []
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            folders = _folders(path)
        except RunError as error:
            notes.append(str(error))
            continue
        for folder in folders:
            key = str(folder.resolve())
            if key in found:
                continue
            try:
                found[key] = {**read_metrics(folder), "run": str(folder)}
            except RunError as error:
                notes.append(str(error))
    if not found:
        raise RunError(" ".join(notes) or "No runs were given to compare.")
    return list(found.values())


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run.

    Raises:
        RunError: If the run is unfinished or the file is damaged or of a newer format. What is returned has the kinds of values
            that a run writes.
    """
    path = folder / run_folders.METRICS
    if not path.is_file():
        raise RunError(
            f"The run {folder} is not finished (no {path.name}). Go on with: limpet resume {folder}"
        )
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise RunError(f"{path} is damaged: it is nested too deeply. Leave this run out, or make it again.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}.") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("results"), dict):
        raise RunError(f"{path} does not hold the results of a run.")
    written = metrics.get("format", 1)
    if isinstance(written, int) and written > 1:
        raise RunError(f"{path} has format {written}; this Limpet reads 1. Install a newer Limpet.")
    metrics_file.check(metrics, path)
    return metrics


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Group runs by everything but their seed; zero-shot, the same for all methods, comes once and first.

    A run made again with the same result counts once; with another result it starts a row `#2`.
    """
    groups: Groups = {}
    for run in runs:
        key, again = _group(run), 1
        while True:
            seeds = groups.setdefault((*key[:-1], f"{key[-1]} #{again}".strip()) if again > 1 else key, {})
            same = seeds.setdefault(run.get("seed"), run)
            if same is run or same["results"] == run["results"]:
                break
            again += 1  # same seed, other numbers: something that metrics.json does not tell differs
    rows = [_row(key, seeds) for key, seeds in groups.items()] + _zero_shot(groups)
    methods = list(dict.fromkeys(row.group["method"] for row in rows))

    def place(row: Row) -> tuple[Any, ...]:
        group = row.group
        shots = int(group["shots"]) if group["shots"].isdigit() else 10**9
        method = (group["method"] != "zero_shot", methods.index(group["method"]))
        return group["recipe"], group["backbone"], group["protocol"], *method, shots, group["variant"]

    return sorted(rows, key=place)


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Return the Rich table of `summarise`'s rows; numbers are percent, mean ± sd over n seeds."""
    from rich.table import Table
    from rich.text import Text

    result = Table(title=Text(title) if title else None)
    labels, columns = _labels(rows), [c for c in _columns(rows) if c not in _WIDE]
    if all(row.values.get("stream_last") for row in rows if row.values.get("accuracy")):  # Last is the accuracy of a stream
        columns = [c for c in columns if c not in ("accuracy", "balanced_accuracy", "macro_f1")]
    for name in labels:
        longest = max(len(row.label(name)) for row in rows)
        result.add_column(name, overflow="fold", min_width=min(longest, 14))
    result.add_column("n", justify="right")
    for column in columns:
        result.add_column(heading(column), justify="right", no_wrap=True)
    for row in rows:
        cells = [Text(row.label(name)) for name in labels] + [Text(str(len(row.seeds)))]
        result.add_row(*cells, *(Text(row.show(column) or "–") for column in columns))
    return result


def print_table(run_dirs: Iterable[str | Path], console: Console | None = None) -> None:
    """Print the table of runs, then what each seed gave where there are several, then what was left out."""
    from rich.console import Console

    notes: list[str] = []
    rows = summarise(load_runs(run_dirs, notes))
    _print(rows, notes, console or Console())


def compare(runs: Iterable[str | Path], out: Path | None = None, console: Console | None = None) -> None:
    """Print the table of runs; with `out`, also write compare.md, compare.csv, compare.html, bars.png (and shots.png) there.

    Runs on data sets that papers report on give the papers' tables, too (with `out`: papers.md).

    Raises:
        RunError: If none of the runs is finished, or the folder cannot be written.
    """
    from rich.console import Console

    notes: list[str] = []
    found = load_runs(runs, notes)
    rows, papers = summarise(found), paper_tables(found)
    console = console or Console()
    _print(rows, notes, console)
    for paper in papers:
        console.print(paper.rich())
        for line in paper.notes:
            console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    if out is None:
        return
    try:
        written = write(rows, notes, Path(out), papers)
        if papers:
            files.write_text(Path(out) / "papers.md", "\n".join(paper.markdown() for paper in papers))
            written.append(Path(out) / "papers.md")
    except OSError as error:
        raise RunError(f"The comparison cannot be written to {out}: {error.strerror or error}.") from None
    console.print(f"Written: {', '.join(str(path) for path in written)}", highlight=False, markup=False,
                  soft_wrap=True)  # fmt: skip


def write(rows: Sequence[Row], notes: Sequence[str], out: Path, papers: Sequence[PaperTable] = ()) -> list[Path]:
    """Write the rows as Markdown, CSV and HTML, a bar chart, and a shots curve where runs differ in shots; return the files.

    The page holds the papers' tables, too.
    """
    from .compare_plots import bars, page, shots_curve

    out.mkdir(parents=True, exist_ok=True)
    picture, chart = shots_curve(rows), bars(rows, _labels(rows))
    contents: dict[str, bytes] = {
        "compare.md": markdown(rows).encode(),
        "compare.csv": as_csv(rows).encode(),
        "compare.html": page(rows, _labels(rows), _columns(rows), notes, picture, chart, papers).encode(),
    }
    contents |= {name: png for name, png in (("bars.png", chart), ("shots.png", picture)) if png is not None}
    for name, content in contents.items():
        files.write_bytes(out / name, content)
    return [out / name for name in contents]


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, with each seed's numbers below."""
    labels, columns = _labels(rows), _columns(rows)
    lines = ["| " + " | ".join([*labels, "n", *(_escape(heading(c)) for c in columns)]) + " |"]
    lines.append("|" + " --- |" * len(labels) + " ---: |" * (1 + len(columns)))
    for row in rows:
        cells = [_escape(row.label(name)) for name in labels] + [str(len(row.seeds))]
        lines.append("| " + " | ".join(cells + [row.show(c) for c in columns]) + " |")
    lines += ["", "Percent; mean ± standard deviation (n - 1) over n seeds.", ""]
    lines += [f"{_escape(line)}\n" for line in footnotes(rows)]
    lines += [f"- {_escape(line)}" for line in each_seed(rows)]
    return "\n".join(lines).rstrip() + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """One line per run and group: numbers in [0, 1], unrounded; `seed` is `mean` and `sd` for the summaries."""
    columns = _columns(rows)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_GROUP, "seed", "n", *columns, "run"])
    for row in rows:
        group = [cell(row.group[name]) for name in _GROUP]
        for number, seed in enumerate(row.seeds):
            values = [
                row.values[c][number] if len(row.values.get(c, ())) == len(row.seeds) else "" for c in columns
            ]
            writer.writerow([*group, seed, 1, *values, cell(row.runs[number])])
        for what, numbers in (("mean", map(row.mean, columns)), ("sd", map(row.sd, columns))):
            writer.writerow([*group, what, len(row.seeds), *("" if x is None else x for x in numbers), ""])
    return buffer.getvalue()


def footnotes(rows: Sequence[Row]) -> list[str]:
    """What the mark beside a method means, for each data set seen in pretraining."""
    return [f"{MARK} {line}" for line in dict.fromkeys(line for row in rows for line in row.seen)]


def each_seed(rows: Sequence[Row]) -> list[str]:
    """A line per row of several seeds with the headline number of each."""
    lines = []
    for row in rows:
        column = next((c for c in ("harmonic_mean", "accuracy", "joint", "spearman", "image_auroc") if row.values.get(c)), None)
        if column is None or len(row.seeds) < 2 or row.stands_for_all or len(row.values[column]) != len(row.seeds):
            continue
        numbers = zip(row.seeds, row.values[column], strict=True)
        name = " ".join(row.group[key] for key in _labels(rows) if row.group[key]) or row.group["method"]
        shown = ", ".join(f"seed {seed}: {100 * number:.1f}" for seed, number in numbers)
        lines.append(f"{name}, {heading(column)}: {shown}")
    return lines


def _folders(path: str | Path) -> list[Path]:
    """The runs that a path or the name of a run, a recipe or a grid stands for."""
    folder = Path(path)
    if run_folders.is_finished(folder) or run_folders.is_run(folder):
        return [folder]
    below = run_folders.runs_below(folder) or [
        p.parent for p in sorted(folder.glob(f"*/{run_folders.METRICS}"))
    ]
    return below or run_folders.expand_runs([str(path)])


def _print(rows: Sequence[Row], notes: Sequence[str], console: Console) -> None:
    console.print(table(rows))
    console.print("Percent; mean ± standard deviation (n - 1) over n seeds.", style="dim", highlight=False)
    for line in [*footnotes(rows), *each_seed(rows), *notes]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _group(run: Mapping[str, Any]) -> tuple[str, ...]:
    """What a run has in common with the runs that differ in their seed only."""
    known = {"seed", "method", "method.name", "backbone", "backbone.name", "protocol", "data.shots"}
    extra = run.get("cell")
    other = {k: v for k, v in extra.items() if k not in known} if isinstance(extra, Mapping) else {}
    variant = " ".join(f"{key}={value}" for key, value in sorted(other.items()))
    return (*("" if run.get(key) is None else str(run[key]) for key in _GROUP[:-1]), variant)


def _row(key: tuple[str, ...], seeds: Mapping[Any, Mapping[str, Any]], source: str | None = None) -> Row:
    row = Row(dict(zip(_GROUP, key, strict=True)))
    for seed, run in sorted(
        seeds.items(), key=lambda item: (isinstance(item[0], str), str(item[0]).zfill(20))
    ):
        row.seeds.append(seed)
        row.seen += [line for line in sentences([pair(run)]) if line not in row.seen]
        row.runs.append(str(run.get("run", "")))
        results = run.get("results", {}) if source is None else run[source]
        for column, (_, space, metric) in COLUMNS.items():
            if space is None:
                number = run.get("harmonic_mean") if source is None else _harmonic(results)
            elif space == "continual":
                number = _over_sessions(run.get("continual") or {}, metric, source is not None)
            else:
                number = (results.get(space) or {}).get(metric)
            if number is not None and not math.isnan(number):  # NaN is what could not be computed
                row.values.setdefault(column, []).append(float(number))
        for column, number in _elsewhere(results).items():
            row.values.setdefault(column, []).append(number)
    return row


def _over_sessions(stream: Mapping[str, Any], metric: str, zero_shot: bool) -> float | None:
    """A figure of a stream: of the run, or, where it has one, of zero-shot. Retention is the mean over further data."""
    if metric == "retention":
        mean = (stream.get("retention") or {}).get("mean") or {}
        return mean.get("zero_shot" if zero_shot else "after")
    if not zero_shot:
        return stream.get(metric)
    seen = [value for value in stream.get("zero_shot_seen", ()) if value is not None]
    figures = {"last": seen[-1], "average_incremental": statistics.fmean(seen)} if seen else {}
    return figures.get(metric)


def _elsewhere(results: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies on further data ("other:NAME", "shift:NAME"), and their means where there are several of a kind."""
    found: dict[str, float] = {}
    for kind in MEANS:
        own = {s: v.get("accuracy") for s, v in results.items() if s.startswith(f"{kind}:")}
        numbers = {space: float(a) for space, a in own.items() if a is not None and not math.isnan(a)}
        found |= numbers
        if len(numbers) > 1:
            found[f"{kind}_mean"] = statistics.fmean(numbers.values())
    return found


def heading(column: str) -> str:
    """Heading of a column: a word of `COLUMNS`, the name of further data, or that of a mean over these."""
    if column in COLUMNS:
        return COLUMNS[column][0]
    kind = column.removesuffix("_mean")
    return MEANS[kind] if kind in MEANS else column.partition(":")[2]


def _zero_shot(groups: Groups) -> list[Row]:
    """One row per recipe, backbone, protocol and data set, unless zero_shot itself was run.

    Zero-shot does not depend on the method or the shots; of runs with one seed the first stands for all.
    """

    def about(key: tuple[str, ...]) -> tuple[str, str, str, str]:
        source = [word for word in key[5].split(" ") if word.startswith(("data.dataset=", "data.root=", "data.variant="))]
        return key[0], key[2], key[3], " ".join(source)

    own = {about(key) for key in groups if key[1] == "zero_shot"}
    gathered: dict[tuple[str, str, str, str], dict[Any, Mapping[str, Any]]] = {}
    for key, seeds in groups.items():
        for seed, run in seeds.items():
            if isinstance(run.get("zero_shot"), Mapping) and run["zero_shot"]:
                gathered.setdefault(about(key), {}).setdefault(seed, run)
    rows = []
    for (recipe, backbone, protocol, source), seeds in gathered.items():
        if (recipe, backbone, protocol, source) not in own:
            row = _row((recipe, "zero_shot", backbone, protocol, "", source), seeds, "zero_shot")
            row.stands_for_all = True
            rows.append(row)
    return rows


def harmonic_mean(base: float, new: float) -> float:
    """Harmonic mean of base and new accuracy, as in `metrics` (which imports torch); 0 where one of them is."""
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0


def _harmonic(results: Mapping[str, Any]) -> float | None:
    base, new = ((results.get(space) or {}).get("accuracy") for space in ("base", "new"))
    return None if base is None or new is None or math.isnan(base + new) else harmonic_mean(base, new)


def _labels(rows: Sequence[Row]) -> list[str]:
    """Group keys worth a column: the method always, others where they differ."""
    return [k for k in _GROUP if k == "method" or len({r.group[k] for r in rows if not r.stands_for_all}) > 1]


def _columns(rows: Sequence[Row]) -> list[str]:
    own = [column for column in COLUMNS if any(row.values.get(column) for row in rows)]
    elsewhere = list(dict.fromkeys(c for row in rows for c in row.values if c not in COLUMNS))
    ordered = [c for kind in MEANS for c in (*(x for x in elsewhere if x.startswith(f"{kind}:")), f"{kind}_mean")]
    return own + [c for c in ordered if c in elsewhere]


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
