"""Tip-Adapter and Tip-Adapter-F against the numbers of their published implementation, on given features."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from limpet.classes import ClassSet
from limpet.methods.tip_adapter import Config, TipAdapter
from limpet.optim import build_optimiser, build_schedule
from limpet.recipe import OptimConfig

DTYPES = [torch.float64, torch.float32]


class Given(TipAdapter):
    """Tip-Adapter whose text classifier is given, so that no CLIP is needed."""

    def compute_class_weights(self):
        return self.given.to(self.dtype)


def build(case, dtype, **settings):
    config, tensors = case.json["config"], case.tensors
    search = {k: config["search"][k] for k in ("search_scale", "search_step")}
    backbone = SimpleNamespace(
        spec=None, embed_dim=config["embed"], dtype=dtype, device=torch.device("cpu"), logit_scale=100.0
    )
    names = tuple(f"class {i}" for i in range(config["n_classes"]))
    settings = {"init_alpha": config["init_alpha"], "init_beta": config["init_beta"], **search, **settings}
    adapter = Given(Config(**settings)).setup(backbone, ClassSet(names=names, texts={}, templates=("{}",)))
    adapter.given = tensors["text_weights"].T
    views = tensors["aug_features"].to(dtype).transpose(0, 1)
    adapter.fit_closed_form([{"views": views, "feature": views[:, 0], "label": tensors["train_labels"]}])
    return adapter


def queries(case, split, dtype):
    return {"feature": case.tensors[f"{split}_features_raw"].to(dtype), "label": case.tensors[f"{split}_labels"]}


@pytest.mark.parametrize("dtype", DTYPES)
def test_cache_and_logits(golden, dtype):
    case = golden("tip_adapter")
    adapter = build(case, dtype).eval()
    case.close("cache_keys", adapter.keys.T)
    case.close("cache_values", adapter.values())
    for alpha, beta in case.json["config"]["alpha_beta"]:
        adapter.alpha.fill_(alpha)
        adapter.beta.fill_(beta)
        case.close(f"logits_alpha{alpha}_beta{beta}", adapter.logits(queries(case, "test", dtype)))
    adapter.alpha.fill_(0.0)
    case.close("clip_logits_test", adapter.logits(queries(case, "test", dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_search_over_alpha_and_beta(golden, dtype):
    case = golden("tip_adapter")
    adapter = build(case, dtype).eval()
    held_out = [queries(case, "val", dtype)]
    torch.testing.assert_close(
        torch.from_numpy(adapter.search_accuracy(held_out)) * 100, case.tensors["search_accuracy"], rtol=1e-12, atol=1e-9
    )
    adapter.select(held_out)
    found = torch.stack([adapter.beta, adapter.alpha]).double()
    torch.testing.assert_close(found, case.tensors["search_best_beta_alpha"], rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)
    case.close("logits_test_with_search_result", adapter.logits(queries(case, "test", dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_moved_keys_are_not_normalised_again(golden, dtype):
    case = golden("tip_adapter")
    adapter = build(case, dtype, finetune=True).eval()
    adapter.keys.data += case.tensors["key_delta"].to(dtype)
    given = [re.fullmatch(r"F_given_logits_alpha(.+)_beta(.+)", name) for name in case.tensors if not name.endswith(".f64")]
    pairs = [(float(m[1]), float(m[2])) for m in given if m]
    assert pairs
    for alpha, beta in pairs:
        adapter.alpha.fill_(alpha)
        adapter.beta.fill_(beta)
        case.close(f"F_given_logits_alpha{alpha}_beta{beta}", adapter.logits(queries(case, "test", dtype)))
    betas, alphas = adapter.grid()
    for name, beta, alpha in (("first", betas[0], alphas[0]), ("last", betas[-1], alphas[-1])):
        adapter.alpha.fill_(alpha)
        adapter.beta.fill_(beta)
        case.close(f"F_given_search_{name}_logits", adapter.logits(queries(case, "test", dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_the_keys(golden, dtype):
    case = golden("tip_adapter")
    settings, tensors = case.json["config"]["tipF"], case.tensors
    adapter = build(case, dtype, finetune=True).train()
    optim = OptimConfig(
        name="adamw", lr=settings["lr"], eps=settings["eps"], weight_decay=0.01, interval="step", warmup=0
    )
    total = settings["epochs"] * settings["batches_per_epoch"]
    optimiser = build_optimiser(adapter.learnable(), optim)
    schedule = build_schedule(optimiser, optim, total)
    rates, labels = [], tensors["train_labels"]
    half = -(-len(labels) // settings["batches_per_epoch"])
    for epoch in range(settings["epochs"]):
        views = tensors["aug_features"].to(dtype)
        view = views[epoch % len(views)]
        for rows in torch.arange(len(labels)).split(half):
            logits = adapter.logits({"feature": view[rows]})
            if not rates:
                case.close("F_train_logits_step1", logits)
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimiser.step()
            schedule.step()
            if len(rates) == 1:
                case.close("F_weights_after_step1", adapter.keys)
        if epoch == 0:
            case.close("F_test_logits_epoch1", adapter.eval().logits(queries(case, "test", dtype)))
            adapter.train()
    case.close("F_weights_after_last", adapter.keys)
    case.close("F_test_logits_last", adapter.eval().logits(queries(case, "test", dtype)))
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), tensors["F_lr_per_step"].double(), rtol=1e-6, atol=1e-12)
