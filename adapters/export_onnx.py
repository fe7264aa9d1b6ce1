"""The image tower with the adapter in it as one ONNX file, for any number of images at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import export_loading as code
from .errors import LimpetError
from .export_job import CannotExport, Job, Written, quiet
from .export_parity import batch_of
from .export_weights import TABLE, load_table, save_table, scores

if TYPE_CHECKING:
    from .adapter import Adapter

FILE = "model.onnx"
OPSET = 18


class Answers(nn.Module):
    """Images (B, 3, H, W) to scores (B, C), or to features (B, D) where the class weights lie beside."""

    def __init__(self, adapter: Adapter, what: str) -> None:
        super().__init__()
        self.visual = adapter.backbone.model.visual
        kinds: dict[str, Callable[[Any], Tensor]] = {
            "logits": adapter.logits,
            "features": adapter.encode_image,
            "raw features": adapter.image_feature,
        }
        self.answer = kinds[what]
        self.read = (adapter,)  # not as a part of this module: its numbers become constants

    def forward(self, images: Tensor) -> Tensor:
        """Scores or features, float32."""
        answer: Tensor = self.answer(batch_of(self.read[0], images)).float()
        return answer


def write(job: Job, folder: Path) -> Written:
    """Write `model.onnx`, and the class weights beside it where that was asked for.

    Raises:
        CannotExport: the method computes what the exporter cannot follow, or with `beside` has no class weights.
        LimpetError: the packages of ONNX are not installed.
    """
    if not job.classifies:
        raise CannotExport(f"'{job.method}' orders images by an instruction in words, which --to onnx cannot hold. {job.nearest()}")
    runtime = _packages()
    what = "logits" if not job.beside else "features" if job.head.unit else "raw features"
    program = trace(job, what)
    described = {"classes": list(job.adapter.classes.names), "preprocessing": job.backbone.spec.preprocessing, "output": what}
    program.model.metadata_props["limpet"] = json.dumps(described, ensure_ascii=False)
    with quiet():
        program.save(str(folder / FILE))
    if job.beside:
        save_table(job, folder)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
    table = load_table(folder) if job.beside else {}

    def answer(images: Tensor) -> Tensor:
        # the number of images is open: a part of them alone must fit as well
        parts = [images[:1], images[1:]] if len(images) > 2 else [images]
        found = torch.cat([torch.from_numpy(session.run(None, {"images": part.numpy()})[0]) for part in parts])
        return scores(table, found) if table else found

    names = f"its output is `features` ({what}); `{TABLE}` beside it holds the class weights, so classes can be changed alone"
    size = "x".join(map(str, job.images.shape[1:]))
    return Written(
        answer=answer,
        about=[
            f"`{FILE}` takes `images` (any number x {size}, float32, preprocessed as below); "
            + (names if job.beside else "its output is `logits` (images x classes), whose softmax are probabilities")
            + ". Names of classes and preprocessing also stand in the file's metadata (`limpet`).",
        ],
        loading=code.onnx(job.backbone.spec, job.beside),
        packages=("onnxruntime", "numpy", "pillow"),
        facts={"opset": OPSET, "output": what},
    )


def trace(job: Job, what: str) -> Any:
    """Follow the adapter's computation into an ONNX program.

    Raises:
        CannotExport: something of it has no counterpart.
    """
    example = job.images[:5]
    module = Answers(job.adapter, what).eval()
    try:
        with torch.no_grad(), quiet():
            module(example)  # what does not depend on the image is computed here, once
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=[what.rpartition(" ")[2]],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
            assert program is not None
            shape = program.model.graph.inputs[0].shape
    except LimpetError:
        raise
    except Exception as error:  # the exporter raises anything, for reasons of its own
        raise CannotExport(_refusal(job, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")) from error
    if shape is None or isinstance(shape[0], int):
        raise CannotExport(_refusal(job, "it would hold for one number of images at once and no other"))
    return program


def _refusal(job: Job, reason: str) -> str:
    return (
        f"The ONNX exporter cannot follow '{job.method}' on {job.backbone.spec.name} ({reason}). "
        "Use --to adapter or --to hub-folder, which Limpet loads again (limpet --debug export ... shows more)."
    )


def _packages() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LimpetError(f"--to onnx needs the package {error.name}: pip install onnx onnxscript onnxruntime") from None
    return onnxruntime
