"""Zero-shot CLIP against the published implementation: tokens, features, logits, prompt ensembles."""

import pytest
import torch
from torch.nn import functional as F

FORMATS = [torch.float64, torch.float32]


@pytest.fixture
def setup(golden):
    model = golden("model")
    return golden("zeroshot"), model, [n.replace("_", " ") for n in model.config["classnames"]]


def test_tokens(golden_model, setup):
    case, model, names = setup
    clip = golden_model()
    case.close("tokens", clip.tokenize([model.config["template"].format(n) for n in names]))
    templates = model.config["ensemble_templates"]
    case.close(
        "ensemble_tokens", torch.stack([clip.tokenize([t.format(n) for n in names]) for t in templates])
    )


@pytest.mark.parametrize("dtype", FORMATS)
def test_features_and_logits(golden_model, setup, dtype):
    case, model, names = setup
    clip = golden_model(dtype)
    images = clip.encode_image(model.input("images", dtype), normalize=False)
    prompts = [model.config["template"].format(n) for n in names]
    texts = clip.encode_text(prompts, normalize=False)
    case.close("image_features", images)
    case.close("text_features", texts)
    weights = clip.encode_text(prompts).T
    case.close("single_weights", weights)
    logits = clip.logit_scale * F.normalize(images, dim=-1) @ weights
    case.close("logits_per_image", logits)
    case.close("probs", logits.softmax(-1))


@pytest.mark.parametrize("dtype", FORMATS)
def test_ensemble(golden_model, setup, dtype):
    case, model, names = setup
    clip = golden_model(dtype)
    templates = model.config["ensemble_templates"]
    features = torch.stack(
        [clip.encode_text([t.format(n) for n in names], normalize=False) for t in templates]
    )
    case.close("ensemble_text_features", features)
    weights = F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1).T
    case.close("ensemble_weights", weights)
    image = clip.encode_image(model.input("images", dtype))
    case.close("ensemble_logits", clip.logit_scale * image @ weights)
    case.close("ensemble_logits_scale100", 100 * image @ weights)
