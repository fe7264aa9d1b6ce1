"""Every method answers every kind of export: an exact one, or a sentence."""

from pathlib import Path

import pytest
from limpet import artifact
from limpet.errors import LimpetError
from limpet.export import TARGETS, load_job, writer_of
from limpet.export_parity import compare, in_batches
from limpet.recipe import load
from limpet.runner import fit as run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TOWERS = {"lora", "fine_tune", "flyp", "contrastive"}
NO_TABLE = {"cocoop", "tip_adapter", "tip_adapter_f"}
REGIONS = {"falip", "comclip"}


def outcome(job, target, folder):
    """None where the export is exact, else the sentence."""
    folder.mkdir(parents=True)
    try:
        written = writer_of(target)(job, folder)
    except LimpetError as error:
        assert "--to" in str(error) and len(str(error)) < 700, error
        return str(error)
    parity = compare(job.expected, in_batches(written.answer, job.images))
    assert parity.holds, f"{target}: {parity}"
    assert written.about and written.loading
    return None


def test_every_kind_of_export_but_onnx(fitted, method, tmp_path):
    session, _, _ = fitted(method)
    artifact.save(session.adapter, tmp_path)
    job = load_job(tmp_path)
    found = {target: outcome(job, target, tmp_path / "out" / target) for target in TARGETS if target != "onnx"}
    assert found["adapter"] is None and found["hub-folder"] is None
    if method in TOWERS:
        assert found["merged"] is None and found["weights"] is None
    if method in NO_TABLE:
        assert found["weights"]
    assert (found["peft"] is None) == (method == "lora")
    if found["merged"]:
        assert "Nearest" in found["merged"]


@pytest.mark.slow
def test_onnx(fitted, method, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    session, _, _ = fitted(method)
    artifact.save(session.adapter, tmp_path)
    job = load_job(tmp_path)
    sentence = outcome(job, "onnx", tmp_path / "out")
    # A graph of images alone cannot be told the regions.
    assert (sentence is None) == (method not in REGIONS), sentence


def test_ordering(ordering_method, tmp_path):
    small = ["data.train=16", "data.val=4", "data.test=8", "trainer.max_steps=2", "trainer.accelerator=cpu"]
    (recipe,) = load("order_reef", [f"method={ordering_method}", *small, f"run.dir={tmp_path}"])
    folder: Path = run(recipe)
    job = load_job(folder)
    found = {target: outcome(job, target, tmp_path / "out" / target) for target in TARGETS}
    assert {target for target, sentence in found.items() if sentence is None} == {"adapter", "hub-folder"}
