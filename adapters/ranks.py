"""Several devices: only the first process writes and speaks, the others help to train.

On one machine Lightning repeats the command line once for each further device. On a cluster every process is started from
outside, by SLURM (`srun limpet fit ...`) or torchrun; they find the run folder by a file named after the job.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch

from . import files
from .errors import RunError

_RUN_DIR = "LIMPET_RUN_DIR"
WAIT_SECONDS = 1800  # for the first process, which makes the run folder and computes what is cached
STALE_SECONDS = 600
_waiting: list[Path] = []  # files of this job that the first process removes


def rank() -> int:
    """Number of this process among those of one run; 0 where there is one."""
    number = next((os.environ[key] for key in ("RANK", "SLURM_PROCID") if _outside() and key in os.environ), None)
    if number is not None:
        return int(number)
    node, local = (int(os.environ.get(key, "0") or 0) for key in ("NODE_RANK", "LOCAL_RANK"))
    return local if not node else node * 1000 + local  # only 0 means something; other nodes have no such process


def job() -> str | None:
    """What is the same for all processes of a job that SLURM, torchrun or a command on each node started; None without one."""
    names: tuple[str, ...]
    if _slurm():
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")
    elif "MASTER_ADDR" in os.environ and "NODE_RANK" in os.environ:
        names = ("MASTER_ADDR", "MASTER_PORT")
    else:
        return None
    text = "-".join(os.environ.get(name, "") for name in names)
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


def _slurm() -> bool:
    """Whether srun started several processes, as Lightning decides it."""
    several = int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1
    return several and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _outside() -> bool:
    return _slurm() or "TORCHELASTIC_RUN_ID" in os.environ


def shared_run_dir(make: Callable[[], Path], base: Path) -> Path:
    """The run folder: made by the first process, which tells the others.

    Args:
        make: makes it.
        base: an existing or possible folder that all processes see, for the file of the job.

    Raises:
        RunError: the first process did not make one.
    """
    name = job()
    place = base / f".job-{name}"
    if rank() == 0:
        path = make()
        os.environ[_RUN_DIR] = str(path.resolve())
        if name:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            _waiting.append(place)
        return path
    if _RUN_DIR not in os.environ:
        if not name:
            raise RunError("Start one `limpet` command only: with trainer.devices it starts the other processes itself.")
        os.environ[_RUN_DIR] = _wait(place)
    return Path(os.environ[_RUN_DIR])


def _wait(place: Path) -> str:
    """What the first process wrote for this job."""
    begun = time.monotonic()
    while True:
        told = _told(place)
        if told is not None:
            return told
        if time.monotonic() - begun > WAIT_SECONDS:
            raise RunError(
                f"Process {rank()} waited for {place} of the first process, which did not come. Is run.dir on a disk that all "
                "nodes see? The first process's words say what else went wrong."
            )
        time.sleep(0.2)


def _told(place: Path) -> str | None:
    """The content of a job's file; None where there is none, or it is of another time and so of an earlier job of that name."""
    try:
        if abs(time.time() - place.stat().st_mtime) <= STALE_SECONDS:
            return place.read_text(encoding="utf-8")
    except FileNotFoundError:  # the first process removes the file of an earlier job
        pass
    return None


def ready_to_train() -> None:
    """Let processes that were started from outside go on: what is cached has been computed by now, once."""
    for place in _waiting:
        files.write_text(place, os.environ[_RUN_DIR])


def leave_group() -> None:
    """End the group of processes after training, so that the first one evaluates all images by itself."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    while _waiting:
        _waiting.pop().unlink(missing_ok=True)


def lost_process(trainer: lightning.Trainer, error: RuntimeError) -> str:
    """The beginning of a sentence about the process that took the others' training with it; empty where none did.

    Args:
        trainer: what trained.
        error: what it ended with.
    """
    if trainer.world_size < 2:
        return ""
    started: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for number, process in enumerate(started, 2):
        with suppress(subprocess.TimeoutExpired):  # its end is noticed by its connection first
            code = process.wait(2)
            if code:
                for other in started:
                    other.kill()
                started.clear()  # Lightning, which watches over them, would kill this one before it could say so
                how = f"was killed (signal {-code})" if code < 0 else f"ended with code {code} (its own words are above)"
                return f"Process {number} of {trainer.world_size} {how}"
    return "Another process ended" if isinstance(error, torch.distributed.DistError) or "gloo" in str(error) else ""


class LateLoader(lightning.LightningDataModule):
    """Makes the training loader when the group of processes exists, so that each gets its share of the images.

    Args:
        make: makes the loader.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> Any:
        """The loader."""
        return self.make()
