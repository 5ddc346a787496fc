"""How do symbols become bits, and which symbols does a prefix settle?

A range coder (constriction) under fixed integer frequency tables, one per spread of the projection; how well the spreads
predicted so far is tracked by both sides and shifts the table. Words are stored big-endian, so that a prefix of the bytes
is a prefix of the number that the coder narrows down: a symbol is settled by a prefix iff the continuations 00.. and ff..
decode it alike.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from dcodec.exact.functions import exp, log, normal_cdf
from dcodec.quantize import ROUNDING, SPREADS, SYMBOL_MAX, Symbols, upper_chance

Levels = NDArray[np.int64]

PRECISION = 24  # bits of a table's total frequency
GAUSSIAN_SHARE = 0.5  # the rest is Laplacian: predicted variances are themselves uncertain
RUN = 256  # symbols coded between two looks at how well the model fits
COST_UNIT = 256  # costs of symbols are counted in bits / COST_UNIT
_SHIFTS = np.arange(-12, 7)  # by which a table may differ from the predicted one: two octaves down, one up
_MEMORY = 10  # binary logarithm of how many symbols a band's account remembers
_SMALL = int(np.searchsorted(SPREADS, 0.99))  # the table of write_small: a standard deviation of one
_GUARD = 64  # bits that the coder may hold back past those it has settled


def frequencies(spread: float) -> NDArray[np.int64]:
    """Integer frequencies (2 * SYMBOL_MAX + 1,) of a symbol whose projection has this standard deviation in steps."""
    edges = (np.arange(SYMBOL_MAX + 2) - ROUNDING) / spread  # |symbol| >= k from edges[k] on
    edges[0] = 0.0
    tail = GAUSSIAN_SHARE * 2.0 * normal_cdf(-edges) + (1.0 - GAUSSIAN_SHARE) * exp(edges * -1.4142135623730951)
    bins = tail[:-1] - tail[1:]  # P(|symbol| = k)
    one_side = np.maximum(np.rint(bins[1:] * 2.0 ** (PRECISION - 1)), 1.0).astype(np.int64)
    zero = (1 << PRECISION) - 2 * int(one_side.sum())
    return np.concatenate([one_side[::-1], [zero], one_side])


@cache
def _frequencies(level: int) -> NDArray[np.int64]:
    if level < len(SPREADS):
        return frequencies(float(SPREADS[level]))
    f = np.ones(2 * SYMBOL_MAX + 1, np.int64)  # a split: symbols 0 and 1, and no others
    rest = (1 << PRECISION) - (len(f) - 2)
    f[SYMBOL_MAX + 1] = round(upper_chance(level - len(SPREADS)) * rest)
    f[SYMBOL_MAX] = rest - f[SYMBOL_MAX + 1]
    return f


@cache
def _table(level: int) -> Any:
    """The coder's model of a level. It keeps one count for each symbol by itself, although ours have one (SPEC.md)."""
    return stream.model.Categorical(_frequencies(level) * 2.0**-PRECISION, perfect=False)


@cache
def _costs() -> NDArray[np.int64]:
    """Bits that each symbol takes under each spread's table, times COST_UNIT: (len(SPREADS), 2 * SYMBOL_MAX + 1)."""
    frequencies_of = np.stack([_frequencies(level) for level in range(len(SPREADS))])
    bits = PRECISION - log(frequencies_of) * 1.4426950408889634  # of this module's own logarithm: the state depends on it
    return np.rint(bits * COST_UNIT).astype(np.int64)


class Fit:
    """Which table would have coded a band's symbols so far in the fewest bits? Both sides keep the same account.

    Predicted variances are off by a factor that depends on the band: leading directions of few samples flatter themselves,
    textures exceed what the prior expects. A shift of the table mends what is common to a band's rows.
    """

    def __init__(self) -> None:
        self._seen: dict[int, NDArray[np.int64]] = {}  # what each shift would have cost, a band; recent symbols count most
        self._all = np.zeros(len(_SHIFTS), np.int64)

    def level(self, level: int, band: int) -> int:
        """The table for rows of `band` with this predicted level."""
        if level >= len(SPREADS):  # a split: no spread was predicted
            return level
        total = self._seen.get(band, 0) + (self._all >> 3) + np.abs(_SHIFTS) * COST_UNIT
        return min(max(level + int(_SHIFTS[np.argmin(total)]), 0), len(SPREADS) - 1)

    def update(self, level: int, band: int, symbols: Symbols) -> None:
        """Account for symbols whose predicted level (before any shift) was `level`."""
        if level >= len(SPREADS):
            return
        tables = np.clip(level + _SHIFTS, 0, len(SPREADS) - 1)
        cost = _costs()[tables[:, None], symbols + SYMBOL_MAX].sum(axis=1)
        for seen in (self._seen.setdefault(band, np.zeros(len(_SHIFTS), np.int64)), self._all):
            seen += cost
            seen -= seen.min()
            seen -= (seen * len(symbols)) >> _MEMORY


def _runs(levels: Levels, bands: Levels) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, level, band) of maximal runs of equal levels and bands, at most RUN long."""
    edges = np.flatnonzero(np.diff(levels) | np.diff(bands)) + 1
    for start, stop in zip([0, *edges], [*edges, len(levels)], strict=True):
        for first in range(start, stop, RUN):
            yield first, min(first + RUN, stop), int(levels[start]), int(bands[start])


def _information(level: int, symbols: Symbols) -> float:
    """Bits that `symbols` take under a table; for progress bars, no part of the state."""
    return float((PRECISION - np.log2(_frequencies(level)[symbols + SYMBOL_MAX])).sum())


class Encoder:
    """Symbols -> bytes."""

    def __init__(self) -> None:
        self._coder, self._fit, self._small = stream.queue.RangeEncoder(), Fit(), Fit()

    def write(self, symbols: Symbols, levels: Levels, bands: Levels) -> None:
        """Append `symbols` (n,) int32 of `bands` (n,), coded under the tables of `levels` (n,) (quantize.level_of)."""
        for start, stop, level, band in _runs(levels, bands):
            part = np.ascontiguousarray(symbols[start:stop], np.int32)
            self._coder.encode(part + SYMBOL_MAX, _table(self._fit.level(level, band)))
            self._fit.update(level, band, part)

    def write_small(self, symbols: Symbols) -> None:
        """Append symbols of magnitude about one or less."""
        self._coder.encode(symbols.astype(np.int32) + SYMBOL_MAX, _table(self._small.level(_SMALL, 0)))
        self._small.update(_SMALL, 0, symbols)

    @property
    def bits(self) -> int:
        """Bits written so far, about 64 of them not yet settled."""
        return int(self._coder.num_bits())

    def cut(self, size: int) -> bytes:
        """The first `size` bytes. Sealed ends are never shipped unless the walk itself ended: they would settle symbols
        that nobody wrote. Zeros fill what an ended walk leaves."""
        data: bytes = self._coder.get_compressed().astype(">u4").tobytes()
        return data[:size].ljust(size, b"\0")

    def filled(self, size: int) -> bool:
        """Whether the first `size` bytes can no longer change."""
        return self.bits >= 8 * size + _GUARD


class Decoder:
    """A prefix of bytes -> the symbols that it settles."""

    def __init__(self, data: bytes) -> None:
        self._fit, self._small, self.ended, self.bits = Fit(), Fit(), False, 0.0
        words = [
            np.frombuffer(data + bytes([fill]) * (-len(data) % 4 + 16), ">u4").astype(np.uint32)
            for fill in (0x00, 0xFF)
        ]
        self._twins = [stream.queue.RangeDecoder(w) for w in words]

    def read(self, levels: Levels, bands: Levels) -> Symbols:
        """The next symbols, at most one for each of `levels` and `bands`; fewer once the prefix settles no more."""
        out = [np.empty(0, np.int32)]
        for start, stop, level, band in _runs(levels, bands):
            if self.ended:
                break
            table = self._fit.level(level, band)
            part = self._settled(_table(table), stop - start)
            self.bits += _information(table, part)
            self._fit.update(level, band, part)
            out.append(part)
        return np.concatenate(out)

    def read_small(self, n: int) -> Symbols:
        """The next `n` symbols that `write_small` wrote; fewer once the prefix settles no more."""
        if self.ended:
            return np.zeros(0, np.int32)
        symbols = self._settled(_table(self._small.level(_SMALL, 0)), n)
        self._small.update(_SMALL, 0, symbols)
        return symbols

    def _settled(self, model: Any, n: int) -> Symbols:
        if n == 0:
            return np.zeros(0, np.int32)
        before = [twin.clone() for twin in self._twins]
        both = [self._decode(twin, model, n) for twin in self._twins]
        if both[0] is not None and both[1] is not None and np.array_equal(both[0], both[1]):
            return both[0]
        self.ended = True
        part = []
        for _ in range(n):
            one = [self._decode(twin, model, 1) for twin in before]
            if one[0] is None or one[1] is None or one[0][0] != one[1][0]:
                break
            part.append(one[0][0])
        return np.array(part, np.int32)

    @staticmethod
    def _decode(twin: Any, model: Any, n: int) -> Symbols | None:
        try:
            symbols: Symbols = twin.decode(model, n) - SYMBOL_MAX
        except AssertionError:  # constriction's word for bits that no encoder wrote: hence not settled
            return None
        return symbols.astype(np.int32)
