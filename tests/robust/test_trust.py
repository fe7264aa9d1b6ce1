"""Nothing that is loaded is executed, except code that the user names, and not even that under --no-plugins."""

import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from limpet import artifact
from limpet.backbone import FrozenClip
from limpet.backbone_weights import read_state
from limpet.cli import main
from limpet.errors import LimpetError

MINE = """
from dataclasses import dataclass
from pathlib import Path

from limpet.methods.zero_shot import ZeroShot

Path("executed").touch()


@dataclass
class Config:
    pass


class Mine(ZeroShot):
    pass
"""
SMALL = ["data.species=3", "data.train=3", "data.val=2", "data.test=2", "data.shots=2", "trainer.accelerator=cpu", "protocol=all"]


class Harmful:
    """Makes a file named `executed` when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("executed").resolve(),)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder in which nothing has been executed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMPET_NO_PLUGINS", raising=False)
    yield tmp_path
    assert not Path("executed").exists(), "something was executed"


def harmful_files(folder):
    """Weights of every kind that Limpet opens, each with a pickle that does harm."""
    content = {"weight": torch.zeros(2), "harm": Harmful()}
    torch.save(content, folder / "zip.pt")
    torch.save(content, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "bare.bin").write_bytes(pickle.dumps(content))
    (folder / "named.safetensors").write_bytes(pickle.dumps(content))
    return sorted(p for p in folder.iterdir() if p.is_file())


def test_weights_with_a_pickle_that_does_harm_are_refused(place):
    for file in harmful_files(place):
        with pytest.raises(LimpetError, match=file.name):
            read_state(file)


def test_a_checkpoint_with_a_pickle_that_does_harm_is_refused(place, ask, finished):
    run = place / "runs" / "fish" / "001"
    shutil.copytree(finished[1], run)
    (run / "metrics.json").unlink()
    torch.save({"epoch": 0, "state_dict": {}, "harm": Harmful()}, run / "last.ckpt")
    answer = ask("resume", run)
    assert answer.code == 2 and "last.ckpt" in answer.sentence


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", {}, [1], {"epoch": 0, "state_dict": {"x": torch.zeros(1)}}])
def test_a_checkpoint_that_is_damaged_is_said_and_can_be_deleted(content, place, ask, finished):
    run = place / "runs" / "fish" / "001"
    shutil.copytree(finished[1], run)
    before = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    if isinstance(content, bytes):
        (run / "last.ckpt").write_bytes(content)
    else:
        torch.save(content, run / "last.ckpt")
    assert "last.ckpt cannot be resumed from" in ask("resume", run).sentence
    (run / "last.ckpt").unlink()
    assert ask("resume", run).code == 0
    assert (run / "metrics.json").read_bytes() == before


def test_an_artefact_cannot_name_files_elsewhere(place, ask, finished):
    folder = place / "v1"
    shutil.copytree(finished[1] / "adapter" / "v1", folder)
    image = next(finished[0].rglob("*.png"))
    secret = place / "secret.safetensors"
    shutil.copy(folder / "adapter.safetensors", secret)
    (folder / "adapter.safetensors").unlink()
    info = json.loads((folder / "adapter.json").read_text())
    info["tensors"]["file"] = info["tensors"]["path"] = "../secret.safetensors"
    (folder / "adapter.json").write_text(json.dumps(info))
    assert "adapter.safetensors" in ask("predict", folder, image, "--out", "p.csv").sentence
    shutil.copy(secret, folder / "adapter.safetensors")
    for name in ("../../x", "/etc/passwd", "..", "coop/../coop", "__init__", "os", ""):
        info["method"]["name"] = name
        (folder / "adapter.json").write_text(json.dumps(info))
        assert ask("predict", folder, image, "--out", "p.csv").code == 2


def test_a_class_that_is_called_like_a_path_writes_nothing_there(place, ask, finished):
    root = place / "data"
    root.mkdir()
    images = sorted(finished[0].rglob("*.png"))
    lines = [f"{image},{('../../../escaped', '/escaped')[number % 2]}" for number, image in enumerate(images)]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]))
    before = set(place.parent.iterdir())
    answer = ask("fit", "quickstart", "data=table", "data.root=data", "data.shots=2", "trainer.accelerator=cpu", "protocol=all",
                 "method=zero_shot")  # fmt: skip
    assert answer.code == 0 and "escaped" in answer.out
    assert set(place.parent.iterdir()) == before and not Path("/escaped").exists()
    assert not [path for path in place.rglob("*") if path.name == "escaped"]


def test_an_artefact_that_is_an_archive_full_of_zeros_is_refused(place, ask, finished):
    """A checksum that agrees is no reason to unpack anything."""
    import hashlib

    folder = place / "v1"
    shutil.copytree(finished[1] / "adapter" / "v1", folder)
    with zipfile.ZipFile(folder / "adapter.safetensors", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data.pkl", bytes(50_000_000))
    info = json.loads((folder / "adapter.json").read_text())
    info["tensors"]["sha256"] = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
    (folder / "adapter.json").write_text(json.dumps(info))
    assert ask("predict", folder, next(finished[0].rglob("*.png")), "--out", "p.csv").code == 2


@pytest.mark.parametrize(
    "words",
    [["method.name=os:system"], ["method.name=subprocess:Popen"], ["trainer.loggers=[os.system]"], ["method=no_such_package.x:Y"],
     ["trainer.loggers=[{subprocess.Popen: {args: [touch, executed]}}]"], ["method.name=':X'"], ["method.name='..x:Y'"],
     ["method.name=./nothing.py:X"]],
)  # fmt: skip
def test_a_recipe_that_names_something_else_than_a_plugin_is_refused(words, place, ask):
    answer = ask("check", "quickstart", *SMALL, *words)
    assert answer.code == 2


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch [executed]", "!!python/name:os.system"])
def test_a_yaml_tag_that_makes_objects_is_refused(tag, place, ask):
    Path("mine.yaml").write_text(f"extends: [quickstart]\nseed: {tag}\n")
    assert "mine.yaml:2" in ask("check", "mine.yaml").sentence


@pytest.mark.filterwarnings("ignore:.*code of your own.*")
def test_plugins_work_where_they_are_allowed_and_only_there(tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    words = ["fit", "quickstart", *SMALL, "method=./mine.py:Mine", "run.name=plugin"]
    for refusing in (["--no-plugins", *words], [*words, "--no-plugins"]):
        answer = ask(*refusing)
        assert answer.code == 2 and "code of your own" in answer.sentence
    monkeypatch.setenv("LIMPET_NO_PLUGINS", "1")
    assert ask(*words).code == 2
    assert not Path("executed").exists() and not Path("runs").exists()
    monkeypatch.delenv("LIMPET_NO_PLUGINS")
    assert ask(*words).code == 0
    assert Path("executed").exists()
    Path("executed").unlink()
    image = "x.png"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(image)
    for command in (["predict", "plugin", image, "--out", "p.csv"], ["evaluate", "plugin"], ["export", "plugin", "--to", "adapter"]):
        assert ask("--no-plugins", *command).code == 2
        assert not Path("executed").exists()
    with pytest.raises(LimpetError, match="plugins are not allowed"):
        artifact.load(Path("runs/plugin/001"), plugins=False)
    assert not Path("executed").exists()
    assert ask("predict", "plugin", image, "--out", "p.csv").code == 0


def test_a_logger_of_ones_own_is_a_plugin_too(tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mylogger.py").write_text(
        "from pathlib import Path\nfrom lightning.pytorch.loggers import CSVLogger\n"
        "Path('executed').touch()\n\n\nclass Mine(CSVLogger):\n    pass\n"
    )
    words = ["check", "quickstart", *SMALL, "trainer.loggers=[mylogger.Mine]"]
    assert "code of your own" in ask("--no-plugins", *words).sentence and not Path("executed").exists()
    assert ask("--no-plugins", *words[:-1], "trainer.loggers=[csv]").code == 0
    assert ask(*words).code == 0 and Path("executed").exists()
    sys.modules.pop("mylogger", None)


def test_no_plugins_holds_for_one_command_only(monkeypatch, capsys):
    import os

    monkeypatch.delenv("LIMPET_NO_PLUGINS", raising=False)
    assert main(["--no-plugins", "methods"]) == 0
    assert "LIMPET_NO_PLUGINS" not in os.environ and "coop" in capsys.readouterr().out


FOREIGN = """
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizer

Path("executed").touch()


class C(PretrainedConfig):
    model_type = "foreign"


class T(PreTrainedTokenizer):
    pass
"""


def small_architecture(**text):
    """A CLIP small enough to be built in a test."""
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1, **text},
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("text", "said"),
    [({"hf_tokenizer_name": "./own", "tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code"),
     ({"hf_tokenizer_name": "./own"}, "Python code of its own"), ({"hf_model_name": "./own"}, "Python code of its own"),
     ({"hf_model_name": "./own", "hf_tokenizer_name": "./own", "tokenizer_kwargs": {"trust_remote_code": "yes"}}, "trust_remote_code"),
     ({"hf_tokenizer_name": "./own", "tokenizer_kwargs": {"cache_dir": "./own"}}, "tokenizer_kwargs.cache_dir"),
     ({"tokenizer_kwargs": {"bpe_path": "own/evil.py"}}, "tokenizer_kwargs.bpe_path")],
)  # fmt: skip
def test_code_beside_a_tokenizer_or_a_text_tower_never_runs(text, said, place, ask, finished, monkeypatch):
    """By a recipe, an artefact and a folder of one's own; nobody is asked at the terminal either."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    own = place / "own"
    own.mkdir()
    (own / "foreign.py").write_text(FOREIGN)
    auto = {"AutoConfig": "foreign.C", "AutoModel": "foreign.M", "AutoTokenizer": ["foreign.T", None]}
    (own / "config.json").write_text(json.dumps({"auto_map": auto, "model_type": "foreign"}))
    (own / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["foreign.T", None]}}))
    architecture = small_architecture(**text)
    section = {"name": "x", "pretrained": "random", "architecture": architecture}
    Path("mine.yaml").write_text(json.dumps({"extends": ["quickstart"], "backbone": section}))
    answers = [ask("fit", "mine.yaml", *SMALL, "method=zero_shot")]
    artefact = place / "v1"
    shutil.copytree(finished[1] / "adapter" / "v1", artefact)
    info = json.loads((artefact / "adapter.json").read_text())
    info["backbone"]["spec"].update(section)
    (artefact / "adapter.json").write_text(json.dumps(info))
    answers.append(ask("--no-plugins", "predict", artefact, next(finished[0].rglob("*.png")), "--out", "p.csv"))
    (place / "clip").mkdir()
    (place / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    answers.append(ask("fit", "quickstart", *SMALL, "method=zero_shot", "backbone.name=./clip", "backbone.pretrained=random"))
    assert [answer.code for answer in answers] == [2, 2, 2]
    for answer in answers:
        assert said in answer.sentence, answer.sentence


@pytest.mark.parametrize("name", ["local-dir:own", "hf-hub:someone/something", "../own", "own:x"])
def test_an_image_tower_of_timm_is_one_that_timm_has(name, place):
    """The folder could set any argument of timm's constructors."""
    architecture = small_architecture()
    architecture["vision_cfg"] = {"image_size": 32, "timm_model_name": name}
    section = {"name": "x", "pretrained": "random", "activation": None, "precision": "fp32", "architecture": architecture}
    with pytest.raises(LimpetError, match="not a place"):
        FrozenClip.load(SimpleNamespace(**section))


def test_compiled_code_of_the_hub_is_no_attention(place):
    Path("bert").mkdir()
    described = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    Path("bert/config.json").write_text(json.dumps({**described, "attn_implementation": "someone/kernels"}))
    section = {"name": "x", "pretrained": "random", "activation": None, "precision": "fp32"}
    with pytest.raises(LimpetError, match="compiled code"):
        FrozenClip.load(SimpleNamespace(**section, architecture=small_architecture(hf_model_name="./bert")))


def altered(backbone, **changes):
    """The same backbone with another description."""
    import copy
    import dataclasses

    other = copy.copy(backbone)
    other.spec = dataclasses.replace(backbone.spec, **{k: v for k, v in changes.items() if k != "fingerprint"})
    return other


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"activation": "quickgelu"}, "activation"), ({"embed_dim": 7}, "embedding size"), ({"context_length": 20}, "context length"),
     ({"preprocessing": {"mean": (0, 0, 0)}}, "preprocessing"), ({"vocab_size": 9}, "vocabulary")],
)  # fmt: skip
def test_an_artefact_is_refused_on_a_backbone_that_differs(changes, said, finished, tiny):
    with pytest.raises(LimpetError, match="What differs") as caught:
        artifact.load(finished[1], altered(tiny, **changes))
    assert said in str(caught.value)


def test_other_weights_and_another_resolution_are_refused(finished, tiny, random_clip):
    """Not a single weight may differ; a network for larger images is another one."""
    import copy

    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(LimpetError, match="weights \\(fingerprint\\)"):
        artifact.load(finished[1], FrozenClip.from_model(model))
    with pytest.raises(LimpetError, match="What differs") as caught:
        artifact.load(finished[1], random_clip(torch.float32, vision={"image_size": 48}))
    assert "preprocessing" in str(caught.value)


@pytest.fixture(scope="session")
def of_a_folder(tmp_path_factory):
    """(open_clip folder, artefact made on it); treat both as read-only."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("of_a_folder")
    own = place / "clip"
    own.mkdir()
    model = small_architecture()
    torch.manual_seed(0)
    save_file(CLIP(**model).state_dict(), own / "open_clip_model.safetensors")
    (own / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3}}))
    assert main(["fit", "quickstart", *SMALL, "method=zero_shot", f"run.dir={place / 'runs'}", f"backbone.name={own}"]) == 0
    return own, next(place.glob("runs/*/*/adapter/v1"))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [("vision_cfg", {"head_width": 32}, "attention heads of the image tower: 2 there, 1 here"),
     ("text_cfg", {"heads": 4}, "attention heads of the text tower: 2 there, 4 here"),
     ("text_cfg", {"no_causal_mask": True}, "causal mask of the text tower: true there, false here"),
     ("vision_cfg", {"pool_type": "avg"}, "pooling of the image tower: tok there, avg here"),
     ("text_cfg", {"pool_type": "last"}, "pooling of the text tower: argmax there, last here"),
     ("vision_cfg", {"norm_kwargs": {"eps": 0.1}}, "eps of the image tower: 1e-05 there, 0.1 here"),
     ("text_cfg", {"norm_kwargs": {"eps": 0.1}}, "eps of the text tower: 1e-05 there, 0.1 here"),
     ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}, "approximate of the text tower: none there, tanh here"),
     ("vision_cfg", {"final_ln_after_pool": True}, "final_ln_after_pool of the image tower: false there, true here")],
)  # fmt: skip
def test_the_same_weights_run_as_another_network_are_refused(part, change, said, of_a_folder, tmp_path):
    own = tmp_path / "clip"
    shutil.copytree(of_a_folder[0], own)
    artifact.load(of_a_folder[1], FrozenClip.load(str(own)))
    whole = json.loads((own / "open_clip_config.json").read_text())
    whole["model_cfg"][part].update(change)
    (own / "open_clip_config.json").write_text(json.dumps(whole))
    with pytest.raises(LimpetError, match="What differs") as caught:
        artifact.load(of_a_folder[1], FrozenClip.load(str(own)))
    assert f"What differs: {said}." in str(caught.value)


def test_of_other_preprocessing_only_what_differs_is_said(of_a_folder, tmp_path):
    own = tmp_path / "clip"
    shutil.copytree(of_a_folder[0], own)
    whole = json.loads((own / "open_clip_config.json").read_text())
    whole["preprocess_cfg"]["interpolation"] = "bilinear"
    (own / "open_clip_config.json").write_text(json.dumps(whole))
    with pytest.raises(LimpetError, match="differs: preprocessing: interpolation bicubic there, bilinear here.$"):
        artifact.load(of_a_folder[1], FrozenClip.load(str(own)))


def test_an_artefact_from_before_settings_were_recorded_is_compared_in_what_it_says(finished, tiny, tmp_path):
    folder = tmp_path / "v1"
    shutil.copytree(finished[1] / "adapter" / "v1", folder)
    info = json.loads((folder / "adapter.json").read_text())
    del info["backbone"]["settings"]
    for key in ("text_pool", "image_pool", "causal_text"):
        del info["backbone"]["spec"][key]
    (folder / "adapter.json").write_text(json.dumps(info))
    artifact.load(folder, tiny)
    with pytest.raises(LimpetError, match="attention heads of the image tower: 3 there, 6 here"):
        artifact.load(folder, altered(tiny, vision_heads=6))


@pytest.mark.parametrize("method", ["coop", "linear_probe", "tip_adapter", "gda"])
def test_the_order_of_class_names_never_matters(method, ask, tmp_path, draw):
    """Folders renamed so that the classes come in another order: every image keeps its answer."""
    import csv

    draw(tmp_path / "a", species=3, images=6, names=["1 cod", "2 ray", "3 eel"])
    draw(tmp_path / "b", species=3, images=6, names=["3 cod", "2 ray", "1 eel"])
    words = {"a": {"1 cod": "cod", "2 ray": "ray", "3 eel": "eel"}, "b": {"3 cod": "cod", "2 ray": "ray", "1 eel": "eel"}}
    found = {}
    for name, texts in words.items():
        lines = "".join(f"{folder},{word}\n" for folder, word in texts.items())
        (tmp_path / name / "classnames.csv").write_text("folder,name\n" + lines)
        rows = "".join(
            f"{folder}/{n:02d}.png,{word},{'train' if n < 3 else 'val' if n < 4 else 'test'}\n" for folder, word in texts.items()
            for n in range(6)
        )  # fmt: skip
        (tmp_path / name / "labels.csv").write_text("path,label,split\n" + rows)
        extra = [] if method != "coop" else ["trainer.epochs=1"]
        order = "[cod, ray, eel]" if name == "a" else "[eel, cod, ray]"
        ask("fit", "quickstart", "data=table", f"data.root={tmp_path / name}", f"run.dir={tmp_path / name}-runs", "data.shots=all",
            "data.augment.preset=none", "trainer.accelerator=cpu", "protocol=all", f"method={method}", f"classes.include={order}",
            "run.name=run", *extra)  # fmt: skip
        with (tmp_path / f"{name}-runs" / "run" / "001" / "predictions.csv").open() as file:
            found[name] = {row["path"].split(" ", 1)[1]: row["predicted"] for row in csv.DictReader(file)}
    assert found["a"] == found["b"]
