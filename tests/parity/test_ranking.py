"""The ranking-aware adapter against the released implementation."""

import copy
import re

import pytest
import torch
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.methods.ranking import Config, Ranking
from limpet.ranking_network import ordered, smooth_log
from limpet.tokens import image_token_features, text_token_features
from torch.nn import functional as F

DTYPES = (torch.float64, torch.float32)
WEIGHT = {"rank": 1.0, "regression": 0.2, "bce": 1.0}

# released name -> ours; {i} stands for a layer
NAMES = {
    r"learnable_text_tokens": "learned_tokens",
    r"reg_tokens": "pair.attention.queries",
    r"reg_token_pooler\.(.+)": r"pair.attention.\1",
    r"pair_regressor\.pre_linear_block\.(.+)": r"pair.head.body.\1",
    r"pair_regressor\.output_head\.(.+)": r"pair.head.out.\1",
    r"regressor\.pre_linear_block\.(.+)": r"score_head.body.\1",
    r"regressor\.output_head\.(.+)": r"score_head.out.\1",
    r"reg_ln\.(.+)": r"ln_score.\1",
    r"crossmodal_block\.projection": "projection",
    r"crossmodal_block\.ln_final\.(.+)": r"ln_final.\1",
    r"crossmodal_block\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)": r"own.\1.mlp.0.\2",
    r"crossmodal_block\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)": r"own.\1.mlp.2.\2",
    r"crossmodal_block\.resblocks\.(\d+)\.(.+)": r"own.\1.\2",
    r"crossmodal_block\.cross_attn\.(\d+)\.mlp\.c_fc\.(.+)": r"cross.\1.mlp.0.\2",
    r"crossmodal_block\.cross_attn\.(\d+)\.mlp\.c_proj\.(.+)": r"cross.\1.mlp.2.\2",
    r"crossmodal_block\.cross_attn\.(\d+)\.(.+)": r"cross.\1.\2",
    r"post_fuse_block\.layers\.(\d+)\.(.+)": r"post.\1.\2",
}


def ours(name):
    name = name.removeprefix("adapter.")
    for pattern, replacement in NAMES.items():
        if re.fullmatch(pattern, name):
            return "network." + re.sub(pattern, replacement, name)
    raise AssertionError(f"no name for {name}")


def build(case, golden_model, dtype, **settings):
    """The adapter with the released weights, on the golden tower with this case's projections."""
    model = copy.deepcopy(golden_model(dtype).model)
    model.visual.proj.data = case.input("visual.proj", dtype)
    model.text_projection.data = case.input("text_projection", dtype)
    model.visual.output_dim = len(model.visual.proj.T)
    backbone = FrozenClip.from_model(model, name="golden")
    c = case.config
    config = Config(
        layers=c["adapter_layers"], heads=c["fusion_heads"], post_heads=c["post_fuse_heads"],
        pair_heads=c["rank_attention_heads"], learned_tokens=c["n_learnable_text_tokens"], queries=c["n_reg_tokens"],
        reference=True, **settings,
    )  # fmt: skip
    adapter = Ranking(config).setup(backbone, ClassSet(("cats",), {"cats": (c["captions"][0],)}))
    given = {n: case.input(n, dtype) for n in case.tensors if n.startswith("adapter.") and not n.startswith("adapter_")}
    state = {ours(n): v for n, v in given.items()}
    if adapter.network.pair is None:
        state = {n: v for n, v in state.items() if not n.startswith("network.pair.")}
    adapter.load_state_dict({**adapter.state_dict(), **state})
    assert {n for n in adapter.state_dict() if n.startswith("network.")} == set(state)
    return adapter.eval()


def batch_of(case, dtype):
    return {
        "image": case.input("images", dtype), "value": case.input("targets", dtype), "instruction": case.config["captions"],
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_of_both_towers(golden, golden_model, dtype):
    case = golden("rankclip")
    adapter = build(case, golden_model, dtype)
    batch = batch_of(case, dtype)
    assert adapter.backbone.tokenize(case.config["captions"]).tolist() == case.tensors["tokens"].tolist()
    case.close("image_tokens", adapter.image_tokens(batch))
    case.close("image_tokens", image_token_features(adapter.backbone, batch["image"]))
    case.close("text_tokens", text_token_features(adapter.backbone, case.config["captions"][:1]))
    case.close("text_features", adapter.backbone.encode_text(case.config["captions"], normalize=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pieces", [128, 4])
def test_scores_and_pair_logits(golden, golden_model, dtype, pieces):
    case = golden("rankclip")
    adapter = build(case, golden_model, dtype, images_at_once=pieces)
    batch = batch_of(case, dtype)
    case.close("adapter_logits", adapter.scores(batch)[:, None])
    case.close("adapter_paired_logits", adapter.pair_logits(batch).reshape(-1, 1))
    case.close("adapter_logits", adapter.units(adapter.scores(batch), adapter.rows(batch))[0][:, None].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients(golden, golden_model, dtype):
    case = golden("rankclip")
    batch = batch_of(case, dtype)
    names = [n for n in case.expected() if n.startswith(("loss.", "loss_single_head."))]
    assert len(names) >= 5
    for name in names:
        head, _, components = name.partition(".")
        adapter = build(
            case, golden_model, dtype, losses=components.split("+"), single_head=head == "loss_single_head", pairs_at_once=12
        )
        case.close(name, adapter.loss(batch))
    adapter = build(case, golden_model, dtype)
    adapter.loss(batch).backward()
    parameters = dict(adapter.named_parameters())
    gradients = [n for n in case.expected() if n.startswith("grad.")]
    assert len(gradients) >= 10
    for name in gradients:
        case.close(name, parameters[ours(name.removeprefix("grad."))].grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_on_plain_tensors(golden, dtype):
    case = golden("rankclip")
    values = case.input("plain.targets", dtype)
    for name in [n for n in case.expected() if n.startswith("plain.") and n.endswith(".loss")]:
        _, head, components, _ = name.split(".")
        scores = case.input("plain.scores", dtype).clone().requires_grad_()
        logits = case.input("plain.pair_logits", dtype).clone().requires_grad_()
        pairs = logits.reshape(len(values), -1) if head == "dual" else scores - scores.T
        parts = {
            "rank": F.binary_cross_entropy_with_logits(pairs, ordered(values)),
            "regression": smooth_log(scores[:, 0], values),
            "bce": F.binary_cross_entropy_with_logits(scores[:, 0], (values != 0).to(dtype)),
        }
        loss = sum(WEIGHT[part] * parts[part] for part in components.split("+"))
        case.close(name, loss)
        loss.backward()
        for tensor, words in ((scores, "grad_scores"), (logits, "grad_pair_logits")):
            expected = f"plain.{head}.{components}.{words}"
            if expected in case:
                case.close(expected, tensor.grad)
