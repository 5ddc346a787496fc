"""Do symbols survive the bits, and does a prefix of the bits settle what it can, and nothing else?"""

import math
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from constriction import stream
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dcodec.container import HEADER_SIZE, MAGIC, PRESETS, VERSION, BitstreamError, Header
from dcodec.entropy import PRECISION, Decoder, Encoder, _frequencies, _table, frequencies
from dcodec.quantize import (
    ROUNDING,
    SPLITS,
    SPREADS,
    SYMBOL_MAX,
    dequantize,
    level_of,
    quantize,
    upper_chance,
)


def first(z: NDArray[np.float64]) -> NDArray[np.int32]:
    """Symbols of rows never measured before, in units of the step."""
    nothing = np.zeros(len(z))
    return quantize(z, nothing, nothing, nothing, 1.0)


def nearest(spread: float, n: int) -> NDArray[np.int64]:
    """The level of `n` such rows."""
    nothing = np.zeros(n)
    return level_of(nothing, np.full(n, spread**2), nothing, nothing, 1.0)


Turn = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]  # small ones, levels, bands, symbols
several = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def turns(draw: st.DrawFn) -> list[Turn]:
    """Refreshes of a walk: some small symbols, then symbols under falling levels, most of them as wide as predicted."""
    out = []
    for _ in range(draw(st.integers(1, 4))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        small = rng.integers(-3, 4, draw(st.integers(0, 5))).astype(np.int32)
        levels = np.sort(rng.integers(0, draw(st.integers(1, len(SPREADS))), draw(st.integers(0, 300))))[::-1].copy()
        surprise = draw(st.sampled_from([0.25, 1.0, 1.0, 4.0]))
        symbols = first(rng.standard_normal(len(levels)) * SPREADS[levels] * surprise)
        wild = rng.random(len(levels)) < draw(st.sampled_from([0.0, 0.05]))
        symbols[wild] = rng.integers(-SYMBOL_MAX, SYMBOL_MAX + 1, int(wild.sum()))
        out.append((small, levels, rng.integers(0, draw(st.integers(1, 4)), len(levels)), symbols))
    return out


def write(written: list[Turn]) -> Encoder:
    encoder = Encoder()
    for small, levels, bands, symbols in written:
        encoder.write_small(small)
        encoder.write(symbols, levels, bands)
    return encoder


def read(data: bytes, written: list[Turn]) -> tuple[list[NDArray[np.int32]], Decoder]:
    """What `data` settles, part by part, for a decoder that knows levels and bands."""
    decoder, parts = Decoder(data), []
    for small, levels, bands, _ in written:
        parts.append(decoder.read_small(len(small)))
        parts.append(decoder.read(levels, bands))
    return parts, decoder


def told(written: list[Turn]) -> list[NDArray[np.int32]]:
    return [part for small, _, _, symbols in written for part in (small, symbols)]


# Symbols


@several
@given(turns())
def test_whole_streams_settle_everything(written: list[Turn]) -> None:
    encoder = write(written)
    parts, decoder = read(encoder.cut(encoder.bits // 8 + 8), written)
    assert not decoder.ended
    for part, expected in zip(parts, told(written), strict=True):
        assert part.dtype == np.int32
        np.testing.assert_array_equal(part, expected)


@several
@given(turns(), st.data())
def test_any_cut_settles_an_exact_prefix(written: list[Turn], data: st.DataObject) -> None:
    """Symbols of a cut are the first ones written, and once a decoder has ended, it reads nothing more."""
    encoder = write(written)
    size = data.draw(st.integers(0, encoder.bits // 8 + 8))
    settled = encoder.cut(size)
    assert len(settled) == size
    parts, decoder = read(settled, written)
    ended = False
    for part, expected in zip(parts, told(written), strict=True):
        np.testing.assert_array_equal(part, expected[: len(part)])
        assert not (ended and len(part))
        ended = ended or len(part) < len(expected)
    assert decoder.ended == ended


@several
@given(turns())
def test_cuts_cannot_change_once_filled(written: list[Turn]) -> None:
    """What follows does not touch the bytes that an encoder calls filled."""
    encoder = write(written)
    early = [size for size in range(encoder.bits // 8 + 1) if encoder.filled(size)]
    assume(early)
    before = encoder.cut(early[-1])
    rng = np.random.default_rng(len(before))
    for _ in range(3):
        encoder.write(rng.integers(-9, 10, 50).astype(np.int32), np.full(50, 20), np.zeros(50, np.int64))
        assert encoder.cut(early[-1]) == before


def information(level: int, symbols: NDArray[np.int32]) -> NDArray[np.float64]:
    bits: NDArray[np.float64] = PRECISION - np.log2(frequencies(float(SPREADS[level]))[symbols + SYMBOL_MAX])
    return bits


@pytest.mark.parametrize("level", [12, 18, 30, 45])
def test_cuts_settle_nearly_all_they_can(level: int) -> None:
    """n bits cannot settle more than n bits of information; on average they miss 4 bits and two symbols at most.

    Which ones a cut misses is chance: the number that a prefix begins may lie near the border of a symbol, m bits near
    with probability 2**-m. Hence a mean over many cuts, and a bound that no cut in ten thousand should exceed.
    """
    misses, most = [], 0.0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        cumulative = np.cumsum(frequencies(float(SPREADS[level]))) / 2**PRECISION
        symbols = (np.searchsorted(cumulative, rng.random(256)) - SYMBOL_MAX).astype(np.int32)  # one run: no adaptation
        levels = np.full(len(symbols), level)
        encoder, bands = Encoder(), np.zeros(len(symbols), np.int64)
        encoder.write(symbols, levels, bands)
        bits = information(level, symbols)
        told = np.concatenate([[0.0], np.cumsum(bits)])
        most = max(most, bits.max())
        assert abs(encoder.bits - told[-1]) < 100  # the coder costs what information theory says
        for size in range(int(told[-1]) // 8):
            count = len(Decoder(encoder.cut(size)).read(levels, bands))
            assert told[count] < 8 * size + 2  # the coder's own table is a little kinder to the rarest symbols
            misses.append(8 * size - told[count])
            assert misses[-1] < 14 + 2 * most
    assert np.mean(misses) < 4 + 2 * bits.mean()


def test_adaptation_pays_for_wrong_spreads() -> None:
    """Symbols twice, or a quarter, as wide as predicted cost little more than those predicted rightly."""
    rng = np.random.default_rng(0)
    for factor in (2.0, 0.25):
        symbols, band = first(rng.standard_normal(6000) * SPREADS[30] * factor), np.zeros(6000, np.int64)
        wrong, right, fixed = Encoder(), Encoder(), float(information(30, symbols).sum())
        wrong.write(symbols, np.full(len(symbols), 30), band)
        right.write(symbols, nearest(SPREADS[30] * factor, len(symbols)), band)
        assert wrong.bits < 1.03 * right.bits
        assert wrong.bits < 0.97 * fixed


def test_adaptation_knows_bands_apart() -> None:
    """A band that is narrower than predicted does not spoil the tables of one that is predicted rightly."""
    rng = np.random.default_rng(0)
    bands = np.repeat(np.arange(40) % 2, 200)
    symbols = first(rng.standard_normal(8000) * SPREADS[24] * np.where(bands, 0.4, 1.0))
    together, apart = Encoder(), [Encoder(), Encoder()]
    together.write(symbols, np.full(8000, 24), bands)
    for band, encoder in enumerate(apart):
        mine = symbols[bands == band]
        encoder.write(mine, np.full(len(mine), 24), np.zeros(len(mine), np.int64))
    assert together.bits < 1.01 * sum(encoder.bits for encoder in apart)
    mixed = Encoder()
    mixed.write(symbols, np.full(8000, 24), np.zeros(8000, np.int64))
    assert together.bits < 0.97 * mixed.bits


@pytest.mark.parametrize("spread", SPREADS)
def test_frequencies_are_a_distribution(spread: float) -> None:
    """Positive, symmetric, summing to 2**24, falling from the middle, about as wide as the spread says."""
    f = frequencies(float(spread))
    assert f.shape == (2 * SYMBOL_MAX + 1,)
    assert f.dtype == np.int64
    assert (f > 0).all()
    assert f.sum() == 1 << PRECISION
    np.testing.assert_array_equal(f, f[::-1])
    assert (np.diff(f[SYMBOL_MAX:]) <= 0).all()
    if 2 < spread < SYMBOL_MAX / 6:
        k = np.arange(-SYMBOL_MAX, SYMBOL_MAX + 1)
        assert np.sqrt((f * k * k).sum() / f.sum()) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("level", [0, 18, 40, 63, 64, 95])
def test_the_coder_gives_symbols_the_counts_that_are_specified(level: int) -> None:
    """SPEC.md's formula, against the interval that the coder narrows down to for a first symbol."""
    before = np.concatenate([[0], np.cumsum(_frequencies(level))])
    coded = (before * ((1 << PRECISION) - 2 * SYMBOL_MAX - 1) // (1 << PRECISION) + np.arange(2 * SYMBOL_MAX + 2)).tolist()
    unit = ((1 << 64) - 1) >> PRECISION
    for symbol in (0, 1, 100, SYMBOL_MAX - 1, SYMBOL_MAX, SYMBOL_MAX + 1, SYMBOL_MAX + 2, 2 * SYMBOL_MAX):
        encoder = stream.queue.RangeEncoder()
        encoder.encode(np.array([symbol], np.int32), _table(level))
        assert encoder.pos()[1] == (unit * coded[symbol], unit * (coded[symbol + 1] - coded[symbol]))


def test_empty_data_and_empty_turns() -> None:
    decoder = Decoder(b"")
    assert len(decoder.read(np.zeros(0, np.int64), np.zeros(0, np.int64))) == 0
    assert not decoder.ended
    assert len(decoder.read(np.full(3, 40), np.zeros(3, np.int64))) == 0
    assert decoder.ended
    assert len(decoder.read_small(2)) == 0
    assert Encoder().cut(3) == b"\0\0\0"


# Quantization


@several
@given(st.integers(0, 2**32), st.floats(1e-3, 10))
def test_every_answer_halves_a_cell_that_holds_the_projection(seed: int, step: float) -> None:
    """y is the middle of a cell, the projection is in it, and later answers cut it in two."""
    rng = np.random.default_rng(seed)
    loc = rng.standard_normal(200)
    projection = loc + rng.standard_normal(200) * 20 * step
    middle = width = np.zeros(200)
    for turn in range(6):
        symbols = quantize(projection, loc, middle, width, step)
        y, cell = dequantize(symbols, loc, middle, width, step)
        if turn:
            assert set(symbols) <= {0, 1}
            np.testing.assert_allclose(cell, width / 2)
            np.testing.assert_allclose(np.abs(y - middle), width / 4)
        else:
            np.testing.assert_array_equal(quantize(2 * loc - projection, loc, middle, width, step), -symbols)
            np.testing.assert_allclose(cell, np.where(symbols == 0, 2 * (1 - ROUNDING), 1) * step)
        inside = np.abs(projection - loc) < SYMBOL_MAX * step
        assert (np.abs(projection - y)[inside] <= (0.5 + 1e-9) * cell[inside]).all()
        middle, width, step = y, cell, step * rng.uniform(0.1, 1)


def test_levels_are_the_nearest_spreads() -> None:
    step, nothing = 0.3, np.zeros(64)
    levels = level_of(nothing, (SPREADS * step) ** 2, nothing, nothing, step)
    np.testing.assert_array_equal(levels, np.arange(len(SPREADS)))
    none = np.zeros(2)
    np.testing.assert_array_equal(level_of(none, np.array([0.0, 1e9]), none, none, step), [0, len(SPREADS) - 1])


def test_splits_are_coded_by_where_in_its_cell_a_projection_is_expected() -> None:
    middle, width = np.full(5, 3.0), np.full(5, 2.0)
    loc = np.array([-9.0, 2.63, 3.0, 3.37, 9.0])
    split = level_of(loc, np.ones(5), middle, width, 0.1) - len(SPREADS)
    np.testing.assert_array_equal(split[[0, 2, 4]], [0, SPLITS // 2, SPLITS - 1])
    assert split[1] + split[3] == SPLITS - 1
    chances = [upper_chance(i) for i in range(SPLITS)]
    assert chances == sorted(chances)
    np.testing.assert_allclose(np.array(chances) + chances[::-1], 1)
    assert chances[0] == pytest.approx(1 / (1 + math.exp(10 * 0.4 * 31 / 32)))  # SPEC.md's log-odds, in the middle of the first
    assert chances[SPLITS // 2 - 1] > 0.4
    rng = np.random.default_rng(0)
    for i in range(SPLITS):  # and the coder spends what the model says
        symbols = (rng.random(4000) < chances[i]).astype(np.int32)
        encoder, models = Encoder(), (np.full(4000, len(SPREADS) + i), np.zeros(4000, np.int64))
        encoder.write(symbols, *models)
        p = symbols.mean()
        ideal = -4000 * (p * np.log2(chances[i]) + (1 - p) * np.log2(1 - chances[i]))
        assert encoder.bits == pytest.approx(ideal, abs=100)
        np.testing.assert_array_equal(Decoder(encoder.cut(600)).read(*models), symbols)


# The header


@st.composite
def headers(draw: st.DrawFn) -> Header:
    preset = draw(st.sampled_from(PRESETS))
    psc = preset == "psc"
    return Header(
        width=draw(st.integers(1, 65536)),
        height=draw(st.integers(1, 65536)),
        gray=draw(st.booleans()),
        preset=preset,
        rows=draw(st.integers(1, 31)) if psc else 0,
        prior=draw(st.binary(min_size=2, max_size=2)),
        seed=draw(st.integers(0, 255)),
        step=draw(st.integers(4, 7)) << 5 if psc else draw(st.integers(128, 255)),
        fingerprint=draw(st.binary(min_size=2, max_size=2)),
    )


@given(headers(), st.binary(max_size=5))
def test_header_round_trip(header: Header, payload: bytes) -> None:
    data = header.pack()
    assert len(data) == HEADER_SIZE
    assert Header.unpack(data + payload) == header


@given(headers(), st.data())
def test_every_field_has_its_place(header: Header, data: st.DataObject) -> None:
    """Two headers that differ anywhere have different bytes."""
    other = data.draw(headers())
    assert (header == other) == (header.pack() == other.pack())
    for name in ("width", "height", "gray", "prior", "seed", "fingerprint"):
        changed = replace(header, **{name: getattr(other, name)})
        assert (changed.pack() == header.pack()) == (changed == header)


def test_fields_out_of_range_are_refused() -> None:
    fine = Header(1, 65536, True, "psc", 31, b"ab", 255, 224, b"cd")
    assert Header.unpack(fine.pack()) == fine
    for change in (
        {"width": 0}, {"width": 65537}, {"height": 0}, {"height": 65537}, {"rows": -1}, {"rows": 32}, {"seed": -1},
        {"seed": 256}, {"step": 127}, {"step": 136}, {"step": 256}, {"preset": "slow"}, {"rows": 0}, {"prior": b"a"},
        {"fingerprint": b""},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            replace(fine, **change).pack()


def with_check(kind: int, fields: bytes) -> bytes:
    """Any fields between a magic and a check byte that fit."""
    data = MAGIC + bytes([kind]) + fields
    return data + bytes([crc32(data) & 255])


@given(
    st.binary(max_size=3 * HEADER_SIZE)
    | st.builds(MAGIC.__add__, st.binary(max_size=20))
    | st.builds(
        with_check,
        st.integers(0, 3).map((VERSION << 4).__add__) | st.integers(0, 255),
        st.binary(min_size=HEADER_SIZE - 5, max_size=HEADER_SIZE - 5),
    )
)
@example(b"")
@example(MAGIC)
@example(Header(5, 6, False, "fast", 0, b"ab").pack()[:-1])
def test_any_bytes_are_a_header_or_a_bitstream_error(data: bytes) -> None:
    """What unpacks packs back to the same bytes: nothing that the header says is lost."""
    try:
        header = Header.unpack(data)
    except BitstreamError:
        return
    assert header.pack() == data[:HEADER_SIZE]
