"""What do all tests share? Pictures drawn from the prior that codes them, and one thread."""

import os
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: two threads on small matrices wait for each other

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcodec.prior.gaussian import GaussianPrior

torch.set_num_threads(1)

Draw = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="session")
def prior() -> GaussianPrior:
    """The oracle: a prior whose posterior is known in closed form."""
    return GaussianPrior()


@pytest.fixture(scope="session")
def draw(prior: GaussianPrior) -> Draw:
    """draw(channels, h, w, seed=0): a smooth picture with the spectrum of photographs, (C, h, w) float32 in [-1, 1]."""

    def draw(channels: int, h: int, w: int, seed: int = 0) -> NDArray[np.float32]:
        x = prior.draw(channels, h, w, seed)
        if channels == 1:
            x = x / np.float32(np.sqrt(3))  # the prior's gray is luma
        return np.clip(x, -1, 1)

    return draw
