"""Trained towers as a small backbone: half precision, and of the token table only the rows that training ever saw.

    python -m limpet.backbone_packing RUN FOLDER

writes a folder that is a backbone (`backbone.name=FOLDER`): this is how the embedded limpet-tiny was made of runs of the
recipes `pretrain_tiny` and `pretrain_tiny_shapes`. At load the other rows come from a seeded normal with the trained rows'
spread, so that words that were never trained at least differ from each other, and runs say which words those are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from .backbone_hub import CONFIG_FILE, WEIGHT_FILES
from .backbone_spec import Source
from .errors import LimpetError
from .files import write_bytes, write_text
from .tower_adapter import TowerAdapter

TABLE = "token_embedding.weight"


def packed(weights: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Weights as they are stored.

    Args:
        weights: plain open_clip weights of native towers.
        rows: (V,) bool, rows of the token table that training saw.

    Returns:
        The weights in float16, the table replaced by `token_embedding.rows` (n, W) and `token_rows_index` (n,) int32.
    """
    half = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items() if name != TABLE}
    index = rows.nonzero()[:, 0]
    half["token_embedding.rows"] = weights[TABLE].detach().cpu()[index].half()
    half["token_rows_index"] = index.to(torch.int32)
    return half


def trained_rows(adapter: TowerAdapter) -> Tensor:
    """Which rows of the token table training saw (V,) bool: those that moved, and those that the backbone knew before.

    All, where the backbone came with weights that do not say which of their words are known.
    """
    before, after = adapter.backbone.model.state_dict()[TABLE], adapter.merged()[TABLE]
    moved: Tensor = (before != after).any(1).cpu()
    known = adapter.backbone.trained_tokens
    if known is not None:
        return moved | known.cpu()
    return moved if adapter.backbone.spec.pretrained == "random" else torch.ones_like(moved)


def pack(run: Path, folder: Path) -> Path:
    """Write the towers of a run as a packed backbone.

    Args:
        run: a run of a method that trains towers (`contrastive`, `fine_tune`, `lora`), or its artefact.
        folder: where to write; a backbone that lies there is replaced.

    Returns:
        The weights' file.

    Raises:
        LimpetError: there is no such run, it trained no towers, or its text tower is not open_clip's own.
    """
    from safetensors.torch import save

    from .export import load_job
    from .export_merged import preprocess_cfg, source_of

    job = load_job(run)
    adapter = job.adapter
    if not isinstance(adapter, TowerAdapter) or TABLE not in adapter.backbone.model.state_dict():
        raise LimpetError(
            f"{run} was trained by '{job.method}' on {job.backbone.spec.name}: only towers of open_clip's own kind that were "
            "trained can be packed into a backbone. Take a run of method=contrastive, fine_tune or lora."
        )
    source: Source = source_of(job)
    described = {"model_cfg": source.model, "preprocess_cfg": preprocess_cfg(source)}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHT_FILES[0]
    write_bytes(file, save(packed(adapter.merged(), trained_rows(adapter)), metadata={"format": "pt"}))
    write_text(folder / CONFIG_FILE, json.dumps(described, indent=1) + "\n")
    return file


def main(words: list[str]) -> int:
    """Pack a run from the command line."""
    if len(words) != 2:
        print(__doc__.strip())
        return 2
    try:
        file = pack(Path(words[0]), Path(words[1]))
    except LimpetError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Wrote {file} ({file.stat().st_size / 1e6:.1f} MB). Use it with backbone.name={words[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
