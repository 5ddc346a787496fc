"""How far is a decoded picture from its original? PSNR and MS-SSIM of 8-bit pictures."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

Shown = NDArray[np.uint8]  # (h, w) or (h, w, 3)

MIN_SIDE = 176  # 11 taps at a sixteenth of the size
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
_K1, _K2 = 0.01**2, 0.03**2


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """PSNR in dB, one error over all pixels and channels; inf for equal pictures."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"expected two 8-bit pictures of one shape, found {a.shape} {a.dtype} and {b.shape} {b.dtype}")
    error = float(np.mean((a.astype(np.int32) - b) ** 2, dtype=np.float64))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ms_ssim(a: Shown, b: Shown) -> float | None:
    """MS-SSIM: 5 scales, Gaussian window of 11 taps, sigma 1.5; mean over channels. None below MIN_SIDE pixels."""
    if a.shape != b.shape:
        raise ValueError(f"expected two pictures of one shape, found {a.shape} and {b.shape}")
    if min(a.shape[:2]) < MIN_SIDE:
        return None
    x, y = _planes(a), _planes(b)
    out = torch.ones(len(x), dtype=torch.float64)
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            x, y = _halve(x), _halve(y)
        n = len(x)
        means = _blur(torch.cat([x, y, x * x, y * y, x * y]))
        mx, my, xx, yy, xy = (means[k * n : (k + 1) * n] for k in range(5))
        similar = (2 * (xy - mx * my) + _K2) / (xx - mx * mx + yy - my * my + _K2)
        if scale == len(_WEIGHTS) - 1:
            similar = similar * (2 * mx * my + _K1) / (mx * mx + my * my + _K1)
        out *= similar.mean(dim=(1, 2, 3), dtype=torch.float64).clamp(min=0) ** weight
    return float(out.mean())


def _planes(a: Shown) -> Tensor:  # (C, 1, h, w) in [0, 1]
    x = torch.from_numpy(a.astype(np.float32) / np.float32(255))
    return x.reshape(*a.shape[:2], -1).permute(2, 0, 1)[:, None]


def _halve(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2, padding=(x.shape[2] % 2, x.shape[3] % 2))


def _blur(x: Tensor) -> Tensor:
    t = torch.arange(-5, 6, dtype=torch.float32)
    window = torch.softmax(-t * t / (2 * 1.5**2), 0)
    return conv2d(conv2d(x, window.reshape(1, 1, 11, 1)), window.reshape(1, 1, 1, 11))
