"""GDA: a Gaussian classifier on frozen features beside zero-shot CLIP, without training (Wang et al. 2024, arXiv 2402.04087)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Adapter, Batch, NewClass
from ..errors import LimpetError, NeedsImages, RecipeError, nearest
from ..gaussian import Moments, Precision, text_neighbours, varies

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet

CHOICES = {
    "shrinkage": ("ks", "none"),
    "covariance": ("pooled", "class_balanced"),
    "prior": ("uniform", "empirical"),
    "criterion": ("accuracy", "balanced_accuracy"),
}
START = 0.1  # alpha where there is nothing to choose it on, as in the published code
STATE = ("count", "mean", "scatter", "samples", "group")


@dataclass
class Config:
    """Settings of GDA; the defaults are the paper's few-shot setting.

    Attributes:
        alphas: weights of the Gaussian classifier that are tried on the validation images; the smallest of the best wins.
        alpha: a fixed weight instead.
        logit_scale: factor of the zero-shot logits, the published constant 100; None takes the backbone's own.
        shrinkage: "ks" (Kubokawa and Srivastava) or "none" (pseudo-inverse, as in the base-to-new experiments).
        covariance: "pooled" over all samples, or "class_balanced": the mean of the classes' own covariances.
        prior: "uniform" over classes, or "empirical": their share of the samples.
        correct_rare: take out the bias of -tr(P S) / 2 n_c that the mean of few samples brings into a class's score.
        criterion: what alpha is chosen by, "accuracy" or "balanced_accuracy".
        neighbours: training samples near its text that stand for a class without images; 0: a class needs images.
        text_repeats: weight of the text beside these neighbours, in samples.
        em: ignore the labels of the training images and find the Gaussians by expectation maximisation.
        em_steps: its steps at most.
        em_tolerance: it stops when no share changes by more than this.
        em_text: whether zero-shot logits take part in every step, not only in the first.
    """

    alphas: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0])
    alpha: float | None = None
    logit_scale: float | None = 100.0
    shrinkage: str = "ks"
    covariance: str = "pooled"
    prior: str = "uniform"
    correct_rare: bool = False
    criterion: str = "accuracy"
    neighbours: int = 0
    text_repeats: int = 16
    em: bool = False
    em_steps: int = 100
    em_tolerance: float = 1e-4
    em_text: bool = True


class GDA(Adapter):
    """logits = scale f T + alpha (f W + b), W = P mu, b = log(1/C) - mu P mu / 2: class means mu, one precision matrix P.

    Every augmented view is a sample of its own. Statistics are float64 and enough to add a class exactly; where single
    samples are asked for again (neighbours of a text, covariances of single classes) the samples themselves are kept.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    samples: Tensor
    group: Tensor
    bank: Tensor
    owner: Tensor
    alpha: Tensor

    @classmethod
    def variant(cls, config: Config) -> str:
        """The recipe that such settings belong to."""
        if config.em:
            return "gda_em"
        if config.neighbours:
            return "gda_base_to_new"
        balanced = config.covariance != "pooled" or config.correct_rare or config.criterion != "accuracy"
        return "gda_imbalanced" if balanced else "gda"

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Every backbone; what counts samples or steps is not negative."""
        for key, least in (("neighbours", 0), ("text_repeats", 0), ("em_steps", 1)):
            if getattr(config, key) < least:
                return f"method.{key} is {getattr(config, key)}: a whole number of {least} or more."
        return None

    @classmethod
    def new_class(cls, config: Config, spec: BackboneSpec) -> NewClass:
        """A Gaussian comes from images, or from training samples near the class's text."""
        return "text_neighbours" if config.neighbours else "images"

    @classmethod
    def refits_on_add(cls, config: Config, spec: BackboneSpec) -> bool:
        """All classes share one covariance."""
        return True

    @staticmethod
    def _keeps_samples(config: Config) -> bool:
        return bool(config.neighbours) or config.covariance == "class_balanced"

    def build(self) -> None:
        """Register empty statistics, or an empty bank of samples."""
        config: Config = self.config
        for key, known in CHOICES.items():
            value = getattr(config, key)
            if value not in known:
                hint = nearest(str(value), known)
                raise RecipeError(f"method.{key} is '{value}'.{hint} It must be one of {', '.join(known)}.")
        if config.em and self._keeps_samples(config):
            raise RecipeError("method.em has no labels: method.neighbours and class_balanced covariances do not go with it.")
        if not config.alphas and config.alpha is None:
            raise RecipeError("method.alphas is empty: give values to try, or one as method.alpha.")
        width = self.backbone.embed_dim
        if self._keeps_samples(config):
            self.register_buffer("bank", torch.zeros(0, width, dtype=self.dtype))
            self.register_buffer("owner", torch.zeros(0, dtype=torch.long))
        else:
            empty = Moments.empty(len(self.classes), width)
            for name in STATE:
                self.register_buffer(name, getattr(empty, name))
        self.register_buffer("alpha", torch.tensor(START if config.alpha is None else config.alpha, dtype=torch.float64))

    def data_sized(self) -> tuple[str, ...]:
        """The bank grows with the data, the statistics with the classes."""
        return ("bank", "owner") if self._keeps_samples(self.config) else STATE

    def saved_rows(self) -> dict[str, str]:
        """Samples with their classes; or statistics of classes, and those of groups of them."""
        if self._keeps_samples(self.config):
            return {"bank": "sample", "owner": "sample"}
        return {"count": "class", "mean": "class", "group": "class", "scatter": "group", "samples": "group"}

    def saved_numbers(self) -> dict[str, str]:
        """The classes of the samples, or the groups of the classes."""
        return {"owner": "class"} if self._keeps_samples(self.config) else {"group": "group"}

    # Statistics

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Take in the training samples, batch by batch; none of them is kept unless the settings ask for it."""
        self._absorb(batches, self.classes)
        if not self.statistics().size:
            raise LimpetError("GDA has no samples: it needs at least one training image.")
        if not varies(self.statistics().total, self.statistics().size):
            self.notes.append(
                "The samples of a class do not differ (there is one, or they are copies): without a covariance the answers are those "
                "of zero-shot CLIP."
            )
        absent = [name for name, n in zip(self._trained, self.statistics().count.tolist(), strict=True) if not n]
        if absent and not self.config.neighbours:
            self.notes.append(f"Without a training image, {', '.join(absent)} cannot have a Gaussian: its score is their average.")

    def _absorb(self, batches: Iterable[Batch], classes: ClassSet) -> None:
        row = {name: i for i, name in enumerate(self._trained)}
        target = torch.tensor([row.get(name, -1) for name in classes.names])
        kept, unlabelled, moments = [], [], None
        if not self._keeps_samples(self.config):
            moments = self.statistics()
        for batch in batches:
            views = F.normalize(batch["views"].to(self.backbone.device, torch.float64), dim=-1)
            labels = target[batch["label"].cpu()].to(views.device).repeat_interleave(views.shape[1])
            if moments is None:
                kept.append((views.flatten(0, 1).to(self.dtype), labels))
            elif self.config.em and not self.count.any():
                unlabelled.append(views.flatten(0, 1))
            else:
                moments.add(views.flatten(0, 1), labels)
        if unlabelled:
            self._store(self._expectation_maximisation(torch.cat(unlabelled)))
        elif moments is not None:
            self._store(moments)
        elif kept:
            self.bank = torch.cat([self.bank, *(x for x, _ in kept)])
            self.owner = torch.cat([self.owner, *(y for _, y in kept)])
        self._derived = {}

    def statistics(self) -> Moments:
        """Means and scatter of the classes with statistics of their own, in the order they were given."""
        if not self._keeps_samples(self.config):
            return Moments(*(getattr(self, name) for name in STATE))
        if "moments" not in self._derived:
            moments = Moments.empty(len(self._trained), self.backbone.embed_dim, self.bank.device, single=False)
            for start in range(0, len(self.bank), 8192):
                moments.add(self.bank[start : start + 8192], self.owner[start : start + 8192])
            self._derived["moments"] = moments
        return cast(Moments, self._derived["moments"])

    def _store(self, moments: Moments) -> None:
        for name in STATE:
            self.replace_tensor(name, getattr(moments, name))

    def covariance(self, moments: Moments) -> Tensor:
        """Covariance within classes (D, D): pooled with divisor N - 1, or the mean of the classes' unbiased ones."""
        if self.config.covariance == "pooled":
            return moments.total / max(moments.size - 1, 1)
        total, classes = torch.zeros_like(moments.total), 0
        for number in range(len(moments.count)):
            own = self.bank[self.owner == number].double()
            if len(own) > 1:
                spread = own - moments.mean[number]
                total += spread.T @ spread / (len(own) - 1)
                classes += 1
        return total / max(classes, 1)

    def precision(self, moments: Moments) -> Precision:
        """The precision matrix of all classes, as a product."""
        covariance = self.covariance(moments)
        if self.config.shrinkage == "none":
            return Precision.plain(covariance)
        return Precision.shrunk(covariance * max(moments.size - 1, 1), moments.size)

    def _expectation_maximisation(self, x: Tensor) -> Moments:
        """Gaussians with one covariance of unlabelled samples (N, D), started from zero-shot probabilities.

        The density of a step uses the covariance (S + tr(S) / (N - 1) I) (N - 1) / (N (N - 1 + D)): the precision of the
        classifier carries a factor that would make every step too soft.
        """
        config: Config = self.config
        text = self.scale * x @ self.zero_shot_weights().to(x).T
        shares = text.softmax(-1)
        start = Moments.soft(x, shares)
        moments, steps, change, (size, width) = start, 0, 1.0, x.shape
        while steps < config.em_steps and change >= config.em_tolerance:
            steps += 1
            factor = size * (size - 1 + width) / (width * max(size - 1, 1))
            W = Precision.shrunk(moments.total, size) @ moments.mean.T * factor
            score = x @ W - 0.5 * (moments.mean * W.T).sum(-1)
            if config.prior == "empirical":
                score = score + (moments.count / size).clamp_min(1e-12).log()
            new = (score + text if config.em_text else score).softmax(-1)
            change = float((new - shares).abs().max())
            shares = new
            moments = Moments.soft(x, shares)
            lost = moments.count < 1e-6 * size / len(moments.count)
            moments.mean = torch.where(lost[:, None], start.mean, moments.mean)
        self.selected["em_steps"] = steps
        return moments

    # Answers

    @property
    def scale(self) -> float:
        """Factor of the zero-shot term."""
        return self.backbone.logit_scale if self.config.logit_scale is None else float(self.config.logit_scale)

    def columns(self) -> tuple[Tensor, Tensor]:
        """W (D, K) and b (K), float64, of the Gaussian classifier for the classes asked about."""
        if "columns" not in self._derived:
            self._derived["columns"] = self._columns()
        return cast(tuple[Tensor, Tensor], self._derived["columns"])

    def _columns(self) -> tuple[Tensor, Tensor]:
        moments, config = self.statistics(), self.config
        has, precision = moments.count > 0, self.precision(moments)
        W = precision @ moments.mean.T
        log_prior = (
            (moments.count / moments.count.sum()).clamp_min(1e-300).log()
            if config.prior == "empirical"
            else torch.full_like(moments.count, -math.log(max(int(has.sum()), 1)))
        )
        b = log_prior - 0.5 * (moments.mean * W.T).sum(-1)
        if config.correct_rare:
            b = b + 0.5 * (precision @ self.covariance(moments)).trace() / moments.count.clamp_min(1)
        W, b = W.clone(), b.clone()
        W[:, ~has], b[~has] = W[:, has].mean(1, keepdim=True), b[has].mean()
        place = {name: i for i, name in enumerate(self._trained)}
        rows = [place.get(name, -1) for name in self.classes.names]
        if not config.neighbours:
            return W[:, rows], b[rows]
        known = torch.tensor([r >= 0 and bool(has[r]) for r in rows], device=W.device)
        W, b = torch.cat([W, W[:, :1]], 1)[:, rows], torch.cat([b, b[:1]])[rows]
        if not bool(known.all()):
            text = self.zero_shot_weights().to(W)[~known]
            means, own = text_neighbours(self.bank.double(), text, config.neighbours, config.text_repeats)
            W[:, ~known] = torch.stack([one @ means.T for one in own]).mean(0)
            quadratic = (means * W[:, ~known].T).sum(-1)
            classes = int(has.sum()) if bool(known.any()) else int((~known).sum())  # one prior for all columns
            b[~known] = -math.log(classes) - 0.5 * quadratic
        return W, b

    def logits(self, batch: Batch) -> Tensor:
        """Zero-shot plus Gaussian scores (B, C)."""
        zero_shot, gaussian = self._scores(batch)
        return (zero_shot + float(self.alpha) * gaussian).to(self.dtype)

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        """Text and Gaussian classifier in one, float64."""
        W, b = self.columns()
        return self.scale * self.class_weights().to(W) + float(self.alpha) * W.T, float(self.alpha) * b, True

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both parts, float64: those of a Gaussian score are large and almost cancel, in float32 its third decimal is lost."""
        with torch.autocast(self.backbone.device.type, enabled=False):
            features = self.encode_image(batch).double()
            W, b = self.columns()
            return self.scale * features @ self.class_weights().to(features).T, features @ W + b

    @torch.no_grad()
    def search(self, batches: Sequence[Batch]) -> Tensor:
        """The criterion in [0, 1] for every alpha of the grid."""
        weights = torch.tensor(self.config.alphas, dtype=torch.float64, device=self.backbone.device)
        right = torch.zeros(len(weights), len(self.classes), dtype=torch.float64)
        seen = torch.zeros(len(self.classes), dtype=torch.float64)
        for batch in batches:
            zero_shot, gaussian = self._scores(batch)
            labels = batch["label"].to(zero_shot.device)
            hits = (zero_shot[None] + weights[:, None, None] * gaussian[None]).argmax(-1) == labels
            right.index_add_(1, labels.cpu(), hits.double().cpu())
            seen.index_add_(0, labels.cpu(), torch.ones(len(labels), dtype=torch.float64))
        if self.config.criterion == "accuracy":
            return right.sum(1) / seen.sum().clamp_min(1)
        return (right / seen.clamp_min(1)).sum(1) / (seen > 0).sum().clamp_min(1)

    def select(self, batches: Sequence[Batch]) -> None:
        """Choose alpha on the batches; of equals the smallest wins."""
        config: Config = self.config
        if config.alpha is None and batches:
            found = self.search(batches)
            best = int(found.argmax())
            if found[best] > 0:
                self.alpha.fill_(config.alphas[best])
            if best == len(config.alphas) - 1:
                self.notes.append("The best alpha is the largest of method.alphas: larger ones may be better.")
            if config.em:
                self.notes.append("No training label was used; alpha was chosen on labelled validation images.")
        elif config.alpha is None:
            self.notes.append(f"There are no validation images to choose alpha on; {START} was used.")
        self.selected["alpha"] = float(self.alpha)

    # Classes

    def check_classes(self, classes: ClassSet) -> None:
        """Without neighbours of its text, a class needs images."""
        missing = self.untrained(classes)
        if missing and not self.config.neighbours:
            raise NeedsImages(
                f"GDA has no Gaussian for '{missing[0]}': it needs images of the new classes. method=gda_base_to_new makes "
                "one from training samples near the class's text."
            )

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Take in the samples of the new classes: the result is that of a fit to all samples at once."""
        new = self.untrained(classes)
        if batches is None:
            self.check_classes(classes)
        before, state = self._trained, {name: getattr(self, name) for name in self.data_sized()}
        self._trained = (*self._trained, *new)
        if not self._keeps_samples(self.config):
            self._store(Moments(**{k: v.clone() for k, v in state.items()}).extended(len(new)))
        super().add_classes(classes, batches)
        if batches is not None:
            self._absorb(batches, classes)
            counts = dict(zip(self._trained, self.statistics().count.tolist(), strict=True))
            bare = [name for name in new if not counts[name]]
            if bare and not self.config.neighbours:
                self._trained, self._classes, self._derived = before, classes.without(new), {}
                for name, value in state.items():
                    self.replace_tensor(name, value)
                raise NeedsImages(f"GDA needs images of '{bare[0]}' to add it; none were given.")

    def remove_classes(self, names: Sequence[str]) -> None:
        """Forget classes and, where statistics or samples of single classes are kept, all they contributed."""
        rows = [i for i, name in enumerate(self._trained) if name not in set(names)]
        state: Any = None
        if self._keeps_samples(self.config):
            renumbered = torch.full((len(self._trained),), -1, dtype=torch.long, device=self.owner.device)
            renumbered[rows] = torch.arange(len(rows), device=self.owner.device)
            keep = renumbered[self.owner] >= 0
            state = {"bank": self.bank[keep], "owner": renumbered[self.owner][keep]}
        else:
            moments, exact = self.statistics().kept(rows)
            state = {name: getattr(moments, name) for name in STATE}
            if not exact:
                self.notes.append(f"The covariance that all classes share still holds what {', '.join(names)} added to it.")
        super().remove_classes(names)
        for name, value in state.items():
            self.replace_tensor(name, value)
