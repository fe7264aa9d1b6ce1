"""FrozenClip: every way to load one, what it says of itself, and that nothing ever changes it."""

import copy
import json
import pickle
import socket
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from limpet.backbone import BackboneSpec, FrozenClip, describe
from limpet.errors import BackboneError
from safetensors.torch import save_file

EXACT = {"rtol": 0, "atol": 1e-12}


def section(name="limpet-tiny", pretrained=None, activation=None, precision="fp32"):
    return SimpleNamespace(name=name, pretrained=pretrained, activation=activation, precision=precision)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Connections fail at once, and nothing is stored on the machine."""
    from huggingface_hub import constants

    def refuse(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def folder(tmp_path):
    """A local open_clip folder with weights, small enough to write in a test."""
    from open_clip.model import CLIP

    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    }
    torch.manual_seed(0)
    model = CLIP(**config["model_cfg"])
    place = tmp_path / "my model"
    place.mkdir()
    (place / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), place / "open_clip_model.safetensors")
    return place, model


def test_tiny_needs_no_network(no_network):
    clip = FrozenClip.load("limpet-tiny")
    assert clip.encode_text(["a red circle"]).shape == (1, clip.embed_dim)
    assert clip.spec == describe("limpet-tiny") == describe(section(pretrained="openai"))
    assert BackboneSpec.from_dict(json.loads(json.dumps(clip.spec.to_dict()))) == clip.spec
    inside = FrozenClip.from_model(clip.model, name=clip.spec.name).spec
    assert inside == clip.spec


def test_tiny_features(tiny):
    images = torch.randn(5, 3, tiny.image_size, tiny.image_size)
    features = tiny.encode_image(images)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))
    raw = tiny.model.encode_image(images)
    torch.testing.assert_close(tiny.encode_image(images, normalize=False), raw, rtol=1e-4, atol=1e-5)
    texts = ["a photo of a cat", "two fish", "a", "a photo of a cat"]
    want = tiny.model.encode_text(tiny.tokenize(texts))
    torch.testing.assert_close(tiny.encode_text(texts, normalize=False), want, rtol=1e-4, atol=1e-5)
    assert tiny.encode_text([]).shape == (0, tiny.embed_dim)
    assert tiny.image_patches(images).shape == (5, 64, tiny.spec.vision_width)
    assert tiny.unseen_tokens("a photo of a red circle") == []
    assert tiny.unseen_tokens("photo of a zymurgy") != []
    assert tiny.logit_scale > 1 and tiny.logit_bias == 0


def test_texts_are_encoded_once(random_clip, monkeypatch):
    clip = random_clip()
    first = clip.encode_text(["once", "twice", "once"])
    monkeypatch.setattr(type(clip), "_text", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(clip.encode_text(["once", "twice", "once"]), first)
    assert torch.equal(first[0], first[2])


def test_many_texts_equal_single_ones(random_clip, monkeypatch):
    monkeypatch.setattr("limpet.backbone.TEXT_TOKENS", 20)
    for options in ({}, {"custom": True, "text": {"no_causal_mask": True}}):
        clip = random_clip(**options)
        texts = [" ".join(["word"] * n) for n in (3, 1, 7, 2, 7, 5)] + [""]
        whole = clip.encode_text(texts, normalize=False)
        want = clip.model.encode_text(clip.tokenize(texts))
        torch.testing.assert_close(whole, want, **EXACT)


def test_always_frozen_and_never_registered(tiny):
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert not any(m.training for m in tiny.model.modules())
    holder = torch.nn.Module()
    holder.backbone = tiny
    assert not list(holder.parameters()) and not holder.state_dict()
    text, image = tiny.encode_text(["a"]), tiny.encode_image(torch.zeros(1, 3, 64, 64))
    assert not text.requires_grad and not image.requires_grad


def test_loading_touches_no_global_seed():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    FrozenClip.load("limpet-tiny")
    assert torch.equal(torch.rand(3), want)


def test_fingerprint(tiny, folder):
    place, model = folder
    again = FrozenClip.load("limpet-tiny")
    assert again.fingerprint == tiny.fingerprint and len(tiny.fingerprint) == 64
    clip = FrozenClip.load(str(place))
    assert clip.fingerprint == FrozenClip.from_model(model).fingerprint
    assert FrozenClip.load(section(str(place), precision="bf16")).fingerprint == clip.fingerprint
    changed = copy.deepcopy(model)
    changed.visual.proj.data[0, 0] += 1e-3
    assert FrozenClip.from_model(changed).fingerprint != clip.fingerprint


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision(precision, tiny, monkeypatch):
    monkeypatch.setattr("limpet.precision.cpu_has_bf16", lambda: True)  # it can compute in bfloat16 anyway
    clip = FrozenClip.load(section(precision=precision))
    assert clip.spec.precision == precision and clip.dtype.itemsize == 2
    images = torch.randn(2, 3, 64, 64)
    features = clip.encode_image(images)
    assert features.dtype == torch.float32
    assert (features * tiny.encode_image(images)).sum(-1).min() > 0.99
    assert (clip.encode_text(["a cat"]) * tiny.encode_text(["a cat"])).sum(-1).min() > 0.99


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [
        (".safetensors", lambda state: state),
        (".safetensors", lambda state: {f"module.{k}": v for k, v in state.items()}),
        (".pt", lambda state: state),
        (".bin", lambda state: {"epoch": 3, "state_dict": state}),
        (".pth", lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        (".pt", lambda state: {"model": {"module": state}}),
    ],
)
def test_local_files(folder, tmp_path, wrap, suffix):
    place, model = folder
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(wrap(model.state_dict()), file)
    clip = FrozenClip.load(section(f"local-dir:{place}", pretrained=str(file)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        clip.encode_image(images, False), FrozenClip.from_model(model).encode_image(images, False)
    )
    assert clip.spec.preprocessing["resize_mode"] == "squash" and clip.spec.preprocessing["mean"] == [0.5] * 3


def test_custom_text_models_take_plain_files(folder):
    place, model = folder
    config = json.loads((place / "open_clip_config.json").read_text())
    config["model_cfg"]["custom_text"] = True
    (place / "open_clip_config.json").write_text(json.dumps(config))
    clip = FrozenClip.load(str(place))
    assert hasattr(clip.model, "text")
    torch.testing.assert_close(
        clip.encode_text(["a cat"]), FrozenClip.from_model(model).encode_text(["a cat"])
    )


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_files_that_are_not_weights(folder, tmp_path, random_model):
    place, model = folder

    def load(file):
        return FrozenClip.load(section(str(place), pretrained=str(file)))

    script = tmp_path / "ViT-B-16.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(script)
    with pytest.raises(BackboneError, match=r"TorchScript archive.*save_file.*torch\.jit\.load"):
        load(script)
    harmful = tmp_path / "model.bin"
    torch.save({"state_dict": Harmful()}, harmful)
    with pytest.raises(BackboneError, match="could run code"):
        load(harmful)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.raises(BackboneError, match="could run code"):
        load(tmp_path / "bare.pth")
    for name, content in (("empty.pt", b""), ("noise.pt", b"\x01\x02hello"), ("noise.safetensors", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BackboneError, match=name):
            load(tmp_path / name)
    torch.save({"lr": 0.1, "steps": [1, 2]}, tmp_path / "other.pt")
    with pytest.raises(BackboneError, match=r"not a plain state dict.*lr"):
        load(tmp_path / "other.pt")
    with pytest.raises(BackboneError, match="does not exist"):
        load(tmp_path / "missing.pt")
    state = model.state_dict()
    state["surprise"] = torch.zeros(1)
    del state["visual.proj"]
    state["ln_final.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "other model.pt")
    with pytest.raises(
        BackboneError,
        match=r"1 missing \(visual\.proj\).*surprise.*ln_final\.weight \(3,\) instead of \(16,\)",
    ):
        load(tmp_path / "other model.pt")


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [(None, [], "it should be keys and values"), ("model_cfg", "x", "model_cfg should be"), ("preprocess_cfg", [], "preprocess_cfg"),
     ("vision_cfg", "x", "vision_cfg should be keys and values"), ("text_cfg", 3, "text_cfg should be"),
     ("preprocess_cfg", {"mean": "x"}, "preprocess_cfg.mean"), ("preprocess_cfg", {"std": [0, 0, 0]}, "above 0"),
     ("preprocess_cfg", {"interpolation": "x"}, "bicubic"), ("preprocess_cfg", {"fill_color": "x"}, "fill_color"),
     ("vision_cfg", {"head_width": 0}, "head_width should be a whole number"), ("vision_cfg", {"layers": 100_000}, "from 1 to 1000"),
     ("vision_cfg", {"layers": 900}, "holds [0-9,]+"), ("vision_cfg", {"image_size": 10**6}, "image_size should be"),
     ("vision_cfg", {"image_size": 16_000, "width": 4096}, "holds"), ("vision_cfg", {"timm_model_name": "../../evil"}, "not a place"),
     ("vision_cfg", {"norm_kwargs": {"eps": "x"}}, "norm_kwargs.eps"), ("vision_cfg", {"pool_type": "x"}, "cannot be built"),
     ("text_cfg", {"layers": [1, 2, 3, 4]}, "text_cfg.layers should be a whole number from 1 to 1000; found"),
     ("text_cfg", {"width": None}, "text_cfg.width should be"), ("text_cfg", {"heads": 3}, "cannot be built"),
     ("text_cfg", {"context_length": 10**9}, "context_length should be"),
     ("text_cfg", {"tokenizer_kwargs": {"clean": "x"}}, "Invalid clean function"), ("model_cfg", {"custom_text": "x"}, "true or"),
     ("model_cfg", {"init_logit_scale": 10**400}, "cannot be built"), ("model_cfg", {"multimodal_cfg": {}}, "cannot be built")],
)  # fmt: skip
def test_a_broken_configuration_is_one_sentence_before_anything_large_is_built(part, change, said, folder):
    file = folder[0] / "open_clip_config.json"
    whole = json.loads(file.read_text())
    places = {"model_cfg": whole, "preprocess_cfg": whole, "vision_cfg": whole["model_cfg"], "text_cfg": whole["model_cfg"]}
    if part is None:
        whole = change
    elif isinstance(change, dict):
        places[part][part] = {**places[part][part], **change}
    else:
        places[part][part] = change
    file.write_text(json.dumps(whole))
    with pytest.raises(BackboneError, match=said):
        FrozenClip.load(str(folder[0]))


def test_every_configuration_of_open_clip_may_be_said():
    import open_clip
    from limpet.backbone_checks import check_configuration

    timm = {"timm_model_name": "vit_base_patch16_224", "layers": None, "width": None, "patch_size": None}
    other = {"hf_model_name": "roberta-base", "width": None, "heads": None, "layers": None, "vocab_size": None}
    model = {"embed_dim": 512, "vision_cfg": timm, "text_cfg": other, "multimodal_cfg": None}
    check_configuration("mine", {"model_cfg": model, "preprocess_cfg": None})

    for name in open_clip.list_models():
        check_configuration(name, open_clip.get_model_config(name))


def test_a_token_table_of_trained_rows_fits_a_custom_text_model_and_must_fit(folder, tiny):
    from limpet.backbone_spec import tiny_asset

    place, _ = folder
    whole = json.loads(tiny_asset("limpet-tiny.json").read_text())
    whole.get("model_cfg", whole)["custom_text"] = True
    (place / "open_clip_config.json").write_text(json.dumps(whole))
    (place / "open_clip_model.safetensors").write_bytes(tiny_asset("limpet-tiny.safetensors").read_bytes())
    own = FrozenClip.load(str(place))
    torch.testing.assert_close(own.encode_text(["a cod"]), tiny.encode_text(["a cod"]))
    whole.get("model_cfg", whole)["text_cfg"]["vocab_size"] = 100
    (place / "open_clip_config.json").write_text(json.dumps(whole))
    with pytest.raises(BackboneError, match="vocabulary of 100"):
        FrozenClip.load(str(place))


def test_names_and_tags(tmp_path):
    assert describe(section("ViT-B-16", "openai")).activation == "quick_gelu"
    assert describe(section("ViT-B/16", "openai")).activation == "quick_gelu"
    assert describe(section("ViT-B-16", "laion2b_s34b_b88k")).activation == "gelu"
    siglip = describe(section("ViT-B-16-SigLIP", "webli"))
    assert (
        not siglip.causal_text and siglip.preprocessing["mean"] == [0.5] * 3 and siglip.image_tower == "timm"
    )
    resnet = describe(section("RN50", "openai"))
    assert (resnet.image_tower, resnet.vision_layers, resnet.embed_dim) == ("resnet", 16, 1024)
    assert describe(section("coca_ViT-B-32", "random")).multimodal
    assert describe(section("roberta-ViT-B-32", "random")).text_tower == "hf"
    (tmp_path / "w.pt").write_bytes(b"x")
    assert describe(section("ViT-B-16", str(tmp_path / "w.pt"), "quick_gelu")).activation == "quick_gelu"
    for wrong, said in (
        (section("ViT-B-61", "openai"), "Did you mean 'ViT-B-16'"),
        (section("limpet-tin"), "Did you mean 'limpet-tiny'"),
        (section("ViT-B-16"), "Tags of ViT-B-16: openai"),
        (section("ViT-B-16", "opanai"), "Did you mean 'openai'"),
        (section("ViT-B-16", "openai", "gelu"), "trained with quick_gelu"),
        (section("ViT-B-16", str(tmp_path / "w.pt")), "backbone.activation=quick_gelu"),
        (section("models/clip.pt"), "backbone.pretrained"),
        (section(precision="fp8"), "fp32, bf16, fp16"),
        (section(activation="relu"), "gelu, quick_gelu"),
        (section("local-dir:nowhere"), "not a folder"),
        (section(f"local-dir:{tmp_path}"), "no such file"),
    ):
        with pytest.raises(BackboneError, match=said):
            describe(wrong)


def test_random_weights_are_seeded():
    config = section("RN50", "random")
    a, b = FrozenClip.load(config), FrozenClip.load(config)
    assert a.fingerprint == b.fingerprint and a.spec == describe(config)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(a.encode_image(images, False), a.model.encode_image(images))
    assert a.image_patches(images).shape == (1, 49, 2048)
    inside = FrozenClip.from_model(a.model, name="RN50").spec
    differing = {k for k, v in asdict(inside).items() if v != asdict(a.spec)[k]}
    assert differing <= {"pretrained"}


@pytest.mark.parametrize(
    "config",
    [
        section("ViT-B-32", "openai"),
        section("ViT-B-16-SigLIP", "random"),
        section("roberta-ViT-B-32", "random"),
        section("hf-hub:someone/something"),
        section("RN50", "yfcc15m"),
    ],
)
def test_an_unreachable_hub_is_one_sentence(no_network, config):
    start = time.monotonic()
    with pytest.raises(BackboneError, match=r"cannot be reached.*backbone=limpet-tiny"):
        FrozenClip.load(config)
    assert time.monotonic() - start < 30


def test_timm_tower(random_clip):
    timm = {"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    clip = random_clip(torch.float32, custom=True, vision=timm)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(clip.encode_image(images, False), clip.model.encode_image(images))
    assert clip.spec.image_tower == "timm" and clip.image_patches(images).shape == (2, 4, 512)


def test_hugging_face_text_tower_from_a_folder(tmp_path, no_network):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    place = tmp_path / "model"
    text = place / "text"
    text.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "fish", "."]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(text)
    transformers.BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=12, pad_token_id=0,
    ).save_pretrained(text)  # fmt: skip
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {
            "hf_model_name": "text", "hf_tokenizer_name": "text", "context_length": 12,
            "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler",
        },
    }  # fmt: skip
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    clip = FrozenClip.load(section(str(place), pretrained="random"))
    assert clip.spec.text_tower == "hf" and clip.text is None
    features = clip.encode_text(["a photo of a cat", "fish"])
    assert features.shape == (2, 8) and clip.token_ids("a cat") == [4, 7]
    with pytest.raises(BackboneError, match="token embeddings"):
        clip.embed_tokens([1])


def test_tokenizer(tiny):
    ids = tiny.tokenize(["a cat", ""])
    assert ids.shape == (2, tiny.spec.context_length) and ids.dtype == torch.long
    assert tiny.token_ids("a cat") == ids[0][1:3].tolist()
    long = "word " * 100
    with pytest.warns(UserWarning, match=f"102 tokens, the text tower reads {tiny.spec.context_length}"):
        cut = tiny.tokenize([long])
    assert cut[0, -1] == cut.max()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(tiny.tokenize([long]), cut)  # said once
    assert tiny.embed_tokens([[1, 2], [3, 4]]).shape == (2, 2, tiny.spec.text_width)


def test_own_tokenizer(random_model):
    """Any callable that gives padded ids will do."""

    def letters(texts):
        rows = torch.zeros(len(texts), 24, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [49406, *(ord(c) for c in text), 49407]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    clip = FrozenClip.from_model(random_model().double(), tokenizer=letters)
    assert clip.token_ids("abc") == [97, 98, 99] and clip.tokenizer.start == 1
    want = clip.model.encode_text(letters(["abc", "hello"]))
    torch.testing.assert_close(clip.encode_text(["abc", "hello"], normalize=False), want, **EXACT)


@pytest.mark.parametrize("towers", [["image"], ["text"], ["image", "text"], []])
def test_editable_copies(random_clip, towers):
    clip = random_clip()
    before = {k: v.clone() for k, v in clip.model.state_dict().items()}
    copied = clip.editable(towers)
    own = dict(copied.named_parameters())
    shared = {n: p for n, p in copied.model.named_parameters() if n not in own}
    originals = dict(clip.model.named_parameters())
    assert all(p is originals[n] for n, p in shared.items())
    assert all(p is not originals[n] and p.requires_grad for n, p in own.items())
    assert any(n.startswith("visual.") for n in own) == ("image" in towers)
    assert ("token_embedding.weight" in own) == ("text" in towers) and "logit_scale" not in own
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(copied.encode_image(images), clip.encode_image(images))
    torch.testing.assert_close(copied.encode_text(["a cat"]), clip.encode_text(["a cat"]))
    assert copied.fingerprint == clip.fingerprint
    if towers:
        (copied.encode_image(images) @ copied.encode_text(["a cat"]).T).sum().backward()
        touched = {n for n, p in own.items() if p.grad is not None}
        assert ("visual.proj" in touched) == ("image" in towers)
        assert ("text_projection" in touched) == ("text" in towers)
        with torch.no_grad():
            for parameter in own.values():
                parameter += 1
    assert all(torch.equal(v, before[k]) for k, v in clip.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())


def test_unknown_tower(random_clip):
    with pytest.raises(BackboneError, match="'image' and 'text'"):
        random_clip().editable(["vision"])


def test_ways_to_move(random_model):
    clip = FrozenClip.from_model(random_model())
    single = clip.encode_text(["a cat"])
    assert clip.to(dtype=torch.float64) is clip and clip.spec.precision == "fp64"
    double = clip.encode_text(["a cat"])
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
