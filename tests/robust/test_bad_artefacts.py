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
from limpet.cli import main
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


@pytest.fixture(scope="session")
def of_tip_adapter(draw, tmp_path_factory):
    """The artefact of a run of Tip-Adapter; treat it as read-only."""
    place = tmp_path_factory.mktemp("tip_adapter")
    fish = draw(place / "fish", species=3, images=6)
    assert main([
        "fit", "fish", f"data.root={fish}", f"run.dir={place / 'runs'}", "backbone=limpet-tiny", "data.shots=2", "protocol=all",
        "method=tip_adapter", "data.augment=none", "trainer.accelerator=cpu",
    ]) == 0  # fmt: skip
    return next(place.glob("runs/*/*/adapter/v1"))


def damaged(folder, place, change=None, tensors=None):
    """A copy of an artefact with a changed description or tensors, and an honest checksum."""
    fresh = place / "v1"
    shutil.copytree(folder, fresh)
    described = json.loads((fresh / "adapter.json").read_text())
    if change is not None:
        change(described)
    if tensors is not None:
        state = load_file(fresh / "adapter.safetensors")
        tensors(state)
        save_file(state, fresh / "adapter.safetensors")
        described["tensors"]["sha256"] = hashlib.sha256((fresh / "adapter.safetensors").read_bytes()).hexdigest()
    (fresh / "adapter.json").write_text(json.dumps(described))
    return fresh


def first(name, value):
    """A change of tensors: one number of one of them."""
    return lambda state: state[name].view(-1)[:1].fill_(value)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 1e38])
@pytest.mark.parametrize("name", ["context", "alpha", "beta", "keys"])
def test_tensors_that_are_no_numbers_give_no_answers(name, value, original, of_tip_adapter, tiny, tmp_path):
    """Also those that are numbers, but so large that no score is one any more."""
    folder = original[0] if name == "context" else of_tip_adapter
    fresh = damaged(folder, tmp_path, tensors=first(name, value))
    try:
        answer = next(iter(Classifier.load(fresh, backbone=tiny).predict([original[2]])))
    except LimpetError as error:
        assert "NaN" in str(error) and ("adapter.safetensors" in str(error) or "scores" in str(error))
    else:
        assert abs(value) == 1e38 and 0 <= answer.probability <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308, "x", [], {}, 10**30, 10**400, True])
def test_a_scale_that_is_none_is_refused(value, of_tip_adapter, tiny, tmp_path, original):
    """Also in an artefact whose tensors do not say what settings they were written with."""
    fresh = damaged(of_tip_adapter, tmp_path, lambda info: info["method"]["config"].update(logit_scale=value), lambda state: None)
    with pytest.raises(LimpetError, match="logit_scale cannot be|NaN or infinite"):
        next(iter(Classifier.load(fresh, backbone=tiny).predict([original[2]])))


@pytest.mark.parametrize("name", ["context", "keys", "owner"])
def test_whole_numbers_and_fractions_are_not_mixed_up(name, original, of_tip_adapter, tiny, tmp_path):
    def change(state):
        state[name] = state[name].to(torch.float32 if name == "owner" else torch.int64)

    fresh = damaged(original[0] if name == "context" else of_tip_adapter, tmp_path, tensors=change)
    with pytest.raises(LimpetError, match=f"{name} is of (int64|float32) where"):
        Classifier.load(fresh, backbone=tiny)


@pytest.mark.parametrize(("key", "value"), [("images", float("inf")), ("classes", float("inf")), ("classes", float("nan")),
                                            ("temperature", 10**400), ("temperature", 1e-320), ("temperature", float("nan")),
                                            ("curve", [[float("nan"), 0, 0]])])  # fmt: skip
def test_a_calibration_that_is_none_is_left_out(key, value, original, tiny, tmp_path):
    """As where an adapter has none; the answers themselves do not rest on it."""
    folder, _, image, before = original
    fresh = damaged(folder, tmp_path, lambda info: info["info"]["calibration"].update({key: value}))
    answer = next(iter(Classifier.load(fresh, backbone=tiny).predict([image])))
    assert before.calibrated is not None and answer.calibrated is None
    assert (answer.label, answer.probability) == (before.label, before.probability)


def test_half_a_character_is_no_text(original, ask, tmp_path):
    """JSON can write one, and no table takes it."""
    def change(info):
        info["classes"]["texts"][info["classes"]["names"][0]] = ["\ud800"]

    answer = ask("predict", damaged(original[0], tmp_path, change), original[2], "--out", tmp_path / "p.csv")
    assert answer.code == 2 and "adapter.json cannot be read" in answer.sentence


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
