"""The page of a run: complete, escaped, and without outside references."""

from __future__ import annotations

import csv
import json
import random
import re
from html.parser import HTMLParser

import pytest
from limpet import report
from limpet.errors import RunError
from PIL import Image

NAMES = ["blue_tang", "<script>alert(1)</script>", "a, b", "Ångström & co", "lonely"]


def numbers(accuracy, images=40, classes=5):
    return {"accuracy": accuracy, "balanced_accuracy": accuracy - 0.05, "macro_f1": accuracy - 0.08, "ece": 0.04,
            "top4": 0.99, "images": images, "classes": classes}  # fmt: skip


def make(folder, spaces=("all",), names=NAMES, images=True, count=40):
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    metrics = {
        "format": 1, "limpet": "0.1.0", "recipe": "fish", "method": "coop", "backbone": "limpet-tiny", "seed": 1, "shots": 16,
        "protocol": "all" if spaces == ("all",) else "base_to_new", "split_hash": "ab" * 32, "fingerprint": "cd" * 32,
        "trainable_parameters": 2048, "notes": ["a <note>"],
        "results": {s: numbers(0.9 - n / 10) for n, s in enumerate(spaces)},
        "zero_shot": {s: numbers(0.5 + n / 10) for n, s in enumerate(spaces)},
    }  # fmt: skip
    if "base" in spaces:
        metrics["harmonic_mean"] = 0.8471
    (folder / "metrics.json").write_text(json.dumps(metrics))
    root = folder / "pictures"
    root.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(
        f"# <recipe>\ndata:\n  root: {root}\nclasses:\n  include: [no, 1e3]\n"
    )
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["space", "path", "label", "predicted", "probability", "correct"])
        for space in spaces:
            for n in range(count):
                label = rng.choice(names[:-1])
                answer = label if rng.random() < 0.8 else rng.choice(names[:-1])
                path = f"{n}.png"
                if images and n % 3:
                    Image.new("RGB", (400, 300), (n * 5 % 255, 90, 200)).save(root / path)
                writer.writerow(
                    [space, path, label, answer, f"{rng.uniform(0.3, 1):.6f}", int(label == answer)]
                )
    with (folder / "per_class.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["space", "class", "text", "images", "accuracy", "zero_shot_accuracy"])
        for space in spaces:
            for n, name in enumerate(names):
                empty = name == names[-1]
                writer.writerow([space, name, name.replace("_", " "), 0 if empty else 10,
                                 "" if empty else rng.uniform(0.4, 1), "" if empty else 0.1 + n / 20])  # fmt: skip
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed."""

    void = frozenset(["meta", "img", "br", "hr", "link"])

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(folder):
    path = report.write_report(folder)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_is_whole_and_refers_to_nothing_outside(tmp_path):
    text, page = read(make(tmp_path / "run"))
    words = " ".join(page.words)
    for expected in (
        "90.0 %",
        "without training: 50.0 %",
        "blue tang",
        "Ångström & co",
        "a <note>",
        "# <recipe>",
    ):
        assert expected in words
    assert "Without test images: lonely" in words
    assert "script" not in page.tags
    assert page.links and all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("circle") >= 3


def test_base_to_new_shows_all_three_and_zero_shot_beside(tmp_path):
    _, page = read(make(tmp_path / "run", ("base", "new", "joint")))
    words = " ".join(page.words)
    for expected in (
        "Base classes",
        "New classes",
        "Base and new together",
        "84.7 %",
        "on classes it never saw",
    ):
        assert expected in words
    assert "without training: 54.5 %" in words  # harmonic mean of 50 and 60


def test_files_that_are_missing_leave_their_part_out(tmp_path):
    folder = make(tmp_path / "run")
    for name in ("predictions.csv", "per_class.csv", "recipe.yaml"):
        (folder / name).unlink()
    _, page = read(folder)
    assert "Results" in page.words and "Class by class" not in page.words


def test_many_classes_show_pairs_and_the_worst_bars(tmp_path):
    names = [f"species {n}" for n in range(300)]
    _, page = read(make(tmp_path / "run", names=names, images=False, count=600))
    words = " ".join(page.words)
    assert "Most frequent confusions" in words and "What is taken for what" not in words
    assert "239 better classes are in per_class.csv" in words


def test_metrics_can_be_given_and_images_drawn(tmp_path):
    folder = make(tmp_path / "run", images=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        report.write_report(folder)
    drawn = []
    report.write_report(folder, metrics, lambda path: drawn.append(path) or Image.new("RGB", (64, 64)))
    assert drawn and (folder / "report.html").read_text().count("data:image/jpeg") == len(drawn)


def test_damaged_table_is_named(tmp_path):
    folder = make(tmp_path / "run")
    (folder / "predictions.csv").write_text("path,label\na,b\n")
    with pytest.raises(RunError, match=r"predictions\.csv has no column 'predicted'"):
        report.write_report(folder)


def test_a_stream_of_data_sets_shows_the_answers_of_all_of_them(tmp_path):
    folder = make(tmp_path / "run", ("task:birds", "task:fish"))
    text, page = read(folder)
    wrong = [row for row in csv.DictReader((folder / "predictions.csv").open(newline="")) if row["correct"] == "0"]
    assert {row["space"] for row in wrong} == {"task:birds", "task:fish"}
    assert f"{len(wrong)}" in page.words and "of 80 test images" in text
    assert "All data sets of the stream" in text and "task:" not in text and "birds" in page.words
