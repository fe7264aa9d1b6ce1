"""Prompt templates that come with open_clip."""

from __future__ import annotations

from functools import cache


@cache
def imagenet_templates(count: int | None = None) -> tuple[str, ...]:
    """CLIP's hand-written templates for ImageNet (80; or the first `count`), each with one `{}`."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)[:count]
