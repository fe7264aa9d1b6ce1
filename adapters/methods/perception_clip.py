"""PerceptionCLIP: what surrounds an object is inferred first, then the object given that (An 2024, arXiv 2308.01313)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Adapter, Batch

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec

DEFAULT = {
    "light": {"plain": [], "bright": ["in bright light"], "dark": ["in the dark", "at night"]},
    "quality": {"plain": [], "good": ["in good quality"], "bad": ["blurry", "in low resolution"]},
}


@dataclass
class Config:
    """Settings of PerceptionCLIP.

    Attributes:
        attributes: attribute -> value -> texts that say it (synonyms); no texts: a value that nothing is said of.
        given_class: whether attributes are inferred with the classes' names (the paper's "with y"), or with `noun`.
        noun: what stands in the place of a class otherwise.
        temperatures: of the inferred attributes; several are tried on the validation images.
        class_temperature: of the classes given the attributes.
    """

    attributes: dict[str, dict[str, list[str]]] = field(default_factory=lambda: {k: dict(v) for k, v in DEFAULT.items()})
    given_class: bool = True
    noun: str = "object"
    temperatures: list[float] = field(default_factory=lambda: [1.0, 3.0, 5.0, 10.0])
    class_temperature: float = 1.0


class PerceptionCLIP(Adapter):
    """p(y|x) = sum over z of p(z|x) p(y|x, z), z ranging over all combinations of the attributes' values.

    With f(y, z) = s cos(image, text(y, z)): p(z|x) is softmax over z of logsumexp over y of f / T, or of f(noun, z) / T;
    p(y|x, z) is softmax over y of f / class_temperature. Logits are log p(y|x), which depend on all the classes asked about.
    """

    temperature: Tensor

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """Every backbone will do; the settings must make sense."""
        if any(not values for values in config.attributes.values()):
            empty = next(name for name, values in config.attributes.items() if not values)
            return f"method.attributes.{empty} has no values: give some, such as {{dark: [in the dark]}}, or remove it."
        if not config.temperatures or any(t <= 0 for t in (*config.temperatures, config.class_temperature)):
            return "method.temperatures and method.class_temperature must be above 0, and at least one of the former is needed."
        if not config.given_class and not config.noun.strip():
            return "method.noun is empty: with given_class false it stands in the place of a class."
        return None

    @classmethod
    def refits_on_add(cls, config: Config, spec: BackboneSpec) -> bool:
        """Probabilities are shared out among the classes, and attributes inferred with them."""
        return True

    def build(self) -> None:
        """Start at the first temperature."""
        self.register_buffer("temperature", torch.tensor(self.config.temperatures[0], dtype=torch.float64))

    def combinations(self) -> list[tuple[str, list[str]]]:
        """Every combination of values: its name ("light dark, quality bad") and the texts that say it, "" for nothing."""
        found: list[tuple[str, list[str]]] = []
        for values in itertools.product(*(table.items() for table in self.config.attributes.values())):
            name = ", ".join(f"{a} {value}" for a, (value, _) in zip(self.config.attributes, values, strict=True))
            said = [texts or [""] for _, texts in values]
            found.append((name, [", ".join(filter(None, words)) for words in itertools.product(*said)]))
        return found

    def texts(self, prompts: Sequence[str]) -> list[list[str]]:
        """For each combination, every prompt with each of its texts: "a photo of a cat, in the dark."."""
        return [[_with(prompt, words) for prompt in prompts for words in said] for _, said in self.combinations()]

    def _means(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Text features (number of lists of prompts, Z, D): mean over prompts and synonyms, unit norm."""
        groups = [texts for listed in prompts for texts in self.texts(listed)]
        features = self.encode_text([text for group in groups for text in group])
        counts = torch.tensor([len(group) for group in groups])
        owner = torch.repeat_interleave(torch.arange(len(groups)), counts).to(features.device)
        total = features.new_zeros(len(groups), features.shape[1]).index_add(0, owner, features)
        means = F.normalize(total / counts.to(features)[:, None], dim=-1)
        return means.reshape(len(prompts), -1, features.shape[1])

    def bank(self) -> tuple[Tensor, Tensor]:
        """Text features of the classes (C, Z, D) and of the noun (Z, D)."""
        if "bank" not in self._derived:
            with torch.no_grad():
                classes = self._means([self.classes.prompts(name) for name in self.classes.names])
                noun = self._means([[t.replace("{}", self.config.noun) for t in self.classes.templates]])[0]
            self._derived["bank"] = classes, noun
        return cast("tuple[Tensor, Tensor]", self._derived["bank"])

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """f(y, z) (B, C, Z) and what attributes are inferred from (B, C or 1, Z), float32 at least."""
        classes, noun = self.bank()
        image = self.encode_image(batch)
        joint = self.backbone.logit_scale * torch.einsum("bd,czd->bcz", image, classes)
        joint = joint.float() if joint.dtype in (torch.bfloat16, torch.float16) else joint
        if self.config.given_class:
            return joint, joint
        return joint, (self.backbone.logit_scale * image @ noun.T).to(joint)[:, None]

    def attribute_log_probabilities(self, batch: Batch) -> Tensor:
        """Log p(z|x), (B, Z), in the order of `combinations`."""
        return self._inferred(self._scores(batch)[1], self.temperature)

    def _inferred(self, scores: Tensor, temperature: Tensor | float) -> Tensor:
        return (scores / temperature).logsumexp(1).log_softmax(-1)

    def logits(self, batch: Batch) -> Tensor:
        """Log p(y|x), (B, C)."""
        return self._answer(*self._scores(batch), self.temperature)

    def _answer(self, joint: Tensor, source: Tensor, temperature: Tensor | float) -> Tensor:
        given = (joint / self.config.class_temperature).log_softmax(1)
        both: Tensor = given + self._inferred(source, temperature)[:, None]
        return both.logsumexp(-1)

    @torch.no_grad()
    def select(self, batches: Sequence[Batch]) -> None:
        """Choose the temperature by accuracy on the batches; of equals the first wins."""
        tried = self.config.temperatures
        if len(tried) == 1:
            return
        if not batches:
            self.notes.append(f"There are no validation images to choose a temperature on; {tried[0]:g} is used.")
            return
        right = [0] * len(tried)
        for batch in batches:
            scores = self._scores(batch)
            for i, temperature in enumerate(tried):
                answers = self._answer(*scores, temperature).argmax(-1)
                right[i] += int((answers == batch["label"].to(answers.device)).sum())
        self.temperature.fill_(tried[right.index(max(right))])
        self.selected = {"temperature": float(self.temperature)}

    @torch.no_grad()
    def evidence(self, batch: Batch, labels: Sequence[int]) -> list[list[tuple[str, float]]]:
        """For each image the combinations of attribute values and their probabilities, most probable first."""
        names = [name for name, _ in self.combinations()]
        probabilities = self.attribute_log_probabilities(batch).exp().double().cpu().tolist()
        if names == [""]:
            return [[] for _ in labels]
        return [sorted(zip(names, row, strict=True), key=lambda pair: -pair[1]) for row in probabilities]


def _with(prompt: str, words: str) -> str:
    """A prompt with more said at its end; unchanged where nothing is."""
    return f"{prompt.rstrip(' .')}, {words}." if words else prompt
