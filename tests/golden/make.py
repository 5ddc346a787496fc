"""Which bytes and pixels must never change? `python tests/golden/make.py` writes them here; `test_golden` compares.

Run it after a change of the format (and raise the version then) or of the photo prior's weights (which changes `photo-colour`
alone), never to make a test pass.
"""

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
TABLE = HERE / "golden.json"

# name: (channels, height, width), options of encode
CASES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "fast-colour": ((3, 28, 40), {"size": 120}),
    "fast-gray": ((1, 53, 50), {"size": 90, "seed": 3}),
    "psc-gray": ((1, 8, 8), {"size": 20, "preset": "psc"}),
    "psc-colour": ((3, 5, 4), {"size": 24, "preset": "psc", "rows": 5, "seed": 255}),
    "photo-colour": ((3, 40, 56), {"size": 110, "prior": "photo"}),  # a network, in positions
}


def picture(channels: int, h: int, w: int) -> NDArray[np.uint8]:
    """A disc on a ramp with smooth clouds, (h, w) or (h, w, 3), from integers alone: the same on every machine."""
    y, x = np.mgrid[:h, :w].astype(np.int64)
    clouds = np.random.Philox(key=channels).random_raw((h + 6) * (w + 6)).astype("<u8").view("<u2")[::4]
    clouds = clouds.astype(np.int64).reshape(h + 6, w + 6)
    smooth = sum(clouds[dy : dy + h, dx : dx + w] for dy in range(7) for dx in range(7)) // 49
    inside = (2 * y - h) ** 2 + (2 * x - w) ** 2 < (min(h, w) // 2) ** 2
    planes = [
        (smooth >> 8) // 2 + 96 * (y if c == 1 else x) // (w + h) + np.where(inside, 60 - 50 * c, 0)
        for c in range(channels)
    ]
    stacked = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
    return stacked if channels == 3 else stacked[..., 0]


def encode(name: str) -> bytes:
    """The stream of a case."""
    import dcodec

    shape, options = CASES[name]
    return dcodec.encode(picture(*shape), **({"prior": "gaussian"} | options))


def decode(data: bytes) -> dict[str, str]:
    """Hashes of what a stream shows: float32 pixels of the mean, of two samples, and of the mean of its first half."""
    from dcodec import estimates
    from dcodec.container import HEADER_SIZE, MAX_SIDE
    from dcodec.session import Session

    session = Session.of(data, None, None, "cpu", 0, MAX_SIDE)
    setting = session.setting
    (_, half), (_, whole) = session.states([(len(data) + HEADER_SIZE) // 2, len(data)])
    first, second = estimates.samples(setting, whole, 2)
    means = (estimates.mean(setting, state) for state in (whole, half))
    shown = dict(zip(("mean", "half", "sample", "second sample"), (*means, first, second), strict=True))
    return {key: sha256(np.ascontiguousarray(value, "<f4").tobytes()).hexdigest() for key, value in shown.items()}


def make() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """(name, stream, hashes) of each case."""
    for name in CASES:
        data = encode(name)
        yield name, data, {"picture": sha256(picture(*CASES[name][0]).tobytes()).hexdigest(), **decode(data)}


def main() -> None:
    """Write all files."""
    table = {}
    for name, data, hashes in make():
        (HERE / f"{name}.dcx").write_bytes(data)
        table[name] = hashes
        print(f"{name}: {len(data)} bytes, mean {hashes['mean'][:16]}")
    TABLE.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))  # the package of this checkout
    main()
