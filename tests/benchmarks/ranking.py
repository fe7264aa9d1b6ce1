"""Pair branch of the ranking-aware adapter: factorised against naive, and one step on a list of 1,000 images.

Run: python tests/benchmarks/ranking.py [--backward] [--list N]
Each measurement runs in a process of its own, so that its peak memory is its own. Nothing is gated by time.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time

import torch
from limpet.pair_attention import PairAttention
from torch.nn import functional as F

CASES = {"ViT-B/16": (64, 196, 512), "ConvNeXt-L 320": (64, 100, 768)}
QUERIES, HEADS = 16, 8


def naive(attention, tokens, rows=None):
    """Keys of every ordered pair side by side and one softmax over both: (rows, N, D), summed over queries."""
    keys = attention.keys(tokens)
    first = keys if rows is None else keys[rows]
    i, j, places = len(first), len(keys), keys.shape[2]
    both = torch.cat([first[:, None].expand(-1, j, -1, -1, -1), keys[None].expand(i, -1, -1, -1, -1)], 3)
    weights = (attention.query() @ both.transpose(-1, -2)).softmax(-1)
    out = weights[..., :places] @ both[..., :places, :] - weights[..., places:] @ both[..., places:, :]
    merged = out.transpose(2, 3).flatten(3)
    return F.linear(merged, attention.out_proj.weight, attention.out_proj.bias).sum(2)


def factorised(attention, tokens):
    summary = attention.summary(tokens)
    return attention(summary, summary)


def peak():
    """Peak memory of this process in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def measure(which, case, backward, threads, queue):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    count, places, width = CASES[case]
    attention, tokens = PairAttention(width, HEADS, QUERIES), torch.randn(count, places, width)
    tokens.requires_grad_(backward)
    function = factorised if which == "factorised" else naive
    before, took = peak(), []
    with torch.set_grad_enabled(backward):
        for _ in range(3 if which == "factorised" else 1):
            started = time.process_time()
            out = function(attention, tokens)
            if backward:
                out.sum().backward()
            took.append(time.process_time() - started)
    queue.put({"seconds": min(took), "mib": peak() - before})


def difference(case, queue):
    """Greatest difference of both forms in float64; the naive one row of pairs after the other."""
    torch.manual_seed(0)
    count, places, width = CASES[case]
    attention, tokens = PairAttention(width, HEADS, QUERIES).double(), torch.randn(count, places, width).double()
    with torch.no_grad():
        ours = factorised(attention, tokens)
        worst = max(float((naive(attention, tokens, [i])[0] - ours[i]).abs().max()) for i in range(0, count, 4))
    queue.put(worst)


def long_list(count, places, width, threads, queue):
    from limpet.backbone import FrozenClip
    from limpet.classes import ClassSet
    from limpet.methods.ranking import Config, Ranking

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    text = "Sort the images by the number of fish."
    adapter = Ranking(Config()).setup(FrozenClip.load("limpet-tiny"), ClassSet(("value",), {"value": (text,)}))
    optimiser = torch.optim.AdamW(adapter.learnable(), lr=1e-4)
    batch = {"tokens": torch.randn(count, places, width), "value": torch.rand(count) * 10, "instruction": [text] * count}
    started = time.process_time()
    loss = adapter.train().loss(batch)
    loss.backward()
    optimiser.step()
    queue.put({"seconds": time.process_time() - started, "total_mib": peak(), "loss": float(loss.detach())})


def apart(function, *given):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=function, args=(*given, queue))
    process.start()
    process.join()
    if process.exitcode:
        return None  # out of memory
    return queue.get()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backward", action="store_true", help="forward and backward (the naive form needs about 20 GB)")
    parser.add_argument("--list", type=int, default=1000, help="images of the long list; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    for case, (count, places, width) in CASES.items():
        found = {which: apart(measure, which, case, given.backward, given.threads) for which in ("factorised", "naive")}
        ours, theirs = found["factorised"], found["naive"]
        line = {"case": case, "N": count, "P": places, "D": width, **found, "difference": apart(difference, case)}
        if ours and theirs:
            line["times_less_memory"] = round(theirs["mib"] / max(ours["mib"], 1e-9), 1)
            line["times_less_time"] = round(theirs["seconds"] / ours["seconds"], 1)
        print(json.dumps(line), flush=True)
    if given.list:
        print(json.dumps({"list": given.list, **(apart(long_list, given.list, 64, 128, given.threads) or {})}), flush=True)


if __name__ == "__main__":
    main()
