"""Many rows, many runs; times are printed (-s), nothing is gated by them."""

import json
import time
from pathlib import Path

import pytest
from limpet.datamodules import load
from limpet.datamodules.configs import TableConfig
from PIL import Image

MEMORY = 4500  # MiB, of which libraries take about one thousand, and activations two
# ru_maxrss would begin with the memory of the process that started this one
HIGHEST = """
from pathlib import Path

def memory(what):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) >> 10
"""
PEAK = f"""{HIGHEST}
import sys
from limpet.cli import main
code = main(sys.argv[1:])
print(f"peak {{memory('VmHWM')}} MiB")
sys.exit(code)
"""


def write_table(root, rows):
    """A table of rows (label, split), whose images are links to four."""
    originals = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(root / f"original{number}.png")
        originals.append(root / f"original{number}.png")
    (root / "images").mkdir()
    lines = ["path,label,split"]
    for number, (label, split) in enumerate(rows):
        (root / "images" / f"{number}.png").symlink_to(originals[number % 4])
        lines.append(f"images/{number}.png,{label},{split}")
    (root / "labels.csv").write_text("\n".join(lines))


def test_a_table_of_200000_rows_opens(tmp_path):
    write_table(tmp_path, ((f"species {number % 200}", ("train", "test")[number % 2]) for number in range(200_000)))
    start = time.perf_counter()
    data = load(TableConfig(root=str(tmp_path), shots="16"), 1)
    data.setup()
    print(f"200,000 rows in {time.perf_counter() - start:.1f} s")
    assert len(data.class_names) == 200
    assert len(data.samples["test"]) == 100_000 and len(data.samples["train"]) == 1_600
    assert all(int(Path(s.path).stem) % 200 == int(data.class_names[s.label].split()[1]) for s in data.samples["test"])


def test_500_runs_are_compared(finished, tmp_path, ask):
    _, run = finished
    metrics = json.loads((run / "metrics.json").read_text())
    recipe = (run / "recipe.yaml").read_text()
    folders = []
    for number in range(500):
        folder = tmp_path / "runs" / "many" / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(recipe)
        content = metrics | {"seed": number % 50, "method": f"method{number // 50}"}
        content["results"]["all"]["accuracy"] = (number % 50) / 50
        (folder / "metrics.json").write_text(json.dumps(content))
        folders.append(folder)
    start = time.perf_counter()
    answer = ask("compare", *folders)
    print(f"500 runs in {time.perf_counter() - start:.1f} s")
    assert answer.code == 0
    assert all(f"method{n}" in answer.out for n in range(10)) and "49.0" in answer.out


@pytest.mark.slow
def test_21000_classes_fit_in_memory(separately, tmp_path):
    """CoOp, and the zero-shot classifier that every run is compared with."""
    write_table(tmp_path, ((f"species {number}", "test" if number % 100 == 0 else "train") for number in range(21_000)))
    words = ["data.shots=1", "data.augment=none", "trainer=cpu", "trainer.threads=1", "trainer.max_steps=2", "method=coop"]
    done = separately(tmp_path, "-c", PEAK, "fit", "fish", "data=table", "data.root=.", "backbone=limpet-tiny", *words)
    peak = int(done.stdout.split("peak ")[-1].split()[0])
    print(f"21,000 classes in {peak} MiB")
    (metrics,) = tmp_path.glob("runs/fish/001/metrics.json")
    found = json.loads(metrics.read_text())
    assert found["results"]["all"]["classes"] == found["zero_shot"]["all"]["classes"] == 21_000
    assert found["results"]["all"]["images"] == 210
    assert peak < MEMORY


def test_answers_of_many_images_about_many_classes_are_not_kept_as_probabilities(separately, tmp_path):
    """One test image of each class: the scores of 6,000 are 138 MiB, and their probabilities would be 275."""
    script = """
import torch
from limpet.classes import ClassSet
from limpet.tasks.classification import Outcome
import sklearn.metrics, torchmetrics.functional.classification

names = tuple(map(str, range(COUNT)))
parts = [torch.randn(256, COUNT) for _ in range(0, COUNT, 256)]
labels = torch.arange(len(parts) * 256) % COUNT
small = Outcome(ClassSet(("a", "b", "c")), [torch.eye(3)], torch.arange(3), ["a", "b", "c"])
small.metrics()
before = memory("VmRSS")
outcome = Outcome(ClassSet(names), parts, labels, ["x.png"] * len(labels), 2.0)
assert outcome.metrics()["classes"] == COUNT == len(outcome.per_class())
assert len(outcome.predictions()) == len(labels)
print("more", memory("VmHWM") - before, "scores", sum(p.nbytes for p in parts) >> 20)
""".replace("COUNT", "6_000")
    done = separately(tmp_path, "-c", HIGHEST + script)
    words = done.stdout.split("more ")[-1].split()
    print(f"scores of {words[2]} MiB, and {words[0]} MiB more to measure them")
    assert int(words[0]) < 250  # some blocks of 16
