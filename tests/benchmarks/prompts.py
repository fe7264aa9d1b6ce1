"""Times Limpet's prompt-learning steps beside plain steps of the published algorithms.

    python tests/benchmarks/prompts.py --rows coop,cocoop --classes 10,100 --threads 1 --repeats 3

ViT-B/16 shapes, random weights, both in one process and in turn. A step is forward and backward. "plain" encodes 77
tokens of every class at every step, as the published code does. Beyond --reference-classes the plain step is timed on
so many classes and scaled, marked ~ (it would not fit the memory of most machines); differences are then those of that
many classes. Memory is the peak of tensors alive at once. Differences are absolute: of logits, and of the gradient that
differs most, as a share of its largest entry. Nothing is asserted: this prints, and people judge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.methods.cocoop import CoCoOp
from limpet.methods.cocoop import Config as CoCoOpConfig
from limpet.methods.coop import Config as CoOpConfig
from limpet.methods.coop import CoOp
from limpet.methods.maple import Config as MaPLeConfig
from limpet.methods.maple import MaPLe
from limpet.methods.vpt import VPT
from limpet.methods.vpt import Config as VPTConfig
from limpet.prompting import PromptEncoder
from limpet.recipe import BackboneConfig
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

sys.path.insert(0, str(Path(__file__).parent))
import published
from measure import interleaved, peak_bytes

CIFAR = """apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, butterfly,
camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup,
dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, leopard,
lion, lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, oak tree, orange, orchid, otter, palm
tree, pear, pickup truck, pine tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road, rocket, rose,
sea, seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar, sunflower, sweet pepper, table,
tank, telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale, willow tree, wolf, woman,
worm""".replace("\n", " ").split(", ")
ADJECTIVES = "red blue green black white small large old new dark bright wild young wet dry soft hard cold warm round flat"


def class_set(count):
    """CIFAR-100's names up to 100 classes, ImageNet's up to 1000, then those with an adjective."""
    if count <= len(CIFAR):
        names = CIFAR[:count]
    else:
        names = list(dict.fromkeys(IMAGENET_CLASSNAMES))
        names += [f"{word} {name}" for word in ADJECTIVES.split() for name in names]
        names = names[:count]
    return ClassSet(tuple(names), texts={}, templates=("a photo of a {}.",))


class Bench:
    """One backbone and what is measured on it."""

    def __init__(self, args):
        self.args = args
        self.device = torch.device(args.device)
        self.frozen = []
        self.clip = self.load(args.dtype)

    def load(self, dtype):
        """A random ViT-B/16 (or other) in a number format."""
        clip = FrozenClip.load(BackboneConfig(name=self.args.model, pretrained="random"))
        clip.to(self.device, getattr(torch, dtype))
        self.frozen += [*clip.model.parameters(), *clip.model.buffers()]
        return clip

    def draw(self, *shape):
        """Random input, the same every time."""
        wanted = torch.float64 if self.clip.dtype == torch.float64 else torch.float32
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device, wanted)

    def batch(self, count, classes, images=False):
        """Features or images with labels."""
        size = self.clip.image_size
        what = {"image": self.draw(count, 3, size, size)} if images else {"feature": self.draw(count, self.clip.embed_dim)}
        return {**what, "label": torch.arange(count, device=self.device) % classes}

    def setup(self, method, config, classes, clip=None, memory=None):
        """An adapter in training."""
        clip = clip or self.clip
        clip.text_memory = memory
        torch.manual_seed(0)
        return method(config).setup(clip, classes).train()

    def row(self, name, shape, plain, limpet, learned, *, tokens="", scale=1.0, check=None):
        """Measure and print one row.

        Args:
            name: of the row.
            shape: classes and images, for the table.
            plain: function to logits, loss included in none; None where there is nothing to compare with.
            limpet: the same for Limpet.
            learned: tensors whose gradients are compared.
            tokens: ratio of token rows.
            scale: what the plain time and memory are multiplied with (a slice of the classes was run).
            check: Limpet's side of the comparison where it is not the measured step.
        """
        labels = self.labels
        functions = [f for f in (plain, limpet) if f is not None]

        def step(function):
            for tensor in learned:
                tensor.grad = None
            logits = function()
            F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, labels % logits.shape[1]).backward()
            return logits.detach()

        times = interleaved([lambda f=f: step(f) for f in functions], self.args.repeats, self.device)
        known = [*self.frozen, *learned, labels]
        peaks, logits, grads = [], [], []
        for function in functions:
            peaks.append(peak_bytes(lambda f=function: logits.append(step(f)), known, self.device))
            grads.append([t.grad.clone() for t in learned])
        if check is not None:
            logits[1], grads[1] = step(check), [t.grad.clone() for t in learned]
        cells = [name, shape, "", f"{times[-1]:.3f}", "", tokens, "", f"{peaks[-1] / 1e6:.0f}", "", "", ""]
        if plain is not None:
            mark = "~" if scale != 1 else ""
            far = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(*grads, strict=True))
            cells[2], cells[4] = f"{mark}{times[0] * scale:.2f}", f"{mark}{times[0] * scale / times[1]:.1f}x"
            cells[6], cells[8] = f"{mark}{peaks[0] * scale / 1e6:.0f}", f"{mark}{peaks[0] * scale / peaks[1]:.1f}x"
            cells[9], cells[10] = f"{float((logits[0] - logits[1]).abs().max()):.1e}", f"{far:.1e}"
        print(LINE.format(*cells), flush=True)

    # Rows

    def coop_text(self, count, name="coop", position="end", specific=False, whole=False):
        """CoOp with M = 16: the text side with given features, or the whole step from images."""
        classes = class_set(count)
        shown = min(count, self.args.reference_classes)
        config = CoOpConfig(position=position, class_specific=specific)
        adapter = self.setup(CoOp, config, classes, memory=self.args.memory)
        batch, pictures = self.batch(32, count), self.batch(32, count, images=True) if whole else None
        self.labels = batch["label"]
        part = classes.only(classes.names[:shown])
        texts = published.Texts(self.clip, [classes.text(n) for n in part.names], 16, position)
        features = None
        if whole:
            features = batch["feature"] = self.clip.encode_image(pictures["image"], normalize=False)

        def plain():
            image = batch["feature"]
            if whole:
                with torch.no_grad():
                    image = published.images(self.clip, pictures["image"])
            return published.scores(self.clip, image, texts.encode(adapter.context))

        def check():
            with adapter.answering(part):
                return adapter.logits(batch)

        rows = encoder_tokens(self.clip, classes, 16, position, specific)
        self.row(
            name, f"C={count}, B=32", plain, lambda: adapter.logits(batch), [adapter.context],
            tokens=f"{77 * count / rows:.1f}", scale=count / shown, check=check if shown < count else None,
        )  # fmt: skip
        del features

    def coop(self):
        for count in self.args.classes:
            self.coop_text(count)

    def step(self):
        for count in self.args.classes:
            self.coop_text(count, name="coop, whole step", whole=True)

    def csc(self):
        for position in ("end", "middle", "front"):
            self.coop_text(50, name=f"coop, own contexts, {position}", position=position, specific=True)

    def places(self):
        for position in ("middle", "front"):
            self.coop_text(50, name=f"coop, {position}", position=position)

    def cocoop(self):
        for count, images in ((100, 1), (20, 4)):
            classes, batch = class_set(count), self.batch(images, count)
            self.labels = batch["label"]
            adapter = self.setup(CoCoOp, CoCoOpConfig(), classes)
            texts = published.Texts(self.clip, [classes.text(n) for n in classes.names], 4)
            rows = encoder_tokens(self.clip, classes, 4)
            self.row(
                "cocoop", f"C={count}, B={images}",
                lambda b=batch, t=texts, a=adapter: published.cocoop(self.clip, t, b["feature"], a.context, a.meta_net),
                lambda b=batch, a=adapter: a.logits(b), adapter.learnable(), tokens=f"{77 * count / rows:.1f}",
            )  # fmt: skip

    def maple(self):
        classes, batch = class_set(100), self.batch(4, 100, images=True)
        self.labels = batch["label"]
        adapter = self.setup(MaPLe, MaPLeConfig(), classes)
        words = [classes.text(n) for n in classes.names]
        texts = published.Texts(self.clip, words, 2, phrase="a photo of a")

        def plain():
            image = published.images(self.clip, batch["image"], adapter.image_prompts())
            text = texts.encode(adapter.text_vectors[0], adapter.text_prompts()[1:])
            return published.scores(self.clip, image, text)

        rows = PromptEncoder(self.clip, words, 2, phrase="a photo of a").tokens
        self.row(
            "maple, whole step", "C=100, B=4", plain, lambda: adapter.logits(batch), adapter.learnable(),
            tokens=f"{7700 / rows:.1f} (text)",
        )  # fmt: skip

    def vpt(self):
        classes, batch = class_set(100), self.batch(4, 100, images=True)
        self.labels = batch["label"]
        adapter = self.setup(VPT, VPTConfig(), classes)
        text = adapter.class_weights()

        def plain():
            return published.scores(self.clip, published.images(self.clip, batch["image"], adapter.image_prompts()), text)

        self.row("vpt, whole step", "C=100, B=4", plain, lambda: adapter.logits(batch), adapter.learnable())

    def chunks(self):
        """One step over 1000 classes, at once and in recomputed chunks; both against each other."""
        classes, batch = class_set(1000), self.batch(32, 1000)
        self.labels = batch["label"]
        once = self.setup(CoOp, CoOpConfig(), classes)
        once.class_weights()
        parts = self.setup(CoOp, CoOpConfig(), classes, memory=1024)
        parts.context = once.context
        self.row(
            "coop, chunks (left: at once)", "C=1000, B=32", lambda: once.logits(batch), lambda: parts.logits(batch),
            [once.context],
        )  # fmt: skip

    def many(self):
        """One step over 21,000 classes in recomputed chunks; nothing to compare with fits."""
        classes, batch = class_set(21_000), self.batch(32, 21_000)
        self.labels = batch["label"]
        adapter = self.setup(CoOp, CoOpConfig(), classes, memory=4096)
        self.row("coop, chunks", "C=21000, B=32", None, lambda: adapter.logits(batch), [adapter.context])

    def bf16(self):
        """bfloat16 weights against float32, both Limpet's."""
        half = self.load("bfloat16")
        for count in self.args.classes:
            classes, batch = class_set(count), self.batch(32, count)
            self.labels = batch["label"]
            adapter = self.setup(CoOp, CoOpConfig(), classes)
            low = self.setup(CoOp, CoOpConfig(), classes, clip=half)
            low.context = adapter.context
            self.row(
                f"coop, bf16 (left: {self.args.dtype})", f"C={count}, B=32", lambda b=batch, a=adapter: a.logits(b),
                lambda b=batch, a=low: a.logits(b), [adapter.context],
            )  # fmt: skip

    def evaluate(self):
        """10,000 cached images: how often the text tower runs."""
        classes, batch = class_set(100), self.batch(256, 100)
        adapter = self.setup(CoOp, CoOpConfig(), classes).eval()
        runs = []
        hook = self.clip.text.blocks[0].mlp.register_forward_hook(lambda *_: runs.append(1))
        with torch.no_grad():
            (taken,) = interleaved([lambda: [adapter.logits(batch) for _ in range(40)]], 1, self.device)
        hook.remove()
        print(f"evaluation of 10,240 cached images, C=100: {taken:.2f} s, text encoded {len(runs)} time(s)", flush=True)


LINE = "{:30} {:16} {:>9} {:>9} {:>8} {:>12} {:>8} {:>8} {:>8} {:>9} {:>9}"
HEAD = ("step", "shape", "plain s", "limpet s", "faster", "token ratio", "plain MB", "MB", "less", "d logits", "d grad")
ROWS = ("coop", "step", "csc", "places", "cocoop", "maple", "vpt", "chunks", "many", "bf16", "evaluate")


def encoder_tokens(clip, classes, count, position="end", specific=False):
    """Token rows of one of Limpet's passes."""
    return PromptEncoder(clip, [classes.text(n) for n in classes.names], count, position).count(specific)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="coop,step,csc,places,cocoop,maple,vpt,chunks,evaluate", help=", ".join(ROWS))
    parser.add_argument("--classes", default="10,100", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-classes", type=int, default=200)
    parser.add_argument("--memory", type=int, default=None, help="text token rows of one pass in the coop rows")
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    wrong = [row for row in args.rows.split(",") if row not in ROWS]
    if wrong:
        parser.error(f"there is no row {wrong[0]!r}; rows: {', '.join(ROWS)}")
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    print(f"{args.model}, {args.dtype}, {args.device}, {args.threads} thread(s), torch {torch.__version__}")
    print(LINE.format(*HEAD), flush=True)
    for row in args.rows.split(","):
        getattr(bench, row)()


if __name__ == "__main__":
    main()
