"""How good could a codec be with this prior? The I-MMSE curve: what an ideal code of the noisy picture costs, and shows.

An ideal diffusion codec (DiffC: Theis et al. 2022, arXiv 2206.08889, section 3) sends x + sigma n, sigma falling. At each
sigma the posterior mean is the denoiser's output, and the information sent so far is (Guo, Shamai, Verdu 2005, equation 1)

    R(sigma) = 1/2 int_0^{1 / sigma^2} e(snr) dsnr  nats,    e: squared error of the denoiser, summed over the picture

For a denoiser that is not the true posterior mean, R is still what such a code costs: the mismatch pays for itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench import table
from bench.metrics import psnr
from dcodec.exact.noise import normal
from dcodec.pictures import to_image
from dcodec.prior import SIGMAS, Prior

COLUMNS = ("prior", "image", "sigma", "bpp", "psnr_rgb", "mse")


@dataclass(frozen=True)
class Level:
    """One noise level. bpp: ideal rate, bits a pixel; psnr: of the 8-bit picture; mse: a channel, range [-1, 1]."""

    sigma: float
    bpp: float
    psnr: float
    mse: float


def limit(prior: Prior, picture: NDArray[np.uint8], stride: int = 1, draws: int = 1) -> list[Level]:
    """The curve of a colour picture (h, w, 3), noise falling: every `stride`-th of SIGMAS, errors averaged over `draws`."""
    x = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    noise = [torch.from_numpy(normal((0, 1 << 21, i), x.numel())).view(x.shape) for i in range(draws)]
    out: list[Level] = []
    nats, last, before = 0.0, math.inf, 0.0
    for sigma in SIGMAS[::-stride]:
        errors, shown = [], []
        for z in noise:
            estimate = prior(x + sigma * z, sigma)
            errors.append(float((estimate - x).double().square().sum()))
            shown.append(psnr(picture, np.asarray(to_image(estimate[0].numpy()))))
        power = float(np.mean(errors)) / (sigma * sigma)  # the integrand on the axis of log sigma
        # trapezoids on log sigma; below the first level the error is as good as constant
        nats += power / 2 if math.isinf(last) else (power + before) / 2 * math.log(last / sigma)
        last, before = sigma, power
        bits = nats / math.log(2)
        out.append(Level(sigma, bits / x[0, 0].numel(), float(np.mean(shown)), float(np.mean(errors)) / x.numel()))
    return out


def at_rates(curve: Sequence[Level], rates: Sequence[float]) -> list[float]:
    """PSNR in dB at `rates`, linear in log bpp between levels; nan outside of the curve."""
    bpp = np.log([level.bpp for level in curve])
    return np.interp(np.log(rates), bpp, [level.psnr for level in curve], left=math.nan, right=math.nan).tolist()


def append(out: Path, prior: str, image: str, curve: Sequence[Level]) -> None:
    """Add a picture's curve to a CSV with COLUMNS."""
    rows = [
        (prior, image, f"{level.sigma:.6g}", f"{level.bpp:.5f}", f"{level.psnr:.4f}", f"{level.mse:.6g}") for level in curve
    ]
    table.append(out, rows if out.exists() else [COLUMNS, *rows])
