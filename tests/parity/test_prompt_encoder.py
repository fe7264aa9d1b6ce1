"""Prompt encoding of both towers against the published CoOp, CoCoOp, MaPLe, IVLP and VPT."""

import pytest
import torch
from limpet.blocks import image_features
from limpet.prompting import PromptEncoder, init_words
from torch.nn import functional as F

FORMATS = [torch.float64, torch.float32]
DEEP_TEXT = "transformer.resblocks.{}.VPT_shallow"
DEEP_IMAGE = "visual.transformer.resblocks.{}.VPT_shallow"


def scores(clip, image, text):
    """Logits (B, C) of features; text (C, D) or per image (B, C, D)."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    if text.ndim == 3:
        return clip.logit_scale * torch.einsum("bd,bcd->bc", image, text)
    return clip.logit_scale * image @ text.T


def spaced(case):
    return [n.replace("_", " ") for n in case.config["classnames"]]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("memory", [None, 40])
@pytest.mark.parametrize("run", [f"{k}.{p}" for k in ("unified", "csc") for p in ("end", "middle", "front")])
def test_coop(golden, golden_model, run, memory, dtype):
    kind, position = run.split(".")
    case, model, clip = golden("coop"), golden("model"), golden_model(dtype)
    encoder = PromptEncoder(clip, case.config["classnames"], case.config["n_ctx"], position, memory=memory)
    assert encoder.packed
    image = clip.encode_image(model.input("images", dtype), normalize=False)
    labels = torch.tensor(case.config["labels"])
    context = case.input(f"ctx_{kind}", dtype).clone().requires_grad_()
    losses = []
    for step in range(4):
        text = encoder(context, class_specific=kind == "csc")
        logits = scores(clip, image, text)
        loss = F.cross_entropy(logits, labels)
        losses.append(loss.detach())
        if step == 3:
            break
        (grad,) = torch.autograd.grad(loss, context)
        if step == 0:
            case.close(f"{run}.text_features", text)
            case.close(f"{run}.logits", logits)
            case.close(f"{run}.loss", loss)
            case.close(f"{run}.grad_ctx", grad)
        context = (context - 0.1 * grad).detach().requires_grad_()
    case.close(f"{run}.ctx_after_sgd3", context)
    case.close(f"{run}.loss_sgd3", torch.stack(losses))
    case.close(f"{run}.logits_after_sgd3", logits)


def test_coop_word_init(golden, golden_model):
    case, model, clip = golden("coop"), golden("model"), golden_model()
    phrase = case.config["ctx_init_text"]
    context = init_words(clip, phrase).requires_grad_()
    case.close("ctx_init.ctx", context)
    image = clip.encode_image(model.input("images"), normalize=False)
    encoder = PromptEncoder(clip, spaced(case), len(context), phrase=phrase)
    logits = scores(clip, image, encoder(context))
    case.close("ctx_init.logits", logits)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor(case.config["labels"])), context)
    case.close("ctx_init.grad_ctx", grad)


@pytest.mark.parametrize("memory", [None, 60])
def test_cocoop(golden, golden_model, memory):
    case, model, clip = golden("cocoop"), golden("model"), golden_model()
    weights = {n: case.input(n).clone().requires_grad_() for n in case.expected("input")}
    encoder = PromptEncoder(clip, case.config["classnames"], case.config["n_ctx"], memory=memory)
    image = clip.encode_image(model.input("images"))
    net = {n.removeprefix("meta_net."): w for n, w in weights.items()}
    hidden = F.linear(image, net["linear1.weight"], net["linear1.bias"]).relu()
    bias = F.linear(hidden, net["linear2.weight"], net["linear2.bias"])
    case.close("bias", bias)
    logits = scores(clip, image, encoder(weights["ctx"] + bias[:, None]))
    case.close("logits", logits)
    loss = F.cross_entropy(logits, torch.tensor(case.config["labels"]))
    case.close("loss", loss)
    for (name, _), grad in zip(
        weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True
    ):
        case.close(f"grad.{name}", grad)


@pytest.mark.parametrize("init", ["xinit", "textinit"])
def test_maple(golden, golden_model, init):
    case, model, clip = golden("maple"), golden("model"), golden_model()
    phrase = case.config["ctx_init_text"] if init == "textinit" else ""
    encoder = PromptEncoder(clip, case.config["classnames"], case.config["n_ctx"], phrase=phrase)
    if phrase:
        case.close("textinit.initial_ctx", init_words(clip, phrase, case.config["n_ctx"]))
    for depth in case.config["depths"]:
        run = f"depth{depth}.{init}"
        names = [n for n in case.expected("input") if not n[-1].isdigit() or int(n[-1]) < depth - 1]
        names = [n for n in names if "projections." not in n or int(n.split(".")[1]) < depth - 1]
        given = {n: case.input(n).clone().requires_grad_() for n in names}
        deep = [given[f"compound_prompts_text.{j}"] for j in range(depth - 1)]
        visual = [F.linear(given["ctx"], given["proj.weight"], given["proj.bias"])]
        for j, prompt in enumerate(deep):
            layer = f"compound_prompt_projections.{j}"
            visual.append(F.linear(prompt, given[f"{layer}.weight"], given[f"{layer}.bias"]))
        text = encoder(given["ctx"], deep)
        image = image_features(clip, model.input("images"), visual)
        case.close(f"{run}.text_features", text)
        case.close(f"{run}.image_features", image)
        logits = scores(clip, image, text)
        case.close(f"{run}.logits", logits)
        loss = F.cross_entropy(logits, torch.tensor(case.config["labels"]))
        case.close(f"{run}.loss", loss)
        for name, grad in zip(given, torch.autograd.grad(loss, list(given.values())), strict=True):
            case.close(f"{run}.grad.{name}", grad)


@pytest.mark.parametrize("which", ["ivlp", "vpt"])
def test_independent_prompts(golden, golden_model, which):
    case, model, clip = golden(which), golden("model"), golden_model()
    for number, run in enumerate(case.config["runs"]):
        given = {
            n.removeprefix(f"run{number}."): case.input(n).clone().requires_grad_()
            for n in case.expected("input")
            if n.startswith(f"run{number}.")
        }
        visual = [given["visual.VPT"], *(given[DEEP_IMAGE.format(i)] for i in range(1, run["dv"]))]
        if which == "ivlp":
            deep = [given[DEEP_TEXT.format(i)] for i in range(1, run["dt"])]
            text = PromptEncoder(clip, case.config["classnames"], run["nt"])(given["ctx"], deep)
        else:
            template = model.config["template"]
            text = clip.encode_text([template.format(n) for n in spaced(case)], normalize=False)
        image = image_features(clip, model.input("images"), visual)
        logits = scores(clip, image, text)
        loss = F.cross_entropy(logits, torch.tensor(case.config["labels"]))
        case.close(f"run{number}.image_features", image)
        case.close(f"run{number}.text_features", text)
        case.close(f"run{number}.logits", logits)
        case.close(f"run{number}.loss", loss)
        for name, grad in zip(given, torch.autograd.grad(loss, list(given.values())), strict=True):
            case.close(f"run{number}.grad.{name}", grad)
