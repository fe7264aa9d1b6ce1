"""Search in 1,000,000 x 512 vectors against NumPy brute force.

Run: python tests/benchmarks/scoring_search.py [--vectors N] [--threads T]
Queries per second, 64 at a time and one at a time; results are compared. Nothing is gated by time.
"""

import argparse
import os
import statistics
import time


def brute_force(vectors, queries, k):
    """All products at once, a partial sort for the best k, then a sort of these."""
    import numpy as np

    scores = queries @ vectors.T
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    return np.take_along_axis(best, order, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(args.threads)  # before NumPy is loaded
    import numpy as np
    from limpet.vector_search import ExactSearch

    rng = np.random.default_rng(0)
    vectors = np.empty((args.vectors, args.width), np.float32)
    for start in range(0, args.vectors, 65536):
        part = rng.standard_normal((min(65536, args.vectors - start), args.width), np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    queries = rng.standard_normal((64, args.width), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    search = ExactSearch(vectors, longest=1 + 1e-5)
    same = np.mean(search(queries, args.top)[0] == brute_force(vectors, queries, args.top))
    print(f"{args.vectors:,} x {args.width} float32, the best {args.top}, {args.threads} thread(s)")
    print(f"the same places as brute force in float32: {100 * same:.2f} % (search orders by float64)")
    for size, runs in ((64, args.repeats), (1, 3 * args.repeats)):
        times = {"limpet": [], "NumPy": []}
        for i in range(runs + 1):
            asked = queries[:size] if size > 1 else queries[i % 64][None]
            for name, ask in (("limpet", lambda q: search(q, args.top)), ("NumPy", lambda q: brute_force(vectors, q, args.top))):
                started = time.perf_counter()
                ask(asked)
                times[name].append(time.perf_counter() - started)
        speed = {name: size / statistics.median(each[1:]) for name, each in times.items()}
        ratio = speed["limpet"] / speed["NumPy"]
        print(f"{size:3} at a time: limpet {speed['limpet']:.1f}, NumPy {speed['NumPy']:.1f} queries a second: {ratio:.2f}x")


if __name__ == "__main__":
    main()
