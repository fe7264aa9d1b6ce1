"""The `limpet` command: thin; each command imports what it needs when it runs."""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_errors import sentence
from .cli_process import after_interrupt, close_output, complain, notice_signals, spoken
from .errors import LimpetError
from .screens import say, show_doctor, show_methods, show_recipes

app = typer.Typer(
    name="limpet",
    help="Adapt a frozen CLIP to your own images by training something small beside it.",
    epilog="First: limpet fit quickstart. Settings are words: data.shots=4; a comma makes a grid: seed=1,2,3",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List, show and copy the packaged recipes.", invoke_without_command=True)
cache_app = typer.Typer(help="Show or clear the cache of frozen features.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel="Look up")
app.add_typer(cache_app, name="cache", rich_help_panel="Look up")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from `limpet recipes`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings laid over the recipe.", show_default=False),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A path, recipe/nnn, or recipe for its newest finished run.")
]
ClassNames = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of classes.")]
RunsDir = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of all runs.")]
RUNS = Path("runs")
_SHOWN = 4  # cells of a grid that `recipes show` writes out


def _module(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


def _version(value: bool) -> None:
    if value:
        say(f"limpet {_module('_version').__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Import no method or logger of your own (LIMPET_NO_PLUGINS=1).")
    ] = False,
) -> None:
    """Adapt a frozen CLIP to your own images by training something small beside it."""


@app.command(rich_help_panel="Train")
def fit(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Train and evaluate a recipe; write a run folder."""
    loaded = _module("recipe").load(recipe, overrides or [])
    _module("show").said.clear()
    if len(loaded) == 1:
        _module("runner").fit(loaded[0])
    else:
        _module("grid").fit_grid(loaded)


@app.command(rich_help_panel="Train")
def resume(run: RunName, runs: RunsDir = RUNS) -> None:
    """Continue an interrupted run."""
    folder = _module("runs").resolve_run(run, runs, "unfinished")
    _module("show").said.clear()
    _module("runner").resume(_module("runs").mark_current(folder))


@app.command(rich_help_panel="Train")
def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Do everything up to the first training step: files, classes, backbone, memory."""
    loaded = _module("recipe").load(recipe, overrides or [])
    _module("show").said.clear()
    if len(loaded) == 1:
        _module("runner").check(loaded[0])
    else:
        _module("grid_plan").show_plan(loaded)


@app.command(rich_help_panel="Use")
def evaluate(run: RunName, overrides: Overrides = None, runs: RunsDir = RUNS) -> None:
    """Evaluate a run again, on another split or data set."""
    words = list(overrides or [])
    for word in words:
        _module("compose").parse_override(word)
    folder = _module("runs").resolve_run(run, runs)
    _module("evaluate").evaluate_run(folder, words)


@app.command(rich_help_panel="Use")
def predict(
    run: RunName,
    path: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Images, folders, zip archives, or patterns like 'new/*.jpg'.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Table to write: .csv, .parquet or .jsonl.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", "--top-k", min=1, metavar="K", help="Write the K likeliest classes.")
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option("--coverage", metavar="SHARE", help="Abstain, answering about this share (chosen on validation images)."),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", metavar="SHARE", help="Abstain, with at most this share wrong (likewise)."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", metavar="P", help="Abstain where the probability is less than P.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="TEXT", help="Order images by this, in words.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="CSV with path and value, to show mistakes in an order."),
    ] = None,
    runs: RunsDir = RUNS,
) -> None:
    """Classify images with a run's adapter, or put them in order; write a table (and a contact sheet)."""
    folder = _adapter(run, runs)
    settings = {"coverage": coverage, "max_error": max_error, "threshold": threshold}
    if _module("predict").predict_command(folder, path, out, top, instruction=instruction, labels=labels, **settings):
        raise typer.Exit(1)


@app.command(rich_help_panel="Use")
def explain(
    run: RunName,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to explain.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="PNG to write.")] = None,
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Explain this class instead of the likeliest one.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if there is one.")] = False,
    runs: RunsDir = RUNS,
) -> None:
    """Show what a decision rests on: patches, near training images, words near learned tokens; write a PNG."""
    folder = _adapter(run, runs)
    _module("explain").explain_command(folder, image, out, label, force)


@app.command(rich_help_panel="Use")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run as elsewhere, or the folder of an adapter.")],
    to: Annotated[
        str, typer.Option("--to", metavar="WHAT", help="adapter, merged, onnx, peft, weights or hub-folder.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to make; by default exports/WHAT in the run's folder, numbered."),
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", help="Version of the adapter; by default the newest.")
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="For onnx: class weights beside the model, which then gives features.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option("--images", metavar="PATH", help="Images to compare answers on (256 at most); by default drawn ones."),
    ] = None,
    runs: RunsDir = RUNS,
) -> None:
    """Write a run's adapter in a form that others use, once its answers are proved to be the same."""
    folder = _adapter(run, runs)
    _module("export").export_command(folder, to, out, version, beside, images)


@app.command("add-classes", rich_help_panel="Use")
def add_classes(
    run: RunName,
    names: ClassNames,
    shots: Annotated[
        Path | None, typer.Option("--shots", metavar="DIR", help="Images: a sub-folder for each new class.")
    ] = None,
    runs: RunsDir = RUNS,
) -> None:
    """Add classes to a run's adapter; write a new version of it."""
    _grow(run, runs, lambda grow, folder: grow.add_classes(folder, names, shots))


@app.command("remove-classes", rich_help_panel="Use")
def remove_classes(run: RunName, names: ClassNames, runs: RunsDir = RUNS) -> None:
    """Remove classes from a run's adapter; write a new version of it."""
    _grow(run, runs, lambda grow, folder: grow.remove_classes(folder, names))


@app.command("rename-classes", rich_help_panel="Use")
def rename_classes(
    run: RunName,
    names: Annotated[list[str], typer.Argument(metavar="OLD=NEW...", help="Present and new name.")],
    reword: Annotated[
        bool, typer.Option("--reword", help="Put the new names into the prompts, too: that changes answers.")
    ] = False,
    runs: RunsDir = RUNS,
) -> None:
    """Rename classes of a run's adapter; write a new version of it."""
    _grow(run, runs, lambda grow, folder: grow.rename_classes(folder, names, reword))


def _adapter(run: str, runs: Path) -> Any:
    """The folder of a run, or of an adapter by itself."""
    module = _module("runs")
    return Path(run) if module.is_adapter(Path(run)) else module.resolve_run(run, runs)


def _grow(run: str, runs: Path, change: Callable[[Any, Path], Any]) -> None:
    folder = _module("runs").resolve_run(run, runs)
    grow = _module("grow")
    before = len(_module("artifact").load_info(folder)["classes"]["names"])
    version, classifier = change(grow, folder)
    say(grow.report(run, version, before, classifier))


@app.command(rich_help_panel="Use")
def index(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Images, also in sub-folders.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[backbone=NAME]...", help="The backbone, without --run.", show_default=False),
    ] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Take the features of a run's adapter.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the index; default indexes/NAME.")
    ] = None,
    pooling: Annotated[
        str, typer.Option("--pooling", metavar="WORD", help="class, mean, max, rmac or multi_crop.")
    ] = "class",
    groups: Annotated[
        int | None, typer.Option("--groups", metavar="K", help="Also sort the images into K groups.")
    ] = None,
    runs: RunsDir = RUNS,
) -> None:
    """Make an index of a folder's images to search in."""
    found = _module("runs").resolve_run(run, runs) if run is not None else None
    if _module("search_command").index_command(folder, found, overrides or [], out, pooling, groups):
        raise typer.Exit(1)


@app.command(rich_help_panel="Use")
def search(
    folder: Annotated[str, typer.Argument(metavar="INDEX", help="Folder made by `limpet index`.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A text, or an image file.")],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many images.")] = 10,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="CSV to write.")] = None,
) -> None:
    """Find the images of an index that are nearest to a text or an image; write a contact sheet."""
    _module("search_command").search_command(folder, query, top, out)


@app.command(rich_help_panel="Use")
def compare(
    run: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, grids, or recipes: all finished runs of each.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for tables and plots.")
    ] = None,
    runs: RunsDir = RUNS,
) -> None:
    """Put the results of several runs side by side."""
    folders = _module("runs").expand_runs(run, runs)
    _module("compare").compare(folders, out)


@app.command(rich_help_panel="Look up")
def methods() -> None:
    """List the methods and the recipes that hold their protocols."""
    show_methods()


@app.command(rich_help_panel="Look up")
def doctor() -> None:
    """Show versions, devices and folders, and what should be mended."""
    if not show_doctor():
        raise typer.Exit(1)


@recipes_app.callback()
def _recipes(context: typer.Context) -> None:
    """List, show and copy the packaged recipes."""
    if context.invoked_subcommand is None:
        show_recipes()


@recipes_app.command("show")
def recipes_show(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe as it would run, each value with its origin."""
    loaded = _module("recipe").load(recipe, overrides or [])
    for one in loaded[:_SHOWN]:
        if len(loaded) > 1:
            say(f"# cell: {' '.join(f'{k}={v}' for k, v in one.cell.items())}")
        for note in one.notes:
            say(f"# note: {note}")
        say(one.to_yaml(origins=True).rstrip("\n"))
    if len(loaded) > _SHOWN:
        say(f"# and {len(loaded) - _SHOWN} more cells; the last: {' '.join(f'{k}={v}' for k, v in loaded[-1].cell.items())}")


@recipes_app.command("copy")
def recipes_copy(
    recipe: RecipeName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if there is one.")] = False,
) -> None:
    """Copy a recipe, with its comments, to a file of your own."""
    source, _ = _module("compose").find_recipe(recipe)
    target = file / f"{Path(recipe).stem}.yaml" if file.is_dir() else file
    if target.suffix not in (".yaml", ".yml"):
        target = target.with_name(target.name + ".yaml")
    if target.exists() and not force:
        raise LimpetError(f"{target} is there already; give another name, or --force to overwrite it.")
    if not target.parent.is_dir():
        raise LimpetError(f"There is no folder {target.parent} to write {target.name} in.")
    _module("files").write_bytes(target, source.read_bytes())
    say(f"Wrote {target}. Change it, then: limpet check {target}")


@cache_app.callback()
def _cache(context: typer.Context) -> None:
    """Show or clear the cache of frozen features."""
    if context.invoked_subcommand is None:
        features = _module("features")
        say(f"{features.cache_dir()}: {_module('doctor').size(features.cache_size())}")


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete all cached features; they are computed again when needed."""
    say(f"Freed {_module('doctor').size(_module('features').clear_cache())}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The words after `limpet`; those of the process if None.

    Returns:
        The exit code: 0, 1 for a failure, 2 for a mistake of the user, 130 after Ctrl-C, 143 where the process was asked to
        end (SIGTERM), 141 where its output was closed before a run was finished.
    """
    with spoken():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    trusting = "--no-plugins" not in words
    words = [w for w in words if w not in ("--debug", "--no-plugins")] or ["--help"]
    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # the sentence, not the source line
    stopped: list[int] = []
    previous = notice_signals(stopped)
    try:
        with _module("plugins").refused(not trusting):
            result = app(words, prog_name="limpet", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()  # a closed pipe is noticed here, not when the interpreter ends
    except KeyboardInterrupt:
        stopped.append(signal.SIGINT)
        code = 128 + signal.SIGINT
    except SystemExit as exit_:  # Lightning leaves this way after Ctrl-C, typer when its output is closed
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if isinstance(exit_.__context__, BrokenPipeError):
            code = close_output()
    except BrokenPipeError:
        code = close_output()
    except Exception as err:
        message = sentence(err, words, app)
        if message is None or debug:
            raise
        complain(message)
        code = 2
    finally:
        warnings.formatwarning = shown
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        after_interrupt()
        code = 128 + stopped[0]
    return code


if __name__ == "__main__":
    sys.exit(main())
