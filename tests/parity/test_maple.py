"""MaPLe against the numbers of its published implementation, at every depth and with both kinds of start."""

import pytest
import torch
from limpet.classes import ClassSet
from limpet.methods.maple import Config, MaPLe
from torch.nn.functional import normalize


def names(depth):
    """(ours, golden name, row of our tensor or None) of every learned tensor."""
    yield "text_vectors", "ctx", 0
    for j in range(1, depth):
        yield "text_vectors", f"compound_prompts_text.{j - 1}", j
    for part in ("weight", "bias"):
        yield f"couplings.0.{part}", f"proj.{part}", None
        for j in range(1, depth):
            yield f"couplings.{j}.{part}", f"compound_prompt_projections.{j - 1}.{part}", None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("start", ["xinit", "textinit"])
def test_features_logits_loss_and_gradients(golden, golden_model, start, dtype):
    case, model, backbone = golden("maple"), golden("model"), golden_model(dtype)
    classes = ClassSet(tuple(case.config["classnames"]), texts={}, templates=("a photo of a {}.",))
    data = {"image": model.input("images", dtype), "label": torch.tensor(case.config["labels"])}
    words = case.config["ctx_init_text"] if start == "textinit" else None
    for depth in case.config["depths"]:
        run = f"depth{depth}.{start}"
        adapter = MaPLe(Config(case.config["n_ctx"], depth, words)).setup(backbone, classes).train()
        if words:
            case.close("textinit.initial_ctx", adapter.text_vectors[0])
        parameters = dict(adapter.named_parameters())
        with torch.no_grad():
            for ours, theirs, row in names(depth):
                target = parameters[ours]
                (target if row is None else target[row]).copy_(case.input(theirs))
        for side, got in (("text", adapter.class_weights()), ("image", adapter.encode_image(data))):
            want = case.tensors[f"{run}.{side}_features.f64"].to(dtype)
            exact = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-5}
            torch.testing.assert_close(got, normalize(want, dim=-1), **exact)
        case.close(f"{run}.logits", adapter.logits(data))
        loss = adapter.loss(data)
        case.close(f"{run}.loss", loss)
        loss.backward()
        compared = {f"{run}.grad.{theirs}" for _, theirs, _ in names(depth)}
        assert compared == {n for n in case.expected() if n.startswith(f"{run}.grad.")}
        for ours, theirs, row in names(depth):
            grad = parameters[ours].grad
            case.close(f"{run}.grad.{theirs}", grad if row is None else grad[row])
        with torch.no_grad():
            case.close(f"{run}.logits", adapter.eval().logits(data))
