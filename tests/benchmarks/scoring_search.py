"""Search in many vectors against NumPy brute force; a row of scoring.py."""

import statistics
import time

import numpy as np
from limpet.vector_search import ExactSearch


def brute_force(vectors, queries, k):
    """All products at once, a partial sort for the best k, then a sort of these."""
    scores = queries @ vectors.T
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def unit_vectors(count, width, rng):
    vectors = np.empty((count, width), np.float32)
    for start in range(0, count, 65536):
        part = rng.standard_normal((min(65536, count - start), width), np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def search(count, width=512, k=10, repeats=3):
    """Queries per second, 64 at a time and one at a time, and whether the results agree."""
    rng = np.random.default_rng(0)
    vectors, queries = unit_vectors(count, width, rng), unit_vectors(64, width, rng)
    ours = ExactSearch(vectors, longest=1 + 1e-5)
    same = np.mean(ours(queries, k)[0] == brute_force(vectors, queries, k))
    print(f"search, {count:,} x {width} float32, the best {k}; {100 * same:.2f} % of the places as NumPy's", flush=True)
    ways = {"limpet": lambda asked: ours(asked, k), "NumPy": lambda asked: brute_force(vectors, asked, k)}
    for size, runs in ((64, repeats), (1, 5 * repeats)):
        times = {name: [] for name in ways}
        for i in range(runs + 1):  # the first round does not count
            asked = queries if size > 1 else queries[i % 64][None]
            for name, ask in ways.items():
                started = time.perf_counter()
                ask(asked)
                times[name].append(time.perf_counter() - started)
        speed = {name: size / statistics.median(each[1:]) for name, each in times.items()}
        print(
            f"  {size:2} at a time: limpet {speed['limpet']:.1f}, NumPy {speed['NumPy']:.1f} queries a second, "
            f"{speed['limpet'] / speed['NumPy']:.2f} x",
            flush=True,
        )
