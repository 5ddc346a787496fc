"""What does a state of the walk show? Realistic samples, and the mean estimate with the samples behind it."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dcodec.chains import quiet, raised, rounds
from dcodec.domain import Pixels, leave
from dcodec.posterior import antithetic, schedule
from dcodec.state import Setting, State

ESTIMATE_KEY = 1 << 20  # noise of estimates: a step that no walk reaches


@dataclass(frozen=True)
class Passes:
    """How an estimate's samples come: a pass of `first` evaluations, then `rounds` of `each`, with `noise` steps of noise.

    They begin as the walk's samples, or `centred` as its centre. relaxation: of all rounds but the last (see chains.rounds).
    """

    first: int = 8
    rounds: int = 0
    each: int = 3
    noise: float = 1.0
    relaxation: float = 1.0
    centred: bool = False


MEAN = Passes(0, 9, 1, 0.3, 1.75, centred=True)  # little noise, one evaluation a round: smooth samples, a good average of them
COLD_MEAN = Passes(4, 3)  # where samples begin as pure noise, there is more to mend
SAMPLE = Passes(8, 3, 6, 2.0)  # more of both: samples that vary as much as the mean errs (bench/NOTES.md)


def samples(setting: Setting, state: State, count: int, seed: int | None = None) -> Pixels:
    """(count, C, h, w) samples of P(x|y) to look at; seed: of their noise, the stream's own if None."""
    return _drawn(setting, state, count, seed, SAMPLE)


def mean(setting: Setting, state: State, seed: int | None = None) -> Pixels:
    """(C, h, w) the estimate of least squared error."""
    return average(behind_mean(setting, state, seed))


def behind_mean(setting: Setting, state: State, seed: int | None = None) -> Pixels:
    """(S, C, h, w) the samples whose average is the mean estimate; too smooth to look at."""
    passes = COLD_MEAN if state.centre is None else MEAN
    return _drawn(setting, state, setting.profile.averaged, seed, passes)


def average(drawn: Pixels) -> Pixels:
    """(S, C, h, w) -> (C, h, w), float32."""
    mean: Pixels = drawn.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _drawn(setting: Setting, state: State, count: int, seed: int | None, passes: Passes) -> Pixels:
    return leave(setting, estimate(setting, state, count, setting.seed if seed is None else seed, passes))


def estimate(setting: Setting, state: State, count: int, seed: int, passes: Passes) -> Tensor:
    """`count` samples of P(x|y) at full size: (count, C, h, w) float32.

    A round adds noise of about the step's size and takes it off again: one pass of a split Gibbs sampler (Wu et al. 2024, arXiv
    2405.18782, algorithm 1). The first pass decides much of the picture at noise where y is hardly heard; rounds mend it.
    """
    x, first = raised(setting, state.centre if passes.centred else state.samples, state.scale, 0, count), 16.0
    if state.samples is not None:
        first = min(16.0, max(3.0 * state.step / setting.profile.ratio, 0.5))
    begin = min(max(passes.noise * state.step, 2.0**-4), 4.0)
    levels = [schedule(first, quiet(state.step), passes.first)] if passes.first else []
    levels += [schedule(begin, min(begin / 2, 2.0**-4), passes.each)] * passes.rounds
    *_, x = rounds(setting, state, 0, levels, x, passes.relaxation, lambda i: antithetic(seed, ESTIMATE_KEY + i), 0)
    return x
