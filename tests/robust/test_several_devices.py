"""Two devices by the command line: the numbers of one process with the joined batch, and files of one process alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from limpet.loggers import read_log
from safetensors.torch import load_file

SMALL = [
    "data.species=4", "data.train=4", "data.val=2", "data.test=3", "data.shots=4", "data.augment.preset=natural", "protocol=all",
    "trainer.epochs=2", "trainer.accelerator=cpu", "trainer.threads=1",
]  # fmt: skip
CASES = {
    # SGD: Adam divides rounding errors by gradients that are almost zero
    "images": ["method=lora", "method.dropout=0", "optim.name=sgd", "optim.lr=0.05", "data.augment.views=0"],
    "features": ["method=clip_adapter", "optim.lr=0.1", "optim.warmup=0", "data.augment.views=2", "evaluate.select=val"],
    "contrastive": ["method=contrastive", "method.temperature=10", "optim.name=sgd", "optim.lr=0.01", "data.augment.views=0"],
}
TWO = ["data.batch_size=4", "trainer.devices=2", "trainer.strategy=ddp"]
SEVEN = ["data.species=7", "data.train=3", "data.shots=3", *(word for word in SMALL if not word.startswith(("data.s", "data.tr")))]
ODD = {  # 21 images and the batch of one process: the last five are left out; all are one batch, of eleven and of ten images
    "left out": ["data.batch_size=16", *CASES["features"], *SEVEN],
    "all at once": ["data.batch_size=36", *CASES["images"], *SEVEN],
}
LISTS = ["method=ranknet", "data.attributes=[count]", "data.train=16", "data.val=2", "data.test=4", "data.batch_size=8"]
WATCH = """
import os, sys
writer = os.open(os.path.join(os.environ["WRITERS"], f"{os.getpid()}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        mode, flags = arguments[1] or "", arguments[2] or 0
        changes = set(mode) & set("wxa+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        changes = event in ("os.rename", "os.remove") and isinstance(arguments[0], str)
    if changes:
        os.write(writer, (os.path.abspath(arguments[0]) + chr(10)).encode())
sys.addaudithook(watch)
"""


def fit_and_watch(separately, place, *command):
    """Run a command; returns its run folder, and for each process (of Python) what it wrote into run folders and caches."""
    (place / "writers").mkdir(parents=True)
    done = separately(place, *command, site=WATCH, WRITERS=str(place / "writers"))
    assert "Traceback" not in done.stderr and done.stdout.count("run folder:") == 1
    (run,) = (place / "runs" / "quickstart").iterdir()
    places = tuple(str(place / name) for name in ("runs", "cache"))
    logs = (path.read_text().splitlines() for path in (place / "writers").iterdir())
    return run, [[path for path in log if path.startswith(places)] for log in logs]


def numbers(tree, path=""):
    """The numbers of nested dicts, by path."""
    if isinstance(tree, dict):
        return {key: value for name, part in tree.items() for key, value in numbers(part, f"{path}/{name}").items()}
    return {path: tree} if isinstance(tree, int | float) else {}


def check_equal(one, two):
    """Weights, results and the course of training of two runs differ by rounding alone."""
    weights = [load_file(run / "adapter" / "v1" / "adapter.safetensors") for run in (one, two)]
    assert set(weights[0]) == set(weights[1])
    for name, tensor in weights[0].items():
        assert float((tensor - weights[1][name]).abs().max()) < 1e-6 * max(1, float(tensor.abs().max())), name
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    found = [m.pop("calibration") for m in metrics]  # a search, which ends where its own tolerance says
    assert numbers(metrics[1]) == pytest.approx(numbers(metrics[0]), abs=1e-6)
    assert numbers(found[1]) == pytest.approx(numbers(found[0]), abs=1e-4)
    logs = [[{k: float(v) for k, v in row.items()} for row in read_log(run)] for run in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 3
    for rows in zip(*logs, strict=True):
        assert rows[1] == pytest.approx(rows[0], abs=1e-6)
    assert logs[0][0]["loss"] != pytest.approx(logs[0][1]["loss"], abs=1e-4)  # something was learned


def cache_of(place):
    """Folder, kind and size of the files of a cache, whose names are drawn."""
    return sorted((path.parent.name, path.suffix, path.stat().st_size) for path in (place / "cache").rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_devices_give_what_one_gives(case, separately, tmp_path):
    words = ["-m", "limpet", "fit", "quickstart", *SMALL, *CASES[case]]
    one, _ = fit_and_watch(separately, tmp_path / "one", *words, "data.batch_size=8")
    two, written = fit_and_watch(separately, tmp_path / "two", *words, *TWO)
    check_equal(one, two)
    assert len(written) == 2 and sum(map(bool, written)) == 1
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert cache_of(tmp_path / "one") == cache_of(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("case", ODD)
def test_numbers_of_images_that_two_do_not_divide(case, separately, tmp_path):
    size, *words = ODD[case]
    half = f"data.batch_size={int(size.partition('=')[2]) // 2}"
    command = ["-m", "limpet", "fit", "quickstart", *words]
    one, _ = fit_and_watch(separately, tmp_path / "one", *command, size)
    two, _ = fit_and_watch(separately, tmp_path / "two", *command, *TWO[1:], half)
    check_equal(one, two)


def test_ways_that_several_devices_cannot_train_are_refused(tmp_path):
    env = {**os.environ, "LIMPET_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for recipe, words, said in (
        ("quickstart", ["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn copies the run into other processes"),
        ("order_reef", ["trainer.devices=4", "trainer.strategy=ddp", *LISTS], "make 2 lists of 8 an epoch: take 2 or fewer"),
    ):
        command = [sys.executable, "-m", "limpet", "fit", recipe, "trainer.accelerator=cpu", *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr


@pytest.mark.slow
def test_torchrun_gives_what_one_process_gives(separately, tmp_path):
    words = ["-m", "limpet", "fit", "quickstart", *SMALL, *CASES["features"]]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--local-addr", "127.0.0.1"]
    one, _ = fit_and_watch(separately, tmp_path / "one", *words, "data.batch_size=8")
    two, written = fit_and_watch(separately, tmp_path / "two", *torchrun, *words, *TWO)
    check_equal(one, two)
    assert sum(map(bool, written)) == 1


@pytest.mark.slow
def test_a_killed_process_of_several_ends_the_run_in_a_sentence(tmp_path):
    small = [word for word in SMALL if not word.startswith("trainer.epochs")]
    words = ["fit", "quickstart", *small, "method=clip_adapter", *TWO, "trainer.epochs=1000"]
    env = {**os.environ, "LIMPET_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "limpet", *words]
    run = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while run.poll() is None and not (tmp_path / "runs/quickstart/001/last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    try:
        parents = {stat.parent.name: stat.read_text().rpartition(")")[2].split()[1] for stat in Path("/proc").glob("[0-9]*/stat")}
        (child,) = (int(process) for process, parent in parents.items() if parent == str(run.pid))
        os.kill(child, signal.SIGKILL)
        _, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 2
    assert err == (
        "error: Process 2 of 2 was killed (signal 9) while the run trained on several devices. "
        "Continue with: limpet resume quickstart/001\n"
    )
