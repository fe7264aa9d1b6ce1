"""A script: two gloo processes compute losses on two parts of a batch; one process computes them on all of it.

Prints, as JSON, the largest differences of loss and averaged gradient for each method.
"""

import json
import multiprocessing
import sys
import tempfile

import torch
import torch.distributed as dist
from limpet.adapter import config_class, find
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet

CAPTIONS = ["a red fish", "a blue fish", "a ray", "a red fish", "an eel", "a ray", "a cod", "a blue fish"]
CUT = 5  # the processes get five and three images, as where some cannot be read


def setup(method, **settings):
    """An adapter of a method on limpet-tiny, without randomness in its steps."""
    kind = find(method)
    classes = ClassSet(names=("cod", "ray"), texts={"cod": ("cod",), "ray": ("ray",)}, templates=("{}",))
    torch.manual_seed(0)
    adapter = kind(config_class(kind)(**settings)).setup(FrozenClip.load("limpet-tiny"), classes)
    for parameter in adapter.learnable():
        parameter.data += 0.01 * torch.randn_like(parameter)
    return adapter.train(bool(settings.get("text_warmup")))  # the warm-up is part of training alone, and draws nothing


def batch(method):
    """A batch of eight images as the method reads it."""
    generator = torch.Generator().manual_seed(1)
    found = {"path": [str(i) for i in range(8)], "label": torch.zeros(8, dtype=torch.long)}
    images = torch.randn(8, 3, 64, 64, generator=generator)
    if method == "ranknet":
        found["feature"] = torch.randn(8, 128, generator=generator)
    else:
        found["image"] = images
    if method == "contrastive":
        found["caption"], found["other_caption"] = CAPTIONS, CAPTIONS[3:] + CAPTIONS[:3]
        found["positives"] = torch.rand(8, 8, generator=generator) < 0.2
    else:
        found |= {"value": torch.tensor([3.0, 1, 2, 5, 0, 4, 4, 7]), "instruction": ["number of stripes"] * 8}
    return found


def answer(adapter, given):
    """Loss and gradient by name."""
    adapter.zero_grad()
    torch.manual_seed(0)
    loss = adapter.loss(given)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in adapter.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.detach(), gradients


def part(given, rows):
    """Some rows of a batch."""
    return {k: v[rows] for k, v in given.items()}


def work(rank, place, cases, queue):
    """One of the two processes."""
    torch.set_num_threads(1)
    given = [(name, adapter, whole, answer(adapter, whole)) for name, adapter, whole in cases]
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    found = {}
    for name, adapter, whole, (loss, gradients) in given:
        own_loss, own = answer(adapter, part(whole, slice(0, CUT) if rank == 0 else slice(CUT, None)))
        for gradient in own.values():
            dist.all_reduce(gradient)
            gradient /= 2
        assert set(own) >= set(gradients)
        largest = max(float(g.abs().max()) for g in gradients.values())
        found[name] = {
            "loss": float((own_loss - loss).abs()),
            "gradient": max(float((g - gradients.get(n, 0)).abs().max()) for n, g in own.items()) / largest,
        }
    dist.barrier()
    queue.put(found)
    dist.destroy_process_group()


def main():
    torch.set_num_threads(1)
    cases = []
    for name, method, settings in (
        ("infonce", "contrastive", {"towers": "both", "temperature": 10.0}),
        ("siglip", "contrastive", {"towers": "image", "objective": "siglip"}),
        ("warm-up", "contrastive", {"towers": "both", "text_warmup": 4}),
        ("ranking", "ranking", {}),
        ("ranknet", "ranknet", {}),
    ):
        cases.append((name, setup(method, **settings), batch(method)))
    context = multiprocessing.get_context("fork")  # before anything is computed: no threads yet
    queue = context.Queue()
    place = tempfile.mktemp()
    processes = [context.Process(target=work, args=(rank, place, cases, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    print(json.dumps(found))
    return max(process.exitcode for process in processes)


if __name__ == "__main__":
    sys.exit(main())
