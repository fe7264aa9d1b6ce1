"""LP++: a linear probe blended with the text features by learned weights (Huang et al. 2024, arXiv 2404.02285)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Adapter, Batch, NewClass
from ..errors import LimpetError, NeedsImages

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet


@dataclass
class Config:
    """Settings of LP++; the step sizes follow from the data.

    Attributes:
        epochs: steps of gradient descent on all training features at once.
        alpha_every: alpha moves at every so many of them.
        alpha_scale: alpha starts at this times the mean cosine of an image and its class's text.
        momentum: of the steps of W and b.
    """

    epochs: int = 300
    alpha_every: int = 10
    alpha_scale: float = 250.0
    momentum: float = 0.9


class LPPlusPlus(Adapter):
    """Score of class k: f w_k + b_k + alpha_k f t_k, with unit-norm features f and text t; no logit scale.

    W starts as the sum of a class's features, alpha from their cosine with the text. Both are then moved by gradient
    descent on the mean cross-entropy, with steps 4 N / lmax(F^T F) for W and b (momentum) and
    N / (4 max_k sum_i (f_i t_k)^2) for alpha. The state with the best validation accuracy is kept, of equals the latest.
    The gradient of alpha is that of the step at which it moves; the published code adds up those of all steps before.
    """

    selects_again = False  # the fit needs the images of all classes
    weight: Tensor
    bias: Tensor
    alpha: Tensor

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Every backbone; there is at least one epoch, and alpha moves in some of them."""
        for key in ("epochs", "alpha_every"):
            if getattr(config, key) < 1:
                return f"method.{key} is {getattr(config, key)}: a number of epochs, 1 or more."
        if not 0 <= config.momentum < 1:
            return f"method.momentum is {config.momentum}: it is from 0 to below 1."
        return None

    @classmethod
    def new_class(cls, config: Config, spec: BackboneSpec) -> NewClass:
        """A row of W comes from images."""
        return "images"

    @classmethod
    def per_class(cls, config: Config, spec: BackboneSpec) -> tuple[str, ...]:
        """A row, a bias and a text weight each."""
        return ("weight", "bias", "alpha")

    def build(self) -> None:
        """Register W (C, D), b (C) and alpha (C); b starts as that of PyTorch's linear layer."""
        count, width = len(self.classes), self.backbone.embed_dim
        self.register_buffer("weight", torch.zeros(count, width, dtype=self.dtype))
        self.register_buffer("bias", torch.empty(count, dtype=self.dtype).uniform_(-(width**-0.5), width**-0.5))
        self.register_buffer("alpha", torch.zeros(count, dtype=self.dtype))
        self._data: tuple[Tensor, Tensor] | None = None

    def data_sized(self) -> tuple[str, ...]:
        """Classes may have been added before saving."""
        return ("weight", "bias", "alpha")

    def fit_closed_form(self, batches: Iterable[Batch]) -> None:
        """Keep the training features and start from them."""
        features, labels = self._collect(batches)
        if not len(features):
            raise LimpetError("LP++ has no samples: it needs at least one training image.")
        count = torch.bincount(labels, minlength=len(self.classes)).to(features)
        self.weight.zero_().index_add_(0, labels, features)
        cosine = (features * self.zero_shot_weights()[labels]).sum(-1)
        mean = torch.zeros_like(count).index_add_(0, labels, cosine)[count > 0] / count[count > 0]
        self.alpha.fill_(float(self.config.alpha_scale * mean.mean()))
        self._data = features, labels

    def _collect(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Normalised features of every view (N, D) and their labels (N,)."""
        held = [(batch["views"].to(self.weight), batch["label"].to(self.weight.device)) for batch in batches]
        features = [F.normalize(views, dim=-1).flatten(0, 1) for views, _ in held]
        labels = [label.repeat_interleave(views.shape[1]) for views, label in held]
        width = self.weight.shape[1]
        return torch.cat([self.weight.new_zeros(0, width), *features]), torch.cat([self.weight.new_zeros(0).long(), *labels])

    def steps(self, features: Tensor) -> tuple[float, float]:
        """Step sizes of W and of alpha for training features (N, D)."""
        count = len(features)
        gram = features.T @ features if count > features.shape[1] else features @ features.T
        largest = float(torch.linalg.eigvalsh(gram.double())[-1])
        spread = float((features @ self.zero_shot_weights().T).double().square().sum(0).max())
        return 4 * count / max(largest, 1e-12), count / (4 * max(spread, 1e-12))

    def select(self, batches: Sequence[Batch]) -> None:
        """Train; keep the epoch with the best accuracy on the batches, the last of equals (the last of all without any)."""
        if self._data is None:
            raise LimpetError("LP++ has no training features: call fit_closed_form first.")
        config: Config = self.config
        (features, labels), self._data = self._data, None
        held_out = [(self.encode_image(batch), batch["label"].to(labels.device)) for batch in batches]
        val = torch.cat([f for f, _ in held_out]) if held_out else features[:0]
        wanted = torch.cat([y for _, y in held_out]) if held_out else labels[:0]
        text = self.zero_shot_weights()
        train_text, val_text = features @ text.T, val @ text.T
        W, b = nn.Parameter(self.weight.clone()), nn.Parameter(self.bias.clone())
        alpha = nn.Parameter(self.alpha.clone())
        step, alpha_step = self.steps(features)
        optimiser = torch.optim.SGD([W, b], lr=step, momentum=config.momentum)
        best, kept, state = -1, 0, (self.weight, self.bias, self.alpha)
        for epoch in range(1, config.epochs + 1):
            with torch.enable_grad():
                loss = F.cross_entropy(features @ W.T + b + alpha * train_text, labels)
                W.grad, b.grad, gradient = torch.autograd.grad(loss, (W, b, alpha))
            optimiser.step()
            with torch.no_grad():
                if epoch % config.alpha_every == 0:
                    alpha.sub_(alpha_step * gradient)
                right = int(((val @ W.T + b + alpha * val_text).argmax(-1) == wanted).sum())
            if right >= best:
                best, kept, state = right, epoch, (W.detach().clone(), b.detach().clone(), alpha.detach().clone())
        for own, value in zip((self.weight, self.bias, self.alpha), state, strict=True):
            own.copy_(value)
        if not batches:
            self.notes.append("There are no validation images to choose the best epoch on; the last was taken.")
        self.selected = {"epoch": kept, "step": step, "alpha_step": alpha_step, "alpha": float(self.alpha.mean())}

    def logits(self, batch: Batch) -> Tensor:
        """Linear score plus weighted text score (B, C)."""
        rows = self.trained_rows()
        features = self.encode_image(batch)
        return features @ self.weight[rows].T + self.bias[rows] + self.alpha[rows] * (features @ self.class_weights().T)

    def linear_head(self) -> tuple[Tensor, Tensor, bool]:
        """W with the weighted text added, and b."""
        rows = self.trained_rows()
        return self.weight[rows] + self.alpha[rows, None] * self.class_weights(), self.bias[rows], True

    def check_classes(self, classes: ClassSet) -> None:
        """Only classes with a row of W can be answered about."""
        missing = self.untrained(classes)
        if missing:
            raise NeedsImages(f"LP++ has no weights for '{missing[0]}': it needs images of the new classes.")

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """Imprint a row for each new class: its mean feature at the mean norm of the others, their mean bias and alpha."""
        new = self.untrained(classes)
        if batches is None:
            self.check_classes(classes)
        features, labels = self._collect(batches or ())
        rows = []
        for name in new:
            own = features[labels == classes.index(name)]
            if not len(own):
                raise NeedsImages(f"LP++ needs images of '{name}' to add it; none were given.")
            rows.append(F.normalize(own.mean(0), dim=0) * self.weight.norm(dim=1).mean())
        if new:
            self.weight = torch.cat([self.weight, torch.stack(rows)])
            self.bias = torch.cat([self.bias, self.bias.mean().expand(len(new))])
            self.alpha = torch.cat([self.alpha, self.alpha.mean().expand(len(new))])
            self._trained = (*self._trained, *new)
            self.notes.append(f"Rows of {', '.join(new)} are imprinted, not trained: their scores are not calibrated.")
        super().add_classes(classes, batches)
