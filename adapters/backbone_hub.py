"""Files of the Hugging Face hub: from the local store, else fetched, else one clear sentence."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .backbone_spec import HUB, TINY, Source
from .errors import BackboneError

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def fetch_hub_config(repository: str) -> Any:
    """Return open_clip's configuration of a Hugging Face hub repository."""
    path = hub_file(repository, (CONFIG_FILE,), f"{HUB}{repository}")
    return read_config(path)


def read_config(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path} is not valid JSON ({error}).") from error


def tagged_file(source: Source) -> Path:
    """Return the local file of a weight tag, fetching it where it is not stored yet."""
    entry = source.weights or {}
    what = f"The weights {source.pretrained!r} of {source.name}"
    if entry.get("hf_hub"):
        repository, _, file = str(entry["hf_hub"]).rpartition("/")
        safe = [f"{file.rsplit('.', 1)[0]}.safetensors", file] if file else list(WEIGHT_FILES)
        return hub_file(repository, tuple(dict.fromkeys(safe)), what)
    from open_clip.pretrained import download_pretrained_from_url

    url = str(entry.get("url", ""))
    stored = Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[-1]
    if not stored.is_file() and not _reachable(url):
        raise _unreachable(what, url)
    try:
        return Path(download_pretrained_from_url(url))
    except (OSError, RuntimeError) as error:
        raise _unreachable(what, url, str(error)) from error


def hub_file(repository: str, names: tuple[str, ...], what: str) -> Path:
    """Return the first of some files of a hub repository, from the local store where it is there."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name, local_files_only=True))
        except (LocalEntryNotFoundError, FileNotFoundError):
            continue
        except ValueError as error:
            raise BackboneError(
                f"{repository!r} is not a hub repository name, OWNER/NAME ({error})."
            ) from error
    endpoint = hub.constants.ENDPOINT
    if hub.constants.HF_HUB_OFFLINE or not _reachable(endpoint):
        raise _unreachable(what, endpoint)
    for name in names:
        try:
            return Path(hub.hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise _unreachable(what, endpoint) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise BackboneError(
                f"There is no public repository {repository!r} on {endpoint}: check its name."
            ) from error
        except OSError as error:
            raise _unreachable(what, endpoint, str(error).splitlines()[0]) from error
    raise BackboneError(
        f"The hub repository {repository!r} has none of {', '.join(names)}: it is no open_clip model."
    )


def _reachable(url: str) -> bool:
    """Ask once, briefly: the hub's own client would retry an unreachable host for half a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _unreachable(what: str, where: str, detail: str = "") -> BackboneError:
    host = where.rsplit("//", maxsplit=1)[-1].split("/", maxsplit=1)[0]
    return BackboneError(
        f"{what}: not stored on this machine, and {host} cannot be "
        f"reached{f' ({detail})' if detail else ''}. Connect once to store it, give a local file with "
        f"`backbone.pretrained=FILE`, or use `backbone={TINY}`, which needs no network."
    )


def local_or_hub(name: str, source: Source, file: str) -> str:
    """Return where a Hugging Face tower or tokenizer is read from: a local folder, else its hub name."""
    candidates = [Path(name).expanduser()]
    if source.folder is not None:
        candidates += [source.folder / name, source.folder]
    for folder in candidates:
        if (folder / file).is_file():
            return str(folder)
    hub_file(name, (file, "config.json"), f"The files of {name}, which {source.name} needs,")
    return name


@contextmanager
def offline_if(place: Any) -> Iterator[None]:
    """Read stored hub files without asking the hub when it cannot be reached; local folders never ask."""
    if not place or Path(str(place)).is_dir():
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
