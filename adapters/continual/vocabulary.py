"""Replayed vocabularies: texts that stand for what a model knew before a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import RecipeError

if TYPE_CHECKING:
    from ..backbone import FrozenClip
    from .configs import VocabularyConfig

Text = str | tuple[int, ...]


def random_sequences(ids: Sequence[int] | torch.Tensor, count: int, length: int, generator: torch.Generator) -> list[list[int]]:
    """`count` rows of `length` entries of `ids`, drawn uniformly with replacement."""
    pool = torch.as_tensor(ids)
    return [[int(i) for i in row] for row in pool[torch.randint(len(pool), (count, length), generator=generator)]]


def ordinary_ids(backbone: FrozenClip) -> list[int]:
    """Token ids that are text: all but start, end and padding, and of limpet-tiny only those it was trained on.

    Raises:
        RecipeError: the tokenizer does not say which tokens it has.
    """
    inner = backbone.tokenizer.inner
    size = backbone.spec.vocab_size
    special = set(getattr(inner, "all_special_ids", ()) or ())
    if hasattr(inner, "sot_token_id"):
        special |= {inner.sot_token_id, inner.eot_token_id}
    hub = getattr(inner, "tokenizer", None)
    special |= set(getattr(hub, "all_special_ids", ()) or ())
    trained = backbone.trained_tokens
    return [i for i in range(size) if i not in special and (trained is None or bool(trained[i]))]


def known_words(backbone: FrozenClip) -> list[str]:
    """Whole words of at least three letters that the backbone has a token of its own for, in the tokenizer's order.

    Raises:
        RecipeError: the tokenizer does not mark whole words.
    """
    decoder = getattr(backbone.tokenizer.inner, "decoder", None)
    if decoder is None:
        raise RecipeError(
            f"The tokenizer of {backbone.spec.name} does not say which tokens are whole words: use "
            "continual.source=class_names, or captions with continual.captions=FILE."
        )
    words = []
    for i in ordinary_ids(backbone):
        piece = str(decoder[i])
        if piece.endswith("</w>") and piece[:-4].isascii() and piece[:-4].isalpha() and len(piece) >= 7:
            words.append(piece[:-4])
    return words


class Vocabulary:
    """Draws the texts of a task or a step; the same (seed, task, step) gives the same ones.

    Args:
        config: source, count, length and file.
        backbone: what knows the words.
        names: class names of the stream so far, for `source: class_names`.
        seed: of the draw.

    Raises:
        RecipeError: a source that this backbone does not have, or a file of captions that cannot be read.
    """

    def __init__(self, config: VocabularyConfig, backbone: FrozenClip, names: Sequence[str], seed: int) -> None:
        self.config, self.seed = config, seed
        self.source = config.source
        if self.source == "auto":
            self.source = "random_bpe" if backbone.trained_tokens is None else "random_words"
        if self.source == "random_bpe" and not backbone.tokenizer.takes_ids:
            raise RecipeError(
                f"continual.source=random_bpe needs CLIP's own tokenizer, which {backbone.spec.name} does not have: use "
                "class_names, or captions with continual.captions=FILE."
            )
        most = backbone.spec.context_length - 2
        if self.source in ("random_words", "random_bpe") and config.length > most:
            raise RecipeError(
                f"continual.length is {config.length}: the text tower of {backbone.spec.name} reads {most + 2} tokens, start and "
                f"end included, so that a random text has at most {most}."
            )
        self.pool: list[Any]
        if self.source == "random_words":
            self.pool = known_words(backbone)
        elif self.source == "random_bpe":
            self.pool = ordinary_ids(backbone)
        elif self.source == "class_names":
            self.pool = list(names)
        else:
            self.pool = _captions(config.captions)
        if not self.pool:
            raise RecipeError(f"continual.source={self.source} gives no texts for {backbone.spec.name}.")

    def draw(self, task: int, step: int = 0) -> list[Text]:
        """Texts (strings, or tuples of token ids without start and end), all different."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + task * 10_007 + step) % 2**63)
        config = self.config
        if self.source in ("class_names", "captions"):
            order = torch.randperm(len(self.pool), generator=generator)[: config.count].sort().values
            return [self.pool[i] for i in order.tolist()]
        rows = random_sequences(range(len(self.pool)), config.count, config.length, generator)
        if self.source == "random_words":
            texts: list[Text] = [" ".join(self.pool[i] for i in row) for row in rows]
        else:
            texts = [tuple(self.pool[i] for i in row) for row in rows]
        return list(dict.fromkeys(texts))


def _captions(path: str | None) -> list[str]:
    if path is None:
        raise RecipeError("continual.source is captions: name the text file, one caption a line, with continual.captions=FILE.")
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"continual.captions: {path} cannot be read: {error}.") from None
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise RecipeError(f"continual.captions: {path} holds no caption.")
    return found
