"""Ratios of the methods that work on features, against plain implementations; run by hand, nothing is gated by time.

python tests/benchmarks/features.py [lora] [search] [gda] [extraction] [--threads 2] [--small]

lora        a LoRA step on ViT-B/16 shapes against the published code's, by lora.py in a process of its own (6 to 9 GB)
search      Tip-Adapter's grid of 200 x 20 against the published loop (timed on a few of its 4000 pairs)
gda         one million features of width 512, streamed from disk
extraction  images a second of the feature cache against a plain open_clip loop, and of a second run
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F


def clock() -> float:
    """Seconds: of this process's CPU time with one thread, which other programs disturb less, else of the clock on the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work):
    start = clock()
    result = work()
    return clock() - start, result


def lora(small: bool) -> None:
    """In a process of its own, so that its memory is given back before the next row is measured."""
    size = ["--batch", "4", "--classes", "10", "--repeat", "1"] if small else []
    script = Path(__file__).with_name("lora.py")
    subprocess.run([sys.executable, str(script), "--threads", str(torch.get_num_threads()), *size], check=True)


def search(small: bool) -> None:
    """Both sides answer the same images; the loop's time for all pairs follows from a few of them."""
    from limpet.cache_search import search_hits

    classes, shots, images, width = (100, 16, 500, 512) if small else (1000, 16, 5000, 512)
    betas = [0.1 + i * (7.0 - 0.1) / 200 for i in range(200)]
    alphas = [0.1 + i * (3.0 - 0.1) / 20 for i in range(20)]
    torch.manual_seed(0)
    centres = torch.randn(classes, width)
    owner = torch.arange(classes).repeat_interleave(shots)[torch.randperm(classes * shots)]
    labels = torch.randint(classes, (images,))
    keys = F.normalize(centres[owner] + 2 * torch.randn(len(owner), width), dim=-1)
    features = F.normalize(centres[labels] + 2 * torch.randn(images, width), dim=-1)
    zero_shot = 100 * features @ F.normalize(centres + 20 * torch.randn(classes, width), dim=-1).T
    values = F.one_hot(owner, classes).float()

    def pair(beta, alpha):
        affinity = features @ keys.T  # the published code computes it once, before the loop
        start = clock()
        cache = ((-1) * (beta - beta * affinity)).exp() @ values
        right = int(((zero_shot + cache * alpha).argmax(-1) == labels).sum())
        return clock() - start, right

    chosen = [(0, 0), (100, 10), (199, 19)]
    timed = [pair(betas[i], alphas[j]) for i, j in chosen]
    whole = sum(t for t, _ in timed) / len(timed) * len(betas) * len(alphas)
    ours, found = seconds(lambda: search_hits(features, labels, keys, owner, zero_shot, betas, alphas))
    differing = [abs(int(found[i, j]) - right) for (i, j), (_, right) in zip(chosen, timed, strict=True)]
    print(
        f"search: {classes} classes, {shots} shots, {images} images, 200 x 20 pairs: loop {whole:.0f} s (from "
        f"{len(chosen)} pairs), here {ours:.1f} s: {whole / ours:.0f}x; answers differing on these pairs: {max(differing)}"
    )


def resident() -> float:
    """Peak resident memory of this process, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def gda(small: bool) -> None:
    """Features are written in pieces, then read in pieces: neither side holds them all."""
    from limpet.classes import ClassSet
    from limpet.methods.gda import GDA, Config

    count, width, classes, piece = (100_000 if small else 1_000_000), 512, 1000, 8192
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.f32"
        random = np.random.default_rng(0)
        with path.open("wb") as file:
            for start in range(0, count, 50_000):
                random.standard_normal((min(50_000, count - start), width), dtype=np.float32).tofile(file)
        labels = torch.from_numpy(random.integers(0, classes, count))

        def batches():
            for start in range(0, count, piece):
                rows = min(piece, count - start)
                mapped = np.memmap(path, np.float32, "r", offset=start * width * 4, shape=(rows, 1, width))
                views = torch.from_numpy(np.array(mapped))
                yield {"views": views, "feature": views[:, 0], "label": labels[start : start + rows]}

        backbone = SimpleNamespace(
            spec=None, embed_dim=width, dtype=torch.float32, device=torch.device("cpu"), logit_scale=100.0
        )
        adapter = GDA(Config()).setup(backbone, ClassSet(tuple(f"class {i}" for i in range(classes))))
        before = resident()
        fitted, _ = seconds(lambda: adapter.fit_closed_form(batches()))
        solved, _ = seconds(adapter.columns)
        size = path.stat().st_size / 2**30
    work = 2 * count * width**2 / 1e9
    print(
        f"gda: {count:,} x {width} from disk ({size:.1f} GiB): {fitted:.1f} s ({work / fitted:.0f} GFLOP/s in float64), "
        f"solve {solved:.2f} s; peak memory {resident() - before:.0f} MiB above {before:.0f} MiB"
    )


def extraction(small: bool, model: str) -> None:
    """JPEG files of camera size -> features, on both sides with the same tower and preprocessing."""
    import os

    import open_clip
    from limpet.backbone import FrozenClip
    from limpet.datamodules import load
    from limpet.datamodules.configs import FolderConfig
    from limpet.features import CachedFeatures
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    count = 64 if small else 400
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMPET_CACHE"] = str(Path(folder) / "cache")
        random = np.random.default_rng(0)
        paths = []
        for i in range(count):
            coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            path = Path(folder) / "images" / f"class {i % 4}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((1024, 768), Image.Resampling.BICUBIC).save(path, quality=90)
            paths.append(path)
        clip, _, preprocess = open_clip.create_model_and_transforms(model)
        clip.eval()
        backbone = FrozenClip.from_model(clip)

        class Files(Dataset):
            def __len__(self):
                return count

            def __getitem__(self, i):
                return preprocess(Image.open(paths[i]))

        def plain():
            with torch.inference_mode():
                return torch.cat([clip.encode_image(images) for images in DataLoader(Files(), batch_size=64)])

        def decode():
            return sum(len(images) for images in DataLoader(Files(), batch_size=64))

        def ours():
            data = load(FolderConfig(name="folder", root=str(Path(folder) / "images"), shots="all"), 1)
            cached = CachedFeatures(data, backbone, progress=False)
            rows = {}
            for split in ("train", "val", "test"):
                names = [str(sample.file) for sample in data.samples[split]]
                rows.update(zip(names, cached.features(split), strict=True))
            return torch.stack([rows[str(path)] for path in paths])

        with torch.inference_mode():
            clip.encode_image(torch.zeros(8, 3, backbone.image_size, backbone.image_size))
        loop, expected = seconds(plain)
        decoding, _ = seconds(decode)
        first, found = seconds(ours)
        second, again = seconds(ours)
        close = torch.allclose(expected, found, atol=1e-3)
        same = torch.equal(found, again)
    print(
        f"extraction: {count} JPEGs of 1024 x 768, {model}: open_clip loop {count / loop:.1f} images/s "
        f"(decoding and resizing are {100 * decoding / loop:.0f} %), here {count / first:.1f} images/s: {loop / first:.2f}x; "
        f"second run {second:.3f} s: {first / second:.0f}x; equal features: {close and same}"
    )


def main() -> None:
    rows = {"lora": lora, "search": search, "gda": gda, "extraction": extraction}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*rows, []], help="all of them if none is named")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true", help="a tenth of the size, to see that it runs")
    parser.add_argument("--model", default="ViT-B-16", help="tower of `extraction`, with random weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    counted = "CPU time" if options.threads == 1 else "time"
    print(f"torch {torch.__version__}, {options.threads} threads, {counted}", flush=True)
    for name in options.rows or rows:
        rows[name](options.small, *([options.model] if name == "extraction" else []))


if __name__ == "__main__":
    main()
