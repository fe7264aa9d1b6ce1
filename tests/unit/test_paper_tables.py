"""The papers' tables: averages, H the field's way, and published figures beside ours."""

import json

import pytest
from limpet import compare
from limpet.paper_tables import harmonic, paper_tables, published
from rich.console import Console

ELEVEN = [name for name in published()["base_to_new"]["coop"] if name != "average"]


def run(data, method, seed, results, protocol="all", shots=16, backbone="ViT-B-16"):
    results = {space: {"accuracy": value / 100} for space, value in results.items()}
    return {
        "recipe": "few", "backbone": backbone, "protocol": protocol, "shots": shots, "seed": seed, "method": method,
        "data": data, "results": results, "cell": {"data.dataset": data, "method": method, "seed": seed},
    }  # fmt: skip


def test_published_figures_agree_with_their_own_averages():
    content = published()
    for method, figures in content["base_to_new"].items():
        rows = [figures[name] for name in ELEVEN]
        for side in (0, 1):
            mean = sum(row[side] for row in rows) / 11
            assert mean == pytest.approx(figures["average"][side], abs=0.011), method
        for base, new, h in figures.values():
            assert harmonic(base, new) == pytest.approx(h, abs=0.011)
    for kind, count in (("cross_dataset", 10), ("domain_generalisation", 4)):
        for figures in content[kind].values():
            targets = [x for name, x in figures.items() if name not in ("imagenet", "average")]
            assert len(targets) == count and sum(targets) / count == pytest.approx(figures["average"], abs=0.011)
    for by_shots in content["few_shot"].values():
        figures = by_shots["16"]
        if len(figures) == 12:
            assert sum(figures[n] for n in ELEVEN) / 11 == pytest.approx(figures["average"], abs=0.02)


def test_base_to_new_gives_h_of_averages_as_papers_do():
    pairs = {"dtd": [(80, 40), (82, 42)], "eurosat": [(90, 60), (94, 70)]}
    runs = [
        run(data, "coop", seed, {"base": base, "new": new}, "base_to_new")
        for data, seeds in pairs.items()
        for seed, (base, new) in enumerate(seeds, 1)
    ]
    (table,) = paper_tables(runs)
    assert table.head == ["data", "n", "Base", "New", "H", "Base*", "New*", "H*"]
    assert table.rows[0] == ["dtd", "2", "81.00", "41.00", f"{harmonic(81, 41):.2f}", "79.44", "41.18", "54.24"]
    base, new = (81 + 92) / 2, (41 + 65) / 2
    assert table.rows[-1][2:5] == [f"{base:.2f}", f"{new:.2f}", f"{harmonic(base, new):.2f}"]
    theirs = (79.44 + 92.19) / 2, (41.18 + 54.74) / 2
    assert table.rows[-1][5:] == [f"{x:.2f}" for x in (*theirs, harmonic(*theirs))]
    own = (harmonic(81, 41) + harmonic(92, 65)) / 2
    assert f"{own:.2f}" in table.notes[0] and f"{own:.2f}" != table.rows[-1][4]
    assert "published" in table.notes[1]


def test_the_whole_average_is_the_papers_own():
    runs = [run(name, "maple", 1, {"base": 50, "new": 50}, "base_to_new") for name in ELEVEN]
    (table,) = paper_tables(runs)
    assert table.rows[-1][0] == "average of 11"
    for shown, given in zip(map(float, table.rows[-1][5:]), published()["base_to_new"]["maple"]["average"], strict=True):
        assert shown == pytest.approx(given, abs=0.011)


def test_few_shot_has_a_table_for_each_number_of_shots():
    runs = [run(n, m, s, {"all": 60 + s}, shots=k) for n in ELEVEN for m in ("coop", "gda") for s in (1, 3) for k in (4, 16)]
    four, sixteen = sorted(paper_tables(runs), key=lambda t: int(t.title.split()[1]))
    assert four.head == sixteen.head == ["data", "coop", "gda"]
    assert sixteen.rows[0] == ["imagenet", "62.00 (71.87)", "62.00"]
    assert sixteen.rows[-1] == ["average of 11", "62.00 (79.89)", "62.00"]
    assert four.rows[0][1] == "62.00" and four.rows[-1][1] == "62.00 (74.02)"


def test_transfer_averages_leave_the_source_out():
    shifts = {"imagenetv2": 60, "imagenet_sketch": 40, "imagenet_a": 50, "imagenet_r": 70}
    spaces = {"all": 70.0, **{f"shift:{name}": value for name, value in shifts.items()}}
    (table,) = paper_tables([run("imagenet", "coop", 1, spaces)])
    assert table.title.startswith("Domain generalisation") and table.rows[0] == ["imagenet", "70.00 (71.51)"]
    assert table.rows[-1] == ["average of 4", "55.00 (59.28)"]
    (cross,) = paper_tables([run("imagenet", "maple", 1, {"all": 70, "other:dtd": 40, "other:eurosat": 50}, "cross_dataset")])
    assert cross.rows[-1] == ["average of 2", f"45.00 ({(46.49 + 48.06) / 2:.2f})"]


def test_other_backbones_are_marked_and_other_data_have_no_table():
    (table,) = paper_tables([run("dtd", "coop", 1, {"all": 50}, backbone="limpet-tiny")])
    assert "cannot be compared" in table.notes[0]
    assert paper_tables([run("folder", "coop", 1, {"all": 50})]) == []


def test_compare_prints_and_writes_them_and_keeps_data_sets_apart(tmp_path):
    for data, value in (("dtd", 50), ("eurosat", 80)):
        content = run(data, "coop", 1, {"all": value})
        content["zero_shot"] = {"all": {"accuracy": value / 200}}
        folder = tmp_path / "runs" / data
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(content))
        (folder / "recipe.yaml").write_text("")
    console = Console(width=100, record=True)
    compare.compare([tmp_path / "runs" / "dtd", tmp_path / "runs" / "eurosat"], tmp_path / "out", console)
    text = console.export_text()
    assert "50.00 (69.87)" in text and "average of 2" in text and "papers.md" in text
    zero = [line for line in text.splitlines() if "zero_shot" in line]
    assert len(zero) == 2 and any("25.0" in line for line in zero) and any("40.0" in line for line in zero)
    assert "| dtd | 50.00 (69.87) |" in (tmp_path / "out" / "papers.md").read_text()
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "50.00 (69.87)</td>" in page and page.count("In brackets: published") == 1
