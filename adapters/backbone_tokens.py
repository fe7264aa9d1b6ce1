"""Text to token ids, the same face for every tokenizer a CLIP can come with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

Text = str | tuple[int, ...]  # words, or the ids of words without start and end


@lru_cache(maxsize=1)
def clip_tokenizer() -> Any:
    """Return CLIP's own byte-pair tokenizer (read once; it needs no network)."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


class Tokenizer:
    """A tokenizer bound to the context length of one text tower.

    Args:
        inner: CLIP's tokenizer, one of open_clip's Hugging Face wrappers, or any callable that maps a list of
            texts to padded ids (N, L).
        context_length: number of positions of the text tower.
    """

    def __init__(self, inner: Callable[..., Any], context_length: int) -> None:
        self.inner: Any = inner
        self.context_length = context_length
        self._told: set[Text] = set()

    @cached_property
    def _own(self) -> bool:
        """Whether it is CLIP's byte-pair tokenizer, without a truncation strategy of its own."""
        return hasattr(self.inner, "bpe_ranks") and getattr(self.inner, "reduction_fn", None) is None

    @property
    def takes_ids(self) -> bool:
        """Whether a tuple of ids can stand in the place of a text."""
        return self._own

    def __call__(self, texts: Sequence[Text]) -> Tensor:
        """Return padded ids (N, L); a text that is too long is cut, with one warning that names it.

        With CLIP's own tokenizer a text can also be a tuple of ids.
        """
        if not self._own:
            return self._padded(list(texts))
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = self.sequence(text)
            if len(ids) > self.context_length:
                self._warn(text, len(ids))
                ids = [*ids[: self.context_length - 1], ids[-1]]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def ids(self, text: Text) -> list[int]:
        """Return the ids of a text alone, without start, end or padding."""
        if isinstance(text, tuple):
            return list(text)
        if self._own:
            return list(self.inner.encode(text))
        hub = getattr(self.inner, "tokenizer", None)
        if hub is not None:
            clean = getattr(self.inner, "clean_fn", None)
            return list(hub(clean(text) if clean else text, add_special_tokens=False)["input_ids"])
        row = self._padded([text])[0].tolist()
        special = set(self._padded([""])[0].tolist())
        kept = [i for i, token in enumerate(row) if token not in special]
        return row[kept[0] : kept[-1] + 1] if kept else []

    def sequence(self, text: Text) -> list[int]:
        """Return the ids a tower reads for a text, start and end included, not padded where that can be
        known.

        Only CLIP's own tokenizer returns more ids than the context length for a text that is too long.
        """
        if self._own:
            return [self.inner.sot_token_id, *self.ids(text), self.inner.eot_token_id]
        return list(self._padded([text])[0].tolist())

    def length(self, text: Text) -> int:
        """Return how many ids a text needs, start and end included, whether they fit or not.

        A tokenizer that is a bare function cuts what it returns, so of that no more than the context length is known.
        """
        hub = getattr(self.inner, "tokenizer", None)
        if self._own or hub is None or not isinstance(text, str):
            return len(self.sequence(text))
        count = getattr(hub, "num_special_tokens_to_add", None)
        return len(self.ids(text)) + (count() if count else self.start)

    @cached_property
    def start(self) -> int:
        """Number of tokens a tower reads before the text itself (CLIP's start of text: 1)."""
        ids = self.ids("X")
        row = self.sequence("X")
        return next((i for i in range(len(row)) if row[i : i + len(ids)] == ids), 1)

    def word(self, token: int) -> str:
        """Return how a token reads."""
        decoder = getattr(self.inner, "decoder", None)
        if decoder is not None:
            return str(decoder[token]).replace("</w>", "")
        hub = getattr(self.inner, "tokenizer", None)
        return str(hub.decode([token])).strip() if hub is not None else str(token)

    def _padded(self, texts: list[Any]) -> Tensor:
        rows = self.inner(texts)
        rows = rows if isinstance(rows, Tensor) else torch.as_tensor(rows)
        if getattr(self.inner, "tokenizer", None) is not None:
            for text in texts:
                if len(text) > self.context_length and len(self.ids(text)) > self.context_length:
                    self._warn(text, len(self.ids(text)))
        return rows.long()

    def _warn(self, text: Text, length: int) -> None:
        if text in self._told:
            return
        self._told.add(text)
        warnings.warn(
            f"The text {text!r} has {length} tokens, the text tower reads {self.context_length}: the rest is "
            "cut off.",
            stacklevel=3,
        )
