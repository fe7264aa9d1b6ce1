"""Mutated recipes and settings: shown as what they mean, or refused in a sentence."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limpet.recipe import load, packaged_folder, packaged_names

FULL = os.environ.get("LIMPET_ROBUST") == "full"
SHOWN, CHECKED, PROCESSES = (9_700, 300, 50) if FULL else (480, 20, 3)
QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}

VALUES = [
    "", "null", "~", "-1", "0", "1", "2.5", "1e999", "-1e-400", ".nan", "-.inf", "9" * 30, "1000000007", "no", "true", "007",
    "0x1F", "1_000", "12:30", "2024-01-01", "[]", "{}", "[1, [2, [3]]]", "[null]", "{a: {b: c}}", "${x}", "${oc.env:HOME}", "${",
    "${seed}", "&a [*a]", "*a", "!!python/object/apply:os.system ['echo']", "!!python/name:os.system", "!!binary aGk=", "!x y",
    "!!float x", "!!int x", "!!timestamp x", "!!set {a}", "|", ">", "'", '"', '"\\x00"', "\t", "💥💥", "é" * 300, "../../etc/passwd",
    "/dev/null", "/dev/zero", "a,b", "1,2", "[a,b]", "seed=1", "-", "?", "<<", "[", "]", "{", "}", ": :", "#", "@", "`", "%", "\\",
    "a: b", "'a\nb'", "\ud800", "\u2028", "\x07", "coop", "lora", "cpu", "all", "val", "{}{}", "a" * 5000, "[" * 60, "./x.py:Y",
    "os:system", "os.path:join", "limpet.errors:LimpetError", ":", "..", ".", "~root", "~nobody_here/x", "http://localhost:1/x",
]  # fmt: skip
SOURCES = sorted(name for name in packaged_names() if "/" not in name)
NAMES = sorted(packaged_names())


def _keys(tree, head=""):
    for key, value in tree.items():
        yield head + key
        if isinstance(value, dict):
            yield from _keys(value, f"{head}{key}.")


KEYS = sorted({key for name in ("quickstart", "fish", "continual_reef") for key in _keys(load(name)[0].to_dict())})
text = st.text(max_size=12)
value = st.one_of(st.sampled_from(VALUES), st.sampled_from(NAMES), text, st.integers().map(str), st.floats().map(str))


@st.composite
def mutated(draw):
    """The bytes of a packaged recipe after one to four mutations."""
    lines = (packaged_folder() / f"{draw(st.sampled_from(SOURCES))}.yaml").read_text().splitlines()
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(lines) - 1, 0)))
        line = lines[at] if lines else ""
        kind = draw(st.sampled_from(["value", "value", "key", "drop", "twice", "swap", "indent", "insert", "letter", "cut"]))
        if kind == "value":
            head, colon, _ = line.partition(":")
            lines[at : at + 1] = [f"{head}{colon} {draw(value)}"]
        elif kind == "key":
            head, colon, rest = line.partition(":")
            indent = head[: len(head) - len(head.lstrip())]
            key = draw(st.one_of(st.sampled_from(KEYS).map(lambda key: key.rpartition(".")[2]), st.sampled_from(VALUES), text))
            lines[at : at + 1] = [f"{indent}{key}{colon}{rest}"]
        elif kind == "drop":
            lines[at : at + 1] = []
        elif kind == "twice":
            lines.insert(draw(st.integers(0, len(lines))), line)
        elif kind == "swap" and lines:
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        elif kind == "indent":
            lines[at : at + 1] = [draw(st.sampled_from(["  ", " ", "\t", "      "])) + line.lstrip()]
        elif kind == "insert":
            lines.insert(at, draw(st.one_of(value, st.tuples(st.sampled_from(KEYS), value).map(": ".join))))
        elif kind == "letter":
            place = draw(st.integers(0, len(line)))
            lines[at : at + 1] = [line[:place] + draw(text) + line[place + draw(st.integers(0, 2)) :]]
        else:
            lines = lines[:at]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place:]
    return content


setting = st.tuples(st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), text), st.sampled_from(["=", "=", "=", "==", ""]), value)
overrides = st.lists(setting.map("".join), max_size=2)


@settings(max_examples=SHOWN, **QUIET)
@given(content=mutated(), words=overrides)
def test_a_mutated_recipe_is_shown_as_it_means_or_refused(content, words, ask, tmp_path_factory):
    place = tmp_path_factory.getbasetemp()
    file = place / "mutated.yaml"
    file.write_bytes(content)
    answer = ask("recipes", "show", file, *words)
    if answer.code == 0 and "# cell:" not in answer.out:
        assert isinstance(yaml.safe_load(answer.out), dict)
        again = place / "again.yaml"
        again.write_text(answer.out, encoding="utf-8", errors="surrogatepass")
        first, second = (load(str(path), given)[0].to_dict() for path, given in ((file, words), (again, ())))
        assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


SMALL = """extends: [base, data/reef, method/coop, trainer/cpu]
backbone: {name: limpet-tiny}
data: {species: 3, train: 3, val: 2, test: 2, shots: 2, batch_size: 4}
classes: {first: 3}
"""
HELD = {"run.dir", "data.species"}


@settings(max_examples=CHECKED, **QUIET)
@given(words=st.lists(st.tuples(st.sampled_from([k for k in KEYS if k not in HELD]), value).map("=".join), min_size=1, max_size=2))
def test_a_mutated_setting_is_checked_or_refused(words, ask, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "small.yaml"
    file.write_text(SMALL)
    ask("check", file, *words)


@pytest.mark.slow
def test_bad_recipes_in_processes_of_their_own(tmp_path):
    """The same from the system's side: exit code 2, one sentence, no traceback."""
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL)
    for number in range(PROCESSES):
        words = [f"{KEYS[(number * 7) % len(KEYS)]}={VALUES[(number * 5) % len(VALUES)]}"]
        if "\x00" in words[0] or "\ud800" in words[0]:
            continue
        command = [sys.executable, "-m", "limpet", "recipes", "show", str(file), *words]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode in (0, 2), (words, done.stderr)
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0 or b"error: " in done.stderr
