"""Without sockets, with workers started afresh (as on Windows and macOS), and with warnings as errors."""

import json
import os
import pickle
import shlex
import subprocess
import sys

import pytest
import torch
from limpet.datamodules import load
from limpet.datamodules.configs import (
    FolderConfig,
    ReefConfig,
    ReefDefectsConfig,
    ReefOrderingConfig,
    ReefScenesConfig,
    ShapesConfig,
)

SMALL = (
    "data.species=4 data.train=4 data.val=2 data.test=3 data.shots=4 data.batch_size=8 trainer.epochs=1 trainer.threads=1 "
    "trainer.accelerator=cpu"
)
COMMANDS = """
import shlex, sys
from limpet.cli import main
for words in sys.argv[1:]:
    code = main(shlex.split(words))
    if code:
        sys.exit(code)
"""
NO_SOCKETS = """
import os, sys
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":  # its own name a machine knows
        if event != "socket.__new__":  # libraries look whether there is IPv6
            os.write(2, f"{event} was tried{chr(10)}".encode())
        raise OSError("this machine has no sockets")
sys.addaudithook(refuse)
"""
OWN_WARNINGS = """
import warnings
warnings.filterwarnings("error", module=r"limpet(\\.|$)")  # told apart by the line that a warning points at
"""
SPAWN = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
"""


@pytest.mark.slow
def test_quickstart_needs_no_socket(separately, tmp_path, fish):
    commands = [f"fit quickstart {SMALL}", f"predict quickstart {fish}", "export quickstart --to weights"]
    done = separately(tmp_path, "-c", COMMANDS, *commands, site=NO_SOCKETS)
    assert "was tried" not in done.stderr, done.stderr
    run = tmp_path / "runs" / "quickstart" / "001"
    assert (run / "metrics.json").exists() and any((run / "exports" / "weights").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=["latin", "C"]
)
def test_a_terminal_without_some_letters_shows_the_others(words, tmp_path):
    env = {**os.environ, **words, "LIMPET_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "limpet", "fit", "quickstart", *SMALL.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"harmonic mean" in done.stdout and b"?" in done.stdout  # a dash where there is no figure


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_streams_that_are_closed_are_no_failure(closed, tmp_path):
    for words, code in (("methods", 0), ("fit nothere", 2)):
        done = subprocess.run(f"{shlex.quote(sys.executable)} -m limpet {words} {closed}", shell=True, cwd=tmp_path)
        assert done.returncode == code


@pytest.mark.slow
def test_our_own_code_warns_of_nothing(separately, tmp_path, fish):
    mine = f"fit fish data.root={fish} backbone=limpet-tiny data.shots=2 trainer=cpu trainer.threads=1 trainer.epochs=1"
    commands = [
        f"fit quickstart {SMALL} method=coop,gda,lora evaluate.select=val",
        f"{mine} method=linear_probe",
        f"{mine} method=tip_adapter_f",
        "evaluate fish/001",
        f"predict fish/001 {fish}",
        "compare fish/001 fish/002",
    ]
    done = separately(tmp_path, "-c", OWN_WARNINGS + COMMANDS, *commands)
    assert "Exception ignored" not in done.stderr and "warning" not in done.stderr.lower(), done.stderr


@pytest.mark.slow
def test_workers_that_are_started_afresh_change_nothing(separately, tmp_path):
    words = f"fit quickstart {SMALL} method=clip_adapter data.augment.preset=natural"
    separately(tmp_path / "spawned", "-m", "limpet", *words.split(), "data.num_workers=1", site=SPAWN)
    separately(tmp_path / "plain", "-m", "limpet", *words.split())
    metrics = [tmp_path / name / "runs" / "quickstart" / "001" / "metrics.json" for name in ("spawned", "plain")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()
    assert json.loads(metrics[0].read_text())["results"]


DATA = {
    "folder": lambda fish: FolderConfig(root=str(fish), shots="2"),
    "reef": lambda fish: ReefConfig(species=3, train=2, val=1, test=1, shots="all"),
    "reef_scenes": lambda fish: ReefScenesConfig(species=4, train=2, val=1, test=1, shots="all"),
    "reef_defects": lambda fish: ReefDefectsConfig(species=4, test=2),
    "reef_ordering": lambda fish: ReefOrderingConfig(train=4, val=2, test=4),
    "shapes": lambda fish: ShapesConfig(train=2, val=1, test=1, shots="all"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_reach_a_worker_that_is_started_afresh(name, fish, tiny):
    data = load(DATA[name](fish), 1)
    data.setup()
    data.ask_for(data.offers)
    data.set_transforms(tiny.transform(train=True), tiny.transform())
    for split, augment in (("train", True), ("test", False)):
        dataset = data.dataset(split, augment=augment)
        if not len(dataset):
            continue
        one, again = dataset[0], pickle.loads(pickle.dumps(dataset))[0]
        assert one.keys() == again.keys()
        assert all(torch.equal(v, again[k]) if isinstance(v, torch.Tensor) else v == again[k] for k, v in one.items())
