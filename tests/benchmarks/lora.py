"""Times a LoRA training step on ViT-B/16 shapes (random weights) against a plain implementation of the published algorithm.

    python tests/benchmarks/lora.py --threads 1

The plain step encodes every class prompt at its full 77 tokens in every step, runs the last blocks for all tokens, and adds
drop(x) (s B A)^T with the product B A formed first, whose gradient is as large as a frozen matrix; `--low-rank` prints a plain
step that goes through the rank instead. Both sides alternate; each figure is the median of the repeats. With one thread, CPU time is
counted, which other programs on the machine disturb less.
"""

import argparse
import math
import statistics
import time

import open_clip
import torch
from limpet.backbone import FrozenClip
from limpet.classes import ClassSet
from limpet.methods.lora import Config, LoRA
from torch import nn
from torch.nn import functional as F

WORDS = ["clownfish", "blue tang", "spotted eagle ray", "grouper", "moray eel", "red lionfish", "box fish", "great white shark"]
RANK, ALPHA, DROPOUT = 2, 1.0, 0.25


def clock():
    """Seconds: of this process's CPU time with one thread, else of the clock on the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class PlainLinear(nn.Module):
    """W x + b + s drop(x) (B A)^T, the product formed first or gone through rank by rank."""

    def __init__(self, weight, bias, low_rank):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone(), False), nn.Parameter(bias.clone(), False)
        self.a = nn.Parameter(torch.empty(RANK, weight.shape[1]).uniform_(-1, 1) / math.sqrt(weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], RANK))
        self.low_rank = low_rank

    def forward(self, x):
        y, x, scale = F.linear(x, self.weight, self.bias), F.dropout(x, DROPOUT, self.training), ALPHA / math.sqrt(RANK)
        return y + (x @ self.a.T @ self.b.T * scale if self.low_rank else x @ (self.b @ self.a * scale).T)


class PlainAttention(nn.Module):
    """Attention with low-rank changes of q, k, v, called as open_clip calls it."""

    def __init__(self, attention, low_rank):
        super().__init__()
        parts = zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        self.qkv = nn.ModuleList(PlainLinear(w.detach(), b.detach(), low_rank) for w, b in parts)
        self.out, self.heads = attention.out_proj, attention.num_heads

    def forward(self, query, key, value, need_weights=False, attn_mask=None):
        size = (*query.shape[:2], self.heads, -1)
        q, k, v = (f(x).view(size).transpose(1, 2) for f, x in zip(self.qkv, (query, key, value), strict=True))
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)), None


def plain_step(model, texts, towers, low_rank):
    """A function that makes one plain training step."""
    import copy

    model = copy.deepcopy(model).requires_grad_(False)
    blocks = [b for t, bs in (("image", model.visual.transformer.resblocks), ("text", model.transformer.resblocks))
              for b in bs if t in towers]  # fmt: skip
    for block in blocks:
        block.attn = PlainAttention(block.attn, low_rank)
    tokens = open_clip.get_tokenizer("ViT-B-16")(texts)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=2e-4)
    model.train()
    with torch.no_grad():
        fixed = None if "text" in towers else F.normalize(model.encode_text(tokens), dim=-1)

    def step(images, labels):
        optimiser.zero_grad()
        text = F.normalize(model.encode_text(tokens), dim=-1) if fixed is None else fixed
        image = F.normalize(model.encode_image(images), dim=-1)
        F.cross_entropy(100 * image @ text.T, labels).backward()
        optimiser.step()

    return step


def our_step(clip, names, **settings):
    """A function that makes one of our training steps."""
    adapter = LoRA(Config(**settings)).setup(clip, ClassSet(tuple(names), {}, ("a photo of a {}.",))).train()
    optimiser = torch.optim.AdamW(adapter.learnable(), lr=2e-4)

    def step(images, labels):
        optimiser.zero_grad()
        adapter.loss({"image": images, "label": labels}).backward()
        optimiser.step()

    return step


def compare(title, steps, data, repeats):
    """Time steps in turn; print their medians and ratios to the last one, ours.

    Returns:
        Seconds of ours, and GFLOP/s of a matrix product measured between the repeats: the processor's speed at that time.
    """
    for name, step in steps.items():
        step(*(data if name == "ours" else (part[:2] for part in data)))  # ours may remember images
    times, speeds = {name: [] for name in steps}, []
    for _ in range(repeats):
        for name, step in steps.items():
            start = clock()
            step(*data)
            times[name].append(clock() - start)
        speeds.append(matmul_speed(len(data[0]) * 197, 768))
    medians = {name: statistics.median(t) for name, t in times.items()}
    ours = medians["ours"]
    shown = "   ".join(f"{name} {t:.2f} s ({t / ours:.2f}x)" for name, t in medians.items())
    print(f"{title}: {shown}", flush=True)
    return ours, statistics.median(speeds)


def arithmetic(batch, spec, first=0):
    """Multiply-adds x 2 of a step that trains q, k, v of the image blocks from `first` on: forward, and gradients of inputs."""
    w, n = spec.vision_width, (spec.image_size // spec.patch_size) ** 2 + 1
    matrices, attention = 12 * w * w * n, 2 * n * n * w
    last = 2 * w * w * n + 10 * w * w + 2 * n * w  # keys and values of all tokens, the rest of one
    depth = spec.vision_layers
    forward = (n - 1) * w * 3 * spec.patch_size**2 + (depth - 1) * (matrices + attention) + last
    below = first * (matrices + attention)
    lowest = 9 * w * w * n + 2 * attention  # the lowest trained block needs no gradient of its own input
    backward = (depth - 2 - first) * (matrices + 2 * attention) + lowest + last
    return 2 * batch * (forward + backward), 2 * batch * (forward - below - (n - 1) * w * 3 * spec.patch_size**2 + backward)


def matmul_speed(rows, width):
    """GFLOP/s of a matrix product of the tower's shape."""
    x, w = torch.randn(rows, width), torch.randn(4 * width, width)
    best = math.inf
    for _ in range(5):
        start = clock()
        F.linear(x, w)
        best = min(best, clock() - start)
    return 2 * rows * width * 4 * width / best / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--low-rank", action="store_true", help="also time the plain step through the rank")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16", pretrained=None)
    clip = FrozenClip.from_model(model, name="ViT-B-16")
    names = [f"{WORDS[i % len(WORDS)]} {i}" for i in range(args.classes)]
    texts = [f"a photo of a {name}." for name in names]
    data = torch.randn(args.batch, 3, 224, 224), torch.randint(args.classes, (args.batch,))
    print(f"ViT-B/16, B={args.batch}, C={args.classes}, rank {RANK}, dropout {DROPOUT}, {args.threads} thread(s)")
    def plain(towers):
        steps = {"plain": plain_step(model, texts, towers, False)}
        return {**steps, "plain through the rank": plain_step(model, texts, towers, True)} if args.low_rank else steps

    compare("both towers, all blocks", {**plain(("image", "text")), "ours": our_step(clip, names)}, data, args.repeat)
    ours, speed = compare("image tower, all blocks", {**plain(("image",)), "ours": our_step(clip, names, towers="image")}, data,
                   args.repeat)  # fmt: skip
    needed = arithmetic(args.batch, clip.spec)[0] / 1e9
    print(f"  {needed / ours:.0f} GFLOP/s, a matrix product {args.batch * 197} x 768 x 3072 in between {speed:.0f} GFLOP/s: "
          f"{ours * speed / needed:.2f}x of what the arithmetic needs at that speed")  # fmt: skip
    kept = {"without memory": our_step(clip, names, towers="image", layers="top3"),
            "ours": our_step(clip, names, towers="image", layers="top3", activation_memory=1024)}  # fmt: skip
    compare("image tower, last 3 blocks, activations below remembered", kept, data, args.repeat)


if __name__ == "__main__":
    main()
