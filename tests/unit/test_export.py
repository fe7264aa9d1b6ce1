"""Exports: every kind loads without Limpet and answers alike, and what cannot be exported says so."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from limpet import adapter as adapters
from limpet import artifact, export_parity
from limpet.classes import ClassSet
from limpet.errors import LimpetError
from limpet.export import TARGETS, export, load_job
from limpet.export_loading import preparing
from limpet.inference import Classifier
from PIL import Image, ImageOps

CLASSES = ClassSet(("red fish", "=blue, fish", "green moray eel"), {"red fish": ("crimson fish",)})
WITHOUT_LIMPET = "import sys\nsys.modules['limpet'] = None\n"


def save(tiny, folder, method="zero_shot", spread=0.3, clip=None, **settings):
    """A run folder with an adapter whose trained tensors were moved at random."""
    kind = adapters.find(method)
    adapter = kind(adapters.config_class(kind)(**settings)).setup(clip or tiny, CLASSES)
    with torch.no_grad():
        for n, parameter in enumerate(adapter.parameters()):
            generator = torch.Generator().manual_seed(n)
            parameter += spread * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean().clamp_min(0.02)
    adapter.eval()
    artifact.save(adapter, folder, {"recipe": "mine", "seed": 3, "split_hash": "abc123"})
    return adapter


def run_card(folder, blocked=True):
    """Run the code on the card of an export on photo.jpg, in a process of its own; returns what it printed."""
    Image.effect_noise((90, 70), 80).convert("RGB").save(folder / "photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", (WITHOUT_LIMPET if blocked else "") + code], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(run, folder):
    """Limpet's own answer for the same photo."""
    (found,) = Classifier.load(run).predict(folder / "photo.jpg")
    return found


@pytest.mark.parametrize("photo", [(90, 70), (61, 200), (32, 32), (7, 300)])
@pytest.mark.parametrize("size", [64, (48, 64), (64, 40)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_picture_is_prepared_as_open_clip_does(photo, size, mode, interpolation, tmp_path):
    """The code on a card that needs neither PyTorch nor open_clip."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    facts = {"size": size, "interpolation": interpolation, "resize_mode": mode, "fill": 9}
    facts |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    of_open_clip = {**{k: v for k, v in facts.items() if k != "fill"}, "fill_color": 9}
    Image.effect_noise(photo, 80).convert("RGB").save(tmp_path / "photo.png")
    expected = image_transform_v2(PreprocessCfg(**of_open_clip), is_train=False)(Image.open(tmp_path / "photo.png"))
    names = {"np": np, "Image": Image, "ImageOps": ImageOps}
    exec(preparing(facts), names)
    np.testing.assert_allclose(names["prepare"](tmp_path / "photo.png"), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {}),
        ("lora", {"targets": ["q", "o", "fc"], "towers": "text"}),
        ("lora", {"peft": {"use_dora": True}}),
        ("fine_tune", {"towers": "both", "parts": ["attention"]}),
    ],
)
def test_merged_loads_with_open_clip_alone(tiny, tmp_path, method, settings):
    adapter = save(tiny, tmp_path, method, **settings)
    folder, parity = export(tmp_path, "merged")
    assert parity.holds and parity.same == parity.images == 32 and parity.difference < 1e-4
    label, probability = run_card(folder).rsplit(maxsplit=1)
    own = answer(tmp_path, folder)
    assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)
    from safetensors.torch import load_file

    names = set(load_file(folder / "open_clip_model.safetensors"))
    assert names == set(tiny.model.state_dict())
    assert adapter.merged().keys() == names


def test_merged_holds_the_interpolated_weights(tiny, tmp_path):
    for number, method in enumerate(("lora", "fine_tune")):
        run = tmp_path / str(number)
        adapter = save(tiny, run / "first", method)
        whole, _ = export(run / "first", "weights")
        adapter.interpolated(0.4)
        artifact.save(adapter, run, {})
        folder, parity = export(run, "merged")
        assert parity.holds
        with np.load(whole / "classes.npz") as before, np.load(folder / "classes.npz") as after:
            assert (method == "fine_tune") == np.allclose(before["weights"], after["weights"])  # its text tower is frozen


def test_peft_loads_in_a_clip_model_of_hugging_face(tiny, tmp_path):
    adapter = save(tiny, tmp_path, "lora", targets=["q", "v", "o", "proj"], layers=[-2, -1])
    adapter.interpolated(0.5)
    artifact.save(adapter, tmp_path, {})
    folder, parity = export(tmp_path, "peft")
    assert parity.difference < 1e-4 and parity.same == 32
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == "base"
    label, probability = run_card(folder).rsplit(maxsplit=1)
    own = answer(tmp_path, folder)
    assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)


TUNERS = [{"use_dora": True}, {"type": "LOHA"}, {"type": "LOKR"}, {"type": "IA3"}, {"type": "OFT"}]


@pytest.mark.parametrize("options", TUNERS, ids=str)
def test_peft_of_other_tuners_loads_in_a_clip_model(tiny, tmp_path, options):
    """`export` reads the written folder with transformers and peft alone before it counts."""
    spread = 0.3 if options.get("type", "IA3") == "IA3" else 5.0  # products of small numbers change little
    adapter = save(tiny, tmp_path, "lora", spread, targets=["q", "v", "proj"], layers=[-1], rank=4, peft=options)
    folder, parity = export(tmp_path, "peft")
    assert parity.difference < 1e-4 and parity.same == 32
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == options.get("type", "LORA") and config.get("use_dora", False) == ("use_dora" in options)
    plain = save(tiny, tmp_path / "plain")
    images = export_parity.proof_images(adapter)
    assert (export_parity.answers(adapter, images) - export_parity.answers(plain, images)).abs().max() > 1e-3
    if "use_dora" in options:
        label, probability = run_card(folder).rsplit(maxsplit=1)
        own = answer(tmp_path, folder)
        assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)
    adapter.interpolated(0.5)
    artifact.save(adapter, tmp_path, {})
    with pytest.raises(LimpetError, match="for plain LoRA only. Nearest: --to merged"):
        export(tmp_path, "peft")


def test_peft_of_a_tower_without_counterpart_says_so(tiny, tmp_path, monkeypatch):
    from limpet import export_huggingface

    save(tiny, tmp_path, "lora")
    monkeypatch.setattr(export_huggingface, "problem", lambda backbone: "its image tower has parts that CLIPModel's has not")
    folder, parity = export(tmp_path, "peft")
    assert parity.holds and "no counterpart" in (folder / "README.md").read_text("utf-8") and not (folder / "base").exists()
    label, probability = run_card(folder, blocked=False).rsplit(maxsplit=1)
    own = answer(tmp_path, folder)
    assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)


def test_which_towers_hugging_face_has(random_clip):
    from limpet import export_huggingface as hf

    assert hf.problem(random_clip()) is None
    assert hf.problem(random_clip(custom=True)) is None
    assert "image tower" in hf.problem(random_clip(vision={"no_ln_pre": True}))
    assert "image tower" in hf.problem(random_clip(vision={"pool_type": "avg"}))
    assert "text tower" in hf.problem(random_clip(text={"no_causal_mask": True}))
    assert "scale" in hf.problem(random_clip(vision={"ls_init_value": 0.1}))


@pytest.mark.parametrize("options", [{}, {"custom": True}, {"quick_gelu": True}], ids=str)
def test_a_clip_model_answers_as_open_clip_does(random_clip, options):
    from limpet import export_huggingface as hf

    clip = random_clip(dtype=torch.float32, **options)
    model = hf.model(clip)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ids = clip.tokenize(["a fish", "a very long and green eel"])
    with torch.no_grad():
        torch.testing.assert_close(hf.image_features(model, images), clip.encode_image(images, normalize=False), atol=1e-5, rtol=1e-5)
        texts = clip.encode_text(["a fish", "a very long and green eel"], normalize=False)
        torch.testing.assert_close(hf.text_features(model, ids), texts, atol=1e-5, rtol=1e-5)


def test_weights_as_a_table(tiny, tmp_path):
    save(tiny, tmp_path)
    folder, parity = export(tmp_path, "weights")
    assert parity.difference < 1e-4
    with np.load(folder / "classes.npz") as table:
        assert list(table["names"]) == list(CLASSES.names) and table["texts"][0] == "crimson fish"
        np.testing.assert_allclose(np.linalg.norm(table["weights"], axis=1), 1, atol=1e-6)
        assert float(table["scale"]) == pytest.approx(tiny.logit_scale, rel=1e-5)
        with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows[1]["name"] == "'=blue, fish"
        np.testing.assert_array_equal([np.float32(rows[2][f"w{i}"]) for i in range(128)], table["weights"][2])
    label, probability = run_card(folder, blocked=False).rsplit(maxsplit=1)
    own = answer(tmp_path, folder)
    assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)


def test_great_scores_that_almost_cancel_keep_their_digits(tiny, tmp_path):
    """GDA's Gaussian scores are differences of far greater numbers: a table of its weights still agrees closely."""
    kind = adapters.find("gda")
    adapter = kind(adapters.config_class(kind)(alpha=10.0)).setup(tiny, CLASSES)
    with torch.no_grad():
        views = tiny.encode_image(export_parity.proof_images(adapter), normalize=False).float()[:, None]
    adapter.fit_closed_form([{"views": views, "label": torch.arange(len(views)) % 3}])
    adapter.select([])
    artifact.save(adapter.eval(), tmp_path, {})
    _, parity = export(tmp_path, "weights")
    assert parity.scale > 50 and parity.difference < 1e-4 and parity.same == 32


@pytest.mark.parametrize("target", ["adapter", "hub-folder"])
def test_the_adapter_itself_is_loaded_again(tiny, tmp_path, target):
    save(tiny, tmp_path, "coop", spread=0.01)
    folder, parity = export(tmp_path, target)
    assert parity.difference == 0
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith("---\nlibrary_name:") == (target == "hub-folder")
    assert "abc123" in text and "Apache-2.0" in text and "## Intended use" in text and "## Limits" in text
    printed = run_card(folder, blocked=False)
    assert printed.startswith(answer(tmp_path, folder).label)


def test_onnx_holds_the_tower_with_the_adapter(tiny, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    save(tiny, tmp_path, "vpt", spread=1.0)
    folder, parity = export(tmp_path, "onnx")
    assert parity.holds and parity.same == 32
    label, probability = run_card(folder).rsplit(maxsplit=1)
    own = answer(tmp_path, folder)
    assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)


@pytest.mark.slow
def test_onnx_with_the_class_weights_beside(tiny, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    save(tiny, tmp_path, "clip_adapter")
    folder, parity = export(tmp_path, "onnx", beside=True)
    assert parity.holds and (folder / "classes.npz").is_file()
    label, probability = run_card(folder).rsplit(maxsplit=1)
    own = answer(tmp_path, folder)
    assert label == own.label and float(probability) == pytest.approx(own.probability, abs=1e-5)


# Refusals and files


@pytest.mark.parametrize(
    ("method", "target", "words"),
    [
        ("zero_shot", "merged", "--to weights"),
        ("vpt", "merged", "--to onnx"),
        ("coop", "peft", "not made of peft's layers"),
        ("cocoop", "weights", "depend on the image"),
        ("fine_tune", "peft", "--to merged"),
    ],
)
def test_what_cannot_be_exported_says_what_can(tiny, tmp_path, method, target, words):
    save(tiny, tmp_path, method)
    with pytest.raises(LimpetError, match="Nearest") as caught:
        export(tmp_path, target)
    assert words in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_answers_that_differ_are_not_written(tiny, tmp_path, monkeypatch):
    save(tiny, tmp_path, "lora")
    from limpet.tower_adapter import TowerAdapter

    monkeypatch.setattr(TowerAdapter, "merged", lambda self: dict(self.backbone.model.state_dict()))  # forgets what was trained
    with pytest.raises(LimpetError, match="not written: its answers are not those of the adapter"):
        export(tmp_path, "merged")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_the_limit_follows_the_scores():
    scores = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    assert export_parity.compare(scores, scores + 9e-5).holds
    assert not export_parity.compare(scores, scores + 2e-4).holds
    assert export_parity.compare(1000 * scores, 1000 * scores + 0.01).holds
    assert not export_parity.compare(scores, scores * float("nan")).holds
    flipped = export_parity.compare(scores, scores.flip(1))
    assert flipped.same == 0 and flipped.difference == 2 and "0 of 2" in str(flipped)
    with pytest.raises(LimpetError, match="shape"):
        export_parity.compare(scores, scores[:1])


def test_nothing_is_written_over(tiny, tmp_path):
    save(tiny, tmp_path)
    first, _ = export(tmp_path, "weights")
    second, _ = export(tmp_path, "weights")
    assert (first.name, second.name) == ("weights", "weights-2")
    with pytest.raises(LimpetError, match="there already"):
        export(tmp_path, "weights", first)
    with pytest.raises(LimpetError, match="--beside is for --to onnx"):
        export(tmp_path, "weights", beside=True)
    with pytest.raises(LimpetError, match="Did you mean 'weights'"):
        export(tmp_path, "weight")
    assert sorted(p.name for p in first.parent.iterdir()) == ["weights", "weights-2"]


def test_an_interrupted_export_leaves_nothing(tiny, tmp_path, monkeypatch):
    save(tiny, tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("limpet.export.write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path, "weights", tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_version_and_images_of_ones_own(tiny, tmp_path):
    adapter = save(tiny, tmp_path)
    adapter.remove_classes(["red fish"])
    artifact.save(adapter, tmp_path, {})
    Image.new("RGB", (60, 50), "teal").save(tmp_path / "a.png")
    folder, parity = export(tmp_path, "weights", version=1, images=[str(tmp_path / "a.png")])
    assert parity.images == 1 and json.loads((folder / "export.json").read_text())["classes"] == list(CLASSES.names)
    assert load_job(tmp_path).adapter.classes.names == CLASSES.names[1:]


def test_results_over_seeds_are_on_the_card(tiny, tmp_path):
    for seed, accuracy in ((1, 0.5), (2, 0.7)):
        run = tmp_path / f"{seed:03d}"
        save(tiny, run)
        metrics = {"recipe": "mine", "method": "coop", "seed": seed, "cell": {"seed": seed}}
        metrics["results"] = {"all": {"accuracy": accuracy}}
        (run / "recipe.yaml").write_text("data:\n  root: /home/someone/fish\n")
        (run / "metrics.json").write_text(json.dumps(metrics))
    adapter = save(tiny, tmp_path / "001")
    artifact.save(adapter, tmp_path / "001", {"metrics": {"results": {"all": {"accuracy": 0.5}}, "seed": 1}})
    folder, _ = export(tmp_path / "001", "adapter")
    text = (folder / "README.md").read_text("utf-8")
    assert "over the seeds 1, 2: all 60.0 ± 14.1 %" in text and "`fish`" in text and "someone" not in text


# The command


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    from limpet.cli import main

    monkeypatch.chdir(tmp_path)
    run = Path("runs/mine/001")
    save(tiny, run)
    (run / "recipe.yaml").write_text("{}\n")
    (run / "metrics.json").write_text("{}\n")
    assert main(["export", "mine", "--to", "adapter"]) == 0
    assert "parity: largest difference 0.0e+00 on 32 images" in capsys.readouterr().out
    assert main(["export", str(run / "exports/adapter"), "--to", "weights", "--out", "table"]) == 0
    assert (tmp_path / "table" / "classes.npz").is_file()
    for words in (["--to", "merged"], ["--to", "tensorflow"], [], ["--to", "adapter", "--out", "table"]):
        assert main(["export", "mine", *words]) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert set(TARGETS) == {"adapter", "merged", "onnx", "peft", "weights", "hub-folder"}
