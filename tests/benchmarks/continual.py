"""What VR-LwF costs: time and memory of a training step against the same step without it.

    python tests/benchmarks/continual.py --threads 1

The model has the shapes of ViT-B/16 (random weights, `--tiny` for limpet-tiny), 1000 replayed sequences of ten tokens. Variants:

    remembered   teacher text features once a session, teacher image features once, images do not vary
    fresh        teacher text features once a session, teacher image features at every step (fresh augmentation)
    published    a batch of reference images of its own, the teacher's texts and images encoded at every step

All variants take turns; each figure is the median of the repeats. With one thread, CPU time is counted, which other programs on
the machine disturb less.
"""

import argparse
import dataclasses
import importlib

import torch
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.continual import Task, make
from limpet.continual.configs import ContinualConfig, VRLwFConfig
from measure import interleaved, peak_bytes

NAMES = ("clownfish", "blue tang", "spotted eagle ray", "grouper", "moray eel", "red lionfish", "box fish", "great white shark")
METHODS = {
    "lora image": ("lora", {"towers": "image"}), "lora both": ("lora", {"towers": "both"}), "vpt": ("vpt", {"length": 8}),
    "maple": ("maple", {}), "coop": ("coop", {"context_length": 4}),
}  # fmt: skip


def build(backbone, name, settings):
    """An adapter, ready to be trained."""
    module = importlib.import_module(f"limpet.methods.{name}")
    kind = next(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__ and v is not module.Config)
    torch.manual_seed(0)
    return kind(module.Config(**settings)).setup(backbone, ClassSet(names=NAMES)).train()


def step_of(adapter, regulariser, batch, again=None):
    """A function that makes one training step; `again` is done before each."""
    optimiser = torch.optim.AdamW(adapter.learnable(), lr=1e-5)
    count = [0]

    def step():
        if again is not None:
            again()
        optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(count[0])
        regulariser.loss(adapter, batch, count[0]).backward()
        optimiser.step()
        regulariser.stepped(adapter, count[0])
        count[0] += 1

    return step


def variants(backbone, name, settings, batch, config):
    """Step functions by name: plain training, and VR-LwF three ways."""
    images = {k: v for k, v in batch.items() if k in ("image", "feature")}
    other = {**{k: torch.randn_like(v) for k, v in images.items()}, "path": batch["path"]}
    made = {"plain": (ContinualConfig(), False), "remembered": (config, True), "fresh": (config, False), "published": (config, False)}
    steps = {}
    for variant, (section, fixed) in made.items():
        adapter, regulariser = build(backbone, name, settings), make(section)
        regulariser.start(adapter, Task(0, NAMES, 1, batches=lambda: [batch], fixed_images=fixed))
        again = None
        if variant == "published":
            regulariser.references = lambda adapter, batch, step: other

            def again(regulariser=regulariser):
                regulariser._texts = {}
                backbone._texts.clear()

        elif variant != "plain":
            regulariser.teacher_texts(adapter, 0)
        steps[variant] = (step_of(adapter, regulariser, batch, again), adapter)
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=1000, help="replayed sequences")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="limpet-tiny instead of the shapes of ViT-B/16")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    from limpet.recipe import BackboneConfig

    spec = BackboneConfig() if given.tiny else BackboneConfig(name="ViT-B-16", pretrained="random")
    backbone = FrozenClip.load(spec, device=given.device)
    device = torch.device(given.device)
    size, source = backbone.image_size, "random_words" if given.tiny else "random_bpe"
    config = VRLwFConfig(count=given.count, source=source)
    print(f"{backbone.spec.name}, batch {given.batch}, {given.count} sequences, {torch.get_num_threads()} threads, {given.device}")
    print(f"{'method':12} {'variant':12} {'s/step':>9} {'x plain':>8} {'MiB':>8} {'x plain':>8}")
    for title in given.methods:
        name, settings = METHODS[title]
        batch = {"index": torch.arange(given.batch), "path": [str(i) for i in range(given.batch)],
                 "label": (torch.arange(given.batch) % len(NAMES)).to(given.device)}  # fmt: skip
        probe = build(backbone, name, settings)
        if probe.needs(probe.config, backbone.spec) == "images":
            batch["image"] = torch.randn(given.batch, 3, size, size, device=given.device)
        else:
            batch["feature"] = torch.randn(given.batch, backbone.embed_dim, device=given.device)
        steps = variants(backbone, name, settings, batch, dataclasses.replace(config))
        made = [step for step, _ in steps.values()]
        medians = interleaved(made, given.repeats, device)
        known = list(backbone.model.state_dict().values())
        peaks = [peak_bytes(step, [*known, *adapter.parameters()], device) for step, adapter in steps.values()]
        for variant, median, peak in zip(steps, medians, peaks, strict=True):
            row = f"{title:12} {variant:12} {median:9.3f} {median / medians[0]:8.2f} {peak / 2**20:8.1f} {peak / peaks[0]:8.2f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
