"""By how many percent do the bits of two codecs differ at equal quality?

Bjontegaard's delta rate with piecewise cubic interpolation (PCHIP), as in the common test conditions of JCT-VC: the mean of the
difference of log rates over the qualities that both curves have.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

Curve = Mapping[float, float]  # bpp -> PSNR in dB


def bd_rate(anchor: Curve, test: Curve) -> float:
    """Percent more bits (negative: fewer) that `test` takes than `anchor`; nan where no quality is shared.

    Points that rise in rate and not in quality are left out: there a codec has a better way to the quality.
    """
    curves = [_rising(curve) for curve in (anchor, test)]
    if any(len(quality) < 2 for quality, _ in curves):
        return math.nan
    low, high = max(quality[0] for quality, _ in curves), min(quality[-1] for quality, _ in curves)
    if low >= high:
        return math.nan
    ours, theirs = (float(PchipInterpolator(*curve).integrate(low, high)) for curve in reversed(curves))
    return 100.0 * math.expm1((ours - theirs) / (high - low))


def _rising(curve: Curve) -> tuple[list[float], list[float]]:
    """Quality and log rate of the points that no cheaper point reaches."""
    quality: list[float] = []
    rate: list[float] = []
    for bpp in sorted(curve):
        if not quality or curve[bpp] > quality[-1]:
            quality.append(curve[bpp])
            rate.append(float(np.log(bpp)))
    return quality, rate


def bootstrap(values: Sequence[float], draws: int = 10_000, share: float = 0.95) -> tuple[float, float]:
    """The interval that holds the mean over pictures in `share` of all draws with replacement (Efron 1979, percentiles)."""
    chosen = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.asarray(values)[chosen].mean(axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)
