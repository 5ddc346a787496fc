"""Is work on tiles cut up so that all of it is done, once, in bounded parts, and to the same bits on any number of threads?"""

import math
from collections.abc import Iterator
from threading import Barrier

import numpy as np
import pytest
import torch

from dcodec import parts
from dcodec.parts import CHUNK, LEAST, WORKERS, each
from dcodec.posterior import Measured
from dcodec.profiles import profile
from dcodec.rows import next_rows, view


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2, 3, 40])
@pytest.mark.parametrize(("n", "size"), [(0, 5), (1, 0), (31, 1), (1000, 144 * 32), (77, CHUNK // 8), (3, 2 * CHUNK)])
def test_every_item_is_in_one_part(threads: int, n: int, size: int) -> None:
    torch.set_num_threads(threads)
    slices = each(lambda part: part, n, size)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(n))
    assert all((part.stop - part.start) * size <= max(CHUNK, size) for part in slices)
    if size < CHUNK // LEAST:
        assert min(threads, WORKERS, n // LEAST) <= len(slices)
    assert [i for part in parts.parts(n, size) for i in range(part.start, part.stop)] == list(range(n))


@pytest.mark.usefixtures("_threads")
def test_parts_are_worked_on_side_by_side() -> None:
    torch.set_num_threads(2)
    meeting = Barrier(2)
    assert sorted(each(lambda _: meeting.wait(timeout=30), 2 * LEAST, 1)) == [0, 1]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_part_is_told(threads: int) -> None:
    torch.set_num_threads(threads)

    def work(part: slice) -> None:
        if part.stop == 3 * LEAST:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        each(work, 3 * LEAST, CHUNK // LEAST)


@pytest.mark.usefixtures("_threads")
def test_rows_are_the_same_on_any_number_of_threads() -> None:
    """Bands of up to 300 tiles, and samples that disagree everywhere."""
    fast = profile("fast")
    layout, rng = fast.layout(3, 80, 240), np.random.default_rng(0)
    bands = range(len(layout))
    rounds = [
        [torch.from_numpy(rng.normal(0, 0.02, (8, *layout.support(i).shape)).astype(np.float32)) for _ in range(fast.rounds)]
        for i in bands
    ]
    made = set()
    for threads in (1, 3, 4):
        torch.set_num_threads(threads)
        views = [
            view(r, r[-1], Measured.nothing(layout.dim(i)), layout.region(i), np.ones(math.prod(layout.grid(i))))
            for i, r in enumerate(rounds)
        ]
        directions = next_rows(views, [np.ones(math.prod(layout.regions(i))) for i in bands], layout, fast, 0.02)
        assert len(directions) > 1000
        arrays = [a for v in views for a in (v.mean, v.deviations, v.energy)]
        arrays += [c.rows for c in directions.bands] + [directions.loc, directions.variance, directions.tile]
        made.add(b"".join(a.tobytes() for a in arrays))
    assert len(made) == 1
