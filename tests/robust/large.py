"""A script: 21,000 classes on limpet-tiny, zero-shot and a step of CoOp; prints the memory each took, as JSON (MB)."""

import json
import resource
import sys
import time

import torch
from limpet.adapter import config_class, find
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet

CLASSES = 21_000


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    torch.set_num_threads(1)
    names = tuple(f"species {number} of the reef" for number in range(CLASSES))
    classes = ClassSet(names=names, texts={name: (name,) for name in names}, templates=("a photo of a {}.",))
    backbone = FrozenClip.load("limpet-tiny")
    features = torch.randn(8, backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    batch = {"path": list("abcdefgh"), "feature": features, "label": torch.arange(8) * 2_500}
    found, before = {}, peak()
    for name in ("zero_shot", "coop"):
        kind = find(name)
        adapter = kind(config_class(kind)()).setup(backbone, classes)
        start = time.perf_counter()
        if name == "zero_shot":
            with torch.no_grad():
                logits = adapter.eval().logits(batch)
        else:
            adapter.train().loss(batch).backward()
            assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in adapter.learnable())
            with torch.no_grad():
                logits = adapter.eval().logits(batch)
        assert logits.shape == (8, CLASSES) and bool(logits.isfinite().all())
        few = classes.only([names[n] for n in (0, 777, 20_999)])
        with torch.no_grad(), adapter.answering(few):
            torch.testing.assert_close(adapter.logits(batch), logits[:, [0, 777, 20_999]], rtol=1e-4, atol=1e-3)
        found[name] = {"MB": peak() - before, "seconds": time.perf_counter() - start}
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
