"""Time and memory of a step, measured honestly enough for ratios."""

import statistics
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Peak bytes of tensors alive at once that were made inside (saved for backward, recomputed, or passing)."""

    def __init__(self, known):
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        key = storage._cdata
        if key in self.known or key in self.live:
            return
        self.live[key] = storage.nbytes()
        self.now += self.live[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.now -= self.live.pop(key, 0)


def peak_bytes(step, known, device):
    """Peak bytes that a step needs beside what exists already."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveMemory(known) as memory:
        step()
    return memory.peak


def seconds(step, device):
    """Seconds of one step: of this process on one CPU thread (other processes do not count), else of the clock."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def interleaved(steps, repeats, device):
    """Median seconds of every step, the steps taking turns; the first round does not count where there are several."""
    times = [[seconds(step, device) for step in steps] for _ in range(repeats + (repeats > 1))]
    times = times[1:] if repeats > 1 else times
    return [statistics.median(column) for column in zip(*times, strict=True)]
