"""A model of one's own, pretrained, packed into a small backbone, and used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from limpet.backbone import FrozenClip
from limpet.backbone_packing import main
from limpet.cli import main as limpet
from limpet.export import export

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, fakes):
    """A few steps of `pretrain_tiny` on invented photographs, with a smaller model."""
    folder = tmp_path_factory.mktemp("pretraining")
    fakes.write("cifar100", folder)
    words = [
        "fit", "pretrain_tiny", f"data.root={folder}", f"run.dir={folder / 'runs'}", "trainer.epochs=1", "data.batch_size=20",
        "data.epoch_images=40", "data.shapes=12", "data.fish=6", "data.size=32", "trainer.precision=32-true",
        f"backbone.architecture={json.dumps(SMALL)}",
    ]  # fmt: skip
    assert limpet(words) == 0
    return next((folder / "runs" / "pretrain_tiny").iterdir())


def test_a_model_of_ones_own_is_loaded_again_from_its_artefact(run, capsys):
    assert limpet(["evaluate", str(run)]) == 0
    folder, parity = export(run, "merged")
    assert parity.holds
    plain = FrozenClip.load(str(folder))
    assert plain.spec.context_length == 40


def test_packed_weights_are_a_small_backbone_that_knows_its_words(run, tmp_path):
    done = subprocess.run([sys.executable, "-m", "limpet.backbone_packing", run, tmp_path / "own"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"backbone.name={tmp_path / 'own'}" in done.stdout
    size = (tmp_path / "own" / "open_clip_model.safetensors").stat().st_size
    small, whole = FrozenClip.load(str(tmp_path / "own")), FrozenClip.load(str(export(run, "merged")[0]))
    assert size < 0.2 * sum(p.numel() * 4 for p in whole.model.parameters())
    known, unknown = "a photo of a apple.", "stethoscope"
    assert small.unseen_tokens(known) == [] and small.unseen_tokens(unknown)
    assert torch.allclose(small.encode_text([known]), whole.encode_text([known]), atol=5e-3)
    image = torch.randn(2, 3, 32, 32)
    assert torch.allclose(small.encode_image(image), whole.encode_image(image), atol=5e-3)
    table = small.model.token_embedding.weight
    strange = table[~small.trained_tokens][:50]
    assert torch.cdist(strange, strange).fill_diagonal_(9).min() > 0
    assert strange.std().item() == pytest.approx(table[small.trained_tokens].std().item(), rel=0.1)


def test_what_cannot_be_packed_is_a_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "nothing"), str(tmp_path / "own")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    assert main([]) == 2
    assert not (tmp_path / "own").exists()
