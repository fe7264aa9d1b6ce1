"""Artefacts: what is saved comes back the same, and what does not fit is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import warnings

import pytest
import torch
from limpet import adapter as adapters
from limpet import artifact
from limpet.classes import ClassSet
from limpet.errors import ArtifactError
from PIL import Image

CLASSES = ClassSet(("no", "sea_horse", "=cmd()"), {"no": ("norwegian lobster", "scampi")})


def make(tiny, method="coop", classes=CLASSES):
    kind = adapters.find(method)
    return kind(adapters.config_class(kind)()).setup(tiny, classes).eval()


@pytest.fixture
def run(tiny, tmp_path):
    artifact.save(make(tiny), tmp_path, {"recipe": "fish", "split_hash": "abc", "metrics": METRICS})
    return tmp_path


METRICS = {
    "seed": 3,
    "results": {"all": {"accuracy": 0.9, "balanced_accuracy": 0.8, "macro_f1": 0.7, "images": 10}},
}


def edit(run, change):
    file = run / "adapter" / "v1" / "adapter.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def test_saved_adapter_comes_back_the_same(tiny, tmp_path):
    torch.manual_seed(0)
    made = make(tiny)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    folder = artifact.save(made, tmp_path, {})
    assert folder == tmp_path / "adapter" / "v1"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter.json", "adapter.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = artifact.load(tmp_path, tiny)
    assert again.classes == CLASSES and again.config == made.config
    for key, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    batch = {"feature": torch.randn(4, tiny.embed_dim), "path": [""] * 4, "index": torch.arange(4)}
    with torch.no_grad():
        assert torch.equal(made.logits(batch), again.logits(batch))


@pytest.mark.parametrize("method", adapters.available())
def test_every_method_without_training_can_be_saved_and_described(tiny, tmp_path, method):
    folder = artifact.save(make(tiny, method), tmp_path, {})
    assert artifact.load_info(folder)["method"]["name"] == method


def test_backbone_is_found_by_its_recorded_name(tiny, run):
    assert artifact.load(run).backbone.fingerprint == tiny.fingerprint


def test_versions_are_written_once_and_the_newest_is_the_default(tiny, run):
    first = (run / "adapter" / "v1" / "adapter.json").read_bytes()
    bigger = make(tiny, classes=CLASSES.extended(["ray"]))
    assert artifact.save(bigger, run, {}).name == "v2"
    assert (run / "adapter" / "v1" / "adapter.json").read_bytes() == first
    assert artifact.locate(run).name == "v2"
    assert artifact.locate(run / "adapter").name == "v2"
    assert artifact.locate(run, 1).name == "v1"
    assert artifact.locate(run / "adapter" / "v1").name == "v1"
    with pytest.raises(ArtifactError, match="no adapter of version 7; it has v1, v2"):
        artifact.locate(run, 7)
    assert len(list((run / "adapter").iterdir())) == 2


def test_failed_save_leaves_nothing(tiny, tmp_path):
    with pytest.raises(TypeError):
        artifact.save(make(tiny), tmp_path, {"metrics": object()})
    assert list((tmp_path / "adapter").iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("activation", "quick_gelu_x", "activation"),
        ("embed_dim", 7, "embedding size: 7 there, 128 here"),
        ("preprocessing", {"size": 1}, "preprocessing"),
        ("context_length", 5, "context length"),
        ("vocab_size", 5, "vocabulary"),
    ],
)
def test_other_backbones_are_refused_with_what_differs(tiny, run, key, value, words):
    edit(run, lambda info: info["backbone"]["spec"].update({key: value}))
    with pytest.raises(ArtifactError, match=words):
        artifact.load(run, tiny)


@pytest.mark.parametrize("key", ["fingerprint", "tokenizer"])
def test_other_weights_or_tokenizer_are_refused(tiny, run, key):
    edit(run, lambda info: info["backbone"].update({key: "0" * 64}))
    with pytest.raises(ArtifactError, match=f"(?s)another backbone.*{key}"):
        artifact.load(run, tiny)


def test_precision_and_versions_only_warn(tiny, run):
    def change(info):
        info["backbone"]["spec"]["precision"] = "bf16"
        info["libraries"]["torch"] = "1.0.0"

    edit(run, change)
    with pytest.warns(UserWarning, match=r"precision bf16 there, fp32 here; torch 1\.0\.0 there"):
        artifact.load(run, tiny)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i.update(format=2), "Install a newer Limpet"),
        (lambda i: i.pop("format"), "no format number"),
        (lambda i: i.update(format=True), "no format number"),
        (lambda i: i.pop("classes"), "'classes' is missing"),
        (lambda i: i["method"].update(config=3), "damaged"),
        (lambda i: i["method"].update(name=3), "not a text"),
        (lambda i: i["method"]["config"].update(surprise=1), "'surprise'"),
        (lambda i: i["method"].update(name="copo"), "copo"),
        (lambda i: i["classes"].update(names=["a", "a"]), "more than once"),
        (lambda i: i["classes"].update(names=5), "cannot be built"),
        (lambda i: i["tensors"].update(sha256="0"), "SHA-256 differs"),
    ],
)
def test_damaged_descriptions_get_a_sentence(tiny, run, change, words):
    edit(run, change)
    with pytest.raises(ValueError, match=words) as caught:
        artifact.load(run, tiny)
    assert type(caught.value).__module__ == "limpet.errors"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": 1}', b"[" * 100000])
def test_unreadable_descriptions_get_a_sentence(run, content):
    (run / "adapter" / "v1" / "adapter.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        artifact.load_info(run)


def test_damaged_and_missing_tensors_get_a_sentence(tiny, run):
    file = run / "adapter" / "v1" / "adapter.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        artifact.load(run, tiny)
    file.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.load(run, tiny)


def test_tensors_of_other_shapes_get_a_sentence(tiny, run, tmp_path):
    kind = adapters.find("coop")
    config = adapters.config_class(kind)
    name = next(f.name for f in dataclasses.fields(config) if f.type in ("int", int) and f.default in (4, 16))
    edit(run, lambda info: info["method"]["config"].update({name: 3}))
    with pytest.raises(ArtifactError, match="do not fit"):
        artifact.load(run, tiny)


def test_nothing_found_gets_a_sentence(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        artifact.load_info(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="adapter/v1"):
        artifact.load_info(tmp_path)


def test_method_of_ones_own_is_said_and_can_be_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport torch\nfrom limpet.adapter import Adapter\n"
        "@dataclass\nclass Config:\n    shift: float = 0.5\n    sizes: tuple = (1, 2)\n"
        "class Mine(Adapter):\n    def build(self):\n        self.bias = torch.nn.Parameter(torch.ones(len(self.classes)))\n"
        "    def logits(self, batch):\n        return super().logits(batch) + self.bias\n"
    )
    folder = artifact.save(make(tiny, "./mine.py:Mine"), tmp_path / "run", {})
    assert artifact.load_info(folder)["method"]["name"] == "./mine.py:Mine"
    with pytest.warns(UserWarning, match=r"\./mine\.py:Mine, code of your own"):
        again = artifact.load(folder, tiny)
    assert again.config.sizes == (1, 2) and torch.equal(again.bias, torch.ones(3))
    with pytest.raises(ArtifactError, match="plugins are not allowed"):
        artifact.load(folder, tiny, plugins=False)


def test_card_is_true_and_its_code_runs(run, monkeypatch, capsys):
    folder = run / "adapter" / "v1"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "90.0 %" in text and "`=cmd()`" in text and "`fish`" in text and "| Seed | `3` |" in text
    Image.new("RGB", (70, 80), "teal").save(folder / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code, "card", "exec"), {})
    label = capsys.readouterr().out
    assert any(label.startswith(name) for name in CLASSES.names)


def test_names_cannot_break_out_of_the_card(tiny, tmp_path):
    classes = ClassSet(("a`b``c", "x|y", "line\nbreak # heading"))
    folder = artifact.save(make(tiny, classes=classes), tmp_path, {})
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "```a`b``c```" in text and "\n# heading" not in text and "x\\|y" in text


def test_loading_and_answering_need_no_lightning(run):
    code = (
        "import sys\nfrom limpet.inference import Classifier\nfrom PIL import Image\n"
        f"c = Classifier.load({str(run)!r})\n"
        "print(next(c.predict(Image.new('RGB', (64, 64)))).label)\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('lightning', 'pytorch_lightning')]\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
