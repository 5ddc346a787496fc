"""How far is the walk from ideal on a source whose best code is known? Bits against entropy-coded quantization on the KLT.

The source is the Gaussian prior: its denoiser is exact, so rows, sampler, quantizer and coder are all that is measured. The
yardstick quantizes every coefficient of the true KLT with one uniform step and codes it at its entropy, knowing its
variance: what a codec with a perfect transform would do.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from bench import states
from dcodec import estimates, stream
from dcodec.entropy import Encoder
from dcodec.exact.functions import exp, normal_cdf
from dcodec.prior.gaussian import GaussianPrior, spectrum
from dcodec.state import State

Array = NDArray[np.float64]

STEPS = 2.0 ** np.arange(-2.0, 4.0, 0.125)


def ecsq(variances: Array, step: float) -> tuple[float, float]:
    """Bits and squared error of Gaussian variables (n,) quantized to multiples of `step`, centroids as reconstructions."""
    spreads, bits, errors = _table()
    at = 0.5 * np.log2(variances.ravel()) - math.log2(step)
    error = np.exp2(np.interp(at, spreads, np.log2(errors)))
    return float(np.interp(at, spreads, bits).sum()), float(error.sum()) * step * step


@cache
def _table() -> tuple[Array, Array, Array]:
    """log2 of standard deviations in steps; bits and squared error in squared steps of one variable of each."""
    spreads = np.arange(-8.0, 9.0, 1.0 / 32)
    bits, errors = np.empty(len(spreads)), np.empty(len(spreads))
    for i, spread in enumerate(np.exp2(spreads).tolist()):
        edge = (np.arange(math.ceil(8.0 * spread) + 2) + 0.5) / spread  # of the cells above zero
        tail, density = normal_cdf(-edge), exp(edge * edge * -0.5) * 0.3989422804014327
        # the cell at zero, then pairs of cells; their first moments
        p = np.concatenate([[1.0 - 2.0 * tail[0]], tail[:-1] - tail[1:]])
        moment = np.concatenate([[0.0], density[:-1] - density[1:]])
        count = np.where(np.arange(len(p)) > 0, 2.0, 1.0)
        live = p > 1e-15
        p, moment, count = p[live], moment[live], count[live]
        bits[i] = -float((count * p * np.log2(p)).sum())
        errors[i] = spread * spread * (1.0 - float((count * moment * moment / p).sum()))
    return spreads, bits, errors


def walk(side: int, seed: int, stop: float) -> tuple[list[int], list[float]]:
    """Bits and PSNR in dB (range [-1, 1]) of the mean after each refresh, for one draw, until the PSNR reaches `stop`."""
    prior = GaussianPrior()
    x = torch.from_numpy(prior.draw(3, side, side, seed))[None]
    header, setting = states.begin(prior, x, seed)
    bits: list[int] = []
    psnr: list[float] = []

    def enough(state: State, encoder: Encoder) -> bool:
        mean = torch.from_numpy(estimates.mean(setting, state))
        bits.append(encoder.bits)
        psnr.append(10 * math.log10(4 / float((mean - x[0]).square().mean())))
        return psnr[-1] > stop

    stream.encode(x, header, setting, enough)
    return bits, psnr


def ratios(targets: Sequence[float], seeds: Sequence[int], side: int = 64) -> Array:
    """(seeds, targets): bits of the walk over those of the yardstick at each PSNR, log-linear between refreshes."""
    variances = spectrum(side, side, GaussianPrior().parameters)
    points = [ecsq(variances, float(step)) for step in STEPS]
    reached = [10 * math.log10(4 * variances.size / error) for _, error in points]
    ideal = np.interp(targets, reached[::-1], [bits for bits, _ in points][::-1])
    out = []
    for seed in seeds:
        bits, psnr = walk(side, seed, max(targets) + 0.3)
        out.append(np.exp(np.interp(targets, psnr, np.log(bits))) / ideal)
    return np.array(out)
