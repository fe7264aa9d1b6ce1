"""FrozenClip: any open_clip model behind one face, always frozen and in evaluation mode."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import backbone_weights as weights
from .backbone_checks import check_against
from .backbone_introspect import spec_from_model
from .backbone_source import describe, resolve
from .backbone_spec import BackboneSpec, spec_of
from .backbone_tokens import Text, Tokenizer, clip_tokenizer
from .blocks import attention_problem, image_features, image_problem, image_tokens
from .errors import BackboneError
from .packed_text import Layout, encode
from .precision import bf16_problem
from .towers import TextTower, text_tower, tower_of

__all__ = ["BackboneSpec", "FrozenClip", "describe"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REMEMBERED = 32  # lists of texts whose features are kept
TEXT_TOKENS = (
    16384  # token rows of one text pass without gradients: large enough to fill a CPU, small in memory
)
ACTIVATIONS = 2_000_000_000  # bytes that the text tower keeps for the backward pass, unless `text_memory` says otherwise
KEPT = 16  # numbers a block keeps of one token and channel: norms, q, k, v, the MLP's four-fold width twice


class FrozenClip:
    """A CLIP whose weights never change.

    It is a plain object, not a module: an adapter that refers to it has none of its weights in its own
    `parameters()` or `state_dict()`. Make one with `load` or `from_model`.

    Attributes:
        model: the open_clip model.
        spec: what it is; JSON-able.
        fingerprint: SHA-256 over the loaded weights, before any cast.
        logit_scale: factor of the cosine, exponential already taken.
        logit_bias: added to logits (SigLIP), else 0.
        tokenizer: text to ids.
        text_memory: token rows of one pass while prompts or the text tower are trained; None: as many as fit into
            2 GB (see `text_rows`).
        trained_tokens: (vocabulary,), which tokens training ever saw; None where that is not known.
        shares_start: whether texts encoded together share one pass over their first token. Not exact where the
            text tower draws random numbers (dropout).
    """

    shares_start = True

    def __init__(
        self,
        model: nn.Module,
        spec: BackboneSpec,
        fingerprint: str,
        tokenizer: Tokenizer,
        trained_tokens: Tensor | None = None,
    ) -> None:
        own: Any = model
        self.model = own
        self.spec = spec
        self.fingerprint = fingerprint
        self.tokenizer = tokenizer
        self.logit_scale = float(own.logit_scale.detach().double().exp())
        bias = getattr(own, "logit_bias", None)
        self.logit_bias = 0.0 if bias is None else float(bias.detach().double())
        self.text_memory: int | None = None
        self.trained_tokens = trained_tokens
        self._texts: dict[tuple[Text, ...], Tensor] = {}
        model.eval().requires_grad_(False)

    @classmethod
    def load(cls, config: Any, device: str | torch.device = "cpu") -> FrozenClip:
        """Load a backbone; bf16 weights become float32, with a warning, on a CPU without bf16 instructions.

        Args:
            config: a name ("limpet-tiny"), or a backbone section: `name`, `pretrained`, `activation`,
                `precision`.
            device: where the weights go.

        Raises:
            BackboneError: unknown names, files that cannot be read or do not fit, an unreachable hub.
        """
        source = resolve(config)
        file = None if source.pretrained == "random" else weights.weights_file(source)
        state = {} if file is None else weights.read_state(file)
        if file is not None:
            check_against(source.name, source.model, sum(tensor.numel() for tensor in state.values()), file)
        model = weights.build(source)
        if file is None:
            state, trained = dict(model.state_dict()), None
        else:
            trained = weights.fit_state(model, state, source.name)
        fingerprint = weights.fingerprint(state)
        spec = spec_of(source)
        clip = cls(
            model, spec, fingerprint, Tokenizer(weights.tokenizer(source), spec.context_length), trained
        )
        clip.text_memory = getattr(config, "text_memory", None)
        problem = bf16_problem(device, "backbone.precision") if source.precision == "bf16" else None
        if problem:
            warnings.warn(problem, stacklevel=2)
        return clip.to(device, torch.float32 if problem else DTYPES[source.precision])

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        tokenizer: Callable[..., Any] | None = None,
        name: str = "custom",
        preprocessing: dict[str, Any] | None = None,
    ) -> FrozenClip:
        """Wrap an open_clip model of one's own; its parameters are frozen in place.

        Args:
            model: CLIP or CustomTextCLIP, in any number format.
            tokenizer: maps a list of texts to ids (N, L); default: CLIP's own.
            name: recorded in the spec.
            preprocessing: any of size, mean, std, interpolation, resize_mode, fill; default: what the model
                says.
        """
        spec = spec_from_model(model, name, preprocessing)
        state = dict(model.state_dict())
        return cls(
            model,
            spec,
            weights.fingerprint(state),
            Tokenizer(tokenizer or clip_tokenizer(), spec.context_length),
        )

    @property
    def embed_dim(self) -> int:
        """Size of the joint space."""
        return self.spec.embed_dim

    @property
    def image_size(self) -> int:
        """Height of the network input in pixels."""
        return self.spec.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.logit_scale.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self.model.logit_scale.dtype
        return dtype

    @property
    def text(self) -> TextTower | None:
        """The parts of the native text tower; None for Hugging Face towers and CoCa."""
        return text_tower(self.model)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> FrozenClip:
        """Move and cast the weights in place; returns itself."""
        self.model.to(device=device, dtype=dtype)
        names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
        self.spec = replace(self.spec, precision=names[self.dtype])
        self._texts.clear()
        return self

    def transform(
        self, train: bool = False, augment: Any = None, resize_mode: str | None = None
    ) -> Callable[[Any], Tensor]:
        """Return a picklable function from a PIL image to network input (3, H, W).

        Args:
            train: whether to augment.
            augment: an object with `preset` and `scale`; presets: natural, aerial, microscopy, mirror, none.
            resize_mode: "squash", "shortest" or "longest" in place of the model's own.
        """
        from .transforms import ImageTransform

        preprocessing = self.spec.preprocessing
        if resize_mode is not None:
            preprocessing = {**preprocessing, "resize_mode": resize_mode}
        return ImageTransform.of(preprocessing, train=train, augment=augment)

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Return image features (B, D) of network input (B, 3, H, W), without gradient.

        Half-precision features are widened to float32, so that cosines are not rounded.
        """
        with torch.no_grad():
            return self._image(images, normalize)

    def _image(self, images: Tensor, normalize: bool) -> Tensor:
        images = images.to(self.device, self.dtype)
        if image_problem(self.spec) is None and not any(
            map(attention_problem, self.model.visual.transformer.resblocks)
        ):
            features = image_features(self, images)
        else:
            features = self.model.encode_image(images)
        return _finish(features, normalize)

    def image_patches(self, images: Tensor, block: int | None = None) -> Tensor:
        """Return the patch tokens (B, P, W) behind the last block of the image tower, without gradient.

        Native ViT: after the final norm, before projection; with `block`, behind this block (from 0), before any
        norm. ResNet and timm: the last feature map, one row a place.
        """
        with torch.no_grad():
            return image_tokens(self, images.to(self.device, self.dtype), block)

    def tokenize(self, texts: Sequence[Text]) -> Tensor:
        """Return token ids (N, L), padded to the tower's context length."""
        return self.tokenizer(texts)

    def token_ids(self, text: Text) -> list[int]:
        """Return the ids of a text alone, without start, end or padding."""
        return self.tokenizer.ids(text)

    def embed_tokens(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Return token embeddings (..., W) of ids (...), without positions.

        Raises:
            BackboneError: the text tower is not a native transformer.
        """
        tower = self.text
        if tower is None:
            raise BackboneError(f"The text tower of {self.spec.name} does not show its token embeddings.")
        return tower.embed(torch.as_tensor(ids, device=self.device, dtype=torch.long))

    def unseen_tokens(self, text: str) -> list[str]:
        """Return the tokens of a text that were never trained, in order (known for limpet-tiny)."""
        if self.trained_tokens is None:
            return []
        ids = dict.fromkeys(self.token_ids(text))
        return [self.tokenizer.word(i) for i in ids if not bool(self.trained_tokens[i])]

    def encode_text(self, texts: Sequence[Text], normalize: bool = True) -> Tensor:
        """Return text features (N, D), without gradient; a list of texts is encoded once and then remembered.

        A tuple of token ids (without start and end) can stand in the place of a text.

        Lists are remembered, not texts: the last bits of a feature depend on what it was computed together with, and a
        run must not depend on what was asked before it.
        """
        if not texts:
            return torch.zeros(0, self.embed_dim, device=self.device)
        key = tuple(texts)
        if key not in self._texts:
            unique = list(dict.fromkeys(key))
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                features = self._text(unique)
            place = {text: i for i, text in enumerate(unique)}
            while len(self._texts) >= REMEMBERED:
                self._texts.pop(next(iter(self._texts)))
            self._texts[key] = features[[place[text] for text in key]]
        return _finish(self._texts[key], normalize)

    @property
    def text_rows(self) -> int:
        """Token rows of one pass while prompts or the text tower are trained: beyond them activations are recomputed.

        The number is `text_memory` or, without it, follows from the tower alone and not from the memory that is free now:
        the last bits of a result depend on it.
        """
        if self.text_memory is not None:
            return self.text_memory
        each = KEPT * self.spec.text_width * self.spec.text_layers * self.dtype.itemsize
        return max(1, ACTIVATIONS // max(1, each))

    def _text(self, texts: list[Text], offset: int = 0) -> Tensor:
        """Encode texts; causal native towers skip the padding and share the start of text, which is exact.

        With an `offset`, the tokens behind the start of text take positions that many places further on.
        """
        rows = self.tokenize(texts)
        tower = self.text
        if tower is not None and offset:
            tower = replace(tower, positions=torch.cat([tower.positions[:1], tower.positions[1 + offset :]]))
        if tower is None or not tower.cuttable or any(attention_problem(b) for b in tower.blocks):
            size = max(1, TEXT_TOKENS // rows.shape[1])
            return torch.cat(
                [_first(self.model.encode_text(part.to(self.device))) for part in torch.split(rows, size)]
            )
        cut = [row[: tower.end(row) + 1] for row in rows.tolist()]
        order = sorted(range(len(cut)), key=lambda i: len(cut[i]))
        # The first token is the same everywhere (start of text), so it is the shared beginning.
        start = 1 if self.shares_start and len({row[0] for row in cut}) == 1 and len(cut[order[0]]) > 1 else 0
        recompute = torch.is_grad_enabled() and (self.text_memory is not None or sum(map(len, cut)) > self.text_rows)
        budget = self.text_rows if recompute else TEXT_TOKENS
        step = partial(checkpoint, use_reentrant=False) if recompute else _call
        features: list[Tensor] = []
        for part in _portions([len(cut[i]) for i in order], budget):
            ids = [cut[i] for i in order[part]]
            layout = Layout.of([len(row) - start for row in ids], start, self.device)
            # Looked up at once: the gradient of a look-up is as large as the whole table.
            tokens = self.embed_tokens([*ids[0][:start], *(token for row in ids for token in row[start:])])
            features.append(step(encode, tower, layout, tokens[None, :start], tokens[start:])[0])
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(features)[back.to(self.device)]

    def editable(self, towers: Sequence[str], names: Collection[str] | None = None) -> EditableClip:
        """Return a copy in which some towers can be trained.

        Args:
            towers: any of "image" and "text".
            names: open_clip names of the parameters to train; None: all of the chosen towers.

        Returns:
            A copy that shares the frozen tensors by reference; the parameters of the chosen towers are fresh
            clones that require grad. It belongs to the caller; this backbone does not change.

        Raises:
            BackboneError: an unknown tower.
        """
        unknown = [t for t in towers if t not in ("image", "text")]
        if unknown:
            raise BackboneError(f"There is no tower {unknown[0]!r}; a CLIP has 'image' and 'text'.")
        memo: dict[int, Any] = {id(b): b for b in self.model.buffers()}
        for name, parameter in self.model.named_parameters():
            chosen = tower_of(name) in towers if names is None else name in names
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone()) if chosen else parameter
        for module in self.model.modules():  # running statistics of trained towers are the copy's own
            if _is_norm_with_statistics(module) and "image" in towers:
                for buffer in module.buffers(recurse=False):
                    memo[id(buffer)] = buffer.clone()
        return EditableClip(copy.deepcopy(self.model, memo), self, frozenset(towers))


class EditableClip(FrozenClip):
    """A copy of a backbone some towers of which can be trained; frozen tensors are shared with the original.

    Its encoders carry gradients to the trained towers, and texts are remembered only while the text tower is
    frozen.
    """

    def __init__(self, model: nn.Module, origin: FrozenClip, towers: frozenset[str]) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        super().__init__(model, origin.spec, origin.fingerprint, origin.tokenizer, origin.trained_tokens)
        self.towers = towers
        self.text_memory = origin.text_memory
        for parameter in trainable:
            parameter.requires_grad_(True)

    def __deepcopy__(self, memo: dict[int, Any]) -> EditableClip:
        """Copy what is trained; frozen parameters stay shared."""
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                memo[id(parameter)] = parameter
        again = object.__new__(type(self))
        again.__dict__ = {**self.__dict__, "_texts": {}, "model": copy.deepcopy(self.model, memo)}
        memo[id(self)] = again
        return again

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters with their open_clip names."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def encode_image(self, images: Tensor, normalize: bool = True) -> Tensor:
        """Return image features (B, D), with gradient where the image tower is trained."""
        return (
            self._image(images, normalize)
            if "image" in self.towers
            else super().encode_image(images, normalize)
        )

    def encode_text(self, texts: Sequence[Text], normalize: bool = True, offset: int = 0) -> Tensor:
        """Return text features (N, D), with gradient where the text tower is trained.

        Args:
            texts: N texts.
            normalize: to unit norm.
            offset: places that a trained native tower's tokens behind the start are moved on by; they must leave room.
        """
        if "text" not in self.towers or not texts:
            return super().encode_text(texts, normalize)
        return _finish(self._text(list(texts), offset), normalize)


def _is_norm_with_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def _call(function: Callable[..., Tensor], *given: Any) -> Tensor:
    return function(*given)


def _first(features: Any) -> Tensor:
    """Towers that also return tokens put the feature first."""
    feature: Tensor = features[0] if isinstance(features, tuple) else features
    return feature


def _finish(features: Tensor, normalize: bool) -> Tensor:
    features = features.float() if features.dtype in (torch.bfloat16, torch.float16) else features
    return F.normalize(features, dim=-1) if normalize else features


def _portions(lengths: Sequence[int], budget: int) -> list[slice]:
    """Cut a list of lengths into runs of at most `budget` tokens (at least one entry each)."""
    portions, start, used = [], 0, 0
    for index, length in enumerate(lengths):
        if used + length > budget and index > start:
            portions.append(slice(start, index))
            start, used = index, 0
        used += length
    return [*portions, slice(start, len(lengths))]
