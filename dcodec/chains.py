"""How do a walk's samples come about? Two chains of them go from refresh to refresh, round by round.

A round adds noise to samples of P(x|y) and takes it off again in one evaluation: one step of a split Gibbs sampler (Wu et al.
2024, arXiv 2405.18782, algorithm 1). The first chain's samples show by how they differ what is still unknown; the second's, of
less noise, are nearer to their mean, and that is nearer to E[x|y].
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dcodec.posterior import Draw, antithetic, centred, level, sample, schedule
from dcodec.state import Setting, State
from dcodec.transform import upsample

CHUNK, CHUNK_GPU = 1 << 18, 1 << 22  # pixels through the denoiser at once by default: more leave a processor's caches
CENTRE_KEY = 1 << 21  # noise of the centre: steps that neither a walk's samples nor estimates reach


def draw_samples(setting: Setting, state: State, scale: int) -> Iterator[Tensor]:
    """Samples of P(x|y) at `scale` for a refresh, round after round: (S, C, h, w) float32, CPU.

    From the last refresh's samples, where there are some, with noise of the step's size; else each round from pure noise.
    Many samples count for more than good ones: PCA is after their directions, gains mend their spread.
    All rounds but the last go further than the denoiser says (over-relaxation: Adler 1981), to x + w (D(x + s z) - x): in a
    direction in which D keeps a share l, w (1 - l) of the way to the mean instead of 1 - l, and to w l / (2 - w + w l) of
    the posterior's variance instead of l / (1 + l).
    """
    p, step = setting.profile, state.step / (1 << scale)  # in pixels of this scale
    x = raised(setting, state.samples, state.scale, scale, p.samples * (p.coarse if scale else 1))
    turn = p.rounds * state.refresh

    def draw(i: int) -> Draw:
        return centred(setting.seed, turn + i, len(x))

    if state.samples is None:
        levels = schedule(16.0, quiet(step), p.evaluations)
        return (_solve(setting, state, scale, levels, x, draw(i), turn + i) for i in range(p.rounds))
    return rounds(setting, state, scale, [[_round_level(p.noise * step)]] * p.rounds, x, p.relaxation, draw, turn)


def draw_centre(setting: Setting, state: State, scale: int, samples: Tensor) -> Tensor:
    """Where to expect rows: samples of little noise, (M, C, h, w) float32 at `scale`, CPU, whose mean is to stand for E[x|y].

    They go on from refresh to refresh, at first from `samples`. Their noise comes in pairs of z and -z.
    """
    p, step = setting.profile, state.step / (1 << scale)
    begin, at = (samples, scale) if state.centre is None else (state.centre, state.scale)
    x = raised(setting, begin, at, scale, p.centre)
    turn = p.centre_rounds * state.refresh

    def draw(i: int) -> Draw:
        return antithetic(setting.seed, CENTRE_KEY + turn + i)

    levels = [[_round_level(p.centre_noise * step)]] * p.centre_rounds
    *_, centre = rounds(setting, state, scale, levels, x, p.centre_relaxation, draw, turn)
    return centre


def rounds(
    setting: Setting, state: State, scale: int, levels: Sequence[Sequence[int]], x: Tensor, relaxation: float,
    draw: Callable[[int], Draw], turn: int,
) -> Iterator[Tensor]:  # fmt: skip
    """Samples of P(x|y) after each round: it adds noise to the last one's and takes it off again, at its `levels`.

    All but the last go `relaxation` times as far as the denoiser says. draw: a round's noise; turn: counts evaluations.
    """
    for i, falling in enumerate(levels):
        drawn = _solve(setting, state, scale, falling, x, draw(i), turn)
        x = (drawn - x).mul_(relaxation).add_(x) if relaxation != 1.0 and i + 1 < len(levels) else drawn
        turn += len(falling)
        yield x


def _round_level(sigma: float) -> int:
    """The level of a round's noise."""
    return level(min(max(sigma, 2.0**-5), 16.0))


def quiet(step: float) -> float:
    """Noise below what a row is measured for."""
    return 2.0**-5 if step >= 2.0**-4 else 2.0**-6


def raised(setting: Setting, samples: Tensor | None, at: int, scale: int, count: int) -> Tensor:
    """Samples of scale `at` at a finer one, as many as asked for; zeros when there are none."""
    layout = setting.layout
    if samples is None:
        return torch.zeros(count, layout.channels, *layout.size(scale))
    x = samples[torch.arange(count) % len(samples)]
    for finer in reversed(range(scale, at)):
        x = upsample(x, layout, finer)
    return x


def _solve(
    setting: Setting, state: State, scale: int, levels: Sequence[int], begin: Tensor, draw: Draw, turn: int
) -> Tensor:
    layout = setting.layout
    pixels = CHUNK if setting.device == "cpu" else CHUNK_GPU
    chunk = setting.chunk or max(1, min(len(begin), pixels // math.prod(layout.size(scale))))
    return sample(
        setting.prior, state.measured[: len(layout) - scale], layout, scale, levels, begin,
        draw, turn=turn, chunk=chunk, device=setting.device,
    )  # fmt: skip
