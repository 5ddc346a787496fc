"""dcodec's method on one screen: one walk, driven from both sides.

    picture x ──► Writer ─┐                        ┌─ Reader ◄── bytes
                          └─► walk: propose ─► code ─► absorb ─► propose ...

Encoder and decoder hold the same state: rows H and quantized measurements y = Hx + n. Both draw samples of P(x|y), find by
PCA what they still disagree on, and measure that next (posterior sampling-based compression: Elata, Michaeli, Elad,
TMLR 2025, arXiv 2407.09896, algorithm 1). H is never sent; any prefix of the symbols is a code of the whole picture.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcodec.container import HEADER_SIZE, BitstreamError, Header
from dcodec.entropy import Decoder, Encoder
from dcodec.posterior import Measured, normals, sample, schedule
from dcodec.prior import EIGHTHS, Prior
from dcodec.profiles import Profile, profile
from dcodec.quantize import Symbols, dequantize, quantize
from dcodec.rows import Directions, absorb, next_rows
from dcodec.transform import Layout, analyze, extend, upsample

ESTIMATE_KEY = 1 << 20  # noise of estimates: a step that no walk reaches


@dataclass(frozen=True)
class Setting:
    """What a walk needs besides symbols: the header's content made concrete. chunk: samples through the denoiser at once."""

    prior: Prior
    profile: Profile
    layout: Layout
    seed: int
    first_step: float
    device: str = "cpu"
    chunk: int = 0

    @classmethod
    def of(cls, header: Header, prior: Prior, device: str = "cpu", chunk: int = 0) -> "Setting":
        """The walk that a header describes."""
        channels = 1 if header.gray else 3
        if channels not in prior.channels:
            raise ValueError(f"prior {prior.name} knows pictures of {prior.channels} channels, not of {channels}")
        p = profile(header.preset, header.rows)
        layout = p.layout(channels, header.height, header.width)
        octaves, eighths = divmod(header.step - 128, 8)
        first = p.first_step * (1 << layout.levels) * EIGHTHS[eighths] * 2.0**octaves
        return cls(prior, p, layout, header.seed, first, device, chunk)


@dataclass(frozen=True)
class State:
    """All that encoder and decoder know alike after `refresh` refreshes.

    measured, fit: rows and measurements, and the factor on predicted variances, a band. step: quantization step next.
    samples: of P(x|y) before the last measurements, (S, C, h, w) at `scale`; None at the start and in preset psc.
    """

    refresh: int
    step: float
    measured: tuple[Measured, ...]
    fit: tuple[tuple[float, float], ...]  # (sum of squares seen, expected)
    scale: int
    samples: Tensor | None


Coder = Callable[[Directions], Symbols]


def walk(setting: Setting, code: Coder) -> Iterator[State]:
    """Encoder and decoder both run this; only `code` differs, and only the Writer has seen the picture."""
    state = start(setting)
    yield state
    while state.step >= setting.profile.last_step:
        state, directions = propose(setting, state)  # posterior samples -> rows, what to expect of them
        symbols = code(directions)  # Writer: quantize and write; Reader: read
        state = learn(setting, state, directions, symbols)
        yield state
        if len(symbols) < len(directions):  # the bits are used up
            return


def start(setting: Setting) -> State:
    """Nothing measured."""
    bands = range(len(setting.layout))
    return State(
        0, setting.first_step, tuple(Measured.nothing(setting.layout.dim(i)) for i in bands), tuple((8.0, 8.0) for _ in bands),
        setting.layout.levels, None,
    )  # fmt: skip


def propose(setting: Setting, state: State) -> tuple[State, Directions]:
    """Draw samples of P(x|y), at the coarsest scale whose next finer details are below the step; PCA of what they show."""
    p, layout = setting.profile, setting.layout
    scale = state.scale
    while scale and state.step < p.first_step * (1 << scale) * 0.7072:
        scale -= 1
    samples = draw_samples(setting, state, scale, p.samples, setting.seed, state.refresh)
    bands = analyze(samples, layout, scale)
    known = state.measured[: len(bands)]
    fit = [seen / expected for seen, expected in state.fit]
    step = state.step
    directions = next_rows(bands, known, fit[: len(bands)], layout, p, step)
    while p.limit and not len(directions) and step >= p.last_step:
        step *= p.ratio
        directions = next_rows(bands, known, fit[: len(bands)], layout, p, step)
    return replace(state, samples=samples if p.warm else None, scale=scale, step=step), directions


def draw_samples(setting: Setting, state: State, scale: int, count: int, seed: int, key: int, n: int = 0) -> Tensor:
    """`count` samples of P(x|y) at `scale`, from the last ones where there are some: (count, C, h, w) float32, CPU."""
    p, layout = setting.profile, setting.layout
    unit = float(1 << scale)  # of a coefficient, in pixels of this scale
    begin, finest = 16.0, 2.0**-5
    before = state.samples
    if before is not None:
        for _ in range(state.scale - scale):
            before = upsample(before)
        before = before[torch.arange(count) % len(before)]
        begin = min(16.0, max(3.0 * state.step / p.ratio / unit, 0.5))
    levels = schedule(begin, finest, n or (p.evaluations if before is not None else p.first_evaluations))
    chunk = setting.chunk or max(1, min(count, (1 << 22) // (layout.padded[0] * layout.padded[1] >> 2 * scale)))
    measured = state.measured[: len(layout) - scale]
    return sample(
        setting.prior, measured, layout, scale, levels, before, count, normals(seed, key, p.antithetic),
        chunk=chunk, device=setting.device,
    )  # fmt: skip


def learn(setting: Setting, state: State, directions: Directions, symbols: Symbols) -> State:
    """Absorb the measurements that `symbols` (any first part of the directions) make."""
    n = len(symbols)
    y, noise = dequantize(directions.loc[:n], symbols, directions.step)
    measured, fit = list(state.measured), list(state.fit)
    for index, candidates in enumerate(directions.bands):
        mine = np.flatnonzero(directions.band[:n] == index)
        if not len(mine):
            continue
        chosen = np.zeros(candidates.wanted.shape, bool)
        ys, noises = np.zeros(chosen.shape), np.zeros(chosen.shape)
        at = directions.tile[mine], directions.column[mine]
        chosen[at], ys[at], noises[at] = True, y[mine], noise[mine]
        fit[index] = _refit(fit[index], directions, symbols, mine, state.measured[index].rows.shape[1])
        measured[index] = absorb(measured[index], candidates, chosen, ys, noises)
    return replace(
        state, refresh=state.refresh + 1, measured=tuple(measured), fit=tuple(fit),
        step=directions.step if setting.profile.limit else directions.step * setting.profile.ratio,
    )  # fmt: skip


def _refit(
    fit: tuple[float, float], d: Directions, symbols: Symbols, mine: NDArray[np.int64], known: int
) -> tuple[float, float]:
    """Compare what new rows of a band showed with what the samples predicted; older evidence counts half."""
    new = mine[d.column[mine] >= known]
    seen, expected = (0.5 * s for s in fit)
    for level in np.unique(d.levels[new]).tolist():
        q = symbols[new[d.levels[new] == level]].astype(np.int64)
        spread = 2.0 * float(d.variance[new[d.levels[new] == level][0]]) / (d.step * d.step)
        weight = 1.0 / (1.0 + spread)
        seen += weight * float(int((q * q).sum()))
        expected += weight * len(q) * 0.5 * spread
    limit = 4.0 * expected
    return min(max(seen + 4.0, 0.1 * expected), limit) , expected + 4.0


_NO_DIRECTIONS = Directions((), *(np.zeros(0, np.int64),) * 3, *(np.zeros(0),) * 2, np.zeros(0, np.int64), 1.0)


class Writer:
    """Quantizes the picture's projections and writes them."""

    def __init__(self, x: Tensor, setting: Setting) -> None:
        """x: (1, C, H, W) float32 of the layout's padded size."""
        self._x, self._layout, self.encoder = x, setting.layout, Encoder()
        self.levels: list[NDArray[np.int64]] = []
        self.first = self.last = _NO_DIRECTIONS

    def __call__(self, d: Directions) -> Symbols:
        self.first, self.last = d if not self.levels else self.first, d
        self.levels.append(d.levels)
        bands = analyze(self._x, self._layout)[: len(d.bands)]
        symbols = quantize(d.project(bands) - d.loc, d.step)
        self.encoder.write(symbols, d.levels)
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

    def __call__(self, d: Directions) -> Symbols:
        if not self._checked and fingerprint(self._header, d) != self._header.fingerprint:
            raise BitstreamError(
                "the first step differs from the encoder's: the header is damaged, or weights or arithmetic differ here"
            )
        self._checked = True
        self.cuts = {size: (d, decoder.read(d.levels)) for size, decoder in self._prefixes.items()}
        self.cuts = {size: cut for size, cut in self.cuts.items() if len(cut[1]) < len(d)}
        for size in self.cuts:
            del self._prefixes[size]
        return self._decoder.read(d.levels)

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

    levels: of all steps' symbols, to find what a prefix settles without decoding again.
    """

    header: Header
    encoder: Encoder
    levels: tuple[NDArray[np.int64], ...]
    steps: tuple[Step, ...]

    def settled(self, setting: Setting, size: int) -> State:
        """The state that the first `size` payload bytes settle."""
        payload = self.encoder.cut(size)
        decoder = Decoder(payload)
        for turn, levels in enumerate(self.levels):
            symbols = decoder.read(levels)
            if len(symbols) < len(levels):
                if turn < len(self.levels) - len(self.steps):  # too far back: decode
                    return next(states(self.header.pack() + payload, self.header, setting, [HEADER_SIZE + size]))[1]
                step = self.steps[turn - len(self.levels)]
                before = replace(step.before, samples=step.after.samples, scale=step.after.scale)
                return learn(setting, before, step.directions, symbols)
        return self.steps[-1].after


def encode(x: Tensor, header: Header, setting: Setting, enough: Callable[[State, Encoder], bool]) -> Written:
    """Walk with the picture `x` (1, C, h, w) float32 until `enough` says so, or until nothing is left to measure."""
    h, w = setting.layout.padded
    writer = Writer(extend(x, h - x.shape[2], w - x.shape[3]), setting)
    steps: deque[Step] = deque(maxlen=3)
    before: State | None = None
    for state in walk(setting, writer):
        if before is not None:
            steps.append(Step(before, state, writer.last))
            if enough(state, writer.encoder):
                break
        before = state
    header = replace(header, fingerprint=fingerprint(header, writer.first))
    return Written(header, writer.encoder, tuple(writer.levels), tuple(steps))


def states(
    data: bytes, header: Header, setting: Setting, sizes: Sequence[int], progress: Callable[[float], None] | None = None
) -> Iterator[tuple[int, State]]:
    """(size, the state that the first `size` bytes of `data` settle) for each of `sizes` (rising), in one walk."""
    payload = data[HEADER_SIZE : max(sizes)]
    waiting = sorted(set(sizes))
    reader = Reader(header, payload, [size - HEADER_SIZE for size in waiting[:-1]])
    last: State | None = None
    for state in walk(setting, reader):
        for size, (directions, symbols) in sorted(reader.cuts.items()):
            assert last is not None
            before = replace(last, samples=state.samples, scale=state.scale)
            yield size + HEADER_SIZE, learn(setting, before, directions, symbols)
            waiting.remove(size + HEADER_SIZE)
        if progress:
            progress(reader.bits)
        last = state
    assert last is not None
    for size in waiting:  # the walk itself ended, or these bytes did
        yield size, last


def estimate(setting: Setting, state: State, count: int, seed: int, *, n: int = 8) -> Tensor:
    """`count` samples of P(x|y) at full size: (count, C, h, w) float32, with `n` evaluations each."""
    x = draw_samples(setting, state, 0, count, seed, ESTIMATE_KEY, n)
    return x[..., : setting.layout.height, : setting.layout.width]
