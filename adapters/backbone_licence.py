"""Licences of published CLIP weights, as far as they are known here; a card repeats them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .backbone_spec import TINY

_BY_TAG = {  # the beginning of a weight tag -> licence of those weights, as their publishers state it
    "openai": "MIT (OpenAI)",
    "laion": "MIT (LAION)",
    "datacomp": "MIT (DataComp)",
    "commonpool": "MIT (DataComp)",
    "webli": "Apache-2.0 (Google)",
    "metaclip": "CC-BY-NC-4.0 (Meta), not for commercial use",
}


def licence(spec: Mapping[str, Any]) -> str:
    """Licence of a backbone's weights in a few words."""
    if spec.get("name") == TINY:
        return "Apache-2.0 (part of Limpet)"
    tag = str(spec.get("pretrained") or "")
    if tag == "random":
        return "none needed: the weights are random"
    known = next((words for start, words in _BY_TAG.items() if tag.startswith(start)), None)
    return known or "not known to Limpet: see where the weights come from"
