"""From `data.root` and the name of a data set to its folder and what it holds; downloading where that is asked for."""

from __future__ import annotations

import importlib
from pathlib import Path

from ..errors import DataError, nearest
from .facts import Facts, data_sets
from .reading import Found, NotThere


def facts_of(dataset: str, ordering: bool) -> Facts:
    """Facts of a data set that is classified, or ordered.

    Raises:
        DataError: there is no such data set, or it is of the other kind.
    """
    known = [name for name, facts in data_sets().items() if (facts.ordering is not None) == ordering]
    if dataset in known:
        return data_sets()[dataset]
    if dataset in data_sets():
        other = "benchmark" if ordering else "ordering_benchmark"
        raise DataError(f"{dataset} belongs to data={other}: write data={other} data.dataset={dataset}.")
    what = f"'{dataset}'" if dataset else "not set"
    raise DataError(f"data.dataset is {what}; known are {', '.join(known)}.{nearest(dataset, known)}")


def folders(root: str | None, facts: Facts) -> list[Path]:
    """Where a data set may lie: its usual folders below the root that exist, and the root itself.

    Raises:
        DataError: no root, or it does not exist.
    """
    if not root:
        raise DataError(
            f"data.root is not set; give the folder that holds {facts.folders[0]}/ (or that folder itself). "
            f"{facts.title} is at {facts.home}."
        )
    top = Path(root).expanduser()
    if not top.is_dir():
        raise DataError(f"There is no folder {top} (data.root), where {facts.title} was looked for. {how_to_get(facts, top)}")
    return [*(top / name for name in facts.folders if (top / name).is_dir()), top]


def find(dataset: str, root: str | None, variant: str | None) -> tuple[Path, Found]:
    """The folder of a data set and its official content.

    Raises:
        DataError: it is not there, or not as it is published.
    """
    facts = data_sets()[dataset]
    reader = importlib.import_module(f".{dataset}", __package__)
    missing: list[Path] = []
    for folder in folders(root, facts):
        try:
            found: Found = reader.read(folder, variant)
            return folder, found
        except NotThere as error:
            missing.append(error.args[0])
        except Exception as error:  # readers of lists, matrices and pickles raise nearly anything on damaged ones
            if isinstance(error, DataError | MemoryError) or getattr(error, "strerror", None):
                raise
            raise DataError(
                f"{facts.title} in {folder} cannot be read: one of its files is damaged, or not as published "
                f"({type(error).__name__}: {' '.join(str(error).split())}). Wanted: {facts.wanted}. "
                f"{how_to_get(facts, Path(root or ''))}"
            ) from error
    raise DataError(
        f"{facts.title} was not found: there is no {missing[0]}. Wanted in {missing[0].parent if len(missing) == 1 else root} "
        f"(or in {' or '.join(facts.folders)} below data.root): {facts.wanted}. {how_to_get(facts, Path(root or ''))}"
    )


def how_to_get(facts: Facts, root: Path) -> str:
    """Sentences that say how a data set comes to the root."""
    if facts.torchvision:
        return f"Get it with data.download=true, or from {facts.home} into {root / facts.folders[0]}."
    return f"Get it from {facts.home} into {root / facts.folders[0]}."


def download(dataset: str, root: str | None) -> None:
    """Fetch a data set with torchvision into the root, which is made if need be; what is there already is kept.

    Raises:
        DataError: torchvision has no way to download it, or the download failed.
    """
    facts = data_sets()[dataset]
    if not root:
        raise DataError(f"data.root is not set: {facts.title} would be downloaded into that folder.")
    if facts.torchvision is None:
        raise DataError(f"{facts.title} cannot be downloaded with data.download. {how_to_get(facts, Path(root))}")
    import torchvision.datasets as published

    top = Path(root).expanduser()
    try:
        top.mkdir(parents=True, exist_ok=True)
        getattr(published, facts.torchvision)(str(top), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{facts.title} could not be downloaded into {top}: {str(error).strip() or type(error).__name__}. "
            f"Get it from {facts.home}."
        ) from error
