"""dcodec's method on one screen: one walk, driven from both sides.

    picture x ──► Writer ─┐                        ┌─ Reader ◄── bytes
                          └─► walk: propose ─► code ─► absorb ─► propose ...

Encoder and decoder hold the same state: rows H and quantized measurements y = Hx + n. Both draw samples of P(x|y), find by
PCA what they still disagree on, and measure that next (posterior sampling-based compression: Elata, Michaeli, Elad,
TMLR 2025, arXiv 2407.09896, algorithm 1). H is never sent; any prefix of the symbols is a code of the whole picture.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.container import BitstreamError, Header
from dcodec.entropy import Decoder, Encoder
from dcodec.posterior import Measured, level, normals, sample, schedule
from dcodec.prior import EIGHTHS, Prior
from dcodec.profiles import Profile, profile
from dcodec.quantize import Symbols
from dcodec.rows import Directions, View, absorb, next_rows, view
from dcodec.transform import Layout, analyze, upsample

MAX_WHOLE = 1 << 20  # values of a picture whose rows span all of it
ESTIMATE_KEY = 1 << 20  # noise of estimates: a step that no walk reaches


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
    energy: squared error of the samples' mean to expect off the measured rows, a band that they have (B,).
    """

    refresh: int
    step: float
    measured: tuple[Measured, ...]
    gains: tuple[NDArray[np.int64], ...]
    scale: int
    samples: Tensor | None
    energy: NDArray[np.float64]


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
    return State(0, setting.first_step, nothing, gains, layout.coarsest, None, np.zeros(0))


def propose(setting: Setting, state: State, code: Coder) -> tuple[State, Directions]:
    """Draw samples of P(x|y), at the coarsest scale with all details that the step can tell; PCA of what they disagree on."""
    p, layout = setting.profile, setting.layout
    scale = state.scale
    while scale and state.step < p.opening * (1 << scale):
        scale -= 1
    rounds = []
    for samples in draw_samples(setting, state, scale):  # pictures may be large: only the last round's are kept as such
        rounds.append(analyze(samples, layout, scale))
    bands = zip(*rounds, strict=True)
    views = [view(band, m, layout.region(i)) for i, (band, m) in enumerate(zip(bands, state.measured, strict=False))]
    gains = list(state.gains[: len(views)])
    if p.gains and state.refresh:
        flat, ends = np.concatenate(gains), np.cumsum([len(g) for g in gains])
        coded = code.gains(views, flat)
        flat[: len(coded)] = coded
        gains = np.split(flat, ends[:-1])
    factors = [half_octaves(g) for g in gains]
    for finer in range(len(gains), len(layout)):  # expect the same of them
        gains.append(layout.refine(torch.from_numpy(gains[-1]), finer).numpy())
    step = state.step
    directions = next_rows(views, factors, layout, p, step)
    while p.limit and not len(directions) and step >= p.last_step:
        step *= p.ratio
        directions = next_rows(views, factors, layout, p, step)
    return replace(state, samples=samples if p.warm else None, scale=scale, step=step, gains=tuple(gains)), directions


def draw_samples(setting: Setting, state: State, scale: int) -> Iterator[Tensor]:
    """Samples of P(x|y) at `scale` for a refresh, round after round: (S, C, h, w) float32, CPU.

    From the last refresh's samples, where there are some: a round adds noise of the step's size to them and takes it off again,
    in one evaluation. Many samples count for more than good ones: PCA is after their directions, gains mend their spread. At
    coarse scales, where they cost little, there are more.
    """
    p, step = setting.profile, state.step / (1 << scale)  # in pixels of this scale
    if state.samples is None:
        levels = schedule(16.0, _quiet(step), p.evaluations)
    else:
        levels = [level(min(max(p.noise * step, 2.0**-5), 16.0))]
    x = _raised(setting, state, scale, p.samples << min(scale, p.doublings))
    for i in range(p.rounds):
        drawn = _solve(setting, state, scale, levels, x, setting.seed, p.rounds * state.refresh + i, False)
        yield drawn
        x = x if state.samples is None else drawn


def _quiet(step: float) -> float:
    """Noise below what a row is measured for."""
    return 2.0**-5 if step >= 2.0**-4 else 2.0**-6


def _raised(setting: Setting, state: State, scale: int, count: int) -> Tensor:
    """The state's samples at a finer scale, as many as asked for; zeros when there are none."""
    layout = setting.layout
    if state.samples is None:
        return torch.zeros(count, layout.channels, *layout.size(scale))
    x = state.samples[torch.arange(count) % len(state.samples)]
    for finer in reversed(range(scale, state.scale)):
        x = upsample(x, layout, finer)
    return x


def _solve(
    setting: Setting, state: State, scale: int, levels: Sequence[int], begin: Tensor, seed: int, key: int, antithetic: bool
) -> Tensor:
    layout = setting.layout
    chunk = setting.chunk or max(1, min(len(begin), (1 << 22) // math.prod(layout.size(scale))))
    return sample(
        setting.prior, state.measured[: len(layout) - scale], layout, scale, levels, begin,
        normals(seed, key, antithetic), chunk=chunk, device=setting.device,
    )  # fmt: skip


def learn(setting: Setting, state: State, directions: Directions, symbols: Symbols) -> State:
    """Absorb the measurements that `symbols` (any first part of the directions) make."""
    n = len(symbols)
    y, noise = directions.dequantize(symbols)
    measured = list(state.measured)
    for index, candidates in enumerate(directions.bands):
        mine = np.flatnonzero(directions.band[:n] == index)
        if not len(mine):
            continue
        chosen = np.zeros(candidates.wanted.shape, bool)
        ys, noises = np.zeros(chosen.shape), np.zeros(chosen.shape)
        at = directions.tile[mine], directions.column[mine]
        chosen[at], ys[at], noises[at] = True, y[mine], noise[mine]
        measured[index] = absorb(measured[index], candidates, chosen, ys, noises)
    new = directions.width[:n] == 0.0
    found = np.bincount(directions.band[:n][new], directions.variance[:n][new], len(directions.energy))
    return replace(
        state, refresh=state.refresh + 1, measured=tuple(measured), energy=np.maximum(directions.energy - found, 0.0),
        step=directions.step if setting.profile.limit else directions.step * setting.profile.ratio,
    )  # fmt: skip


_NO_DIRECTIONS = Directions((), *(np.zeros(0, np.int64),) * 3, *(np.zeros(0),) * 4, np.zeros(0, np.int64), 1.0, np.zeros(0))


Turn = tuple[int, NDArray[np.int64], NDArray[np.int64]]  # gains written; levels and bands of symbols written


class Writer:
    """Quantizes the picture's projections and writes them."""

    def __init__(self, x: Tensor, setting: Setting) -> None:
        """x: (1, C, h, w) float32."""
        self._bands, self.encoder = analyze(x, setting.layout), Encoder()
        self.turns: list[Turn] = []
        self.first = self.last = _NO_DIRECTIONS
        self._gains = 0

    ended = False

    def gains(self, views: Sequence[View], expected: NDArray[np.int64]) -> NDArray[np.int64]:
        """Measure and write the gains (see Coder)."""
        ratios = np.concatenate([
            (v.actual_energy(band[0]) + 1e-9) / (v.expected_energy() + 1e-9)
            for v, band in zip(views, self._bands, strict=False)
        ])
        gains = np.clip(np.rint(2 * np.log2(ratios)), -MAX_GAIN, MAX_GAIN).astype(np.int64)
        self.encoder.write_small((gains - expected).astype(np.int32))
        self._gains = len(gains)
        return gains

    def symbols(self, d: Directions) -> Symbols:
        """Quantize and write (see Coder)."""
        self.first, self.last = d if not self.turns else self.first, d
        self.turns.append((self._gains, d.levels, d.band))
        symbols = d.quantize(self._bands[: len(d.bands)])
        self.encoder.write(symbols, d.levels, d.band)
        return symbols


class Reader:
    """Reads what payloads settle, after comparing the first directions with the header's fingerprint.

    Prefixes of one payload can be read along: `cuts` tells where each of them ends.
    """

    def __init__(self, header: Header, payload: bytes, prefixes: Sequence[int] = ()) -> None:
        """prefixes: sizes in bytes, each at most the payload's."""
        self._header, self._decoder = header, Decoder(payload)
        self._prefixes = {size: Decoder(payload[:size]) for size in prefixes}
        self._checked = False
        self.cuts: dict[int, tuple[Directions, Symbols]] = {}

    def gains(self, views: Sequence[View], expected: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read the gains (see Coder)."""
        for decoder in self._prefixes.values():
            decoder.read_small(len(expected))
        gains = self._decoder.read_small(len(expected))
        return np.clip(gains + expected[: len(gains)], -MAX_GAIN, MAX_GAIN)

    def symbols(self, d: Directions) -> Symbols:
        """Read symbols (see Coder)."""
        if not self._checked and fingerprint(self._header, d) != self._header.fingerprint:
            raise BitstreamError(
                "the first step differs from the encoder's: the header is damaged, or weights or arithmetic differ here"
            )
        self._checked = True
        read = {size: decoder.read(d.levels, d.band) for size, decoder in self._prefixes.items()}
        self.cuts = {size: (d, symbols) for size, symbols in read.items() if self._prefixes[size].ended}
        for size in self.cuts:
            del self._prefixes[size]
        return self._decoder.read(d.levels, d.band)

    @property
    def ended(self) -> bool:
        """Whether the payload settles no more."""
        return self._decoder.ended

    @property
    def bits(self) -> float:
        """Information read so far."""
        return self._decoder.bits


def fingerprint(header: Header, d: Directions) -> bytes:
    """Two bytes that tell whether encoder and decoder agree on the header and on the first step's directions."""
    digest = sha256(replace(header, fingerprint=b"\0\0").pack())
    for candidates in d.bands:
        digest.update(np.ascontiguousarray(candidates.rows).tobytes())
    for a in (d.band, d.tile, d.column, d.loc, d.variance, d.levels):
        digest.update(np.ascontiguousarray(a).tobytes())
    return digest.digest()[:2]


@dataclass(frozen=True)
class Step:
    """One turn of an encoder's walk: the state before, the state after, and what was measured between."""

    before: State
    after: State
    directions: Directions


@dataclass(frozen=True)
class Written:
    """What an encoder's walk leaves: the header with its fingerprint, bits to cut from, and its last steps.

    turns: what each step wrote (Turn), to find what a prefix settles.
    """

    header: Header
    encoder: Encoder
    turns: tuple[Turn, ...]
    steps: tuple[Step, ...]

    def settled(self, setting: Setting, size: int) -> State:
        """The state that the first `size` payload bytes settle."""
        payload = self.encoder.cut(size)
        decoder = Decoder(payload)
        for turn, (gains, levels, bands) in enumerate(self.turns):
            decoder.read_small(gains)
            symbols = decoder.read(levels, bands)
            if decoder.ended:
                if turn < len(self.turns) - len(self.steps):  # too far back: decode
                    return next(states(self.header.pack() + payload, self.header, setting, [self.header.size + size]))[1]
                step = self.steps[turn - len(self.turns)]
                before = replace(step.before, samples=step.after.samples, scale=step.after.scale)
                return learn(setting, before, step.directions, symbols)
        return self.steps[-1].after


def encode(
    x: Tensor, header: Header, setting: Setting, enough: Callable[[State, Encoder], bool], keep: int = 1
) -> Written:
    """Walk with the picture `x` (1, C, h, w) float32 until `enough` says so, or until nothing is left to measure.

    keep: how many of the last steps to remember, so that prefixes ending in them need no decoding.
    """
    writer = Writer(x, setting)
    steps: deque[Step] = deque(maxlen=keep)
    before: State | None = None
    for state in walk(setting, writer):
        if before is not None:
            steps.append(Step(before, state, writer.last))
            if enough(state, writer.encoder):
                break
        before = state
    header = replace(header, fingerprint=fingerprint(header, writer.first))
    return Written(header, writer.encoder, tuple(writer.turns), tuple(steps))


def states(
    data: bytes, header: Header, setting: Setting, sizes: Sequence[int], progress: Callable[[float], None] | None = None
) -> Iterator[tuple[int, State]]:
    """(size, the state that the first `size` bytes of `data` settle) for each of `sizes` (rising), in one walk."""
    begin = header.size
    payload = data[begin : max(sizes)]
    waiting = sorted(set(sizes))
    reader = Reader(header, payload, [size - begin for size in waiting[:-1]])
    last: State | None = None
    for state in walk(setting, reader):
        for size, (directions, symbols) in sorted(reader.cuts.items()):
            assert last is not None
            before = replace(last, samples=state.samples, scale=state.scale)
            yield size + begin, learn(setting, before, directions, symbols)
            waiting.remove(size + begin)
        if progress:
            progress(reader.bits)
        last = state
    assert last is not None
    for size in waiting:  # the walk itself ended, or these bytes did
        yield size, last


def estimate(setting: Setting, state: State, count: int, seed: int, *, n: int = 8, rounds: int = 0) -> Tensor:
    """`count` samples of P(x|y) at full size: (count, C, h, w) float32, with `n` evaluations each, then 3 more a round.

    A round adds noise of the step's size and takes it off again: one pass of a split Gibbs sampler (Wu et al. 2024, arXiv
    2405.18782, algorithm 1). The first pass decides much of the picture at noise where y is hardly heard; rounds mend it.
    """
    x, first = _raised(setting, state, 0, count), 16.0
    if state.samples is not None:
        first = min(16.0, max(3.0 * state.step / setting.profile.ratio, 0.5))
    passes = [schedule(first, _quiet(state.step), n)]
    begin = min(max(state.step, 2.0**-4), 4.0)
    passes += [schedule(begin, min(begin / 2, 2.0**-4), 3)] * rounds
    for i, levels in enumerate(passes):
        x = _solve(setting, state, 0, levels, x, seed, ESTIMATE_KEY + i, True)
    return x
