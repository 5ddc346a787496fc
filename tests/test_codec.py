"""Do encoder and decoder walk the same way, for whole streams and for every prefix of them?

Pictures are drawn from the Gaussian prior, which also codes them.
"""

import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Draw
from numpy.typing import NDArray
from PIL import Image

import dcodec
from dcodec import chains, codec, estimates, stream
from dcodec.container import HEADER_SIZE, Header
from dcodec.entropy import Decoder
from dcodec.exact.pca import BITS as ROW_BITS
from dcodec.pictures import to_image
from dcodec.posterior import VALUE_BITS, Measured
from dcodec.prior import catalog
from dcodec.prior.gaussian import GaussianPrior
from dcodec.profiles import profile
from dcodec.rows import next_rows, view
from dcodec.state import Setting, State, start
from dcodec.stream import Writer, Written
from dcodec.transform import analyze

Pixels = NDArray[np.float32]


def encode(x: Pixels, **options: Any) -> bytes:
    return dcodec.encode(x, prior="gaussian", **options)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def psnr(x: Pixels, image: Image.Image) -> float:
    """Of an 8-bit picture against `x` (C, h, w) in [-1, 1]."""
    shown = pixels(image).astype(np.float64).reshape(x.shape[1], x.shape[2], -1).transpose(2, 0, 1)
    return 10 * math.log10(255**2 / np.mean((shown - (x.astype(np.float64) + 1) * 127.5) ** 2))


def setting_of(data: bytes, prior: GaussianPrior, chunk: int = 0) -> tuple[Header, Setting]:
    header = Header.unpack(data)
    return header, Setting.of(header, prior, chunk=chunk)


def check_round_trip(x: Pixels, size: int, **options: Any) -> tuple[bytes, Image.Image]:
    """Encode to `size` bytes; the stream has them, says what it is, and decodes to pictures of the size of `x`.

    Returns the stream and its mean.
    """
    channels, h, w = x.shape
    data = encode(x, size=size, **options)
    assert len(data) == size
    told = dcodec.info(data)
    assert (told["width"], told["height"], told["mode"]) == (w, h, "L" if channels == 1 else "RGB")
    (shot,) = dcodec.progressive(data, steps=1)
    for image in (shot.mean, shot.sample):
        assert (image.size, image.mode) == ((w, h), "L" if channels == 1 else "RGB")
    return data, shot.mean


def assert_same(a: State, b: State) -> None:
    """Two states hold the same bits: rows, measurements, their cells, gains, what error is left, samples."""
    for one, other in zip(a.measured, b.measured, strict=True):
        for name in ("tiles", "rows", "y", "width", "variance"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for one, other in zip(a.gains, b.gains, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(a.energy, b.energy)
    assert (a.refresh, a.step, a.scale) == (b.refresh, b.step, b.scale)
    for own, others in ((a.samples, b.samples), (a.centre, b.centre)):
        assert (own is None) == (others is None)
        assert own is None or (others is not None and torch.equal(own, others))


def rows_measured(state: State) -> int:
    return sum(int((m.width > 0).sum()) for m in state.measured)


# Round trips and sizes


@pytest.mark.parametrize(("channels", "h", "w"), [(3, 40, 28), (1, 28, 40), (3, 17, 31), (1, 1, 1), (3, 2, 50)])
def test_round_trip(channels: int, h: int, w: int, draw: Draw) -> None:
    x = draw(channels, h, w)
    check_round_trip(x, HEADER_SIZE + 40)
    check_round_trip(x, HEADER_SIZE)  # nothing but the header: what the prior expects


@pytest.mark.parametrize(("channels", "h", "w"), [(3, 6, 9), (1, 8, 8)])
def test_round_trip_psc(channels: int, h: int, w: int, draw: Draw) -> None:
    for rows in (1, 8):
        data, _ = check_round_trip(draw(channels, h, w), HEADER_SIZE + 5, preset="psc", rows=rows)
        assert dcodec.info(data)["rows"] == rows


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 3, 1), (1, 1, 5), (1, 3, 3), (3, 3, 1)], ids=str)
@pytest.mark.parametrize("preset", ["psc", "whole"])
def test_pictures_of_a_few_values(preset: str, shape: tuple[int, int, int], draw: Draw) -> None:
    """Presets that measure the whole of a picture: as many directions as it has values, an odd number too, and each once."""
    x, rows = draw(*shape), 8 if preset == "psc" else 0
    _, mean = check_round_trip(x, HEADER_SIZE + 15, preset=preset, **({"rows": rows} if rows else {}))
    assert psnr(x + 1e-4, mean) > 40
    found = recorded(x, GaussianPrior(), preset, rows, 15)[1].steps[-1].after.measured[0].rows[0]
    unit = found.astype(np.float64) * 2.0**-ROW_BITS
    assert 0 < len(unit) <= x.size
    np.testing.assert_allclose(unit @ unit.T, np.eye(len(unit)), atol=2.0**-18)


def test_a_drawn_digit_goes_through_a_few_bytes() -> None:
    """The small prior whole: what it imagines looks like a digit, and it codes one in 40 bytes."""
    entry = catalog.find("mnist")
    empty = Header(28, 28, True, "whole", 0, entry.digest[:2])
    setting = Setting.of(empty, catalog.load(entry))
    drawn = estimates.estimate(setting, start(setting), 1, 5, estimates.Passes(12))[0].numpy() / np.float32(math.sqrt(3))
    assert drawn[0, :2].max() < -0.9  # the margin is black
    assert drawn.max() > 0.9  # the stroke is white
    data = dcodec.encode(to_image(drawn), size=40, prior="mnist", preset="whole")
    assert len(data) == 40
    assert psnr(drawn, dcodec.decode(data)) > 24
    assert psnr(drawn, dcodec.decode(data[:25])) > 15


@pytest.mark.parametrize(("channels", "h", "w"), [(3, 17, 31), (1, 99, 173), (3, 71, 45)])
def test_sizes_are_exact_at_every_rate(channels: int, h: int, w: int, draw: Draw) -> None:
    """A budget is met to the byte; one below the header is refused. The cheaper streams are prefixes of the dearer."""
    x, streams = draw(channels, h, w), []
    for bpp in (0.02, 0.05, 0.1, 0.4):
        size = math.floor(bpp * w * h / 8)
        if size < HEADER_SIZE:
            with pytest.raises(ValueError, match="smaller than the header"):
                encode(x, bpp=bpp)
        else:
            streams.append(encode(x, bpp=bpp))
            assert len(streams[-1]) == size
    for shorter in streams:
        assert streams[-1].startswith(shorter)
    assert dcodec.decode(streams[-1]).size == (w, h)


@pytest.mark.parametrize("preset", ["fast", "psc", "whole"])
def test_a_budget_beyond_all_there_is_to_say(preset: str, draw: Draw) -> None:
    """The walk ends by itself; zeros fill the file, which decodes like the part that says something."""
    x = draw(1, 5, 6)
    rows = 8 if preset == "psc" else None
    data, whole = check_round_trip(x, 900, preset=preset, rows=rows)
    said = len(data.rstrip(b"\0"))
    assert HEADER_SIZE < said < 890
    np.testing.assert_array_equal(pixels(whole), pixels(dcodec.decode(data, size=said + 2)))
    assert psnr(x, whole) > 44  # all rows measured down to the last step


def test_budgets_below_the_header_are_refused(draw: Draw) -> None:
    x = draw(3, 16, 16)
    for size in (0, 1, HEADER_SIZE - 1):
        with pytest.raises(ValueError, match="smaller than the header"):
            encode(x, size=size)
    for option in ({"bpp": 0.0}, {"bpp": math.nan}, {"bpp": math.inf}, {"psnr": -1.0}, {"psnr": math.nan}):
        with pytest.raises(ValueError, match="finite and above zero"):
            encode(x, **option)
    for option in ({"bpp": 1e300}, {"size": 10**30}):
        with pytest.raises(ValueError, match="more than all there can be to say"):
            encode(x, **option)
    with pytest.raises(ValueError, match="smaller than the header"):
        encode(x, bpp=0.001)


def test_arguments_that_make_no_sense_are_refused(draw: Draw) -> None:
    x = draw(3, 8, 8)
    for options in ({}, {"bpp": 1, "size": 40}, {"size": 40, "preset": "slow"}, {"size": 40, "seed": 256},
                    {"size": 40, "preset": "psc", "rows": 32}):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            encode(x, **options)
    with pytest.raises(ValueError, match="neither installed"):
        dcodec.encode(x, size=40, prior="nobody")
    data = encode(x, size=30)
    with pytest.raises(ValueError, match="unknown"):
        dcodec.decode(data, estimate="median")
    with pytest.raises(dcodec.BitstreamError, match="max-side"):
        dcodec.decode(data, max_side=7)


def test_pictures_that_are_none(draw: Draw) -> None:
    """Names, bytes, transparent and large ones: told in a line, with arguments that `encode` has."""
    for wrong in ("a.png", Path("a.png"), b"\x89PNG"):
        with pytest.raises(dcodec.PictureError, match="not the name or the bytes of a file"):
            encode(wrong, size=40)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    with pytest.raises(dcodec.PictureError, match="background='white' in Python"):
        encode(clear, size=40)
    assert encode(clear, size=40, background="white") == encode(Image.new("RGB", (4, 4), "white"), size=40)
    with pytest.raises(dcodec.PictureError, match="max_side= in Python"):
        encode(Image.new("L", (9, 1)), size=40, max_side=8)
    assert len(encode(Image.new("L", (9, 1)), size=40, max_side=9)) == 40
    with pytest.raises(dcodec.BitstreamError, match="expected the bytes of a stream, found str"):
        dcodec.decode("a.dcx")  # type: ignore[arg-type]


def test_kinds_of_pictures_give_the_same_bytes(draw: Draw) -> None:
    """Pillow, uint8 and float32 versions of one 8-bit picture."""
    eight = np.rint((draw(3, 12, 20) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    floats = np.ascontiguousarray((eight.astype(np.float32) / np.float32(127.5) - np.float32(1)).transpose(2, 0, 1))
    png = BytesIO()
    Image.fromarray(eight).save(png, "png")
    streams = {encode(x, size=24) for x in (eight, floats, Image.fromarray(eight), Image.open(png))}
    assert len(streams) == 1


# Prefixes


def recorded(x: Pixels, prior: GaussianPrior, preset: str, rows: int, refreshes: int) -> tuple[Setting, Written]:
    """What `stream.encode` leaves, but with every step kept: the encoder's own state at any prefix, nothing decoded."""
    channels, height, width = x.shape
    header = Header(width, height, channels == 1, preset, rows, prior.digest[:2])
    setting = Setting.of(header, prior)
    writer = Writer(torch.from_numpy(x)[None] * (math.sqrt(3) if channels == 1 else 1.0), setting)
    steps: list[stream.Step] = []
    before = None
    for state in codec.walk(setting, writer):
        if before is not None:
            steps.append(stream.Step(before, state, writer.last))
        if state.refresh == refreshes:
            break
        before = state
    header = replace(header, fingerprint=stream.fingerprint(header, writer.first))
    return setting, Written(header, writer.encoder, tuple(writer.turns), tuple(steps))


def middles_of_turns(written: Written) -> list[int]:
    """For each refresh, about the length of the prefix that ends in its middle."""
    decoder, told, middles = Decoder(written.encoder.cut(written.encoder.bits // 8)), [0.0], []
    for gains, levels, bands in written.turns:
        decoder.read_small(gains)
        decoder.read(levels, bands)
        told.append(decoder.bits)
        middles.append(HEADER_SIZE + int(told[-1] + told[-2]) // 16)
    return middles


def check_prefixes(data: bytes, own: Written, setting: Setting, lengths: list[int]) -> list[int]:
    """For each length: the encoder's state then, one decoder that sees them all, and one that sees that prefix alone.

    Returns how many rows are measured after each.
    """
    along = dict(stream.states(data, own.header, setting, lengths))
    assert sorted(along) == lengths
    measured = []
    for length in lengths:
        (_, alone), = stream.states(data[:length], own.header, setting, [length])
        assert_same(alone, along[length])
        assert_same(alone, own.settled(setting, length - HEADER_SIZE))
        measured.append(rows_measured(alone))
    assert measured == sorted(measured)
    return measured


@pytest.mark.parametrize(
    ("preset", "rows", "shape", "refreshes"),
    [("fast", 0, (3, 9, 11), 4), ("fast", 0, (1, 10, 13), 6), ("psc", 1, (1, 8, 8), 40), ("psc", 4, (1, 8, 8), 8),
     ("whole", 0, (1, 7, 8), 12)],
)
def test_every_prefix_is_what_the_encoder_knew(
    preset: str, rows: int, shape: tuple[int, int, int], refreshes: int, draw: Draw, prior: GaussianPrior
) -> None:
    """Every length from the header to the end of a small stream, and the pictures of all of them."""
    x = draw(*shape)
    setting, own = recorded(x, prior, preset, rows, refreshes)
    payload = own.encoder.bits // 8 - 8  # what can no longer change
    data = own.header.pack() + own.encoder.cut(payload)
    assert data == encode(x, size=HEADER_SIZE + payload, preset=preset, rows=rows or None)
    measured = check_prefixes(data, own, setting, list(range(HEADER_SIZE, len(data) + 1)))
    assert measured[0] == 0
    assert len(set(measured)) > payload // 3  # bytes do tell something
    for length in range(HEADER_SIZE, len(data) + 1, 5):
        assert dcodec.decode(data[:length]).size == (shape[2], shape[1])


def test_prefixes_of_a_pyramid(draw: Draw, prior: GaussianPrior) -> None:
    """The same where scales change, for a prefix in every refresh.

    `Written.settled` as the encoder has it, with its last few steps only, tells the same near the end and too far back.
    """
    x = draw(3, 100, 99)
    setting, own = recorded(x, prior, "fast", 0, 9)
    assert setting.layout.coarsest > 1
    assert {step.after.scale for step in own.steps} > {setting.layout.coarsest}
    data = own.header.pack() + own.encoder.cut(own.encoder.bits // 8 - 8)
    lengths = sorted({min(size, len(data)) for size in middles_of_turns(own)} | {len(data) * k // 4 for k in (1, 2, 3)})
    check_prefixes(data, own, setting, lengths)
    kept = replace(own, steps=own.steps[-3:])
    for length in lengths:
        assert_same(kept.settled(setting, length - HEADER_SIZE), own.settled(setting, length - HEADER_SIZE))


def test_progressive_shows_what_prefixes_decode_to_and_gets_better(draw: Draw) -> None:
    x = draw(3, 48, 50)
    data = encode(x, bpp=0.6)
    last = -math.inf
    shots = list(dcodec.progressive(data, steps=12))
    assert len(shots) == 12
    for i, shot in enumerate(shots):
        if i % 2:
            alone = dcodec.decode(data[: shot.size])
            np.testing.assert_array_equal(pixels(shot.mean), pixels(alone))
        elif i % 4 == 0:
            alone = dcodec.decode(data, size=shot.size, estimate="sample")
            np.testing.assert_array_equal(pixels(shot.sample), pixels(alone))
        quality = psnr(x, shot.mean)
        assert quality > last - 0.3
        last = max(quality, last)
    assert shots[-1].size == len(data)
    assert last > psnr(x, shots[0].mean) + 5
    assert shots[-1].std.mean() < 0.6 * shots[0].std.mean()


@pytest.mark.slow
def test_prefixes_of_a_picture_under_the_shipped_prior() -> None:
    """Twelve prefixes of samples/still.dcx (256 x 256, 0.4 bpp): 6 dB and more from first to last, never 0.3 dB back."""
    samples = Path(__file__).parents[1] / "samples"
    with Image.open(samples / "still.png") as picture:
        x = pixels(picture.convert("RGB")).astype(float)
    data = (samples / "still.dcx").read_bytes()
    found = []
    for shot in dcodec.progressive(data, steps=12):
        found.append(10 * math.log10(255**2 / np.mean((pixels(shot.mean) - x) ** 2)))
        assert found[-1] > max(found) - 0.3
    assert len(found) == 12
    assert found[-1] > found[0] + 6


@pytest.fixture(scope="module")
def walked(draw: Draw, prior: GaussianPrior) -> tuple[Setting, Written]:
    """Ten refreshes on a picture of 48x48 in colour, every step of them."""
    return recorded(draw(3, 48, 48), prior, "fast", 0, 10)


@pytest.mark.parametrize("odd", [True, False])
def test_rows_of_a_tile_are_orthonormal(
    odd: bool, draw: Draw, prior: GaussianPrior, walked: tuple[Setting, Written]
) -> None:
    """However many are measured: what is known of one says nothing of another, and none reaches beyond the picture."""
    setting, own = recorded(draw(1, 22, 25), prior, "fast", 0, 14) if odd else walked
    channels, h, w = setting.picture
    anything = torch.randn(9, channels, h, w, generator=torch.Generator().manual_seed(0))
    inside = [(tiles != 0).any(0).numpy() for tiles in analyze(anything, setting.layout)]
    for m, coefficients in zip(own.steps[-1].after.measured, inside, strict=True):
        live = m.width > 0  # (A, k)
        rows = m.rows.astype(np.float64) * 2.0**-ROW_BITS * live[:, :, None]
        gram = np.matmul(rows, rows.transpose(0, 2, 1))
        np.testing.assert_allclose(gram, live[:, :, None] * np.eye(live.shape[1]), atol=2.0**-12)
        there = coefficients[m.tiles]  # (A, p)
        assert not (rows * ~there[:, None]).any()
        assert (live.sum(1) <= there.sum(1)).all()
    assert rows_measured(own.steps[-1].after) > 300


def test_a_textured_half_gets_gains_of_its_own(draw: Draw, prior: GaussianPrior) -> None:
    """What the samples show too much of on one side and too little of on the other is told a region apart."""
    x = draw(3, 40, 300)
    x[:, :, :150] *= 0.1
    setting, own = recorded(x, prior, "fast", 0, 12)
    layout, state = setting.layout, own.steps[-1].after
    assert (state.scale, layout.regions(len(layout) - 1)) == (0, (1, 2))
    flat, textured = state.gains[len(layout) - 1]
    assert textured > flat + 4  # half octaves of energy
    region = layout.region(len(layout) - 1).reshape(layout.grid(len(layout) - 1))
    assert (region == (torch.arange(region.shape[1]) >= region.shape[1] // 2)).all()
    assert layout.refine(torch.tensor([3, 5]), len(layout) - 1).tolist() == [3, 5]


def test_samples_of_all_rounds_count(walked: tuple[Setting, Written]) -> None:
    """Samples deviate from the mean of their own round; the last one goes on to the next refresh, and so does the centre."""
    setting, own = walked
    before, after, p = own.steps[7].before, own.steps[7].after, setting.profile
    rounds = list(chains.draw_samples(setting, before, after.scale))
    assert [len(samples) for samples in rounds] == [p.samples] * p.rounds
    assert after.samples is not None
    assert torch.equal(rounds[-1], after.samples)
    centre = chains.draw_centre(setting, before, after.scale, rounds[-1])
    assert len(centre) == p.centre
    assert after.centre is not None
    assert torch.equal(centre, after.centre)
    index = len(setting.layout) - 1
    bands = torch.stack([analyze(samples, setting.layout)[index] for samples in rounds]).double().numpy()
    middle = analyze(centre, setting.layout)[index]
    nothing = Measured.nothing(setting.layout.dim(index))
    region = setting.layout.region(index)
    seen = view(torch.from_numpy(bands).float().unbind(), middle, nothing, region, np.ones(len(region)))
    np.testing.assert_allclose(seen.mean * 2.0**-VALUE_BITS, middle.double().numpy().mean(0), atol=2.0**-VALUE_BITS)
    spread = bands.var(1, ddof=1).mean(0)  # (T, p), pooled over rounds
    np.testing.assert_allclose(seen.energy * seen.unit**2, spread.sum(1), rtol=0.02)


def test_evaluations_count_by_their_size(draw: Draw, prior: GaussianPrior) -> None:
    """One at half size is a quarter of one at full size."""
    x = draw(1, 200, 200)
    setting, own = recorded(x, prior, "fast", 0, 16)
    p = setting.profile
    taken = [step.after.scale for step in own.steps]
    assert taken[0] == 3
    assert taken[-1] == 0
    report: dict[str, Any] = {}
    dcodec.encode(x, size=HEADER_SIZE + 120, prior=prior, report=report)
    scales = [3] * (p.evaluations - 1) + taken[: report["refreshes"]]
    samples = [p.samples * (p.coarse if scale else 1) for scale in scales]
    walked = sum(n * p.rounds * 0.25**scale for n, scale in zip(samples, scales, strict=True))
    centred = sum(p.centre * p.centre_rounds * 0.25**scale for scale in taken[1 : report["refreshes"]])
    assert report["nfe"] == round(walked + centred)


def test_a_row_is_measured_again_where_samples_disagree(walked: tuple[Setting, Written]) -> None:
    """Its cell is cut when it is wide and the samples vary along it; a cell that the rest of the picture settles waits."""
    setting, own = walked
    state, p = own.steps[7].after, setting.profile
    assert state.samples is not None
    bands = analyze(state.samples, setting.layout, state.scale)
    regions = [setting.layout.region(i) for i in range(len(bands))]
    views = [view([band], band, m, r, np.ones(len(r))) for band, m, r in zip(bands, state.measured, regions, strict=False)]
    directions = next_rows(views, [np.ones(1)] * len(views), setting.layout, p, state.step)
    waiting = 0
    for band, m, seen, found in zip(bands, state.measured, views, directions.bands, strict=False):
        along = np.einsum("stp,tkp->stk", band.double().numpy()[:, m.tiles], m.rows * 2.0**-ROW_BITS).var(0, ddof=1)
        np.testing.assert_allclose(seen.spread * seen.unit**2, along, rtol=0.02, atol=1e-4 * state.step**2)
        at = np.searchsorted(found.tiles, m.tiles)
        wanted, width = (a[at][:, : m.rows.shape[1]] for a in (found.wanted, found.width))
        wide = width >= p.split * state.step
        assert not wanted[(width > 0) & ~wide].any()
        clear = np.abs(along / (p.ripe * state.step**2) - 1) > 0.05  # not where rounding decides
        np.testing.assert_array_equal(wanted[wide & clear], (along >= p.ripe * state.step**2)[wide & clear])
        waiting += int((wide & ~wanted).sum())
    assert waiting > 20


# Estimates


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_agree_with_the_bits(channels: int, draw: Draw, prior: GaussianPrior) -> None:
    """Projections of samples on the measured rows lie in the cells that the bits tell, and so does the picture's; another
    picture's do not."""
    x = draw(channels, 48, 48)
    header, setting = setting_of(data := encode(x, size=HEADER_SIZE + 150), prior)
    (_, state), = stream.states(data, header, setting, [len(data)])
    luma = math.sqrt(3) if channels == 1 else 1.0

    def deviations(pictures: torch.Tensor) -> NDArray[np.float64]:
        """(S, rows): y - H x in half widths of the cells."""
        parts = []
        for band, m in zip(analyze(pictures, setting.layout), state.measured, strict=True):
            known = m.width > 0
            projection = np.einsum("stp,tkp->stk", band.double().numpy()[:, m.tiles], m.rows * 2.0**-ROW_BITS)
            parts.append((2 * (projection - m.y) / np.where(known, m.width, 1))[:, known])
        return np.concatenate(parts, 1)

    samples = deviations(estimates.estimate(setting, state, 8, 3, estimates.SAMPLE))
    assert samples.shape[1] > 100
    assert 0.3 < np.sqrt((samples**2).mean()) < 0.69  # 0.58 if they filled their cells evenly
    assert np.abs(samples).max() < 1.05
    truth = deviations(torch.from_numpy(x)[None] * luma)
    assert np.abs(truth).max() < 1.05
    stranger = deviations(torch.from_numpy(draw(channels, 48, 48, seed=1))[None] * luma)
    assert np.abs(stranger).max() > 12


def test_seeds_and_estimates_differ(draw: Draw) -> None:
    """The header's seed changes rows and bytes; the decoder's own seed gives other samples of the same bits."""
    x = draw(3, 24, 24)
    zero, one = encode(x, size=60), encode(x, size=60, seed=1)
    assert zero[HEADER_SIZE:] != one[HEADER_SIZE:]
    assert abs(psnr(x, dcodec.decode(zero)) - psnr(x, dcodec.decode(one))) < 3
    samples = [pixels(dcodec.decode(zero, estimate="sample", seed=seed)) for seed in (None, 0, 7)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert (samples[1] != samples[2]).mean() > 0.5
    many = dcodec.decode_many(zero, samples=3, seed=7)
    assert len(many.samples) == 3
    assert many.std.shape == (24, 24)
    assert np.abs(many.samples[0] - many.samples[1]).mean() > 0.01


@pytest.mark.parametrize("preset", ["fast", "psc", "whole"])
def test_chunk_changes_nothing(preset: str, draw: Draw) -> None:
    """Same bytes, same pictures, whatever the number of samples in the denoiser at once."""
    x, size = (draw(3, 24, 30), 60) if preset == "fast" else (draw(1, 6, 6), HEADER_SIZE + 1)
    rows = 8 if preset == "psc" else None
    streams, means, samples = set(), set(), set()
    for chunk in (0, 1, 7, 32):
        streams.add(data := encode(x, size=size, preset=preset, rows=rows, chunk=chunk))
        shown = dcodec.decode_many(data, samples=1, chunk=chunk)
        means.add(shown.mean.tobytes())
        samples.add(shown.samples[0].tobytes())
    assert (len(streams), len(means), len(samples)) == (1, 1, 1)


# A target in dB


@pytest.mark.parametrize(("channels", "target"), [(3, 21.0), (3, 24.5), (1, 23.0), (1, 30.0)])
def test_psnr_is_reached_with_hardly_a_byte_too_many(
    channels: int, target: float, draw: Draw, prior: GaussianPrior
) -> None:
    """The decoded mean reaches the target, and no prefix that is more than a few bytes shorter does."""
    x = draw(channels, 40, 40)
    report: dict[str, Any] = {}
    data = encode(x, psnr=target, report=report)
    reached = psnr(x, dcodec.decode(data))
    assert reached >= target
    assert report["psnr"] == pytest.approx(reached, abs=1e-9)
    assert report["bytes"] == len(data)
    slack = 4 + len(data) // 64
    shorter = [n for n in range(len(data) - 5 * slack, len(data) - slack, slack) if n >= HEADER_SIZE]
    header, setting = setting_of(data, prior)
    for _, state in stream.states(data, header, setting, shorter):
        assert psnr(x, to_image(estimates.mean(setting, state))) < target


def test_psnr_out_of_reach_is_refused(draw: Draw) -> None:
    with pytest.raises(ValueError, match="out of reach"):
        encode(draw(1, 6, 6), psnr=90)


def test_report_counts_what_was_done(draw: Draw) -> None:
    """nfe: evaluations, of one picture each, are those of the walk's refreshes and of the one estimate."""
    coded: dict[str, Any] = {}
    decoded: dict[str, Any] = {}
    heard: list[tuple[int, int]] = []
    data = encode(draw(3, 24, 24), size=70, report=coded, progress=lambda done, of, note: heard.append((done, of)))
    dcodec.decode(data, report=decoded)
    p = profile("fast")
    later = coded["refreshes"] - 1
    walk = p.samples * p.rounds * (p.evaluations + later) + p.centre * p.centre_rounds * later
    assert coded["nfe"] == walk
    assert decoded["nfe"] >= walk
    assert (coded["bytes"], decoded["bytes"]) == (70, 70)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1][0] <= heard[-1][1]
