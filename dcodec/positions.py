"""In which position does a prior see a sample? Each in its own of the eight: mirrored, turned.

A network errs otherwise on each of the eight positions of one picture. Samples that are denoised in different ones, and in
another at every evaluation, do not all err alike: their mean is better, and what they disagree on tells of those errors too.
"""

import torch
from torch import Tensor

from dcodec.prior import Prior

MIRROR, FLIP, TRANSPOSE = 1, 2, 4
# neighbours differ most, any four are half transposed, half mirrored, half flipped
ORDER = (0, TRANSPOSE | FLIP | MIRROR, MIRROR, TRANSPOSE | FLIP, FLIP | MIRROR, TRANSPOSE, FLIP, TRANSPOSE | MIRROR)


def denoise(prior: Prior, x: Tensor, sigma: float, first: int, turn: int) -> Tensor:
    """E[x0 | x = x0 + sigma n] of samples `first`, `first` + 1, ..: (S, C, h, w) float32, each in its position at this turn.

    All as they are, if the prior does not know turned pictures. No sample's bits depend on which others are with it.
    """
    if not prior.turned:
        return prior(x, sigma)
    positions = [ORDER[(first + i + turn) % len(ORDER)] for i in range(len(x))]
    out = torch.empty_like(x)
    for transposed in (0, TRANSPOSE):  # their shapes differ
        mine = [i for i, position in enumerate(positions) if position & TRANSPOSE == transposed]
        if mine:
            estimates = prior(torch.stack([put(x[i], positions[i]) for i in mine]), sigma)
            for i, estimate in zip(mine, estimates, strict=True):
                out[i] = put_back(estimate, positions[i])
    return out


def put(x: Tensor, position: int) -> Tensor:
    """A picture (C, h, w) into a position: (C, h, w), or (C, w, h) in transposed ones."""
    x = x.flip([axis for axis, bit in ((-1, MIRROR), (-2, FLIP)) if position & bit])
    return x.mT if position & TRANSPOSE else x


def put_back(x: Tensor, position: int) -> Tensor:
    """The inverse of `put`."""
    x = x.mT if position & TRANSPOSE else x
    return x.flip([axis for axis, bit in ((-1, MIRROR), (-2, FLIP)) if position & bit])
