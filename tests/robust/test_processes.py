"""Several processes: the same samples once each, the numbers of one process, one run folder, caches written once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from limpet import ranks
from limpet.datamodules import DataError, load
from limpet.datamodules.configs import FolderConfig, PretrainingConfig, ReefConfig
from limpet.datamodules.pretraining import MixedLoader
from limpet.datamodules.pretraining_sources import shape_source
from limpet.errors import RunError


def run(place, *command):
    """A command of Python in `place`, with a cache there."""
    place.mkdir(exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LIMPET", "SLURM", "MASTER", "TORCHELASTIC"))}
    env |= {"LIMPET_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_losses_of_joined_batches_equal_those_of_one_process(tmp_path):
    found = json.loads(run(tmp_path, Path(__file__).parent / "joined.py").splitlines()[-1])
    assert len(found) == 2
    for process in found:
        assert set(process) == {"infonce", "siglip", "warm-up", "ranking", "ranknet"}
        for method, differences in process.items():
            assert differences["loss"] < 1e-5, (method, differences)
            assert differences["gradient"] < 1e-4, (method, differences)


@pytest.fixture
def group(monkeypatch):
    """group(rank, ranks): as if this were one of several processes."""

    def pretend(rank, ranks):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: ranks)

    return pretend


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_training_image_is_in_one_batch_of_one_process(ranks, group):
    seen = []
    for rank in range(ranks):
        group(rank, ranks)
        data = load(ReefConfig(name="reef", species=4, train=4, val=1, test=1, shots="all", batch_size=2), 1)
        data.setup()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(3)
        seen += [path for batch in loader for path in batch["path"]]
    assert len(seen) == len(set(seen)) == 16


def test_processes_take_as_many_steps_where_a_batch_cannot_be_read(group, draw, tmp_path):
    root, steps, unreadable = draw(tmp_path / "fish", species=2, images=8), [], []
    for rank in range(2):
        group(rank, 2)
        data = load(FolderConfig(root=str(root), shots="all", batch_size=1), 1)
        data.setup()
        data.samples["train"][0].file.write_bytes(b"no image")
        steps.append(len(list(data.train_dataloader())))
        unreadable += data.unreadable
    assert steps[0] == steps[1] == len(data.train_dataloader()) and len(unreadable) == 1


def test_of_fewer_images_than_processes_each_counts_once(group):
    counted = []
    for rank in range(5):
        group(rank, 5)
        data = load(ReefConfig(name="reef", species=2, train=1, val=1, test=1, shots="all", batch_size=1), 1)
        batches = list(data.train_dataloader())
        assert len(batches) == 1
        counted += [] if batches[0].get("repeated") else batches[0]["path"]
    assert len(counted) == len(set(counted)) == 2


def test_a_process_that_can_read_none_of_its_images_says_so(group, draw, tmp_path):
    group(1, 2)
    data = load(FolderConfig(root=str(draw(tmp_path / "fish", species=2, images=8)), shots="all", batch_size=1), 1)
    data.setup()
    for sample in data.samples["train"]:
        sample.file.write_bytes(b"no image")
    with pytest.raises(DataError, match="None of the images that process 2 of 2 was to read"):
        list(data.train_dataloader())


def test_mixed_batches_are_dealt_out_and_know_the_captions_of_all(group):
    config = PretrainingConfig(batch_size=4, epoch_images=32, size=32)
    sources = [(shape_source(20, 32, 1), 1.0)]
    alone = [MixedLoader(sources, None, config, 1).batch(step) for step in range(8)]
    loaders = []
    for rank in range(2):
        group(rank, 2)
        loaders.append(MixedLoader(sources, None, config, 1))
        assert len(loaders[rank]) == 4
    for step in range(4):
        together = [loader.batch(step) for loader in loaders]
        for rank, batch in enumerate(together):
            whole = alone[2 * step + rank]
            assert batch["path"] == whole["path"] and batch["caption"] == whole["caption"]
            assert torch.equal(batch["image"], whole["image"])
            assert batch["positives"].shape == (4, 8)
            assert torch.equal(batch["positives"][:, 4 * rank : 4 * rank + 4], whole["positives"])


@pytest.mark.parametrize(("days", "believed"), [(0, True), (-1, False), (1, False)])  # the last: the clock was set back
def test_a_process_joins_the_run_of_its_own_job_only(days, believed, monkeypatch, tmp_path):
    monkeypatch.setenv("LIMPET_RUN_DIR", "nowhere")  # so that it is put back
    monkeypatch.delenv("LIMPET_RUN_DIR")
    for key, value in {"TORCHELASTIC_RUN_ID": "one", "MASTER_PORT": "1", "RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranks, "WAIT_SECONDS", 0.3)
    place = tmp_path / f".job-{ranks.job()}"
    place.write_text(str(tmp_path / "001"))
    when = place.stat().st_mtime + days * 86400
    os.utime(place, (when, when))
    if believed:
        assert ranks.shared_run_dir(pytest.fail, tmp_path) == tmp_path / "001"
    else:
        with pytest.raises(RunError, match="did not come"):
            ranks.shared_run_dir(pytest.fail, tmp_path)
