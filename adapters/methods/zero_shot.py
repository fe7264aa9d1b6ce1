"""Zero-shot CLIP: class names in prompt templates, nothing trained (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass

from ..adapter import Adapter


@dataclass
class Config:
    """Zero-shot has no settings of its own: templates and texts belong to `classes`."""


class ZeroShot(Adapter):
    """logits = logit scale * cosine(image, class), a class being the normalised mean of its normalised prompts."""
