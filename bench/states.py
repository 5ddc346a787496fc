"""How does an experiment get at a walk's states? As `dcodec.encode` goes for a number of bytes, with all steps kept."""

from torch import Tensor

from dcodec import stream
from dcodec.container import HEADER_SIZE, Header
from dcodec.domain import enter
from dcodec.prior import Prior
from dcodec.state import Setting


def begin(
    prior: Prior, x: Tensor, seed: int = 0, preset: str = "fast", rows: int = 0
) -> tuple[Header, Setting]:
    """Header and setting of a walk for a picture (1, C, h, w)."""
    _, c, h, w = x.shape
    header = Header(w, h, c == 1, preset, rows, prior.digest[:2], seed)
    return header, Setting.of(header, prior)


def walk(
    prior: Prior, x: Tensor, size: int, preset: str = "fast", rows: int = 0
) -> tuple[Setting, stream.Written]:
    """What a file of `size` bytes takes for a picture (1, C, h, w) float32 in [-1, 1]."""
    header, setting = begin(prior, x, 0, preset, rows)
    written = stream.encode(enter(setting, x), header, setting, lambda _, e: e.filled(size - HEADER_SIZE), keep=1 << 20)
    return setting, written
