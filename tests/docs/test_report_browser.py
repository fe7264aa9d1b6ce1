"""The pages in a real browser, light and dark, without a network; skipped where no Chromium is installed."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess

import pytest
from limpet import compare, contact_sheet, report
from limpet.report_parts import Picture
from PIL import Image
from rich.console import Console

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip
PROBE = """<script>document.title = JSON.stringify({
wide: document.documentElement.scrollWidth - window.innerWidth,
broken: [...document.images].filter(i => !(i.complete && i.naturalWidth)).length,
images: document.images.length, paper: getComputedStyle(document.body).backgroundColor,
ink: getComputedStyle(document.body).color, headings: [...document.querySelectorAll('h2')].map(h => h.textContent),
loaded: performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length,
})</script>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """browse(page, dark, width) -> what the page says of itself once it is shown."""
    program = next((p for p in map(shutil.which, BROWSERS) if p), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("browser")

    def run(address, *flags):
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, stdin=subprocess.DEVNULL)

    try:
        first = run("data:text/html,<p>shown</p>", "--dump-dom")
    except (OSError, subprocess.TimeoutExpired):
        pytest.skip(f"{program} does not start here")
    if "shown" not in first.stdout:
        pytest.skip(f"{program} does not show pages here")

    def browse(page, dark=False, width=1000):
        copy = folder / "page.html"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        colour = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        done = run(copy.as_uri(), "--dump-dom", colour, f"--window-size={width},900")
        title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
        assert title, done.stderr
        return json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))

    return browse


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rng = random.Random(1)
    names = ["blue tang", "a fish with a name that is far longer than others are, and then some", "ray", "eel"]
    numbers = {"accuracy": 0.8, "balanced_accuracy": 0.7, "macro_f1": 0.75, "ece": 0.1, "top3": 0.99, "images": 60, "classes": 4}
    metrics = {"format": 1, "recipe": "fish", "method": "coop", "backbone": "limpet-tiny", "seed": 1, "shots": 4,
               "protocol": "all", "results": {"all": numbers}, "zero_shot": {"all": numbers},
               "notes": [], "calibration": {"temperature": 1.5}}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = ["space,path,label,predicted,probability,calibrated,correct"]
    for n in range(60):
        label = n % 4
        answer = label if rng.random() < 0.7 else (label + 1) % 4
        p = rng.uniform(0.4, 1)
        lines.append(f'all,{n}.png,"{names[label]}","{names[answer]}",{p:.4f},{p * 0.8:.4f},{int(label == answer)}')
    (folder / "predictions.csv").write_text("\n".join(lines))
    rows = [f'all,"{name}","{name}",15,{0.5 + n / 10},0.4' for n, name in enumerate(names)]
    (folder / "per_class.csv").write_text("\n".join(["space,class,text,images,accuracy,zero_shot_accuracy", *rows]))
    (folder / "log").mkdir()
    log = [f"{n},{n},{2 / (n + 1)},{1 - 1 / (n + 2)}" for n in range(30)]
    (folder / "log" / "metrics.csv").write_text("\n".join(["step,epoch,loss,val_accuracy", *log]))
    drawn = Picture("Sessions", "A drawing.", '<svg viewBox="0 0 9 9" width="90"><circle cx="4" cy="4" r="3"/></svg>')
    report.write_report(folder, None, lambda path: Image.new("RGB", (90, 60), (200, 90, 40)), [drawn])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "paper"), [(False, (255, 255, 255)), (True, (20, 25, 29))])
def test_the_report_is_shown_in_light_and_dark(browser, run, dark, paper):
    found = browser(run / "report.html", dark)
    assert found["headings"] == [
        "Results", "How it learned", "Sessions", "Class by class", "What is taken for what", "Can its probabilities be trusted?",
        "Most frequent confusions", "Most confident mistakes", "How it was made",
    ]  # fmt: skip
    assert found["images"] == 12 and found["broken"] == 0 and found["loaded"] == 0
    background, ink = (tuple(map(int, re.findall(r"\d+", found[key])[:3])) for key in ("paper", "ink"))
    assert background == paper and abs(sum(background) - sum(ink)) > 400, "ink can be read on paper"


@pytest.mark.slow
def test_the_report_fits_a_narrow_window(browser, run):
    assert browser(run / "report.html", width=600)["wide"] <= 0


@pytest.mark.slow
@pytest.mark.parametrize(("dark", "paper"), [(False, (255, 255, 255)), (True, (20, 25, 29))])
def test_sheets_of_pictures_are_shown_in_light_and_dark(browser, tmp_path, dark, paper):
    """Ordering, regions and search share this page."""
    pictures = [contact_sheet.Picture(n, f"{n}.png", "value 1", "score 2", n == 2) for n in (1, 2)]
    wide = f"<table><tr>{'<td>0.123 (0.10-0.14)</td>' * 9}</tr></table>"
    text = contact_sheet.page("Order", [("Found", "Greatest first.", pictures)], lambda path: Image.new("RGB", (64, 48)), wide)
    (tmp_path / "sheet.html").write_text(text, encoding="utf-8")
    found = browser(tmp_path / "sheet.html", dark, width=600)
    assert found["images"] == 2 and found["broken"] == 0 and found["loaded"] == 0 and found["wide"] <= 0
    background, ink = (tuple(map(int, re.findall(r"\d+", found[key])[:3])) for key in ("paper", "ink"))
    assert background == paper and abs(sum(background) - sum(ink)) > 400, "ink can be read on paper"


@pytest.mark.slow
def test_a_comparison_is_shown(browser, tmp_path):
    runs = []
    for method in ("coop", "tip_adapter", "zero_shot"):
        for shots in (1, 4, 16):
            folder = tmp_path / f"{method}{shots}"
            folder.mkdir()
            numbers = {"accuracy": 0.4 + shots / 50, "balanced_accuracy": 0.5, "macro_f1": 0.4}
            metrics = {"format": 1, "recipe": "fish", "method": method, "backbone": "b", "protocol": "all", "seed": 1, "shots": shots,
                       "results": {"all": numbers}, "zero_shot": {"all": numbers}}  # fmt: skip
            (folder / "metrics.json").write_text(json.dumps(metrics))
            runs.append(folder)
    compare.compare(runs, tmp_path / "out", Console(quiet=True))
    for dark in (False, True):
        found = browser(tmp_path / "out" / "compare.html", dark)
        assert found["broken"] == 0 and found["images"] >= 1 and found["loaded"] == 0 and found["wide"] <= 0
        assert "More images per class" in found["headings"]
