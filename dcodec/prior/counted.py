"""What does a picture cost? A prior that counts its evaluations, and the time they take."""

import math
import time
from copy import copy
from fractions import Fraction

import torch
from torch import Tensor

from dcodec.prior import Prior


class Counted:
    """A prior, counted in evaluations at full size: one at half a picture's sides is a quarter.

    evaluations: so far; seconds: on the clock, that they took.
    """

    def __init__(self, prior: Prior, height: int, width: int) -> None:
        """height, width: of the picture."""
        self._prior, self.evaluations, self.seconds = prior, Fraction(0), 0.0
        self._area = math.prod(prior.latent.shape(height, width)[1:]) if prior.latent else height * width
        self.name, self.digest, self.channels = prior.name, prior.digest, prior.channels
        self.size, self.latent, self.doubt, self.turned = prior.size, prior.latent, prior.doubt, prior.turned

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x], see Prior."""
        begin = _now(x)
        out = self._prior(x, sigma)
        self.evaluations += Fraction(len(x) * x.shape[-2] * x.shape[-1], self._area)
        self.seconds += _now(x) - begin
        return out

    def to(self, device: str) -> "Counted":
        """The same prior on a device, what was counted so far included."""
        moved = copy(self)
        moved._prior = self._prior.to(device)
        return moved


def _now(x: Tensor) -> float:
    """Seconds on the clock, once all that was asked of the device of `x` is done."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
