"""dcodec's method on one screen: one walk, driven from both sides.

    picture x ──► Writer ─┐                        ┌─ Reader ◄── bytes        (stream.py)
                          └─► walk: propose ─► code ─► absorb ─► propose ...

Encoder and decoder hold the same state: rows H and quantized measurements y = Hx + n. Both draw samples of P(x|y), find by
PCA what they still disagree on, and measure that next (posterior sampling-based compression: Elata, Michaeli, Elad,
TMLR 2025, arXiv 2407.09896, algorithm 1). H is never sent; any prefix of the symbols is a code of the whole picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dcodec.chains import draw_centre, draw_samples
from dcodec.quantize import Symbols
from dcodec.rows import Directions, View, absorb, next_rows, view
from dcodec.state import Setting, State, start
from dcodec.surprise import after, factors
from dcodec.transform import Layout, analyze

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
    coded = np.zeros(0, np.int64)
    if p.gains and state.refresh:
        coded = code.gains(views, np.concatenate(state.gains[: len(views)]))
    gains = told(state.gains, coded, layout, len(views))
    scales = [half_octaves(g) for g in gains[: len(views)]]
    step = state.step
    directions = next_rows(views, scales, layout, p, step)
    while p.limit and not len(directions) and step >= p.last_step:
        step *= p.ratio
        directions = next_rows(views, scales, layout, p, step)
    drawn = replace(state, samples=samples if p.warm else None, centre=centre, scale=scale, step=step, gains=gains)
    return drawn, directions


def told(
    gains: Sequence[NDArray[np.int64]], coded: NDArray[np.int64], layout: Layout, bands: int
) -> tuple[NDArray[np.int64], ...]:
    """All gains, once the first of those of the `bands` coarsest are `coded`; finer bands are expected to be as the last."""
    flat, ends = np.concatenate(gains[:bands]), np.cumsum([len(g) for g in gains[:bands]])
    flat[: len(coded)] = coded
    new = np.split(flat, ends[:-1])
    for finer in range(bands, len(layout)):
        new.append(layout.refine(torch.from_numpy(new[-1]), finer).numpy())
    return tuple(new)


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
    energy = np.array([(e * half_octaves(g)).cumsum()[-1] for e, g in zip(directions.energies, state.gains, strict=False)])
    found = np.bincount(directions.band[:n][new], directions.variance[:n][new], len(energy))
    return replace(
        state, refresh=state.refresh + 1, measured=tuple(measured), energy=np.maximum(energy - found, 0.0),
        accounts=after(state.accounts, directions, symbols) if setting.surprising else state.accounts,
        step=directions.step if setting.profile.limit else directions.step * setting.profile.ratio,
    )  # fmt: skip
