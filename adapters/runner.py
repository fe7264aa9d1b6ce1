"""One run, from recipe to run folder: prepare -> closed form -> training -> selection -> evaluation -> files."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from . import __version__, artifact, files, more_measures, run_record, show
from .callbacks.base_to_new import Spaces, label_spaces, measure
from .callbacks.checkpoint import KeepBest, ResumeCheckpoint, usable
from .callbacks.cross_dataset import OTHER, Target, measure_targets
from .callbacks.progress import TrainingProgress
from .callbacks.provenance import environment
from .callbacks.shift import SHIFT
from .errors import LimpetError, RecipeError, RunError
from .features import CachedFeatures, as_read, compute_for
from .images_with_features import ImagesWithFeatures
from .interpolation import post_step
from .loggers import log_results, named, open_loggers
from .module import AdaptationModule
from .ranks import LateLoader, leave_group, lost_process, rank, ready_to_train, shared_run_dir
from .recipe import CELL, Recipe
from .run_lock import held
from .runs import current, is_finished, new_run_dir, short
from .seen import data_name
from .session import Session, prepare, seed_everything, training_precision
from .tasks import task_of
from .transfer import facts, ready

if TYPE_CHECKING:
    from .adapter import Adapter, Batch
    from .continual import Regulariser, Task

CHECKPOINT = "last.ckpt"


def user_errors() -> tuple[type[Exception], ...]:
    """Errors that are the user's to mend: shown as a sentence, without a traceback."""
    data_error: type[Exception] = importlib.import_module("limpet.datamodules.errors").DataError
    return LimpetError, data_error


def check(recipe: Recipe) -> None:
    """Everything up to the first step, then the plan and the memory it takes on the screen."""
    named(recipe)
    session = prepare(recipe)
    show.plan(session)
    show.checked(session)


def fit(recipe: Recipe, run_dir: Path | None = None) -> Path:
    """Run a recipe and return its run folder.

    Args:
        recipe: one cell (no grid).
        run_dir: folder to use; None takes the next free number below `run.dir`/recipe name.
    """
    named(recipe)
    session = prepare(recipe)  # from here on `init_from` names one version
    given, name = run_dir, recipe.run.name or recipe.name
    if rank() > 0 and not learns_by_gradient(session):
        return given or Path(recipe.run.dir) / name  # the first process does it all
    run_dir = shared_run_dir(lambda: given or new_run_dir(name, Path(recipe.run.dir)), Path(recipe.run.dir).expanduser() / name)
    if rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
    with held(run_dir):
        if rank() == 0 and is_finished(run_dir):  # a grid's cell, by another process meanwhile
            return run_dir
        if rank() == 0:
            write_recipe(recipe, run_dir)
        return execute(session, run_dir)


def write_recipe(recipe: Recipe, run_dir: Path) -> None:
    """Write what a run is resumed from: of a grid's cell also what it is there; recipe.yaml comes last."""
    if recipe.cell:
        files.write_json(run_dir / CELL, recipe.cell)
    files.write_text(run_dir / "recipe.yaml", recipe.to_yaml())


def resume(run_dir: Path) -> Path:
    """Continue an interrupted run where its last epoch ended; a finished one is left as it is.

    Raises:
        RunError: it is finished, or another process works on it.
    """
    with held(run_dir):
        return _resume(run_dir)


def _resume(run_dir: Path) -> Path:
    refuse_finished(run_dir)
    recipe = Recipe.from_run(run_dir)
    record = run_record.read(run_dir) if rank() == 0 else None
    if record is not None:
        run_record.check_settings(record, recipe, run_dir)
    session = prepare(recipe)
    if record is not None:
        before, now = record["hash"], manifest_of(session)["hash"]
        if before != now:
            raise RunError(
                f"The data changed since {run_dir} was started (split {before[:12]} then, {now[:12]} now): "
                "resuming would mix two experiments. Start a new run with `limpet fit`."
            )
        run_record.check_weights(record, session, run_dir)
        run_record.check_images(record, session, run_dir)
    if rank() > 0 and not learns_by_gradient(session):
        return run_dir
    return execute(session, shared_run_dir(lambda: run_dir, run_dir.parent))


def refuse_finished(run_dir: Path) -> None:
    """Leave the adapter of a finished run alone.

    Raises:
        RunError: the run is finished.
    """
    if is_finished(run_dir):
        raise RunError(f"The run {run_dir} is finished: there is nothing to resume. `limpet evaluate` measures it again.")


def execute(session: Session, run_dir: Path) -> Path:
    """Train, evaluate and write everything; metrics.json comes last and marks the run as finished."""
    if session.plan is not None:
        runs_stream: Callable[[Session, Path], Path] = importlib.import_module(".stream_runner", __package__).execute
        return runs_stream(session, run_dir)
    started = time.monotonic()
    recipe = session.recipe
    session.loggers = open_loggers(recipe, run_dir)
    env = environment()
    manifest = session.data.manifest()
    if rank() > 0:  # a further device: it only helps to train
        train(session, with_features(session), run_dir)
        return run_dir
    refuse_finished(run_dir)  # once more: where there are no locks, another process may have finished it since
    run_record.write(manifest, session, run_dir)
    shutil.rmtree(run_dir / "adapter", ignore_errors=True)  # of an interrupted run
    files.clear(run_dir)
    show.plan(session, manifest)
    data = with_features(session)
    seconds = {"data": time.monotonic() - started}
    train(session, data, run_dir)
    seconds["fit"] = time.monotonic() - started - sum(seconds.values())
    spaces = measure(session.adapter, data, label_spaces(session.classes, recipe.protocol))
    task = task_of(session.adapter)
    reference = session.adapter.reference() or task.reference(session.backbone, session.classes)
    plain = frozen(session, data) if reference.task == "classification" else with_features(session, reference)
    zero_shot = measure(reference, plain, label_spaces(session.classes, recipe.protocol))
    targets = ready(session.targets, session.backbone, session.needs == "features", recipe.seed)
    spaces.add(measure_targets(session.adapter, targets))
    calibration = calibrate(session, data, spaces)
    zero_shot.add(measure_targets(reference, targets))
    seconds["evaluate"] = time.monotonic() - started - sum(seconds.values())
    metrics = metrics_of(session, data, manifest, spaces, zero_shot)
    if targets:
        metrics |= transfer_metrics(targets, spaces, zero_shot)
    metrics |= more_measures.measure_more(session.adapter, data, session.data, session.classes, recipe)
    if calibration:
        metrics["calibration"] = calibration["metrics"]
    augment = dataclasses.asdict(recipe.data.augment)
    record = {"metrics": metrics, "split_hash": manifest["hash"], "recipe": recipe.name, "seed": recipe.seed, "augment": augment}
    if calibration:
        record["calibration"] = calibration["calibration"]
    artifact.save(session.adapter, run_dir, record)
    files.write_csv(run_dir / "per_class.csv", task.class_rows(spaces, zero_shot))
    if hasattr(task, "write_pictures"):
        task.write_pictures(run_dir, spaces, thumbnails(session))
    files.write_csv(run_dir / "predictions.csv", [{"space": s, **row} for s, o in spaces.outcomes.items() for row in o.predictions()])
    more_measures.write(metrics, run_dir)
    env["seconds"] = {k: round(v, 3) for k, v in seconds.items()}
    files.write_json(run_dir / "env.json", env)
    files.write_json(run_dir / "metrics.json.part", metrics)
    task.write_report(run_dir, metrics, thumbnails(session))
    log_results(session.loggers, metrics)
    (run_dir / "metrics.json.part").replace(run_dir / "metrics.json")
    more_measures.show(metrics, show.console)
    task.show_results(session, metrics, run_dir)
    return run_dir


def calibrate(session: Session, data: Any, spaces: Spaces) -> dict[str, Any]:
    """What the task fits on the validation images to make probabilities honest; nothing for tasks without probabilities."""
    task = task_of(session.adapter)
    if not hasattr(task, "calibrated"):
        return {}
    held_out = data.restrict(session.training_classes.names).val_dataloader()
    found: dict[str, Any] = task.calibrated(session.adapter, held_out, spaces)
    return found


def manifest_of(session: Session) -> dict[str, Any]:
    """What was drawn and, of a stream, how it is cut into sessions; the hash is about both."""
    manifest: dict[str, Any] = session.data.manifest()
    if session.plan is not None:
        stream = session.plan.stream.manifest()
        manifest |= {"stream": stream, "hash": stream["hash"]}
    return manifest


def thumbnails(session: Session) -> Callable[[str], Any]:
    """A function from the path of a test image to its picture, drawn or read, or None."""
    samples = {sample.path: sample for sample in session.data.samples["test"]}
    reader = session.data.reader

    def find(path: str) -> Any:
        return reader(samples[path]) if path in samples else None

    return find


def with_features(session: Session, adapter: Adapter | None = None) -> Any:
    """The data module, with frozen features or tokens in place of images where the method reads only those."""
    augment = session.recipe.data.augment
    return as_read(adapter or session.adapter, session.data, augment, session.recipe.seed, augment.views)


def frozen(session: Session, data: Any) -> Any:
    """The data with frozen features, which zero-shot reads whatever the method reads; other runs find them cached."""
    if session.needs == "features":
        return data
    return CachedFeatures(session.data, session.backbone, session.recipe.data.augment, session.recipe.seed)


def fresh_augmentation(session: Session) -> bool:
    """Whether training images are augmented anew at every epoch, so that their features cannot be cached."""
    augment = session.recipe.data.augment
    return bool(augment.preset != "none" and augment.views == 0)


def train(
    session: Session, data: Any, run_dir: Path, regulariser: Regulariser | None = None, task: Task | None = None, first: bool = True
) -> None:
    """Closed form, gradient training, selection.

    Args:
        session: the run, or one session of a stream.
        data: its data, as `with_features` gives them.
        run_dir: where checkpoints go.
        regulariser: what is done against forgetting, with `task`; None: nothing.
        task: what the regulariser may know.
        first: False where the adapter has been fitted before, and has taken in further classes.
    """
    recipe, adapter = session.recipe, session.adapter
    training = data.restrict(session.training_classes.names)
    features = session.needs != "images"
    seed_everything(recipe.seed)
    if not first:
        pass  # done when the classes were added
    elif features:
        adapter.fit_closed_form(training.closed_form_batches("train", recipe.data.batch_size))
    else:
        adapter.fit_closed_form(training.train_dataloader())
    held_out = list(batches_on(training.val_dataloader(), session.backbone.device))
    if recipe.evaluate.select == "test_as_published":
        adapter.notes.append("Chosen on the test images, as published: the figures are optimistic.")
        held_out = list(batches_on(training.test_dataloader(), session.backbone.device))
    if learns_by_gradient(session):
        if regulariser is not None and task is not None:
            adapter.train()
            regulariser.start(adapter, task)
        gradient_training(session, LateLoader(training_batches(session, training)), held_out, run_dir, regulariser)
    adapter.eval()
    if first or adapter.selects_again:
        adapter.select(held_out)
    post_step(adapter, held_out)


def learns_by_gradient(session: Session) -> bool:
    """Whether a run comes to gradient training, which several processes can share."""
    return session.trainable and session.recipe.trainer.epochs > 0 and session.recipe.trainer.max_steps != 0


def training_batches(session: Session, training: Any) -> Callable[[], Any]:
    """What makes the batches of gradient training.

    Args:
        session: the run.
        training: its training classes' data, as `with_features` gives them.
    """
    images = session.data.restrict(session.training_classes.names)
    if fresh_augmentation(session):
        make: Callable[[], Any] = images.train_dataloader
        return make
    adapter, recipe = session.adapter, session.recipe
    if session.needs == "images" and adapter.reads_features_too(adapter.config, session.backbone.spec):
        augment = recipe.data.augment
        features = CachedFeatures(images, session.backbone, augment, recipe.seed, views=augment.views)
        return lambda: ImagesWithFeatures(images.train_dataloader(), features)
    make = training.train_dataloader
    return make


def batches_on(loader: Iterable[Batch], device: torch.device) -> Iterable[Batch]:
    """Batches with their tensors on `device`."""
    for batch in loader:
        yield {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def gradient_training(
    session: Session, loader: Any, held_out: Sequence[Batch], run_dir: Path, regulariser: Regulariser | None = None
) -> None:
    """Train with Lightning, from the checkpoint of an interrupted run where there is one."""
    recipe = session.recipe
    module = AdaptationModule(session.adapter, recipe.optim, recipe.seed, regulariser)
    split = "test" if recipe.evaluate.select == "test_as_published" else "val"
    best = KeepBest(held_out, split) if recipe.evaluate.select != "last" and held_out else None
    checkpoint = ResumeCheckpoint(run_dir / CHECKPOINT, every=max(1, recipe.trainer.epochs // 50))
    callbacks: list[Any] = [TrainingProgress(show.console), *([best] if best else []), checkpoint]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = make_trainer(
            recipe,
            max_epochs=recipe.trainer.epochs,
            max_steps=recipe.trainer.max_steps,
            accelerator=recipe.trainer.accelerator,
            devices=recipe.trainer.devices,
            num_nodes=recipe.trainer.num_nodes,
            strategy=recipe.trainer.strategy,
            precision=training_precision(recipe),
            gradient_clip_val=recipe.trainer.gradient_clip,
            log_every_n_steps=recipe.trainer.log_every,
            logger=session.loggers or open_loggers(recipe, run_dir),  # a session of a stream has a log of its own
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data modules' samplers already split by rank
        )
        session.adapter.train()
        if rank() == 0 and trainer.world_size > 1:
            alone = loader.make()
            check_lists(session, alone, trainer.world_size)
            compute_for(alone, recipe.trainer.epochs)  # cached before other processes ask for it
        ready_to_train()
        try:
            trainer.fit(module, loader, ckpt_path=usable(run_dir / CHECKPOINT, module))
        except RuntimeError as error:
            lost = lost_process(trainer, error)
            if not lost:
                raise
            run = short(current() or run_dir)
            raise RunError(f"{lost} while the run trained on several devices. Continue with: limpet resume {run}") from error
    leave_group()
    if trainer.interrupted:
        raise KeyboardInterrupt
    session.adapter.to(session.backbone.device)  # Lightning takes the module back to the CPU
    if best:
        best.restore(module)
    elif regulariser is not None:
        regulariser.finish(session.adapter)


def check_lists(session: Session, loader: Any, processes: int) -> None:
    """Refuse more processes than there are lists of images to be ordered in an epoch.

    Args:
        session: the run.
        loader: its training batches as one process alone takes them.
        processes: how many are to train together.

    Raises:
        RecipeError: some would have nothing to learn from.
    """
    if session.adapter.task == "ordering" and len(loader) < processes:
        found = f"{len(loader)} list{'' if len(loader) == 1 else 's'}"
        raise RecipeError(
            f"{processes} processes are to train together (trainer.devices, trainer.num_nodes), and the training images make {found} "
            f"of {session.recipe.data.batch_size} an epoch: take {len(loader)} or fewer, or a smaller data.batch_size."
        )


def make_trainer(recipe: Recipe, **settings: Any) -> lightning.Trainer:
    """A Trainer with the recipe's settings.

    Raises:
        RecipeError: Lightning refuses them.
    """
    try:
        return lightning.Trainer(**settings)
    except (ValueError, TypeError, MisconfigurationException) as error:
        section = recipe.trainer
        raise RecipeError(
            f"Lightning refuses trainer.accelerator={section.accelerator}, trainer.devices={section.devices}, "
            f"trainer.strategy={section.strategy}, trainer.precision={section.precision}: "
            f"{' '.join(str(error).split()).partition('. ')[0].rstrip('.')}."
        ) from error


def metrics_of(session: Session, data: Any, manifest: dict[str, Any], spaces: Spaces, zero_shot: Spaces) -> dict[str, Any]:
    """The content of metrics.json: only what the recipe, the machine and the thread count determine."""
    recipe, adapter = session.recipe, session.adapter
    notes = [*session.notes, *adapter.notes]
    notes += [f"{space}: {reason}" for space, reason in spaces.unanswered.items()]
    if data.unreadable:
        notes.append(f"{len(data.unreadable)} images could not be read and were left out; split.json lists them.")
    metrics: dict[str, Any] = {
        "format": 1,
        "limpet": __version__,
        "recipe": recipe.name,
        "method": adapter.variant(adapter.config),
        "backbone": session.backbone.spec.name,
        "fingerprint": session.backbone.fingerprint,
        "protocol": recipe.protocol,
        "seed": recipe.seed,
        "cell": recipe.cell,
        "shots": recipe.data.shots,
        "data": data_name(recipe.data),
        "split_hash": manifest["hash"],
        "trainable_parameters": sum(p.numel() for p in adapter.learnable()),
        "selected": adapter.selected,
        "select": recipe.evaluate.select,
        "results": spaces.results(),
        "zero_shot": zero_shot.results(),
        "zero_shot_columns": adapter.zero_shot_columns(adapter.config, session.backbone.spec),
        "unreadable": [files.printable(line) for line in sorted(data.unreadable)],
        "notes": [files.printable(note) for note in notes],
    }
    if recipe.protocol == "base_to_new":
        metrics["harmonic_mean"] = spaces.harmonic_mean()
        metrics["zero_shot_harmonic_mean"] = zero_shot.harmonic_mean()
    return metrics


def transfer_metrics(targets: Sequence[Target], spaces: Spaces, zero_shot: Spaces) -> dict[str, Any]:
    """What metrics.json says of further data besides their results: facts, and means over data sets (source excluded)."""
    found: dict[str, Any] = {"transfer": facts(targets)}
    for kind, prefix in (("other", OTHER), ("shift", SHIFT)):
        if any(target.space.startswith(prefix) for target in targets):
            found[f"{kind}_mean"] = spaces.mean(prefix)
            found[f"zero_shot_{kind}_mean"] = zero_shot.mean(prefix)
    unreadable = sum(len(target.data.unreadable) for target in targets)
    if unreadable:
        found["unreadable_elsewhere"] = unreadable
    return found
