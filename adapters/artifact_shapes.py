"""Whether tensors of an artefact whose size comes from the data belong together, and to the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import ArtifactError, LimpetError, exhausted

if TYPE_CHECKING:
    from .adapter import Adapter

AGAIN = "Copy the artefact again from its source."


def check(tensors: Mapping[str, Tensor], adapter: Adapter, file: Path) -> None:
    """Compare the tensors that `Adapter.saved_rows` names with a freshly built adapter and with each other.

    A dimension that is 0 in the fresh adapter may have any size.

    Raises:
        ArtifactError: a tensor has other dimensions, another number of rows, or numbers rows that are not there.
    """
    own = adapter.state_dict()
    resized = [name for name in adapter.data_sized() if name in tensors and name in own]
    lengths = {"class": (len(adapter.classes), "classes")}
    for name, kind in adapter.saved_rows().items():
        if name not in resized:
            continue
        have, due = tensors[name].shape, own[name].shape
        if len(have) != len(due) or any(want not in (0, size) for size, want in zip(have[1:], due[1:], strict=True)):
            raise ArtifactError(f"In {file}, {name} is of shape {_shape(have)} where {_shape(('rows', *due[1:]))} is due. {AGAIN}")
        count, whose = lengths.setdefault(kind, (have[0], f"rows of {name}"))
        if have[0] != count:
            raise ArtifactError(f"In {file}, {name} has {have[0]} rows, and there are {count} {whose}. {AGAIN}")
    for name, kind in adapter.saved_numbers().items():
        if name in resized and kind in lengths and tensors[name].numel():
            count, whose = lengths[kind]
            least, most = int(tensors[name].min()), int(tensors[name].max())
            if least < 0 or most >= count:
                wrong = least if least < 0 else most
                raise ArtifactError(f"In {file}, {name} points at {wrong}, and there are {count} {whose}. {AGAIN}")


def check_order(adapter: Adapter) -> None:
    """Refuse to save rows of classes in another order than the classes: the artefact names these alone.

    Raises:
        ArtifactError: says which class is out of place.
    """
    untrained = set(adapter.untrained(adapter.classes))
    names = [name for name in adapter.classes.names if name not in untrained]
    rows = adapter.trained_rows(adapter.classes.only(names))
    of_classes = "class" in {*adapter.saved_rows().values(), *adapter.saved_numbers().values()}
    if of_classes and rows != sorted(rows):
        place = next(i for i, row in enumerate(rows) if row != sorted(rows)[i])
        raise ArtifactError(
            f"The tensors of '{adapter.name}' have rows in another order than its classes are in (from {names[place]!r} on), and an "
            "artefact would mix them up. Give add_classes the present classes first, in their order, and then the new ones."
        )


@torch.no_grad()
def probe(adapter: Adapter, file: Path) -> None:
    """Score one blank feature, where tensors take the size that was saved: what `check` is not told shows here.

    What follows from the tensors (the weights of the classes) is kept for the first answer.

    Raises:
        ArtifactError: the tensors give no scores.
    """
    spec = adapter.backbone.spec
    if adapter.task != "classification" or adapter.needs(adapter.config, spec) != "features" or not adapter.data_sized():
        return
    blank = torch.zeros(1, adapter.backbone.embed_dim, device=adapter.backbone.device)
    try:
        scores = adapter.logits({"feature": blank, "path": [""], "index": torch.zeros(1, dtype=torch.long)})
    except (LimpetError, KeyError):  # the method asks for more than a feature
        return
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if exhausted(error) or isinstance(error, torch.OutOfMemoryError):  # says nothing about the tensors
            raise
        raise ArtifactError(f"The tensors in {file} do not belong together: {' '.join(str(error).split())}. {AGAIN}") from error
    if scores.shape != (1, len(adapter.classes)):
        raise ArtifactError(
            f"The tensors in {file} do not belong together: they give {scores.shape[-1] if scores.ndim else 1} scores for "
            f"{len(adapter.classes)} classes. {AGAIN}"
        )


def _shape(sizes: Sequence[object]) -> str:
    return f"({', '.join(map(str, sizes))})"
