"""How different do two pictures look to a network? LPIPS v0.1 on SqueezeNet 1.1 (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

Values compare only with others of the same network. Weights: a .npz file of torchvision's `squeezenet1_1` and of LPIPS' linear
heads, by their own names (`features.0.weight`, ..., `lin0`, ...); no package is needed, and none is downloaded.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from bench import data_folder
from bench.metrics import Shown

NAME = "lpips_squeeze"  # the column of the CSV
MIN_SIDE = 17  # of the picture, for the last halving to leave something

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's colours, range [-1, 1]
_STAGES = ((3, 4), (6, 7), (9,), (10,), (11,), (12,))  # fire modules between taps
_HALVED = (0, 1, 2)  # stages that begin with a pooling

Weights = dict[str, Tensor]


def default_weights() -> Path | None:
    """The file in the data folder, if it is there."""
    path = data_folder() / "metrics" / "lpips_squeeze.npz"
    return path if path.exists() else None


def lpips(a: Shown, b: Shown, weights: Path) -> float | None:
    """Distance of two 8-bit pictures (h, w) or (h, w, 3), 0 for equal ones; None below MIN_SIDE pixels.

    Raises ValueError when the pictures differ in shape, or when `weights` is no file of these weights.
    """
    if a.shape != b.shape:
        raise ValueError(f"expected two pictures of one shape, found {a.shape} and {b.shape}")
    if min(a.shape[:2]) < MIN_SIDE:
        return None
    w = _read(weights)
    total = 0.0
    for i, (p, q) in enumerate(zip(_taps(_input(a), w), _taps(_input(b), w), strict=True)):
        total += float(conv2d((_unit(p) - _unit(q)).square(), w[f"lin{i}"]).mean(dtype=torch.float64))
    return total


def summary(a: Shown, weights: Path) -> NDArray[np.float64]:
    """(512,): the network's last feature map of an 8-bit picture, averaged over it. At least MIN_SIDE pixels a side."""
    *_, last = _taps(_input(a), _read(weights))
    return np.asarray(last.mean(dim=(0, 2, 3), dtype=torch.float64))


@functools.lru_cache(maxsize=1)
def _read(path: Path) -> Weights:
    try:
        with np.load(path) as file:
            w = {name: torch.from_numpy(file[name]) for name in file.files if not name.startswith("classifier")}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a .npz file of LPIPS' weights ({error})") from error
    if not {"features.0.weight", "features.12.squeeze.weight", "lin6"} <= w.keys():
        raise ValueError(f"{path}: expected the weights of SqueezeNet 1.1 and LPIPS' heads, found {len(w)} other arrays")
    return w


def _input(a: Shown) -> Tensor:  # (1, 3, h, w)
    x = torch.from_numpy(a.astype(np.float32) / np.float32(127.5) - 1)
    x = x.permute(2, 0, 1) if x.ndim == 3 else x.expand(3, -1, -1)
    return (x[None] - torch.tensor(_SHIFT).view(1, 3, 1, 1)) / torch.tensor(_SCALE).view(1, 3, 1, 1)


def _taps(x: Tensor, w: Weights) -> list[Tensor]:
    """The seven feature maps, of 64, 128, 256, 384, 384, 512, 512 channels."""

    def conv(x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        return relu(conv2d(x, w[name + ".weight"], w[name + ".bias"], stride=stride, padding=padding))

    taps = [conv(x, "features.0", stride=2)]
    for stage, fires in enumerate(_STAGES):
        x = max_pool2d(taps[-1], 3, 2, ceil_mode=True) if stage in _HALVED else taps[-1]
        for i in fires:
            narrow = conv(x, f"features.{i}.squeeze")
            both = conv(narrow, f"features.{i}.expand1x1"), conv(narrow, f"features.{i}.expand3x3", padding=1)
            x = torch.cat(both, 1)
        taps.append(x)
    return taps


def _unit(x: Tensor) -> Tensor:
    """Every pixel's features, scaled to length 1."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
