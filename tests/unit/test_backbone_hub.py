"""Backbones of a Hugging Face hub, here one that this machine serves: fetched once, then read from the local store."""

import http.server
import json
import shutil
import threading
from importlib import resources
from types import SimpleNamespace

import pytest
import torch
from limpet.backbone import FrozenClip
from limpet.errors import BackboneError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of the files below .folder, OWNER/NAME/FILE; .asked lists what was fetched, .stop() takes it off the net."""
    folder, asked = tmp_path / "hub", []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, whole):
            repository, _, name = self.path.strip("/").partition("/resolve/main/")
            if self.path.startswith("/files/"):
                repository, name = "files", self.path.removeprefix("/files/")
            file = folder / repository / name
            if name and not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if (folder / repository).is_dir() else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = file.read_bytes() if name else b""
            self.send_response(200)
            for key, value in (("ETag", f'"{abs(hash(content))}"'), ("X-Repo-Commit", "1" * 40), ("Content-Length", len(content))):
                self.send_header(key, str(value))
            self.end_headers()
            if whole:
                asked.extend([name] if name else [])
                self.wfile.write(content)

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)

    def stop():
        server.shutdown()
        server.server_close()

    yield SimpleNamespace(folder=folder, asked=asked, address=address, stop=stop)
    stop()


def offer(folder, config=True, weights=True):
    """limpet-tiny as a repository of open_clip."""
    folder.mkdir(parents=True)
    assets = resources.files("limpet.assets")
    if config:
        shutil.copy(str(assets / "limpet-tiny.json"), folder / "open_clip_config.json")
    if weights:
        shutil.copy(str(assets / "limpet-tiny.safetensors"), folder / "open_clip_model.safetensors")


def load(name, pretrained=None):
    return FrozenClip.load(SimpleNamespace(name=name, pretrained=pretrained))


def test_a_backbone_is_fetched_once_and_then_needs_no_hub(hub, tiny):
    offer(hub.folder / "mine" / "clip")
    texts = ["a red fish", "a forest from above"]
    torch.testing.assert_close(load("hf-hub:mine/clip").encode_text(texts), tiny.encode_text(texts))
    assert sorted(hub.asked) == ["open_clip_config.json", "open_clip_model.safetensors"]
    hub.stop()
    torch.testing.assert_close(load("hf-hub:mine/clip").encode_text(texts), tiny.encode_text(texts))


def test_what_a_hub_does_not_have_is_said(hub):
    offer(hub.folder / "mine" / "empty", config=False, weights=False)
    offer(hub.folder / "mine" / "bare", weights=False)
    for name, message in (
        ("hf-hub:mine/nothing", f"There is no public repository 'mine/nothing' on {hub.address}"),
        ("hf-hub:mine/empty", "'mine/empty' has none of open_clip_config.json"),
        ("hf-hub:mine/bare", "'mine/bare' has none of open_clip_model.safetensors"),
        ("hf-hub:a/b/c", "'a/b/c' is not a hub repository name, OWNER/NAME"),
    ):
        with pytest.raises(BackboneError, match=message):
            load(name)
    hub.stop()
    with pytest.raises(BackboneError, match=r"not stored on this machine, and 127.0.0.1:\d+ cannot be reached"):
        load("hf-hub:mine/other")


def test_a_configuration_that_is_no_json_is_said(hub):
    offer(hub.folder / "mine" / "clip")
    (hub.folder / "mine/clip/open_clip_config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"open_clip_config.json is not valid JSON"):
        load("hf-hub:mine/clip")
    (hub.folder / "mine/other").mkdir()
    (hub.folder / "mine/other/open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(BackboneError):
        load("hf-hub:mine/other")
