"""Without network, with warnings as errors, with spawned workers: the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "strictly.py"
SETTINGS = ["backbone=limpet-tiny", "data.shots=2", "trainer.accelerator=cpu", "trainer.epochs=1", "trainer.threads=1",
            "data.augment.preset=natural"]  # fmt: skip


def strictly(place, commands):
    env = {**os.environ, "LIMPET_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    words = [sys.executable, "-W", "error::SyntaxWarning", str(SCRIPT), json.dumps(commands)]
    done = subprocess.run(words, cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_works_without_network_or_warnings_and_with_spawned_workers(tmp_path, fish, ask):
    """Views are drawn anew in each epoch by a spawned worker; the numbers are those of one process."""
    fit = ["fit", "fish", f"data.root={fish}", *SETTINGS, "data.augment.views=0"]
    image = str(next(fish.rglob("*.png")))
    codes = strictly(tmp_path, [
        ["recipes"], ["methods"], ["doctor"], [*fit, "data.num_workers=1"], ["evaluate", "fish", "data.num_workers=0"],
        ["predict", "fish", image, "--out", "p.csv"], ["export", "fish", "--to", "adapter"], ["compare", "fish"], ["cache"],
    ])  # fmt: skip
    assert codes == [0] * 9
    assert ask(*fit, f"run.dir={tmp_path / 'again'}").code == 0
    one, other = (json.loads((tmp_path / name / "fish/001/metrics.json").read_text()) for name in ("runs", "again"))
    assert one == other


def test_compiling_warns_of_nothing():
    """`python -W error` over our own files: no invalid escapes, no assertions that always hold."""
    root = Path(__file__).parents[2]
    files = [str(path) for folder in ("adapters", "datamodules", "recipes") for path in (root / folder).rglob("*.py")]
    code = "import sys\nfor file in sys.argv[1:]:\n    compile(open(file, encoding='utf-8').read(), file, 'exec')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
