"""LwF and VR-LwF against the numbers of ZSCL's published code: losses and gradients, and one whole training step."""

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.continual import Task, make
from limpet.continual.configs import LwFConfig, VRLwFConfig
from limpet.continual.distillation import distil
from limpet.methods.fine_tune import Config, FineTune


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_losses_on_given_features(golden, temperature, dtype):
    case = golden("lwf")
    given = {name: case.input(f"feat.{name}", dtype) for name in ("student_image_raw", "teacher_image_raw", "teacher_text_raw")}
    texts, scale = F.normalize(given["teacher_text_raw"], dim=-1), case.config["scale"]
    teacher = scale * F.normalize(given["teacher_image_raw"], dim=-1) @ texts.T
    case.close("feat.teacher_logits", teacher)
    for kind in ("image", "text"):
        raw = given["student_image_raw"].clone().requires_grad_()
        student = scale * F.normalize(raw, dim=-1) @ texts.T
        student.retain_grad()
        turned = (teacher, student) if kind == "image" else (teacher.T, student.T)
        loss = distil(*turned, temperature)
        loss.backward()
        case.close(f"feat.T{temperature}.{kind}_loss", loss)
        case.close(f"feat.T{temperature}.grad_{kind}_loss", raw.grad)
        if kind == "image":
            case.close(f"feat.T{temperature}.grad_image_loss_wrt_logits", student.grad)
    case.close("feat.student_logits", student)


def student_of(golden, backbone, dtype):
    case, model = golden("lwf"), golden("model")
    classes = ClassSet(names=tuple(model.config["classnames"]), templates=("a photo of a {}.",))
    adapter = FineTune(Config(towers="both", label_smoothing=case.config["label_smoothing"])).setup(backbone, classes)
    own = dict(adapter.clip.named_parameters())
    with torch.no_grad():
        for name, tensor in case.tensors.items():
            if name.startswith("student/"):
                own[name.removeprefix("student/")].copy_(tensor.to(dtype))
    return adapter.train()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["lwf", "lwf_vr"])
def test_one_step(golden, golden_model, kind, dtype):
    case, model, backbone = golden("lwf"), golden("model"), golden_model(dtype)
    adapter = student_of(golden, backbone, dtype)
    config = LwFConfig if kind == "lwf" else VRLwFConfig
    regulariser = make(config(teacher="original", text_features="teacher"))
    regulariser.start(adapter, Task(0, adapter.classes.names, 1, batches=lambda: []))
    if kind == "lwf_vr":
        texts = [tuple(row) for row in case.input("vr.random_ids").tolist()]
        case.close("vr.tokens", backbone.tokenize(texts))
        regulariser.texts = lambda step: (0, texts)
    labels = torch.tensor(model.config["labels"])
    batch = {"image": model.input("images", dtype), "label": labels, "path": [""] * len(labels)}
    reference = {"image": case.input("step.ref_images", dtype)}
    images = regulariser.teacher_images(reference)
    known = regulariser.teacher_texts(adapter, 0)
    scale = backbone.logit_scale
    case.close(f"step_{kind}.task_logits", adapter.logits(batch))
    case.close(f"step_{kind}.teacher_logits", scale * images @ known.T)
    student = scale * adapter.encode_image(reference) @ known.T
    case.close(f"step_{kind}.student_logits", student)
    case.close(f"step_{kind}.image_loss", distil(scale * images @ known.T, student))
    case.close(f"step_{kind}.text_loss", distil((scale * images @ known.T).T, student.T))
    loss = adapter.loss(batch) + regulariser.penalty(adapter, reference, images, 0)
    case.close(f"step_{kind}.loss", loss)
    loss.backward()
    gradients = {name: p.grad for name, p in adapter.clip.named_parameters()}
    checked = [name for name in case.expected() if name.startswith(f"step_{kind}.grad.")]
    assert len(checked) >= 8
    for name in checked:
        case.close(name, gradients[name.removeprefix(f"step_{kind}.grad.")])
