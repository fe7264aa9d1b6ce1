"""Frozen features of a million images from a synthetic stream: images a second, memory, and what a kill costs.

python tests/benchmarks/million_images.py [--images 1000000] [--kill-at 0.5] [--threads 1] [--tower limpet-tiny]

The extraction runs in a process of its own that is killed (SIGKILL) when `kill-at` of the images are in the cache, and is
then run to its end. Printed: memory at the start, after a tenth and at the end; images computed twice; bytes on disk. Only
keys and paths grow with the number of images, some hundred bytes each; pictures and features do not stay in memory.
`--tower small` encodes with one block of width 64, so that what is measured is everything around the tower.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from limpet import feature_store
from limpet.backbone import FrozenClip
from limpet.datamodules.base import DataModule
from limpet.datamodules.configs import DataConfig
from limpet.datamodules.listing import Listing, Sample
from limpet.features import CachedFeatures
from limpet.recipe import BackboneConfig
from PIL import Image

FLUSH_BYTES = 4 << 20  # a shard for every 8,000 images, so that short streams have several, too
TOWERS = {
    "limpet-tiny": {"name": "limpet-tiny"},
    "small": {
        "name": "small",
        "pretrained": "random",
        "architecture": {
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
        },
    },
}


class Stream(DataModule):
    """`count` test images of noise, each made when it is read."""

    def __init__(self, count: int) -> None:
        super().__init__(DataConfig(name="stream", shots="all"), 1)
        self.count = count

    def listing(self) -> Listing:
        """Ten classes; all images are for the test."""
        names = [f"class {i}" for i in range(10)]
        samples = [Sample(f"{i:07d}", i % 10) for i in range(self.count)]
        return Listing(names, {name: [name] for name in names}, samples, ["test"] * self.count)

    @property
    def reader(self):
        """Noise of 64 x 64 pixels from the number of the image."""
        return read

    def content_key(self, sample: Sample) -> str:
        """The number is what an image is made from."""
        return hashlib.sha256(f"stream/{sample.path}".encode()).hexdigest()


def read(sample: Sample) -> Image.Image:
    return Image.fromarray(np.random.default_rng(int(sample.path)).integers(0, 256, (64, 64, 3), np.uint8))


def memory() -> float:
    """Resident memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def load(tower: str) -> FrozenClip:
    return FrozenClip.load(BackboneConfig(**TOWERS[tower]))


def extract(count: int, tower: str) -> None:
    """Compute what is not cached; prints memory on the way and how many images were encoded."""
    feature_store.FLUSH_BYTES = FLUSH_BYTES
    backbone = load(tower)
    encoded, marks = 0, {0: memory()}
    encode = backbone.encode_image

    def counted(images, **settings):
        nonlocal encoded
        encoded += len(images)
        if encoded // max(1, count // 10) > len(marks) - 1:
            marks[encoded] = memory()
            print(f"{encoded:9,d} images: {marks[encoded]:.0f} MB", flush=True)
        return encode(images, **settings)

    backbone.encode_image = counted
    start = time.perf_counter()
    rows = CachedFeatures(Stream(count), backbone, progress=False, batch_size=256).rows("test")
    seconds = time.perf_counter() - start
    assert len(rows) == count and bool(rows.found.all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"encoded {encoded} of {count} images in {seconds:.0f} s ({encoded / seconds:.0f} a second), peak {peak:.0f} MB", flush=True)


def cached(folder: Path, embed_dim: int) -> int:
    """Images in the cache so far, from the sizes of its shards."""
    width = 4 * embed_dim + 36
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix == ".rows") // width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--kill-at", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tower", choices=TOWERS, default="limpet-tiny")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.worker:
        extract(given.images, given.tower)
        return
    embed_dim = load(given.tower).embed_dim
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", "--images", str(given.images), "--threads", str(given.threads)]
        command += ["--tower", given.tower]
        env = {**os.environ, "LIMPET_CACHE": folder}
        process = subprocess.Popen(command, env=env)
        while process.poll() is None and cached(Path(folder), embed_dim) < given.kill_at * given.images:
            time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed with {cached(Path(folder), embed_dim):,d} images in the cache", flush=True)
        subprocess.run(command, env=env, check=True)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"{size / given.images:.0f} bytes on disk an image")


if __name__ == "__main__":
    main()
