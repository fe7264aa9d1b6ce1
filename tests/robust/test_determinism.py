"""The same recipe, seed and number of threads give the same bytes, whatever Python's hash seed and the number of data workers."""

import pytest

GRID = [
    "-m", "limpet", "fit", "quickstart", "data.species=4", "data.train=4", "data.val=2", "data.test=3", "data.shots=4",
    "data.augment.preset=natural", "method=coop,clip_adapter,lora,gda", "data.batch_size=8", "trainer.epochs=2", "trainer.threads=1",
    "trainer.accelerator=cpu",
]  # fmt: skip
FILES = ("metrics.json", "predictions.csv", "per_class.csv", "split.json", "log/metrics.csv", "adapter/v1/adapter.safetensors")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(separately, tmp_path):
    found = []
    for seed, workers in (("1", 0), ("2", 2)):
        place = tmp_path / seed
        separately(place, *GRID, f"data.num_workers={workers}", PYTHONHASHSEED=seed)
        cells = {path.parent.name: path.parent for path in place.glob("runs/quickstart/grid-*/*/metrics.json")}
        found.append({f"{name}/{file}": (cell / file).read_bytes() for name, cell in cells.items() for file in FILES
                      if (cell / file).exists()})  # fmt: skip
    one, two = found
    assert set(one) == set(two) and len([name for name in one if name.endswith("metrics.json")]) == 4
    assert [name for name in one if one[name] != two[name]] == []
