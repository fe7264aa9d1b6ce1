"""A run over a stream of sessions: train, measure and save after each; what was done survives a kill."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import artifact, continual_report, files, run_record, runner, show, stream_calibration, stream_show
from .callbacks.base_to_new import Spaces
from .callbacks.continual import retention, summary
from .callbacks.continual import seen as seen_accuracies
from .callbacks.cross_dataset import OTHER, measure_targets
from .callbacks.provenance import environment
from .continual import Task
from .errors import NeedsImages, RunError
from .feature_batches import FeatureBatches
from .features import CachedFeatures
from .session import Session, seed_everything
from .tasks.classification import Outcome, evaluate, reference
from .transfer import facts, ready

if TYPE_CHECKING:
    from .adapter import Adapter, Batch
    from .classes import ClassSet

STATE, SESSIONS = "stream.json", "sessions"
FORMAT = 1


def execute(session: Session, run_dir: Path) -> Path:
    """Run all sessions that are not done, then write what a run leaves; metrics.json comes last."""
    started = time.monotonic()
    env = environment()
    manifest = runner.manifest_of(session)
    runner.refuse_finished(run_dir)  # once more, as in a run without sessions
    run_record.write(manifest, session, run_dir)
    show.plan(session, manifest)
    work = StreamRun(session, run_dir)
    work.restore()
    for number in range(work.done, len(work.plan)):
        work.run(number)
    result = work.finish(manifest)
    env["seconds"] = {"all": round(time.monotonic() - started, 3)}
    files.write_json(run_dir / "env.json", env)
    files.write_json(run_dir / "metrics.json.part", result)
    continual_report.write_pictures(run_dir, result["continual"])
    task = importlib.import_module(".tasks.classification", __package__)
    task.write_report(run_dir, result, work.thumbnail)
    (run_dir / "metrics.json.part").replace(run_dir / "metrics.json")
    stream_show.results(result, run_dir)
    return run_dir


def read_state(path: Path) -> dict[str, Any]:
    """What a stream had done before it was interrupted.

    Raises:
        RunError: the file is damaged, or of a newer format.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        number = state["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}): the sessions done are lost. Start again with `limpet fit`.") from None
    if number != FORMAT:
        raise RunError(f"{path} has format {number}; this Limpet reads {FORMAT}. Install a newer Limpet.")
    missing = [key for key in ("done", "matrix", "kept", "facts") if key not in state]
    if missing:
        raise RunError(f"{path} is damaged: it has no {', '.join(missing)}. Start again with `limpet fit`.")
    return dict(state)


class StreamRun:
    """The state of a run over a stream.

    Attributes:
        done: sessions that are trained, measured and saved.
        matrix: accuracy on the test images of session j (column) after session i (row); None where it cannot be asked.
        kept: accuracy on further data after each session, by name.
        facts: what each session says of itself: selected hyper-parameters and notes.
        memory: kept images of earlier sessions, or None.
    """

    def __init__(self, session: Session, run_dir: Path) -> None:
        assert session.plan is not None
        self.session, self.run_dir, self.plan = session, run_dir, session.plan
        self.parts = self.plan.stream.sessions
        self.images = [len(part.data.samples["test"]) for part in self.parts]
        self.done = 0
        self.matrix: list[list[float | None]] = []
        self.kept: list[dict[str, float | None]] = []
        self.facts: list[dict[str, Any]] = []
        self.regulariser = session.regulariser
        self.memory: Any = None
        if self.regulariser.memory:
            module = importlib.import_module("limpet.datamodules.memory")
            self.memory = module.ExemplarMemory(self.regulariser.memory, session.recipe.continual.memory_choice, session.recipe.seed)
        self.targets = ready(session.targets, session.backbone, session.needs == "features", session.recipe.seed)
        self._answers: list[Outcome | None] | None = None  # after the last session
        self._tests: dict[int, Any] = {}

    # What is kept on disk

    def restore(self) -> None:
        """Take up what an interrupted run had done; an artefact whose session was not measured yet is made again."""
        path = self.run_dir / STATE
        if path.is_file():
            state = read_state(path)
            self.done, self.matrix, self.kept, self.facts = state["done"], state["matrix"], state["kept"], state["facts"]
            if self.memory is not None:
                self.memory.restore(state["memory"])
            for number in range(self.done):  # it was killed before it could do that
                self._folder(number).joinpath(runner.CHECKPOINT).unlink(missing_ok=True)
        for number, folder in artifact.versions(self.run_dir):
            if number > self.done:
                shutil.rmtree(folder)
        files.clear(self.run_dir)

    def save(self) -> None:
        """Write the state, atomically."""
        state = {"format": FORMAT, "done": self.done, "matrix": self.matrix, "kept": self.kept, "facts": self.facts}
        if self.memory is not None:
            state["memory"] = self.memory.state()
        files.write_json(self.run_dir / STATE, state)

    # One session

    def start(self, number: int) -> Adapter:
        """The adapter as the last session left it; every session starts from the saved one, so that resuming is the same."""
        if number == 0:
            return self.session.adapter
        return artifact.load(self.run_dir, self.session.backbone, number)

    def run(self, number: int) -> None:
        """Train on a session, measure on all, save."""
        recipe, part, seen = self.session.recipe, self.parts[number], self.plan.seen(number)
        stream_show.header(self.plan, number)
        seed_everything(recipe.seed)
        adapter = self.start(number)
        rows = adapter.per_class(adapter.config, adapter.backbone.spec)
        everything = self.regulariser.sees_all or bool(rows) or recipe.stream.candidates == "seen" or not self.session.trainable
        by_task = self.plan.stream.by == "tasks"
        training = seen if everything and not by_task else self.plan.own(number)
        whole = part.data if by_task else part.data.within(seen.names)
        own = dataclasses.replace(
            self.session, recipe=self._recipe(part), data=whole, classes=seen, training_classes=training, adapter=adapter
        )
        data = runner.with_features(own)
        fresh = number == 0 and self.plan.known is None
        if not fresh:
            self.grow(adapter, seen, part.data.within(seen.names))
        seed_everything(recipe.seed)
        folder = self._folder(number)
        with adapter.answering(training):
            task = self._task(own, number, seen)
            runner.train(own, data, folder, self.regulariser, task, first=fresh)
        adapter.eval()
        if self.memory is not None:
            self.memory.add(number, *self._features(own, number))
        answers = self.measure(adapter, number)
        self._answers = answers
        self.matrix.append(_accuracies(answers))
        self.kept.append(self.retained(adapter))
        self.facts.append({"selected": dict(adapter.selected), "notes": list(adapter.notes)})
        record = {"recipe": recipe.name, "seed": recipe.seed, "augment": dataclasses.asdict(recipe.data.augment)}
        record |= {"session": part.name, "session_hash": part.data.manifest()["hash"], "accuracies": self.matrix[-1]}
        calibration = stream_calibration.fit(adapter, [self.tests(j) for j in range(number + 1)], seen)
        if calibration is not None:
            record["calibration"] = calibration.to_dict()
        artifact.save(adapter, self.run_dir, record)
        self.done = number + 1
        self.save()
        (folder / runner.CHECKPOINT).unlink(missing_ok=True)
        for emptied in (folder, folder.parent):  # loggers may have written there
            if emptied.is_dir() and not any(emptied.iterdir()):
                emptied.rmdir()
        stream_show.line(self.matrix[-1], seen_accuracies(self.matrix, self.images)[-1], self.kept[-1])

    def _folder(self, number: int) -> Path:
        return self.run_dir / SESSIONS / f"{number + 1:02d}"

    def _recipe(self, part: Any) -> Any:
        """The recipe with what a task sets for itself."""
        recipe = self.session.recipe
        if "lr" in part.settings:
            recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=part.settings["lr"]))
        if self.plan.stream.by == "tasks":
            recipe = dataclasses.replace(recipe, data=part.data.config)
        return recipe

    def grow(self, adapter: Adapter, seen: ClassSet, data: Any) -> None:
        """Let the adapter take the classes (and, for methods that keep images, the images) of a further session."""
        batches = None
        if adapter.needs(adapter.config, adapter.backbone.spec) == "features":
            features = CachedFeatures(
                data, adapter.backbone, self.session.recipe.data.augment, self.session.recipe.seed,
                views=self.session.recipe.data.augment.views,
            )  # fmt: skip
            batches = features.closed_form_batches("train", self.session.recipe.data.batch_size)
        adapter.add_classes(seen, batches)

    def _task(self, own: Session, number: int, seen: ClassSet) -> Task:
        """What the regulariser may know."""
        recipe, part = own.recipe, own.data.restrict(own.training_classes.names)

        def batches() -> Iterable[Batch]:
            return runner.batches_on(part.loader("train", batch_size=recipe.data.batch_size), own.backbone.device)

        texts = tuple(dict.fromkeys(seen.text(name) for name in seen.names))
        plain = recipe.data.augment.preset == "none"
        exemplars = self._exemplars(own, number, seen) if self.memory is not None and number else None
        return Task(number, texts, recipe.seed, batches, plain, exemplars)

    def _exemplars(self, own: Session, number: int, seen: ClassSet) -> Callable[[int], tuple[Batch, ClassSet | None]]:
        """Batches of kept images: of all earlier sessions, or, where tasks have their own candidates, of one of them."""
        recipe, by_task = own.recipe, self.plan.stream.by == "tasks"
        kept = {n: self.parts[n].data.training_on(self.memory.paths(n)) for n in range(number)}
        sources: list[tuple[ClassSet | None, Any]]
        if by_task:
            sources = [(self.plan.own(n), data) for n, data in kept.items() if data.samples["train"]]
        else:
            together = kept[0].within(seen.names)
            together.samples["train"] = [s for data in kept.values() for s in data.within(seen.names).samples["train"]]
            sources = [(None, together)] if together.samples["train"] else []
        drawn = [Exemplars(own, data, recipe.data.batch_size) for _, data in sources]

        def draw(step: int) -> tuple[Batch, ClassSet | None]:
            generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + number * 10_007 + step) % 2**63)
            which = 0
            if len(drawn) > 1:
                which = int(torch.multinomial(torch.tensor([float(len(d)) for d in drawn]), 1, generator=generator))
            return drawn[which].draw(step, generator), sources[which][0]

        return draw

    def _features(self, own: Session, number: int) -> tuple[Any, Tensor]:
        """The session's readable training images and the adapter's features of them."""
        data, rows, paths = self.parts[number].data, [], []
        plain: Any = runner.with_features(dataclasses.replace(own, data=data))
        batches = plain.closed_form_batches("train") if own.needs == "features" else data.loader("train")
        with torch.no_grad():
            for batch in runner.batches_on(batches, own.backbone.device):
                rows.append(own.adapter.encode_image(batch).cpu())
                paths += batch["path"]
        return data.training_on(paths), torch.cat(rows)

    # Measuring

    def tests(self, number: int) -> Any:
        """The data of a session with what the method reads of an image."""
        if number not in self._tests:
            own = dataclasses.replace(self.session, recipe=self._recipe(self.parts[number]), data=self.parts[number].data)
            self._tests[number] = runner.with_features(own)
        return self._tests[number]

    def measure(self, adapter: Adapter, after: int, data: Callable[[int], Any] | None = None) -> list[Outcome | None]:
        """Answers about the test images of every session, after one of them; None where the method cannot answer."""
        return [self._answer(adapter, (data or self.tests)(j), self.plan.candidates(after, j)) for j in range(len(self.plan))]

    @staticmethod
    def _answer(adapter: Adapter, data: Any, candidates: ClassSet) -> Outcome | None:
        try:
            return evaluate(adapter, data.within(candidates.names).test_dataloader(), candidates)
        except NeedsImages:
            return None

    def retained(self, adapter: Adapter) -> dict[str, float | None]:
        """Accuracy on further data, by name; None where the method cannot answer."""
        spaces = measure_targets(adapter, self.targets)
        found = {space: values.get("accuracy") for space, values in spaces.results().items()}
        return {t.space.removeprefix(OTHER): found.get(t.space) for t in self.targets}

    def thumbnail(self, path: str) -> Any:
        """The picture of a test image, or None."""
        for part in self.parts:
            for sample in part.data.samples["test"]:
                if sample.path == path:
                    return part.data.reader(sample)
        return None

    # The end

    def spaces(self, answers: list[Outcome | None]) -> Spaces:
        """Answers after the last session by label space: "all" together, or one for each task."""
        found = Spaces()
        given = [answer for answer in answers if answer is not None]
        if self.plan.stream.by == "tasks":
            for part, answer in zip(self.parts, answers, strict=True):
                if answer is not None:
                    found.outcomes[f"task:{part.name}"] = answer
        elif given:
            parts, paths = ([one for a in given for one in getattr(a, name)] for name in ("parts", "paths"))
            found.outcomes["all"] = Outcome(given[0].classes, parts, torch.cat([a.labels for a in given]), paths)
        return found

    def finish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write tables, and return the content of metrics.json."""
        session, last = self.session, len(self.plan) - 1
        adapter = artifact.load(self.run_dir, session.backbone, self.done)
        session.adapter = adapter
        if self._answers is None:  # the run was interrupted behind the last session
            self._answers = self.measure(adapter, last)
        spaces = self.spaces(self._answers)
        plain = reference(session.backbone, self.plan.seen(last))
        frozen = self._frozen if session.needs != "features" else None
        before = self.measure(plain, last, frozen)
        zero_shot = self.spaces(before)
        after_none = {t.space.removeprefix(OTHER): o for t, o in zip(self.targets, self._plain_targets(plain), strict=True)}
        adapter.selected = dict(self.facts[-1]["selected"])
        adapter.notes = list(dict.fromkeys(note for fact in self.facts for note in fact["notes"]))
        metrics = runner.metrics_of(session, session.data, manifest, spaces, zero_shot)
        metrics["continual"] = {
            "by": self.plan.stream.by,
            "regulariser": session.recipe.continual.name,
            "sessions": [
                {"name": p.name, "classes": list(p.classes), **{s: len(p.data.samples[s]) for s in ("train", "val", "test")}}
                for p in self.parts
            ],
            "matrix": self.matrix,
            **summary(self.matrix, self.images),
            "zero_shot_seen": [self._zero_shot_seen(before, after) for after in range(len(self.plan))],
            "retention": retention(after_none, self.kept),
        }
        if self.targets:
            metrics["transfer"] = facts(self.targets)
        stream_calibration.note(metrics, spaces, artifact.load_info(self.run_dir, self.done), self.plan)
        task = importlib.import_module(".tasks.classification", __package__)
        files.write_csv(self.run_dir / "per_class.csv", task.class_rows(spaces, zero_shot))
        rows = [{"space": s, **row} for s, o in spaces.outcomes.items() for row in o.predictions()]
        files.write_csv(self.run_dir / "predictions.csv", rows)
        return metrics

    def _plain_targets(self, plain: Adapter) -> list[float | None]:
        features = ready(self.session.targets, self.session.backbone, True, self.session.recipe.seed)
        results = measure_targets(plain, features).results()
        return [results.get(t.space, {}).get("accuracy") for t in self.targets]

    def _frozen(self, number: int) -> Any:
        """The data of a session with frozen features, for zero-shot."""
        part = self.parts[number]
        recipe = self._recipe(part)
        return CachedFeatures(part.data, self.session.backbone, recipe.data.augment, recipe.seed)

    def _zero_shot_seen(self, answers: list[Outcome | None], after: int) -> float | None:
        """Zero-shot accuracy on the test images so far, with the candidates of that time."""
        right = total = 0
        for number, answer in enumerate(answers[: after + 1]):
            if answer is None or not len(answer.labels):
                continue
            names = self.plan.candidates(after, number).names
            columns = [answer.classes.names.index(name) for name in names]
            predicted = torch.cat([torch.tensor(columns)[part[:, columns].argmax(1)] for part in answer.parts])
            right, total = right + int((predicted == answer.labels).sum()), total + len(answer.labels)
        return right / total if total else None


class Exemplars:
    """Draws batches of kept images; an image is prepared as in training.

    Args:
        own: the session that trains.
        data: a data module whose training images are the kept ones.
        size: images in a batch.
    """

    def __init__(self, own: Session, data: Any, size: int) -> None:
        self.size = size
        self.data = data
        fresh = runner.fresh_augmentation(own)
        self.features: FeatureBatches | None = None
        if own.needs == "features" and not fresh:
            cached = runner.with_features(dataclasses.replace(own, data=data))
            self.features = FeatureBatches(cached, "train", cached.view_count)
        self.images = data.dataset("train", augment=True)

    def __len__(self) -> int:
        return len(self.features) if self.features is not None else len(self.images)

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """A batch without repetition; step and generator decide which images and views."""
        chosen = torch.randperm(len(self), generator=generator)[: self.size]
        if self.features is not None:
            return self.features[step, chosen.numpy()]
        self.images.epoch = step
        collate = importlib.import_module("limpet.datamodules.loading").collate
        batch: dict[str, Any] = collate([self.images[i] for i in chosen.tolist()])
        self.images.note(batch.pop("unreadable", []))
        return batch


def _accuracies(answers: Iterable[Outcome | None]) -> list[float | None]:
    return [None if a is None or not len(a.labels) else float(a.metrics()["accuracy"]) for a in answers]
