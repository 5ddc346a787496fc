"""How is work on many tiles done? In parts that bound memory, side by side on torch's number of threads.

numpy works on one thread and lets others run meanwhile. What becomes of a tile never depends on its part: the same bits.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

CHUNK = 1 << 20  # numbers that a part may take: of float64, what a cache holds, more or less
WORKERS = 4  # threads at most: each takes a chunk, and waits for the interpreter between numpy's operations
LEAST = 32  # items of a part that are worth a thread


def parts(n: int, size: int) -> list[slice]:
    """Slices of 0 .. n, items of which take `size` numbers each: as many as fit in a chunk."""
    return _cut(n, CHUNK // max(1, size))


def each(work: Callable[[slice], T], n: int, size: int) -> list[T]:
    """What `work` gives for slices of 0 .. n, in order: of a chunk at most, and smaller where that gives more threads some."""
    workers = min(torch.get_num_threads(), WORKERS)
    slices = _cut(n, min(CHUNK // max(1, size), max(LEAST, -(-n // workers))))
    if workers == 1 or len(slices) == 1:
        return [work(part) for part in slices]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, slices))


def _cut(n: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]
