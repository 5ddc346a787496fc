"""Which bytes does a walk leave, and which state does a prefix of them settle?

A Writer has seen the picture and writes what the walk asks of it; a Reader answers from bytes alone.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcodec.codec import MAX_GAIN, learn, told, walk
from dcodec.container import BitstreamError, Header
from dcodec.entropy import Decoder, Encoder
from dcodec.quantize import Symbols
from dcodec.rows import Directions, View
from dcodec.state import Setting, State
from dcodec.transform import analyze

_NO_DIRECTIONS = Directions((), *(np.zeros(0, np.int64),) * 3, *(np.zeros(0),) * 4, np.zeros(0, np.int64), 1.0, ())
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
        self._told = dict.fromkeys(prefixes, np.zeros(0, np.int64))
        self.cuts: dict[int, tuple[NDArray[np.int64], Directions, Symbols]] = {}  # gains and symbols of the last turn

    def gains(self, views: Sequence[View], expected: NDArray[np.int64]) -> NDArray[np.int64]:
        """Read the gains (see Coder)."""
        self._told = {size: _gains(decoder.read_small(len(expected)), expected) for size, decoder in self._prefixes.items()}
        return _gains(self._decoder.read_small(len(expected)), expected)

    def symbols(self, d: Directions) -> Symbols:
        """Read symbols (see Coder)."""
        if not self._checked and fingerprint(self._header, d) != self._header.fingerprint:
            raise BitstreamError(
                "the first step differs from the encoder's: the header is damaged, or weights or arithmetic differ here"
            )
        self._checked = True
        read = {size: decoder.read(d.levels, d.band) for size, decoder in self._prefixes.items()}
        self.cuts = {size: (self._told[size], d, symbols) for size, symbols in read.items() if self._prefixes[size].ended}
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


def _gains(differences: NDArray[np.int32], expected: NDArray[np.int64]) -> NDArray[np.int64]:
    """The gains that the first differences to what was expected tell."""
    return np.clip(differences + expected[: len(differences)], -MAX_GAIN, MAX_GAIN)


def _settled(
    setting: Setting, before: State, after: State, gains: NDArray[np.int64], directions: Directions, symbols: Symbols
) -> State:
    """What a prefix settles that ends between `before` and `after`, and knows but the first gains and symbols."""
    heard = told(before.gains, gains, setting.layout, len(directions.energies))
    drawn = replace(before, samples=after.samples, centre=after.centre, scale=after.scale, gains=heard)
    return learn(setting, drawn, directions, symbols)


def fingerprint(header: Header, d: Directions) -> bytes:
    """Two bytes that tell whether encoder and decoder agree on the header and on the first step's directions."""
    digest = sha256(replace(header, fingerprint=b"\0\0").pack())
    for candidates in d.bands:
        digest.update(candidates.rows.astype("<f4").tobytes())
    for a in (d.band, d.tile, d.column, d.loc, d.variance, d.levels):
        digest.update(a.astype("<i8" if a.dtype.kind == "i" else "<f8").tobytes())
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
        for turn, (count, levels, bands) in enumerate(self.turns):
            differences = decoder.read_small(count)
            symbols = decoder.read(levels, bands)
            if decoder.ended:
                if turn < len(self.turns) - len(self.steps):  # too far back: decode
                    return next(states(self.header.pack() + payload, self.header, setting, [self.header.size + size]))[1]
                step = self.steps[turn - len(self.turns)]
                gains = _gains(differences, np.concatenate(step.before.gains))
                return _settled(setting, step.before, step.after, gains, step.directions, symbols)
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
        for size, (gains, directions, symbols) in sorted(reader.cuts.items()):
            assert last is not None
            yield size + begin, _settled(setting, last, state, gains, directions, symbols)
            waiting.remove(size + begin)
        if progress:
            progress(reader.bits)
        last = state
    assert last is not None
    for size in waiting:  # the walk itself ended, or these bytes did
        yield size, last
