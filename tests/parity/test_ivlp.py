"""Independent prompts of both towers against the numbers of their published implementation."""

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.ivlp import IVLP, Config
from torch.nn.functional import normalize

TEXT = "transformer.resblocks.{}.VPT_shallow"
IMAGE = "visual.transformer.resblocks.{}.VPT_shallow"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_features_logits_loss_and_gradients(golden, golden_model, dtype):
    case, model, backbone = golden("ivlp"), golden("model"), golden_model(dtype)
    classes = ClassSet(tuple(case.config["classnames"]), texts={}, templates=("a photo of a {}.",))
    data = {"image": model.input("images", dtype), "label": torch.tensor(case.config["labels"])}
    for number, run in enumerate(case.config["runs"]):
        texts = ["ctx", *(TEXT.format(i) for i in range(1, run["dt"]))]
        images = ["visual.VPT", *(IMAGE.format(i) for i in range(1, run["dv"]))]
        given = [n for n in case.expected("input") if n.startswith(f"run{number}.")]
        assert {f"run{number}.{n}" for n in texts + images} == set(given)
        config = Config(run["nt"], run["nv"], run["dt"], run["dv"], init=None)
        adapter = IVLP(config).setup(backbone, classes).train()
        adapter.load_state_dict(
            {
                key: torch.stack([case.input(f"run{number}.{n}") for n in names])
                for key, names in (("text_vectors", texts), ("image_vectors", images))
            }
        )
        for side, got in (("text", adapter.class_weights()), ("image", adapter.encode_image(data))):
            want = case.tensors[f"run{number}.{side}_features.f64"].to(dtype)
            exact = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-5}
            torch.testing.assert_close(got, normalize(want, dim=-1), **exact)
        case.close(f"run{number}.logits", adapter.logits(data))
        loss = adapter.loss(data)
        case.close(f"run{number}.loss", loss)
        loss.backward()
        for names, vectors in ((texts, adapter.text_vectors), (images, adapter.image_vectors)):
            for name, grad in zip(names, vectors.grad, strict=True):
                case.close(f"run{number}.grad.{name}", grad)
        with torch.no_grad():
            case.close(f"run{number}.logits", adapter.eval().logits(data))
