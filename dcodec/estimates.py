"""What does a state of the walk show? Realistic samples, and the mean estimate with the samples behind it."""

import numpy as np

from dcodec import codec
from dcodec.codec import Passes, Setting, State
from dcodec.domain import Pixels, leave


def samples(setting: Setting, state: State, count: int, seed: int | None = None) -> Pixels:
    """(count, C, h, w) samples of P(x|y) to look at; seed: of their noise, the stream's own if None."""
    return _drawn(setting, state, count, seed, codec.SAMPLE)


def mean(setting: Setting, state: State, seed: int | None = None) -> Pixels:
    """(C, h, w) the estimate of least squared error."""
    return average(behind_mean(setting, state, seed))


def behind_mean(setting: Setting, state: State, seed: int | None = None) -> Pixels:
    """(S, C, h, w) the samples whose average is the mean estimate; too smooth to look at."""
    passes = codec.COLD_MEAN if state.centre is None else codec.MEAN
    return _drawn(setting, state, setting.profile.averaged, seed, passes)


def average(drawn: Pixels) -> Pixels:
    """(S, C, h, w) -> (C, h, w), float32."""
    mean: Pixels = drawn.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _drawn(setting: Setting, state: State, count: int, seed: int | None, passes: Passes) -> Pixels:
    return leave(setting, codec.estimate(setting, state, count, setting.seed if seed is None else seed, passes))
