"""Tip-Adapter and Tip-Adapter-F: a cache of training features beside zero-shot CLIP (Zhang et al. 2022, arXiv 2207.09519)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapter import Adapter, Batch
from ..cache_search import search_hits
from ..errors import LimpetError

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet


@dataclass
class Config:
    """Settings of Tip-Adapter; the defaults are the released ones for ImageNet.

    Attributes:
        finetune: train the keys (Tip-Adapter-F).
        init_alpha: weight of the cache where there is no search, and while the keys are trained.
        init_beta: sharpness of the affinities, likewise.
        search_scale: upper ends of the search over (beta, alpha); the released code sets them by hand for each data set.
        search_step: number of steps over (beta, alpha), from 0.1 upwards, the upper end excluded.
        logit_scale: the published constant 100; None takes the backbone's own.
    """

    finetune: bool = False
    init_alpha: float = 1.17
    init_beta: float = 1.0
    search_scale: list[float] = field(default_factory=lambda: [7.0, 3.0])
    search_step: list[int] = field(default_factory=lambda: [200, 20])
    logit_scale: float | None = 100.0


class TipAdapter(Adapter):
    """logits = scale f T + alpha exp(-beta (1 - f K^T)) L, with keys K the training features and L their one-hot labels.

    A key is the mean of an image's raw features over its augmented views, normalised. Values L are kept as class numbers,
    so that a class can be added by appending rows and asked about by name.
    """

    keys: nn.Parameter
    owner: Tensor
    alpha: Tensor
    beta: Tensor

    @classmethod
    def variant(cls, config: Config) -> str:
        """With trained keys it is Tip-Adapter-F."""
        return "tip_adapter_f" if config.finetune else "tip_adapter"

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Every backbone; the search needs two ends above 0 and at least one step to each."""
        if len(config.search_scale) != 2 or min(config.search_scale) <= 0:
            return f"method.search_scale is {config.search_scale}: the upper ends of beta and of alpha, two numbers above 0."
        if len(config.search_step) != 2 or min(config.search_step) < 1:
            return f"method.search_step is {config.search_step}: the steps of beta and of alpha, two whole numbers of 1 or more."
        return None

    @classmethod
    def trainable(cls, config: Config, spec: BackboneSpec) -> bool:
        """Only the F variant trains its keys."""
        return config.finetune

    @classmethod
    def zero_shot_columns(cls, config: Config, spec: BackboneSpec) -> bool:
        """Without keys a class is scored by its text alone."""
        return True

    def build(self) -> None:
        """Register an empty cache."""
        width = self.backbone.embed_dim
        self.keys = nn.Parameter(torch.zeros(0, width, dtype=self.dtype), requires_grad=self.config.finetune)
        self.register_buffer("owner", torch.zeros(0, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(self.config.init_alpha, dtype=self.dtype))
        self.register_buffer("beta", torch.tensor(self.config.init_beta, dtype=self.dtype))

    def data_sized(self) -> tuple[str, ...]:
        """The cache holds one row a training image."""
        return ("keys", "owner")

    def saved_rows(self) -> dict[str, str]:
        """A key and its class for each image."""
        return {"keys": "image", "owner": "image"}

    def saved_numbers(self) -> dict[str, str]:
        """The classes of the keys."""
        return {"owner": "class"}

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Fill the cache: one key an image."""
        self._append(batches, self.classes)

    def _append(self, batches: Iterable[Batch], classes: ClassSet) -> None:
        keys, owner, rows = [self.keys.detach()], [self.owner], self.trained_rows(classes)
        self.support_paths += [""] * (len(self.owner) - len(self.support_paths))  # an older artefact has none
        for batch in batches:
            views = batch["views"].to(self.keys)
            keys.append(F.normalize(views.mean(1), dim=-1))
            self.support_paths += list(batch.get("path", [""] * len(views)))
            number = [rows[i] for i in batch["label"].tolist()]
            owner.append(torch.tensor(number, dtype=torch.long, device=self.owner.device))
        self.keys = nn.Parameter(torch.cat(keys), requires_grad=self.config.finetune)
        self.owner = torch.cat(owner)

    @property
    def scale(self) -> float:
        """Factor of the zero-shot term."""
        return self.backbone.logit_scale if self.config.logit_scale is None else self.config.logit_scale

    def values(self) -> Tensor:
        """One-hot values L (N, C) over the classes asked about; a key of another class has a row of zeros."""
        if "values" not in self._derived:
            target = self.values_of_keys()
            values = torch.zeros(len(target), len(self.classes), dtype=self.dtype, device=target.device)
            rows = torch.nonzero(target >= 0).flatten()
            values[rows, target[rows]] = 1.0
            self._derived["values"] = values
        return cast(Tensor, self._derived["values"])

    def values_of_keys(self) -> Tensor:
        """Column (N,) of each key among the classes asked about, -1 for none."""
        column = {name: i for i, name in enumerate(self.classes.names)}
        targets = [column.get(name, -1) for name in self._trained]
        return torch.tensor(targets, dtype=torch.long, device=self.owner.device)[self.owner]

    def logits(self, batch: Batch) -> Tensor:
        """Zero-shot plus cache (B, C)."""
        features = self.encode_image(batch)
        affinity = features @ self.keys.T
        cache = torch.exp(-self.beta * (1 - affinity)) @ self.values()
        return self.scale * features @ self.class_weights().T + self.alpha * cache

    def support_weights(self, batch: Batch) -> Tensor:
        """What each key adds to the score of its class, (B, N): alpha exp(-beta (1 - f K^T))."""
        return self.alpha * torch.exp(-self.beta * (1 - self.encode_image(batch) @ self.keys.T))

    def support_labels(self) -> list[str]:
        """Class of each key."""
        return [self._trained[i] for i in self.owner.tolist()]

    def grid(self) -> tuple[list[float], list[float]]:
        """Values of beta and of alpha that are searched."""
        (beta_end, alpha_end), (beta_steps, alpha_steps) = self.config.search_scale, self.config.search_step
        betas = [0.1 + i * (beta_end - 0.1) / beta_steps for i in range(beta_steps)]
        alphas = [0.1 + i * (alpha_end - 0.1) / alpha_steps for i in range(alpha_steps)]
        return betas, alphas

    @torch.no_grad()
    def search_accuracy(self, batches: Sequence[Batch]) -> NDArray[np.float64]:
        """Accuracy in [0, 1] for every pair of the grid: (number of betas, number of alphas)."""
        betas, alphas = self.grid()
        owner = self.values_of_keys()
        right, total = np.zeros((len(betas), len(alphas))), 0
        for batch in batches:
            features, labels = self.encode_image(batch), batch["label"].to(self.keys.device)
            zero_shot = self.scale * features @ self.class_weights().T
            right += search_hits(features, labels, self.keys, owner, zero_shot, betas, alphas).cpu().numpy()
            total += len(labels)
        return right / total

    def select(self, batches: Sequence[Batch]) -> None:
        """Choose beta and alpha by accuracy on the batches; of equals the first wins, beta being the outer loop."""
        if not len(self.keys):
            raise LimpetError("Tip-Adapter has an empty cache: it needs at least one training image.")
        if not batches:
            self.notes.append("There are no validation images to search alpha and beta on; the initial values are used.")
        else:
            betas, alphas = self.grid()
            accuracy = self.search_accuracy(batches)
            i, j = np.unravel_index(int(accuracy.argmax()), accuracy.shape)
            self.beta.fill_(betas[int(i)])
            self.alpha.fill_(alphas[int(j)])
            if int(i) == len(betas) - 1 or int(j) == len(alphas) - 1:
                self.notes.append("The best alpha or beta lies on the upper edge of the grid: widen method.search_scale.")
        self.selected = {"alpha": round(float(self.alpha), 6), "beta": round(float(self.beta), 6)}

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Append the keys of the new classes; scores of the old classes do not change. Without images: zero-shot columns."""
        self._trained = (*self._trained, *self.untrained(classes))
        super().add_classes(classes, batches)
        if batches is not None:
            self._append(batches, classes)
            self._derived = {}

    def remove_classes(self, names: Sequence[str]) -> None:
        """Drop the keys of classes; scores of the others do not change."""
        rows = [i for i, name in enumerate(self._trained) if name not in set(names)]
        renumbered = torch.full((len(self._trained),), -1, dtype=torch.long, device=self.owner.device)
        renumbered[rows] = torch.arange(len(rows), device=self.owner.device)
        super().remove_classes(names)
        owner = renumbered[self.owner]
        kept = (owner >= 0).tolist()
        self.support_paths = [path for path, stays in zip(self.support_paths, kept, strict=False) if stays]
        self.replace_tensor("keys", self.keys.detach()[owner >= 0])
        self.owner = owner[owner >= 0]
