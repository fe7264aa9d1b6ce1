"""Classification by description: an image is compared with what is said of a class (Menon 2023, arXiv 2210.07183)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter import Adapter, Batch
from ..descriptors import key_of, random_words, read, sentence
from ..errors import RecipeError, nearest

if TYPE_CHECKING:
    from ..backbone_spec import BackboneSpec
    from ..classes import ClassSet


@dataclass
class Config:
    """Settings of classification by description.

    Attributes:
        file: JSON or YAML, {class: [phrase, ...]}, or the name of packaged descriptors; None for none. An artefact holds
            the descriptors themselves.
        descriptors: more of them, in place of those the file gives the same classes.
        words: "descriptors", or one of the controls: "random_words" in the place of each descriptor, "class_name_only".
        phrases: sentences with {class} and {clause} ("which has ...") or {descriptor} (as written); each gives a text.
        aggregate: "mean" or "max" of a class's similarities.
        renormalise: mean of the texts brought to length 1, as prompt ensembles are; then it is no mean of cosines.
        seed: of the random words.
    """

    file: str | None = None
    descriptors: dict[str, list[str]] = field(default_factory=dict)
    words: str = field(default="descriptors", metadata={"choices": ("descriptors", "random_words", "class_name_only")})
    phrases: list[str] = field(default_factory=lambda: ["{class}, {clause}"])
    aggregate: str = field(default="mean", metadata={"choices": ("mean", "max")})
    renormalise: bool = False
    seed: int = 1


class Descriptions(Adapter):
    """Score of a class: mean (or maximum) over its descriptors of the cosine of image and "class, which has descriptor".

    The mean of cosines is the product with the mean text feature, whose length is below 1: a class whose descriptors point
    apart scores lower. A class that is not described is asked by its name alone.
    """

    def __init__(self, config: Config) -> None:
        given = read(config.file) if config.file else {}
        super().__init__(dataclasses.replace(config, file=None, descriptors={**given, **config.descriptors}))
        self._source = config.file
        self._said: set[str] = set()

    @classmethod
    def supports(cls, config: Config, spec: BackboneSpec) -> str | None:
        """The file must be readable, and phrases have a place for descriptors; every backbone will do."""
        try:
            read(config.file) if config.file else None
        except RecipeError as error:
            return f"method.file: {error}"
        for phrase in config.phrases:
            if "{class}" not in phrase and "{clause}" not in phrase and "{descriptor}" not in phrase:
                return f"The phrase '{phrase}' of method.phrases has no {{class}}, {{clause}} or {{descriptor}} in it."
        return None if config.phrases else "method.phrases is empty; give one, such as '{class}, {clause}'."

    def controls(self) -> dict[str, Any]:
        """The same with random words, and with names alone: what descriptors must beat to mean something."""
        if self.config.words != "descriptors":
            return {}
        return {word: dataclasses.replace(self.config, words=word) for word in ("random_words", "class_name_only")}

    def build(self) -> None:
        """See that the descriptors belong to these classes."""
        if not self.config.descriptors:
            self.notes.append("There are no descriptors: classes are asked by name alone. Set method.file to a file of them.")
            return
        self._describe(self.classes)
        described = [name for name in self.classes.names if self._key(name) is not None]
        if not described and self.config.words != "class_name_only":
            some = ", ".join(repr(key) for key in list(self.config.descriptors)[:4])
            raise RecipeError(
                f"None of the {len(self.classes)} classes is described in {self._source or 'method.descriptors'}: it describes "
                f"{some}; the classes are {', '.join(map(repr, self.classes.names[:4]))}. Set method.file to a file of yours."
            )

    def check_classes(self, classes: ClassSet) -> None:
        """Every class can be answered; those that are not described are noted."""
        self._describe(classes)

    def add_classes(self, classes: ClassSet, batches: Iterable[Batch] | None = None) -> None:
        """New classes are described by the same file, or asked by name."""
        super().add_classes(classes, batches)
        self._describe(classes)

    def _describe(self, classes: ClassSet) -> None:
        """Note the classes without descriptors, once."""
        if self.config.words == "class_name_only" or not self.config.descriptors:
            return
        missing = [n for n in classes.names if key_of(n, classes.texts[n], self.config.descriptors) is None]
        new = [name for name in missing if name not in self._said]
        if not new:
            return
        self._said.update(new)
        used = {key_of(n, classes.texts[n], self.config.descriptors) for n in classes.names}
        hint = nearest(new[0], [key for key in self.config.descriptors if key not in used])
        shown = ", ".join(new[:8]) + (", ..." if len(new) > 8 else "")
        self.notes.append(f"Without descriptors, and asked by name alone: {shown}.{hint}")

    def rename_classes(self, names: Mapping[str, str], reword: bool = False) -> None:
        """The descriptors of a class go with it."""
        keys = {old: self._key(old) for old in names if old in self.classes}
        super().rename_classes(names, reword)
        moved = {new: self.config.descriptors.get(cast(str, keys[old]), []) for old, new in names.items()}
        left = {key: phrases for key, phrases in self.config.descriptors.items() if key not in keys.values()}
        self.config = dataclasses.replace(self.config, descriptors={**left, **moved})

    def _key(self, name: str) -> str | None:
        return key_of(name, self.classes.texts[name], self.config.descriptors)

    def prompts(self, name: str) -> list[str]:
        """The texts of a class: each phrase with each of its text names and descriptors."""
        key = self._key(name)
        listed = self.config.descriptors[key] if key is not None else []
        if self.config.words == "random_words":
            listed = random_words(self.config.descriptors, len(listed), self.config.seed)
        elif self.config.words == "class_name_only":
            listed = []
        texts = self.classes.texts[name]
        return [sentence(phrase, text, d) for phrase in self.config.phrases for text in texts for d in (listed or [""])]

    def texts(self) -> tuple[Tensor, Tensor]:
        """Features (N, D), unit norm, of all texts, and the class (N,) that each belongs to."""
        if "bank" not in self._derived:
            prompts = [self.prompts(name) for name in self.classes.names]
            with torch.no_grad():
                features = self.encode_text([text for group in prompts for text in group])
            counts = torch.tensor([len(group) for group in prompts])
            owner = torch.repeat_interleave(torch.arange(len(prompts)), counts).to(features.device)
            self._derived["bank"] = features, owner
        return cast("tuple[Tensor, Tensor]", self._derived["bank"])

    def compute_class_weights(self) -> Tensor:
        """Mean text feature of each class (C, D), of length below 1 unless `renormalise`."""
        mean = self.mean_prompts(self.encode_text, self.prompts)
        return F.normalize(mean, dim=-1) if self.config.renormalise else mean

    def logits(self, batch: Batch) -> Tensor:
        """Scores (B, C): logit scale times the mean or the maximum of a class's cosines."""
        if self.config.aggregate == "mean":
            return super().logits(batch)
        features, owner = self.texts()
        cosines = self.encode_image(batch) @ features.T
        highest = cosines.new_full((len(cosines), len(self.classes)), -torch.inf)
        return self.backbone.logit_scale * highest.scatter_reduce(1, owner.expand_as(cosines), cosines, "amax")

    @torch.no_grad()
    def evidence(self, batch: Batch, labels: Sequence[int]) -> list[list[tuple[str, float]]]:
        """For each image the texts of the class `labels` names, with their cosines, highest first."""
        features, owner = self.texts()
        cosines = (self.encode_image(batch) @ features.T).double().cpu()
        prompts = [self.prompts(name) for name in self.classes.names]
        places = owner.cpu()
        found = []
        for row, label in zip(cosines, labels, strict=True):
            values = row[places == label].tolist()
            found.append(sorted(zip(prompts[label], values, strict=True), key=lambda pair: -pair[1]))
        return found
