"""Many rows, many runs; times are printed (-s), nothing is gated by them."""

import json
import time
from pathlib import Path

from limpet.datamodules import load
from limpet.datamodules.configs import TableConfig
from PIL import Image


def test_a_table_of_200000_rows_opens(tmp_path):
    originals = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(tmp_path / f"original{number}.png")
        originals.append(tmp_path / f"original{number}.png")
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["path,label,split"]
    for number in range(200_000):
        (folder / f"{number}.png").symlink_to(originals[number % 4])
        lines.append(f"images/{number}.png,species {number % 200},{('train', 'test')[number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
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
