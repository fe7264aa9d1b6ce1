"""The on-disk store of frozen features: append-only shards that are memory-mapped, checked and shared.

A *space* is everything a feature depends on except the image (weights, preprocessing, view recipe, layer, dtype).
Each space has a folder, `features/<hash>/`, of shards. A shard is one file holding sorted row keys, a checksum
per row, and the rows; it is written beside its place and renamed, so that it exists whole or not at all, and is
never changed afterwards. Two processes may therefore share a folder without locks: at worst they compute a row
twice, and both copies are right. Nothing here is needed for correctness: a cache that cannot be read is computed
again, and one that cannot be written is done without.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import LimpetError, exhausted

Array = NDArray[Any]
KEY = np.dtype("S32")
FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 60.0  # a process that is killed loses no more work than this
_SHARD = ".rows"
_UNFINISHED = ".unfinished"
_IN_USE_SECONDS = 3600.0
_warned: set[str] = set()


def cache_dir() -> Path:
    """Return the cache folder: the environment variable `LIMPET_CACHE`, else the user's cache folder."""
    named = os.environ.get("LIMPET_CACHE", "").strip()
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("limpet", appauthor=False))


def cache_size() -> int:
    """Return the bytes that cached features (and remembered image keys) take on disk."""
    return sum(size for _, size, _ in _files())


def clear_cache() -> int:
    """Delete the cached features and remembered keys, and nothing else in that folder; return the bytes freed."""
    freed = 0
    for path, size, _ in _files():
        if _remove(path):
            freed += size
    for folder in _spaces():
        _remove_space(folder)
    return freed


def warn_once(sentence: str) -> None:
    """Warn with `sentence`, the first time only in this process."""
    if sentence not in _warned:
        _warned.add(sentence)
        warnings.warn(sentence, UserWarning, stacklevel=3)


class Rows:
    """N rows that lie scattered over shards (memory maps) or in memory; read a batch with `take`."""

    def __init__(self, parts: list[Array], part: Array, row: Array, width: int, dtype: np.dtype[Any]) -> None:
        self.parts, self.part, self.row = parts, part, row
        self.width, self.dtype = width, dtype

    def __len__(self) -> int:
        return len(self.part)

    @property
    def found(self) -> Array:
        """(N,) of bool: which rows exist."""
        return self.part >= 0

    def select(self, positions: Array) -> Rows:
        """Return the rows at `positions`, without reading them."""
        return Rows(self.parts, self.part[positions], self.row[positions], self.width, self.dtype)

    def take(self, positions: Array | None = None) -> Array:
        """Read the rows at `positions` (B,) into a new (B, D) array; all rows without `positions`.

        Raises:
            KeyError: If one of them does not exist.
        """
        part = self.part if positions is None else self.part[positions]
        row = self.row if positions is None else self.row[positions]
        out = np.empty((len(part), self.width), self.dtype)
        present = np.unique(part)
        if len(present) and present[0] < 0:
            raise KeyError("a feature was asked for that has not been computed")
        for number in present:
            if len(present) == 1:
                np.take(self.parts[number], row, axis=0, out=out)
            else:
                here = part == number
                out[here] = self.parts[number][row[here]]
        return out


class FeatureStore:
    """The rows of one feature space.

    Args:
        space: What the features depend on besides the image; JSON-able. Its hash names the folder.
        width: D, the length of a row.
        dtype: Type of the rows.
    """

    def __init__(self, space: Mapping[str, Any], width: int, dtype: str = "float32") -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        described = json.dumps({**space, "width": width, "dtype": dtype}, sort_keys=True, ensure_ascii=False)
        self._described = described
        self.folder = cache_dir() / "features" / hashlib.sha256(described.encode()).hexdigest()[:32]
        self._shards: dict[
            str, tuple[Array, Array, Array]
        ] = {}  # file name or a made-up one -> keys, sums, rows
        self._pending: list[tuple[bytes, Array]] = []
        self._pending_bytes = 0
        self._written = time.monotonic()

    def lookup(self, keys: list[bytes]) -> Rows:
        """Find the rows of `keys` (32 bytes each). Rows whose checksum is wrong count as not found."""
        self.flush()
        self._refresh()
        wanted = np.array(keys, dtype=KEY)
        part = np.full(len(wanted), -1, np.int32)
        row = np.zeros(len(wanted), np.int64)
        parts: list[Array] = []
        for name, (shard_keys, sums, rows) in self._shards.items():
            open_ = np.flatnonzero(part < 0)
            if not len(open_):
                break
            at = np.searchsorted(shard_keys, wanted[open_])
            at[at == len(shard_keys)] = 0
            hit = shard_keys[at] == wanted[open_]
            if not hit.any():
                continue
            at, open_ = at[hit], open_[hit]
            good = np.fromiter(
                (_checksum(key, rows[i]) == sums[i] for key, i in zip(wanted[open_], at, strict=True)),
                bool,
                len(at),
            )
            if not good.all():
                warn_once(f"The cache file {self.folder / name} is damaged; its features are computed again.")
            part[open_[good]] = len(parts)
            row[open_[good]] = at[good]
            parts.append(rows)
        return Rows(parts, part, row, self.width, self.dtype)

    def add(self, keys: list[bytes], rows: Array) -> None:
        """Remember `rows` (B, D) under `keys`; they reach the disk every 64 MiB or minute, and at `flush`."""
        rows = np.ascontiguousarray(rows, self.dtype)
        self._pending.extend(zip(keys, rows, strict=True))
        self._pending_bytes += rows.nbytes
        if self._pending_bytes >= FLUSH_BYTES or time.monotonic() - self._written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added as one shard; where that is impossible, keep it in memory and say so once."""
        if not self._pending:
            return
        pending = dict(self._pending)
        self._pending, self._pending_bytes, self._written = [], 0, time.monotonic()
        keys = np.array(sorted(pending), dtype=KEY)
        rows = np.stack([pending[key] for key in sorted(pending)])
        sums = np.array(
            [_checksum(key, row) for key, row in zip(sorted(pending), rows, strict=True)], np.uint32
        )
        name = uuid.uuid4().hex + _SHARD
        try:
            self._write(name, keys, sums, rows)
            self._shards[name] = _read_shard(self.folder / name, self.width, self.dtype)
        except (OSError, ValueError) as error:
            _refuse_exhaustion(error, self.folder / name)
            warn_once(
                f"Features cannot be kept in the cache folder {cache_dir()} ({_reason(error)}); this run goes on "
                "without it. Free some space, or name another folder in the environment variable LIMPET_CACHE."
            )
            self._shards[name] = (keys, sums, rows)

    def _write(self, name: str, keys: Array, sums: Array, rows: Array) -> None:
        """Write a shard beside its place and rename it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "space.json"
        if not described.exists():
            _write_atomically(described, lambda file: file.write(self._described.encode()))

        def content(file: BinaryIO) -> None:
            for array in (keys, sums, rows):
                np.lib.format.write_array(file, array, allow_pickle=False)

        _write_atomically(self.folder / name, content)

    def _refresh(self) -> None:
        """Map the shards that appeared since the last look, and mark the space as used now."""
        try:
            names = sorted(path.name for path in self.folder.iterdir() if path.suffix == _SHARD)
        except OSError as error:
            _refuse_exhaustion(error, self.folder)
            names = []
        for name in names:
            if name in self._shards:
                continue
            path = self.folder / name
            try:
                self._shards[name] = _read_shard(path, self.width, self.dtype)
            except FileNotFoundError:
                continue  # evicted by another process a moment ago
            except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
                _refuse_exhaustion(error, path)
                warn_once(f"The cache file {path} cannot be read ({_reason(error)}); it is computed again.")
                if not isinstance(error, OSError):
                    _remove(path)
        if names:
            with suppress(OSError):
                os.utime(self.folder / "space.json")


def trim(in_use: Path | None = None) -> None:
    """Delete the spaces used longest ago until the cache is within `LIMPET_CACHE_MAX_GB` (20 by default).

    The space `in_use` and spaces touched within the last hour (by another process, perhaps) stay.
    Left-overs of processes that died while writing go after an hour, too.
    """
    try:
        limit = float(os.environ.get("LIMPET_CACHE_MAX_GB", "") or 20) * 1e9
    except ValueError:
        warn_once(f"LIMPET_CACHE_MAX_GB is {os.environ['LIMPET_CACHE_MAX_GB']!r}, not a number; 20 is used.")
        limit = 20e9
    now = time.time()
    spaces: dict[Path, list[tuple[Path, int]]] = {}
    total = 0
    for path, size, modified in _files():
        if path.name.endswith(_UNFINISHED) and abs(now - modified) > _IN_USE_SECONDS:
            _remove(path)
            continue
        total += size
        if path.parent.parent.name == "features":
            spaces.setdefault(path.parent, []).append((path, size))
    for folder in sorted(spaces, key=_last_used):
        if total <= limit:
            return
        # abs: a clock set back must not make a space look used for ever
        if folder == in_use or abs(now - _last_used(folder)) < _IN_USE_SECONDS:
            continue
        total -= sum(size for path, size in spaces[folder] if _remove(path))
        _remove_space(folder)


def _read_shard(path: Path, width: int, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """Map a shard: keys (n,), checksums (n,), rows (n, D). Raises ValueError where the file is not whole.

    The map outlives the descriptor: `np.memmap` would keep one open for every shard, and hundreds of shards are
    more than a process may have.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        keys, sums = (_read_array(file, size, expected) for expected in (KEY, np.dtype(np.uint32)))
        shape, stored = _read_header(file)
        offset = file.tell()
        whole = (
            stored == dtype
            and keys.shape == sums.shape == shape[:1]
            and shape[1:] == (width,)
            and len(keys) > 0
            and size == offset + stored.itemsize * shape[0] * width
        )
        if not whole:
            raise ValueError("it is cut short or holds something else")
    rows = _map(path, size)[offset:].view(stored).reshape(shape)
    rows.flags.writeable = False
    return keys, sums, rows


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that begins here."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("unknown layout")
    shape, fortran, stored = np.lib.format.read_array_header_1_0(file)
    if fortran or stored.hasobject:
        raise ValueError("unknown layout")
    return shape, stored


def _read_array(file: BinaryIO, size: int, expected: np.dtype[Any]) -> Array:
    """Read a small array (n,); a damaged length is noticed before memory is asked for."""
    shape, stored = _read_header(file)
    if stored != expected or len(shape) != 1 or not 0 <= shape[0] * stored.itemsize <= size - file.tell():
        raise ValueError("it is cut short or holds something else")
    return np.frombuffer(file.read(shape[0] * stored.itemsize), stored)


def _map(path: Path, size: int) -> Array:
    """The bytes of a file (size,) as a private memory map that keeps no descriptor open."""
    try:
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    except RuntimeError as error:  # the number in brackets is the system's
        number = next((n for n in (errno.ENOENT, errno.ENOMEM, errno.EMFILE, errno.ENFILE) if f"({n})" in str(error)), errno.EIO)
        raise OSError(number, os.strerror(number), str(path)) from error


def _refuse_exhaustion(error: Exception, path: Path) -> None:
    """Stop where the process has used up descriptors or memory: the cache is not damaged, and it gets no better.

    Raises:
        LimpetError: it has.
    """
    what = exhausted(error)
    if what == "descriptors":
        raise LimpetError(
            f"{path} cannot be opened: too many files are open. Allow more (ulimit -n 4096, in the shell that starts "
            "Limpet) or use fewer data.num_workers."
        ) from error
    if what:
        raise LimpetError(
            f"There is not enough memory for {path}. Close other programs, or use fewer data.num_workers."
        ) from error


def _checksum(key: bytes, row: Array) -> int:
    """CRC-32 of a row and the key it belongs to (padded: NumPy strips the zeros at the end of a byte string)."""
    return zlib.crc32(row.data, zlib.crc32(bytes(key).ljust(32, b"\0")))


def _write_atomically(path: Path, content: Any) -> None:
    """Call `content(file)` on a new file beside `path`, then rename it there."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_UNFINISHED}")
    try:
        with beside.open("wb") as file:
            content(file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _spaces() -> Iterator[Path]:
    """Folders of spaces: recognised by the file that describes them or by a shard."""
    try:
        for folder in (cache_dir() / "features").iterdir():
            if folder.is_dir() and not folder.is_symlink() and len(folder.name) == 32:
                yield folder
    except OSError:
        return


def _files() -> Iterator[tuple[Path, int, float]]:
    """Files that the cache wrote: path, bytes, time of the last change. Files of others are never listed."""
    candidates = [cache_dir() / name for name in ("keys.sqlite", "keys.sqlite-journal")]
    for folder in _spaces():
        try:
            candidates += [
                p for p in folder.iterdir() if p.suffix in {_SHARD, _UNFINISHED} or p.name == "space.json"
            ]
        except OSError:
            continue
    for path in candidates:
        try:
            stat = path.stat()
        except OSError:
            continue
        yield path, stat.st_size, stat.st_mtime


def _last_used(folder: Path) -> float:
    try:
        return (folder / "space.json").stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _remove_space(folder: Path) -> None:
    with suppress(OSError):  # not empty: another process is writing there
        folder.rmdir()


def _reason(error: Exception) -> str:
    """The system's words for an error, without its number and path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
