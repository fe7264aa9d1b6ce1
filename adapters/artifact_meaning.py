"""What the tensors of an artefact mean follows from its description: a digest of that part lies in the file of the tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ArtifactError

KEY = "limpet_meaning"  # in the metadata of the safetensors file, and alone there: it writes several in random order


def digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of the method, its settings, and the classes in the order of their rows, with texts and templates.

    The order of keys, the layout, and 1 or 1.0 make no difference; nor does where the code of a method of one's own lies.
    """
    method = description["method"]
    said = {"method": method["name"].rpartition(":")[2], "config": method["config"], "classes": description["classes"]}
    plain = json.loads(json.dumps(said), parse_int=float)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check(file: Path, info: Mapping[str, Any], described: Path) -> None:
    """Compare the digest in a file of tensors with the description beside it; older files have none.

    Raises:
        ArtifactError: the description was changed after the tensors were written.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        written = (opened.metadata() or {}).get(KEY)
    if written is not None and written != digest(info):
        raise ArtifactError(
            f"The tensors in {file} do not fit {described}: it is not the description that was written with them, its method, its "
            "settings or its classes (names, order, texts, templates) were changed since. Copy the artefact again from its source; "
            "`limpet rename-classes` gives classes other names, and other settings need another fit."
        )
