"""GDA against the numbers of its published implementation, on given features."""

from types import SimpleNamespace

import pytest
import torch
from limpet.classes import ClassSet
from limpet.gaussian import text_neighbours
from limpet.methods.gda import GDA, Config

DTYPES = [torch.float64, torch.float32]


class Given(GDA):
    """GDA whose text classifier is given, so that no CLIP is needed."""

    def zero_shot_weights(self):
        return self.given[[int(name) for name in self.classes.names]].to(self.dtype)


def build(case, dtype, part, names, **settings):
    config = case.config
    backbone = SimpleNamespace(
        spec=None, embed_dim=config["embed"], dtype=dtype, device=torch.device("cpu"), logit_scale=100.0
    )
    adapter = Given(Config(alphas=config["alphas"], **settings))
    adapter.given = case.input("text_weights").T
    adapter.setup(backbone, ClassSet(names=tuple(map(str, names))))
    views = case.input(f"{part}aug_features", dtype).transpose(0, 1)
    labels = case.input(f"{part}train_labels")
    cut = len(labels) // 3  # the result must not depend on the batches
    adapter.fit_closed_form(
        [{"views": views[rows], "label": labels[rows]} for rows in (slice(cut), slice(cut, None))]
    )
    return adapter.eval()


def queries(case, split, dtype, part=""):
    return {
        "feature": case.input(f"{part}{split}_features_raw", dtype),
        "label": case.input(f"{part}{split}_labels") if f"{part}{split}_labels" in case else None,
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_shot(golden, dtype):
    case = golden("gda")
    adapter = build(case, dtype, "", range(case.config["n_classes"]))
    moments = adapter.statistics()
    case.close("fewshot.means", moments.mean.to(dtype))
    eye = torch.eye(case.config["embed"], dtype=torch.float64)
    case.close("fewshot.precision", (adapter.precision(moments) @ eye).to(dtype))
    W, b = adapter.columns()
    case.close("fewshot.W", W.to(dtype))
    case.close("fewshot.b", b.to(dtype))
    val, every = queries(case, "val", dtype), []
    for alpha in case.config["alphas"]:
        adapter.alpha.fill_(alpha)
        every.append(adapter.logits(val))
    case.close("fewshot.val_logits", torch.stack(every))
    adapter.select([val])
    case.close("fewshot.alpha", adapter.alpha)
    assert adapter.selected["alpha"] == float(adapter.alpha)
    case.close("fewshot.test_logits", adapter.logits(queries(case, "test", dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_base_to_new(golden, dtype):
    case = golden("gda")
    base, settings = case.config["base_classes"], case.config["base2new"]
    names = list(range(case.config["n_classes"]))
    adapter = build(
        case, dtype, "base2new.", names[:base], shrinkage="none", covariance="class_balanced",
        neighbours=settings["topk"], text_repeats=settings["text_repeats"],
    )  # fmt: skip
    case.close("base2new.mus", adapter.statistics().mean.to(dtype))
    W, b = adapter.columns()
    case.close("base2new.W", W.to(dtype))
    case.close("base2new.b", b.to(dtype))
    adapter.select([queries(case, "val", dtype, "base2new.")])
    case.close("base2new.alpha", adapter.alpha)
    case.close("base2new.base_logits", adapter.logits(queries(case, "test", dtype, "base2new.")))
    with adapter.answering(ClassSet(names=tuple(map(str, names[base:])))):
        W, b = adapter.columns()
        case.close("base2new.W_new", W.to(dtype))
        case.close("base2new.b_new", b.to(dtype))
        case.close("base2new.new_logits", adapter.logits(queries(case, "test_new", dtype, "base2new.")))
        text = adapter.zero_shot_weights().double()
    means, precisions = text_neighbours(
        adapter.bank.double(), text, settings["topk"], settings["text_repeats"]
    )
    case.close("base2new.mu", means.to(dtype))
    eye = torch.eye(case.config["embed"], dtype=torch.float64)
    case.close("base2new.cov_inv", torch.stack([p @ eye for p in precisions]).mean(0).to(dtype))


def test_every_expected_tensor_is_compared(golden):
    compared = {"means", "precision", "W", "b", "val_logits", "alpha", "test_logits", "mus", "base_logits"}
    compared |= {"W_new", "b_new", "new_logits", "mu", "cov_inv"}
    assert {name.partition(".")[2] for name in golden("gda").expected()} <= compared
