"""Mutated artefacts and run folders: the answers of the original where nothing that matters changed, else a sentence."""

import copy
import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limpet.errors import LimpetError
from limpet.inference import Classifier
from safetensors.torch import load_file, save_file

FULL = os.environ.get("LIMPET_ROBUST") == "full"
ARTEFACTS, RUNS = (450, 150) if FULL else (40, 12)
QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 5), st.floats(), st.text(max_size=8),
    st.sampled_from([[], {}, [[]], {"a": []}, "../../x", "coop", "limpet-tiny", "zero_shot", "gda", "os:system", 10**30, [1, 2]]),
)  # fmt: skip


def places(tree, path=()):
    """Paths of all values of nested dictionaries and lists."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutate(draw, tree):
    """Change, add or remove up to three values of nested dictionaries and lists; returns the paths touched."""
    touched = []
    for _ in range(draw(st.integers(1, 3))):
        every = [path for path in places(tree) if len(path) < 6]
        if not every:
            break
        path = draw(st.sampled_from(every))
        holder = tree
        for step in path[:-1]:
            holder = holder[step]
        what = draw(st.sampled_from(["value", "value", "remove", "add"]))
        if what == "value":
            holder[path[-1]] = draw(PLAIN)
        elif what == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(PLAIN)
        touched.append(path)
    return touched


@pytest.fixture(scope="session")
def original(finished, tmp_path_factory):
    """(a copy of the artefact to be mutated, its description, an image, the original's answer to it)."""
    fish, run = finished
    folder = tmp_path_factory.mktemp("artefact") / "v1"
    shutil.copytree(run / "adapter" / "v1", folder)
    image = next(fish.rglob("*.png"))
    before = Classifier.load(folder)
    return folder, json.loads((folder / "adapter.json").read_text()), image, next(iter(before.predict([image])))


@st.composite
def changes(draw):
    """How to damage an artefact: a function of its folder and description that returns whether its meaning may change."""
    kind = draw(st.sampled_from(["json", "json", "json", "text", "tensors", "bytes", "swap"]))
    data = draw(st.data())
    return kind, data


@settings(max_examples=ARTEFACTS, **QUIET)
@given(change=changes())
def test_a_mutated_artefact_answers_as_before_or_is_refused(change, original, tiny, tally):
    folder, info, image, before = original
    fresh = folder.parent / "mutated"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(folder, fresh)
    kind, data = change
    matters = False
    described = copy.deepcopy(info)
    tensors = fresh / "adapter.safetensors"
    if kind == "json":
        touched = mutate(data.draw, described)
        matters = any(path[0] in ("classes", "method", "tensors", "info") for path in touched)
        (fresh / "adapter.json").write_text(json.dumps(described))
    elif kind == "text":
        content = (fresh / "adapter.json").read_bytes()
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.binary(max_size=3)) + content[at + data.draw(st.integers(0, 30)) :]
        (fresh / "adapter.json").write_bytes(content)
        matters = True
    else:
        content = bytearray(tensors.read_bytes())
        if kind == "bytes":
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] ^= data.draw(st.integers(1, 255))
            if data.draw(st.booleans()):
                del content[data.draw(st.integers(0, len(content))) :]
        if kind == "tensors":  # a file that is whole, with a checksum that agrees, and holds something else
            state = load_file(tensors)
            name = data.draw(st.sampled_from(sorted(state)))
            others = [torch.zeros(0), torch.zeros(2, 3), torch.full_like(state[name], torch.nan), torch.arange(3), None]
            other = data.draw(st.sampled_from(others))
            if other is None:
                state["../../x"] = state.pop(name)
            else:
                state[name] = other
            save_file(state, tensors)
            content = bytearray(tensors.read_bytes())
        if kind == "swap":
            content = bytearray(data.draw(st.binary(max_size=40)))
        tensors.write_bytes(bytes(content))
        described["tensors"]["sha256"] = hashlib.sha256(bytes(content)).hexdigest()  # as somebody who means harm would
        (fresh / "adapter.json").write_text(json.dumps(described))
        matters = True
    try:
        answer = next(iter(Classifier.load(fresh, tiny, plugins=False).predict([image])))
    except LimpetError as error:
        assert len(str(error)) > 20
        tally("refused")
        return
    tally("answered")
    names = json.loads((fresh / "adapter.json").read_text())["classes"]["names"]
    assert answer.label in [str(name) for name in names] and 0 <= answer.probability <= 1
    if not matters:
        assert (answer.label, answer.probability) == (before.label, before.probability)


def test_without_an_honest_checksum_no_tensor_is_read(original, ask, tmp_path):
    folder, _, image, _ = original
    copied = tmp_path / "v1"
    shutil.copytree(folder, copied)
    content = bytearray((copied / "adapter.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "adapter.safetensors").write_bytes(bytes(content))
    assert "SHA-256 differs" in ask("predict", copied, image, "--out", tmp_path / "p.csv").sentence


@st.composite
def broken_run(draw):
    name = draw(st.sampled_from(["metrics.json", "split.json", "recipe.yaml", "env.json", "adapter/v1/adapter.json"]))
    return name, draw(st.data())


@settings(max_examples=RUNS, **QUIET)
@given(change=broken_run(), command=st.sampled_from(["compare", "compare", "evaluate", "resume", "export"]))
def test_a_mutated_run_folder_is_read_or_refused(change, command, finished, ask, tmp_path_factory):
    _, run = finished
    copied = tmp_path_factory.getbasetemp() / "mutated-run" / "001"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(run, copied)
    name, data = change
    content = (copied / name).read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        tree = json.loads(content)
        mutate(data.draw, tree)
        (copied / name).write_text(json.dumps(tree))
    else:
        at = data.draw(st.integers(0, len(content)))
        (copied / name).write_bytes(content[:at] + data.draw(st.binary(max_size=3)) + content[at + data.draw(st.integers(0, 99)) :])
    if command == "resume":
        (copied / "metrics.json").unlink()
    ask(command, copied, *(["--to", "adapter"] if command == "export" else []))


@pytest.mark.parametrize("content", ["{}", '{"hash": 1330}', "[]", "{", '"text"'])
def test_a_run_that_forgot_its_images_is_not_resumed(content, finished, ask, tmp_path):
    _, run = finished
    copied = tmp_path / "001"
    shutil.copytree(run, copied)
    (copied / "metrics.json").unlink()
    (copied / "split.json").write_text(content)
    assert "split.json is damaged" in ask("resume", copied).sentence
