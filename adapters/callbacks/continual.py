"""Continual learning: what was learned in a stream of sessions, and what was kept (pure functions of accuracies).

A[i][j] is the accuracy on session j after session i. Definitions: Transfer, Avg and Last as in ZSCL (Zheng et al. 2023);
forgetting as in Chaudhry et al. (2018); backward transfer as in GEM (Lopez-Paz and Ranzato 2017), which other code averages over
all pairs instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Matrix = Sequence[Sequence[float | None]]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _known(values: Sequence[float | None]) -> list[float] | None:
    """The values, or None where one is missing: a mean over the others would be another figure."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) and known else None


def transfer(matrix: Matrix) -> float | None:
    """Mean over sessions j >= 2 of the mean accuracy on j before it was trained: the columns above the diagonal."""
    columns = [_known([matrix[i][j] for i in range(j)]) for j in range(1, len(matrix))]
    means = [_mean(column) for column in columns if column is not None]
    return _mean([m for m in means if m is not None]) if len(means) == len(columns) else None


def average(matrix: Matrix) -> float | None:
    """Mean of the whole matrix (ZSCL's Avg)."""
    values = _known([value for row in matrix for value in row])
    return _mean(values) if values else None


def last(matrix: Matrix) -> float | None:
    """Mean of the last row (ZSCL's Last)."""
    values = _known(list(matrix[-1]))
    return _mean(values) if values else None


def forgetting(matrix: Matrix) -> float | None:
    """Mean over sessions j < T of the best accuracy on j from its training on, less the last (Chaudhry et al. 2018)."""
    count = len(matrix)
    drops = []
    for j in range(count - 1):
        column = _known([matrix[i][j] for i in range(j, count)])
        if column is None:
            return None
        drops.append(max(column[:-1]) - column[-1])
    return _mean(drops)


def backward_transfer(matrix: Matrix) -> float | None:
    """Mean over sessions j < T of the last accuracy on j less that right after its training (GEM)."""
    count = len(matrix)
    pairs = [(matrix[count - 1][j], matrix[j][j]) for j in range(count - 1)]
    changes = [end - start for end, start in pairs if end is not None and start is not None]
    return _mean(changes) if len(changes) == len(pairs) else None


def backward_transfer_all_pairs(matrix: Matrix) -> float | None:
    """Mean over all i > j of A[i][j] - A[j][j], as the library continuum has it: another number than GEM's."""
    pairs = [(matrix[i][j], matrix[j][j]) for i in range(len(matrix)) for j in range(i)]
    changes = [later - start for later, start in pairs if later is not None and start is not None]
    return _mean(changes) if len(changes) == len(pairs) else None


def seen(matrix: Matrix, images: Sequence[int] | None = None) -> list[float | None]:
    """Accuracy after each session on the test images of all sessions so far.

    Args:
        matrix: A.
        images: test images of each session, for an accuracy over all images; None: every session counts the same.
    """
    found: list[float | None] = []
    for i, row in enumerate(matrix):
        weights = [1] * (i + 1) if images is None else list(images[: i + 1])
        pairs = [(value, weight) for value, weight in zip(row, weights, strict=False) if weight]
        values = _known([value for value, _ in pairs])
        total = sum(weight for _, weight in pairs)
        found.append(sum(v * w for v, (_, w) in zip(values, pairs, strict=True)) / total if values else None)
    return found


def summary(matrix: Matrix, images: Sequence[int] | None = None) -> dict[str, Any]:
    """All figures of a stream; None where a value they need is missing (a method that cannot answer about what is to come).

    Returns:
        `seen`: accuracy over all test images so far after each session; `last`: the last of these, and
        `average_incremental` their mean (class-incremental Last and Avg); `task_last`, `task_average`, `transfer`: of the
        matrix; `forgetting`, `backward_transfer`, `backward_transfer_all_pairs`.
    """
    so_far = seen(matrix, images)
    known = _known(so_far)
    return {
        "seen": so_far,
        "last": so_far[-1] if so_far else None,
        "average_incremental": _mean(known) if known else None,
        "mean_seen_by_session": _mean(_known(seen(matrix)) or []),
        "task_last": last(matrix),
        "task_average": average(matrix),
        "transfer": transfer(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "backward_transfer_all_pairs": backward_transfer_all_pairs(matrix),
    }


def retention(before: Mapping[str, float | None], after: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """What is left of accuracy on data that are never trained on.

    Args:
        before: name of the data -> accuracy of the untrained CLIP.
        after: the same after each session.

    Returns:
        name -> {"zero_shot", "after": one a session, "change": last less zero-shot}, and under "mean" those over the data.
    """
    found: dict[str, Any] = {}
    for name, start in before.items():
        values = [session.get(name) for session in after]
        end = values[-1] if values else None
        change = end - start if end is not None and start is not None else None
        found[name] = {"zero_shot": start, "after": values, "change": change}
    if not found:
        return {}
    ends = _known([entry["after"][-1] if entry["after"] else None for entry in found.values()])
    starts = _known([entry["zero_shot"] for entry in found.values()])
    mean = {"zero_shot": _mean(starts or []), "after": _mean(ends or [])}
    return {"data": found, "mean": mean}
