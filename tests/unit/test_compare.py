"""Comparing runs from their metrics.json."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
import subprocess
import sys

import pytest
from limpet import compare
from limpet.errors import RunError
from rich.console import Console


def numbers(accuracy):
    lower = {"balanced_accuracy": max(accuracy - 0.1, 0), "macro_f1": max(accuracy - 0.2, 0)}
    return {"accuracy": accuracy, **lower, "ece": 0.1}


def write(folder, method="coop", seed=1, accuracy=0.8, **more):
    folder.mkdir(parents=True)
    metrics = {
        "format": 1, "recipe": "fish", "method": method, "backbone": "limpet-tiny", "protocol": "all", "seed": seed,
        "shots": 16, "results": {"all": numbers(accuracy)}, "zero_shot": {"all": numbers(0.4)}, "notes": [], **more,
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "recipe.yaml").write_text("seed: 1\n")
    return folder


def both(base, new):
    return {"base": numbers(base), "new": numbers(new), "joint": numbers((base + new) / 2)}


@pytest.fixture
def runs(tmp_path):
    values = {"coop": [0.8, 0.9, 0.7], "tip_adapter": [0.6, 0.6, 0.9]}
    return [
        write(tmp_path / "fish" / "grid-1" / f"{m},{s}", m, s + 1, v)
        for m, vs in values.items()
        for s, v in enumerate(vs)
    ]


def test_mean_and_sd_over_seeds_with_zero_shot_once(runs):
    rows = compare.summarise(compare.load_runs(runs))
    assert [row.group["method"] for row in rows] == ["zero_shot", "coop", "tip_adapter"]
    coop = rows[1]
    assert coop.seeds == [1, 2, 3]
    assert coop.mean("accuracy") == pytest.approx(0.8)
    assert coop.sd("accuracy") == pytest.approx(statistics.stdev([0.8, 0.9, 0.7]))
    assert coop.show("accuracy") == "80.0 ± 10.0"
    assert rows[0].show("accuracy") == "40.0 ± 0.0"
    assert any("seed 2: 90.0" in line for line in compare.each_seed(rows))


def test_a_grid_folder_stands_for_its_runs(runs, tmp_path):
    assert len(compare.load_runs([tmp_path / "fish" / "grid-1"])) == 6
    assert len(compare.load_runs([tmp_path / "fish"])) == 6
    assert len(compare.load_runs([runs[0], *runs])) == 6


def test_base_to_new(tmp_path):
    write(
        tmp_path / "a",
        results=both(0.8, 0.5),
        harmonic_mean=0.6154,
        zero_shot=both(0.4, 0.4),
        protocol="base_to_new",
    )
    zero, row = compare.summarise(compare.load_runs([tmp_path / "a"]))
    assert (row.show("base"), row.show("new"), row.show("harmonic_mean")) == ("80.0", "50.0", "61.5")
    assert zero.show("harmonic_mean") == "40.0"
    text = compare.markdown([zero, row])
    assert "| method | n | Base | New | H | Joint |" in text and "| zero_shot | 1 | 40.0 |" in text


def test_a_run_of_zero_shot_itself_is_the_zero_shot_row(tmp_path):
    write(tmp_path / "a", "zero_shot", 1, 0.4)
    write(tmp_path / "b", "coop", 1, 0.6)
    rows = compare.summarise(compare.load_runs([tmp_path / "b", tmp_path / "a"]))
    assert [row.group["method"] for row in rows] == ["zero_shot", "coop"]


def test_same_seed_with_another_result_is_not_averaged_in(tmp_path):
    for n, accuracy in enumerate((0.5, 0.5, 0.9)):
        write(tmp_path / str(n), accuracy=accuracy)
    rows = [r for r in compare.summarise(compare.load_runs([tmp_path])) if not r.stands_for_all]
    assert [(r.mean("accuracy"), len(r.seeds), r.group["variant"]) for r in rows] == [
        (0.5, 1, ""),
        (0.9, 1, "#2"),
    ]


def test_printed_table(runs):
    console = Console(file=io.StringIO(), width=160)
    compare.print_table(runs, console)
    text = console.file.getvalue()
    assert "80.0 ± 10.0" in text and text.count("zero_shot") == 1 and "seed 1: 80.0" in text


def test_missing_and_unfinished_runs_are_named(runs, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "recipe.yaml").write_text("")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.json").write_text("{")
    new = write(tmp_path / "newer", format=9)
    console = Console(file=io.StringIO(), width=160)
    compare.compare([*runs, tmp_path / "open", tmp_path / "bad", new, tmp_path / "gone"], None, console)
    text = console.file.getvalue()
    for words in ("open is not finished", "bad/metrics.json cannot be read", "newer Limpet", "gone"):
        assert words in text
    with pytest.raises(RunError, match="not finished"):
        compare.load_runs([tmp_path / "open"])


def test_files(tmp_path):
    runs = [
        write(tmp_path / f"{m}{shots}{seed}", m, seed, 0.3 + shots / 40 + seed / 100, shots=shots)
        for m in ("coop", "<b>$me$</b>")
        for shots in (1, 4, 16)
        for seed in (1, 2)
    ]
    compare.compare(runs, tmp_path / "out", Console(file=io.StringIO()))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "bars.png",
        "compare.csv",
        "compare.html",
        "compare.md",
        "shots.png",
    ]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "<b>$me" not in page and "&lt;b&gt;$me" in page and "data:image/png" in page and "http" not in page
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))
    (mean,) = (r for r in rows if r["method"] == "coop" and r["shots"] == "4" and r["seed"] == "mean")
    assert float(mean["accuracy"]) == pytest.approx(0.415) and mean["n"] == "2"
    assert (tmp_path / "out" / "shots.png").read_bytes()[:4] == b"\x89PNG"


def test_shots_are_in_numeric_order(tmp_path):
    runs = [write(tmp_path / str(s), shots=s) for s in (16, 2, 1, 8)]
    rows = [r for r in compare.summarise(compare.load_runs(runs)) if not r.stands_for_all]
    assert [r.group["shots"] for r in rows] == ["1", "2", "8", "16"]


def test_five_hundred_runs_are_one_page(tmp_path):
    runs = [write(tmp_path / "many" / f"{n:03d}", f"m{n % 50}", n // 50, n / 500) for n in range(500)]
    console = Console(file=io.StringIO(), width=120)
    compare.compare(runs, tmp_path / "out", console)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count('<td class="left">m') == 50 and "The best 40 of 51." in page
    assert len(list(csv.DictReader((tmp_path / "out" / "compare.csv").open()))) == 500 + 2 * 50 + 10 + 2


def test_a_single_row_has_no_chart(tmp_path):
    write(tmp_path / "a", "zero_shot")
    compare.compare([tmp_path / "a"], tmp_path / "out", Console(file=io.StringIO()))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.html", "compare.md"]


def test_runs_about_anomalies_have_their_figures(tmp_path):
    for seed, image in ((1, 0.75), (2, 0.85)):
        own = {"all": {"image_auroc": image, "pixel_auroc": 0.5}}
        write(tmp_path / str(seed), "anomaly", seed, results=own, zero_shot={"all": {"image_auroc": 0.6, "pixel_auroc": 0.4}})
    console = Console(file=io.StringIO(), width=120)
    compare.compare([tmp_path], tmp_path / "out", console)
    text = console.file.getvalue()
    assert "Image AUROC" in text and "80.0 ± 7.1" in text and "60.0" in text and "seed 2: 85.0" in text
    assert (tmp_path / "out" / "bars.png").read_bytes()[:4] == b"\x89PNG"


def test_of_forgetting_the_least_is_the_best(tmp_path):
    for method, forgetting in (("coop", 0.3), ("gda", 0.1)):
        write(tmp_path / method, method, continual={"last": 0.5, "forgetting": forgetting})
    compare.compare([tmp_path], tmp_path / "out", Console(file=io.StringIO()))
    page = (tmp_path / "out" / "compare.html").read_text()
    assert '<td class="best">10.0</td>' in page and '<td>30.0</td>' in page


def test_a_stream_beside_other_runs_hides_no_accuracy(tmp_path):
    write(tmp_path / "a", "coop", accuracy=0.8)
    write(tmp_path / "b", "gda", accuracy=0.6, recipe="arriving", shots=4, continual={"last": 0.5})
    console = Console(file=io.StringIO(), width=160)
    compare.compare([tmp_path], tmp_path / "out", console)
    assert "Accuracy" in console.file.getvalue() and "80.0" in console.file.getvalue() and "Last" in console.file.getvalue()
    assert not (tmp_path / "out" / "shots.png").exists()  # each recipe has one number of shots: no curve


def test_no_torch_is_imported(runs):
    code = (
        "import sys; from limpet import compare\n"
        f"compare.print_table({[str(r) for r in runs]!r})\n"
        "bad = {m.split('.')[0] for m in sys.modules} & {'torch', 'lightning', 'open_clip', 'scipy', 'matplotlib'}\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def places(tree, path=()):
    """Paths of all values of nested groups and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def changed(tree, path, value):
    """A copy with another value at a path."""
    copied = json.loads(json.dumps(tree))
    holder = copied
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    return copied


WHOLE = {
    "format": 1, "limpet": "0.1.0", "recipe": "quickstart", "method": "coop", "backbone": "limpet-tiny", "fingerprint": "5519",
    "protocol": "base_to_new", "seed": 1, "cell": {"optim.lr": 0.1}, "shots": 4, "data": "eurosat", "split_hash": "b6c1",
    "trainable_parameters": 512, "selected": {"alpha": 0.5}, "select": "last", "results": both(0.8, 0.5), "zero_shot": both(0.4, 0.3),
    "zero_shot_columns": False, "unreadable": ["a.png"], "notes": ["a note"], "harmonic_mean": 0.6, "zero_shot_harmonic_mean": 0.3,
    "calibration": {"temperature": 1.0, "images": 4, "ece": {"base": 0.1}},
    "continual": {
        "by": "classes", "regulariser": "lwf", "sessions": [{"name": "1"}, {"name": "2"}], "matrix": [[0.5, None], [0.4, 0.6]],
        "seen": [0.5, 0.5], "last": 0.5, "average_incremental": 0.5, "forgetting": -0.1, "transfer": None,
        "zero_shot_seen": [0.4, 0.4],
        "retention": {"data": {"x": {"zero_shot": 0.5, "after": [0.4, 0.3]}}, "mean": {"zero_shot": 0.5, "after": 0.3}},
    },
}  # fmt: skip
DAMAGE = [
    float("nan"), float("inf"), 10**400, -1, True, None, "", "[/x]", [], {}, "\ud800", [[]], {"a": {"b": []}}, "\u00b2", "a" * 5000,
]  # fmt: skip


def test_a_damaged_value_is_compared_or_named(tmp_path):
    good = write(tmp_path / "good", data="eurosat", protocol="base_to_new", recipe="quickstart", results=both(0.7, 0.6))
    bad = write(tmp_path / "bad")
    tried = [(path, value) for path in places(WHOLE) for value in DAMAGE]
    step = 1 if os.environ.get("LIMPET_ROBUST") == "full" else 7
    refused = 0
    for path, value in tried[::step]:
        (bad / "metrics.json").write_text(json.dumps(changed(WHOLE, path, value)))
        notes = []
        found = compare.load_runs([bad, good], notes)
        for line in notes:
            assert str(bad / "metrics.json") in line and (path[0] in line or path[0] == "format"), line
        refused += len(notes)
        rows = compare.summarise(found)
        compare.print_table([bad, good], Console(file=io.StringIO()))
        [table.markdown() for table in compare.paper_tables(found)]
        compare.markdown(rows).encode(), compare.as_csv(rows).encode()
    assert len(tried[::step]) / 2 < refused < len(tried[::step])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("seed",), [], "seed is [] where a whole number from 0 is expected"),
        (("shots",), "\u00b2", "shots is '\\xb2' where a whole number from 0, or 'all', is expected"),
        (("results",), {"base": 1}, "results.base is 1 where a group of named values is expected"),
        (("results", "base", "accuracy"), 10**400, "results.base.accuracy is 1000"),
        (("results", "base", "accuracy"), -1, "results.base.accuracy is -1 where a number from 0 to 1 is expected"),
        (("zero_shot", "base", "accuracy"), "", "zero_shot.base.accuracy is empty where a number from 0 to 1 is expected"),
        (("method",), None, "method is None where a text is expected"),
        (("continual", "seen"), [0.5], "continual.seen has 1 entries where continual.matrix has 2"),
    ],
)
def test_a_damaged_field_is_named(tmp_path, path, value, said):
    bad = write(tmp_path / "bad")
    (bad / "metrics.json").write_text(json.dumps(changed(WHOLE, path, value)))
    with pytest.raises(RunError) as caught:
        compare.read_metrics(bad)
    assert str(caught.value).startswith(f"{bad / 'metrics.json'} is damaged: ") and said in str(caught.value)


def test_what_could_not_be_computed_is_left_out(tmp_path):
    nothing = {"base": {"accuracy": float("nan")}, "new": {"accuracy": 0.5}}
    write(tmp_path / "a", results=nothing, zero_shot=nothing, protocol="base_to_new")
    for row in compare.summarise(compare.load_runs([tmp_path / "a"])):
        assert (row.show("base"), row.show("new"), row.show("harmonic_mean")) == ("", "50.0", "")
