"""What is drawn on the page of a run."""

from __future__ import annotations

import json

import pytest
from limpet import report
from limpet.report_parts import HEIGHT, WIDTH, Picture, curve, learning_curves, reliability, surest

ROWS = [
    {"probability": str(p), "calibrated": str(c), "correct": str(r)}
    for p, c, r in [(0.95, 0.7, 1), (0.9, 0.65, 0), (0.55, 0.5, 1), (0.5, 0.4, 0)]
]


def log(folder, *lines):
    (folder / "log").mkdir(exist_ok=True)
    (folder / "log" / "metrics.csv").write_text("\n".join(lines))


def test_curves_of_a_log(tmp_path):
    log(tmp_path, "step,epoch,loss,val_accuracy,test/all/accuracy", "7,0,2.0,0.5,", "15,1,1.0,,", "23,2,0.5,0.75,", "24,,,,0.9")
    loss, accuracy = learning_curves(tmp_path)
    places = [tuple(map(float, point.split(","))) for point in loss.points.split()]
    assert [x for x, _ in places] == [0, WIDTH / 2, WIDTH], "epochs count from 1, evenly"
    heights = [y for _, y in places]
    assert heights == sorted(heights) and heights[0] > 0 and heights[-1] < HEIGHT, "the loss falls down the drawing"
    assert [text for _, text in loss.x_ticks] == ["1", "2", "3"] and [text for _, text in loss.y_ticks] == ["0.5", "1.25", "2"]
    assert len(accuracy.points.split()) == 2 and [text for _, text in accuracy.y_ticks] == ["50", "62.5", "75"]


@pytest.mark.parametrize("lines", [(), ("step,epoch,loss",), ("step,epoch,loss", "0,0,nan"), ("step", "1")])
def test_a_log_without_numbers_leaves_its_part_out(lines, tmp_path):
    if lines:
        log(tmp_path, *lines)
    assert learning_curves(tmp_path) == []


def test_single_and_constant_and_many_points():
    assert curve("one", [(1, 0.5)]).alone
    flat = curve("flat", [(1, 0.0), (2, 0.0)])
    assert "nan" not in flat.points and len(flat.y_ticks) == 1
    many = curve("many", [(n, n) for n in range(5001)]).points.split()
    assert len(many) < 500 and many[-1].startswith(f"{WIDTH:.1f},")


def test_reliability_of_plain_and_calibrated_probabilities():
    found = reliability(ROWS)
    assert [(b["images"], round(b["confidence"], 3), b["accuracy"]) for b in found] == [(2, 0.525, 0.5), (2, 0.925, 0.5)]
    assert sum(b["images"] for b in reliability(ROWS, "calibrated")) == 4
    assert reliability([{**row, "calibrated": ""} for row in ROWS], "calibrated") == []


def test_what_is_right_among_the_surest():
    assert surest(ROWS)[0] == ("100 %", 4, "50.0") and surest(ROWS)[-1] == ("50 %", 2, "50.0")
    assert surest([]) == []


def test_pictures_of_a_task_have_a_place(tmp_path):
    numbers = {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.5, "ece": 0.1}
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 1, "method": "coop", "backbone": "b", "results": {"all": numbers}}))
    drawn = Picture("Sessions <1>", "Read it <so>.", "<svg viewBox='0 0 1 1'></svg>")
    text = report.write_report(tmp_path, pictures=[drawn, Picture("A map", "", b"\x89PNG")]).read_text()
    assert "<h2>Sessions &lt;1&gt;</h2>" in text and "Read it &lt;so&gt;." in text and "<svg viewBox='0 0 1 1'>" in text
    assert 'src="data:image/png;base64,iVBORw=="' in text and text.index("Sessions") < text.index("A map")
