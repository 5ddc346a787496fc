"""Where does shared Gaussian noise come from?

Counter-based: Philox-4x64 raw bits (Salmon et al., SC 2011), 16 at a time, through a shipped table of the normal quantiles
in units of 2**-12. A draw depends on its key alone, so batches, threads and devices cannot change it.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray


@cache
def _quantiles() -> NDArray[np.float32]:
    with (files("dcodec.exact") / "normal.npy").open("rb") as f:
        upper = np.load(f)  # (32768,) int16: Phi^-1((i + 1/2) / 65536) for i >= 32768, times 4096
    table: NDArray[np.float32] = np.concatenate([-upper[::-1], upper]).astype(np.float32) * np.float32(2.0**-12)
    return table


def normal(key: tuple[int, int, int], n: int) -> NDArray[np.float32]:
    """`n` standard normal draws for `key` = (seed, step, sample), float32 multiples of 2**-12 in [-4.33, 4.33]."""
    seed, step, sample = key
    raw = np.random.Philox(key=seed, counter=[0, sample, step, 0]).random_raw((n + 3) // 4)
    return _quantiles().take(raw.astype("<u8").view("<u2")[:n])  # indexing takes twice as long
