"""dcodec's method on one screen: one walk, driven from both sides.

    picture x ──► Writer ─┐                        ┌─ Reader ◄── bytes        (stream.py)
                          └─► walk: propose ─► code ─► absorb ─► propose ...

Encoder and decoder hold the same state: rows H and quantized measurements y = Hx + n. Both draw samples of P(x|y), find by
PCA what they still disagree on, and measure that next (posterior sampling-based compression: Elata, Michaeli, Elad,
TMLR 2025, arXiv 2407.09896, algorithm 1). H is never sent; any prefix of the symbols is a code of the whole picture.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.container import BitstreamError, Header
from dcodec.posterior import Draw, Measured, antithetic, centred, level, sample, schedule
from dcodec.prior import EIGHTHS, Prior
from dcodec.profiles import Profile, profile
from dcodec.quantize import Symbols
from dcodec.rows import Directions, View, absorb, next_rows, view
from dcodec.surprise import Account, after, factors
from dcodec.transform import Layout, analyze, upsample

MAX_WHOLE = 1 << 20  # values of a picture whose rows span all of it
CHUNK, CHUNK_GPU = 1 << 18, 1 << 22  # pixels through the denoiser at once by default: more leave a processor's caches
ESTIMATE_KEY, CENTRE_KEY = 1 << 20, 1 << 21  # noise of estimates, of the centre: steps that no walk reaches


@dataclass(frozen=True)
class Setting:
    """What a walk needs besides symbols: the header's content made concrete. chunk: samples through the denoiser at once.

    picture: channels, height and width of what is coded; the layout's are those of the walk, which latent models make smaller.
    """

    prior: Prior
    picture: tuple[int, int, int]
    profile: Profile
    layout: Layout
    seed: int
    first_step: float
    device: str = "cpu"
    chunk: int = 0

    @property
    def surprising(self) -> bool:
        """Whether rows may turn out other than foreseen, tile by tile: not those of a right prior."""
        return self.profile.gains and self.prior.doubt > 1.0

    @classmethod
    def of(cls, header: Header, prior: Prior, device: str = "cpu", chunk: int = 0) -> "Setting":
        """The walk that a header describes."""
        picture = 1 if header.gray else 3, header.height, header.width
        channels, height, width = prior.latent.shape(*picture[1:]) if prior.latent else picture
        if channels not in prior.channels:
            if channels != 1:
                raise ValueError(f"prior {prior.name} knows pictures of {prior.channels[0]} channels, not of {channels}")
            channels = prior.channels[-1]  # gray pictures are pictures in colour too
        p = profile(header.preset, header.rows)
        if not p.tile and channels * height * width > MAX_WHOLE:
            raise BitstreamError(
                f"preset {header.preset} takes pictures of up to {MAX_WHOLE} values, "
                f"not {header.width}x{header.height}x{channels}: use preset fast"
            )
        layout = p.layout(channels, height, width, prior.size)
        octaves, eighths = divmod(header.step - 128, 8)
        first = p.first_step * (1 << p.depth(height, width)) * EIGHTHS[eighths] * 2.0**octaves
        return cls(prior, picture, p, layout, header.seed, first, device, chunk)


@dataclass(frozen=True)
class State:
    """All that encoder and decoder know alike after `refresh` refreshes.

    measured: rows and measurements, a band. step: quantization step next.
    gains: half octaves of energy, (r,) int64 a band, by which the picture last exceeded what the samples showed, a region.
    samples: of P(x|y) before the last measurements, (S, C, h, w) at `scale`; None at the start and in presets without `warm`.
    centre: quieter ones, (M, C, h, w), whose mean is nearer to E[x|y] than theirs; None where nobody asked for them yet.
    energy: squared error of the samples' mean to expect off the measured rows, a band that they have (B,).
    accounts: of what rows turned out to be, tile by tile, a band.
    """

    refresh: int
    step: float
    measured: tuple[Measured, ...]
    gains: tuple[NDArray[np.int64], ...]
    scale: int
    samples: Tensor | None
    centre: Tensor | None
    energy: NDArray[np.float64]
    accounts: tuple[Account, ...]


MAX_GAIN = 24  # half octaves of energy


def half_octaves(n: NDArray[np.int64]) -> NDArray[np.float64]:
    """2**(n / 2), the same on every machine."""
    return np.ldexp(np.where(n & 1, 1.4142135623730951, 1.0), (n >> 1).astype(np.int32))


class Coder(Protocol):
    """Where symbols come from. Nothing else of the picture reaches the walk."""

    def gains(self, views: Sequence[View], expected: NDArray[np.int64]) -> NDArray[np.int64]:
        """How the energy of each band and region compares with what the samples show, in half octaves, band after band;
        fewer once bits are used up."""

    def symbols(self, directions: Directions) -> Symbols:
        """Quantized projections on the directions; fewer once bits are used up."""

    @property
    def ended(self) -> bool:
        """Whether the bits are used up."""


def walk(setting: Setting, code: Coder) -> Iterator[State]:
    """Encoder and decoder both run this; only `code` differs, and only the Writer has seen the picture."""
    state = start(setting)
    yield state
    while state.step >= setting.profile.last_step:
        state, directions = propose(setting, state, code)  # posterior samples -> rows, what to expect of them
        symbols = code.symbols(directions)  # Writer: quantize and write; Reader: read
        state = learn(setting, state, directions, symbols)
        yield state
        if code.ended:
            return


def start(setting: Setting) -> State:
    """Nothing measured."""
    layout = setting.layout
    nothing = tuple(Measured.nothing(layout.dim(i)) for i in range(len(layout)))
    gains = tuple(np.zeros(math.prod(layout.regions(i)), np.int64) for i in range(len(layout)))
    accounts = tuple(Account.nothing(math.prod(layout.grid(i))) for i in range(len(layout)))
    return State(0, setting.first_step, nothing, gains, layout.coarsest, None, None, np.zeros(0), accounts)


def propose(setting: Setting, state: State, code: Coder) -> tuple[State, Directions]:
    """Draw samples of P(x|y), at the coarsest scale with all details that the step can tell; PCA of what they disagree on."""
    p, layout = setting.profile, setting.layout
    scale = state.scale
    while scale and state.step < p.opening * (1 << scale):
        scale -= 1
    rounds = []
    for samples in draw_samples(setting, state, scale):  # pictures may be large: only the last round's are kept as such
        rounds.append(analyze(samples, layout, scale))
    centre = draw_centre(setting, state, scale, samples) if p.centre and state.samples is not None else None
    middles = rounds[-1] if centre is None else analyze(centre, layout, scale)
    believed = factors(state.accounts, layout)
    views = [
        view(band, middle, m, layout.region(i), factor)
        for i, (*band, middle, m, factor) in enumerate(zip(*rounds, middles, state.measured, believed, strict=False))
    ]
    gains = list(state.gains[: len(views)])
    if p.gains and state.refresh:
        flat, ends = np.concatenate(gains), np.cumsum([len(g) for g in gains])
        coded = code.gains(views, flat)
        flat[: len(coded)] = coded
        gains = np.split(flat, ends[:-1])
    scales = [half_octaves(g) for g in gains]
    for finer in range(len(gains), len(layout)):  # expect the same of them
        gains.append(layout.refine(torch.from_numpy(gains[-1]), finer).numpy())
    step = state.step
    directions = next_rows(views, scales, layout, p, step)
    while p.limit and not len(directions) and step >= p.last_step:
        step *= p.ratio
        directions = next_rows(views, scales, layout, p, step)
    drawn = replace(state, samples=samples if p.warm else None, centre=centre, scale=scale, step=step, gains=tuple(gains))
    return drawn, directions


def draw_samples(setting: Setting, state: State, scale: int) -> Iterator[Tensor]:
    """Samples of P(x|y) at `scale` for a refresh, round after round: (S, C, h, w) float32, CPU.

    From the last refresh's samples, where there are some: a round adds noise of the step's size to them and takes it off again,
    in one evaluation. Many samples count for more than good ones: PCA is after their directions, gains mend their spread.
    All rounds but the last go further than the denoiser says (over-relaxation: Adler 1981), to x + w (D(x + s z) - x): in a
    direction in which D keeps a share l, w (1 - l) of the way to the mean instead of 1 - l, and to w l / (2 - w + w l) of
    the posterior's variance instead of l / (1 + l).
    """
    p, step = setting.profile, state.step / (1 << scale)  # in pixels of this scale
    x = _raised(setting, state.samples, state.scale, scale, p.samples * (p.coarse if scale else 1))
    turn = p.rounds * state.refresh

    def draw(i: int) -> Draw:
        return centred(setting.seed, turn + i, len(x))

    if state.samples is None:
        levels = schedule(16.0, _quiet(step), p.evaluations)
        return (_solve(setting, state, scale, levels, x, draw(i), turn + i) for i in range(p.rounds))
    return _rounds(setting, state, scale, [[_round_level(p.noise * step)]] * p.rounds, x, p.relaxation, draw, turn)


def draw_centre(setting: Setting, state: State, scale: int, samples: Tensor) -> Tensor:
    """Where to expect rows: samples of little noise, (M, C, h, w) float32 at `scale`, CPU, whose mean is to stand for E[x|y].

    They go on from refresh to refresh, at first from `samples`. Their noise comes in pairs of z and -z.
    """
    p, step = setting.profile, state.step / (1 << scale)
    begin, at = (samples, scale) if state.centre is None else (state.centre, state.scale)
    x = _raised(setting, begin, at, scale, p.centre)
    turn = p.centre_rounds * state.refresh

    def draw(i: int) -> Draw:
        return antithetic(setting.seed, CENTRE_KEY + turn + i)

    levels = [[_round_level(p.centre_noise * step)]] * p.centre_rounds
    *_, centre = _rounds(setting, state, scale, levels, x, p.centre_relaxation, draw, turn)
    return centre


def _rounds(
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


def _quiet(step: float) -> float:
    """Noise below what a row is measured for."""
    return 2.0**-5 if step >= 2.0**-4 else 2.0**-6


def _raised(setting: Setting, samples: Tensor | None, at: int, scale: int, count: int) -> Tensor:
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


def learn(setting: Setting, state: State, directions: Directions, symbols: Symbols) -> State:
    """Absorb the measurements that `symbols` (any first part of the directions) make."""
    n = len(symbols)
    y, width = directions.dequantize(symbols)
    measured = list(state.measured)
    for index, candidates in enumerate(directions.bands):
        mine = np.flatnonzero(directions.band[:n] == index)
        if not len(mine):
            continue
        chosen = np.zeros(candidates.wanted.shape, bool)
        ys, widths = np.zeros(chosen.shape), np.zeros(chosen.shape)
        at = directions.tile[mine], directions.column[mine]
        chosen[at], ys[at], widths[at] = True, y[mine], width[mine]
        measured[index] = absorb(measured[index], candidates, chosen, ys, widths)
    new = directions.width[:n] == 0.0
    found = np.bincount(directions.band[:n][new], directions.variance[:n][new], len(directions.energy))
    return replace(
        state, refresh=state.refresh + 1, measured=tuple(measured), energy=np.maximum(directions.energy - found, 0.0),
        accounts=after(state.accounts, directions, symbols) if setting.surprising else state.accounts,
        step=directions.step if setting.profile.limit else directions.step * setting.profile.ratio,
    )  # fmt: skip


@dataclass(frozen=True)
class Passes:
    """How an estimate's samples come: a pass of `first` evaluations, then `rounds` of `each`, with `noise` steps of noise.

    They begin as the walk's samples, or `centred` as its centre. relaxation: of all rounds but the last (see `_rounds`).
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


def estimate(setting: Setting, state: State, count: int, seed: int, passes: Passes) -> Tensor:
    """`count` samples of P(x|y) at full size: (count, C, h, w) float32.

    A round adds noise of about the step's size and takes it off again: one pass of a split Gibbs sampler (Wu et al. 2024, arXiv
    2405.18782, algorithm 1). The first pass decides much of the picture at noise where y is hardly heard; rounds mend it.
    """
    x, first = _raised(setting, state.centre if passes.centred else state.samples, state.scale, 0, count), 16.0
    if state.samples is not None:
        first = min(16.0, max(3.0 * state.step / setting.profile.ratio, 0.5))
    begin = min(max(passes.noise * state.step, 2.0**-4), 4.0)
    levels = [schedule(first, _quiet(state.step), passes.first)] if passes.first else []
    levels += [schedule(begin, min(begin / 2, 2.0**-4), passes.each)] * passes.rounds
    *_, x = _rounds(setting, state, 0, levels, x, passes.relaxation, lambda i: antithetic(seed, ESTIMATE_KEY + i), 0)
    return x
