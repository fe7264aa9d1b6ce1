"""What differs between tasks: how answers are measured, and how results are shown and written."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..adapter import Adapter


def task_of(adapter: Adapter | type[Adapter]) -> Any:
    """The module of an adapter's task.

    Each has `HEADLINE`, `evaluate(adapter, batches, classes)`, `reference(backbone, classes)`, `class_rows(spaces,
    zero_shot)`, `write_report(run_dir, metrics, thumbnail)`, `show_results(session, metrics, run_dir)` and
    `lines(values)`.
    """
    return importlib.import_module(f".{adapter.task}", __name__)
