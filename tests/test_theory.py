"""Does the machinery do what theory says, where theory has a closed form?

The Gaussian prior has one for everything: the posterior, its principal components, the rate-distortion function.
References here are dense algebra in numpy and share no code with the package.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import truncnorm
from sklearn.decomposition import PCA

from dcodec import codec, estimates, positions, stream
from dcodec.cells import RATIOS, within
from dcodec.container import HEADER_SIZE, Header
from dcodec.entropy import Decoder
from dcodec.exact import functions, noise
from dcodec.exact.pca import BITS, gram, jacobi, orthonormal, principal_directions
from dcodec.posterior import Measured, antithetic, centred, sample, schedule
from dcodec.prior import SIGMAS
from dcodec.prior.catalog import PHOTO_SPECTRUM
from dcodec.prior.gaussian import GaussianPrior, dct_matrix, opponent, spectrum, wiener
from dcodec.state import Setting, State, start
from dcodec.transform import Layout, analyze, extend, join, split, synthesize, upsample

Array = NDArray[np.float64]
UNIT = 2.0**-BITS


# Rate and distortion


def rate(eigenvalues: Array, distortion: float) -> float:
    """R(D) in bits of a Gaussian vector with these variances, D the total squared error: reverse water-filling."""
    low, high = 1e-12, float(eigenvalues.max())
    for _ in range(200):
        level = math.sqrt(low * high)
        low, high = (low, level) if np.minimum(level, eigenvalues).sum() > distortion else (level, high)
    return float(np.maximum(0.5 * np.log2(eigenvalues / level), 0).sum())


def settled_rows(written: stream.Written, payload: int) -> int:
    """How many coded rows the first `payload` bytes settle."""
    decoder, count = Decoder(written.encoder.cut(payload)), 0
    for gains, levels, bands in written.turns:
        decoder.read_small(gains)
        count += len(decoder.read(levels, bands))
    return count


def test_psc_keeps_to_the_rate_distortion_function(prior: GaussianPrior) -> None:
    """Bits <= R(D) at the D reached + 0.26 a coded row + 64, at four rates.

    An entropy-coded uniform quantizer loses 0.2546 bits a row at high rates (Gish & Pierce 1968); 64 bits are for what
    coder and adaptation hold back. R(D) is an expectation, so bits, error and rows are means over pictures;
    the error is that of the mean of 64 samples, whose own spread adds 1/64 of the posterior variance.
    """
    h, w, payloads = 10, 14, (8, 14, 20, 26)
    variances = spectrum(h, w, PHOTO_SPECTRUM[:1]).ravel()
    pictures = 4
    errors, rows = np.zeros(len(payloads)), np.zeros(len(payloads))
    for seed in range(pictures):
        x = torch.from_numpy(prior.draw(1, h, w, seed))[None]
        header = Header(w, h, True, "psc", 8, prior.digest[:2], seed)
        setting = Setting.of(header, prior)
        written = stream.encode(x, header, setting, lambda state, encoder: encoder.filled(payloads[-1]))
        data = written.header.pack() + written.encoder.cut(payloads[-1])
        sizes = [HEADER_SIZE + n for n in payloads]
        for i, (size, state) in enumerate(stream.states(data, written.header, setting, sizes)):
            mean = estimates.estimate(setting, state, 64, 1, estimates.Passes()).double().mean(0)
            errors[i] += float(((mean - x[0]) ** 2).sum()) / pictures
            rows[i] += settled_rows(written, size - HEADER_SIZE) / pictures
    bits = 8.0 * np.array(payloads)
    least = np.array([rate(variances, error) for error in errors])
    assert (least < bits).all()  # nothing beats R(D)
    assert (bits <= least + 0.26 * rows + 64).all(), f"{bits=} {least=} {rows=}"
    assert (np.diff(least) > 10).all()  # and the bits buy something


@pytest.mark.parametrize("seed", [0, 1])
def test_first_rows_of_psc_are_the_principal_components(seed: int, prior: GaussianPrior) -> None:
    """Before anything is measured: rows span the top eigenvectors of the covariance, as well as 100 samples tell."""
    h, w, k = 10, 14, 8
    header = Header(w, h, True, "psc", k, prior.digest[:2], seed)
    setting = Setting.of(header, prior)
    _, directions = codec.propose(setting, start(setting), stream.Reader(header, b""))
    rows = directions.bands[0].rows[0][directions.column] * UNIT
    np.testing.assert_allclose(rows @ rows.T, np.eye(k), atol=2.0**-18)
    covariance = prior.covariance(1, h, w)
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors[:, ::-1]
    for j in range(1, k + 1):
        assert np.trace(rows[:j] @ covariance @ rows[:j].T) > 0.97 * variances[:j].sum()
    for j, cosine in ((1, 0.99), (2, 0.97), (4, 0.93)):  # of the largest principal angle between eigenvectors and rows
        assert np.linalg.svd(rows @ vectors[:, :j])[1][-1] > cosine


# The sampler


def rows_in_top_eigenspace(covariance: Array, k: int, seed: int) -> Array:
    """`k` random orthonormal rows that span the leading eigenvectors, integers in units of 2**-BITS."""
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((k, k)))[0]
    rows: Array = np.rint(turn @ np.linalg.eigh(covariance)[1][:, ::-1][:, :k].T / UNIT)
    return rows


def posterior(covariance: Array, measured: Measured) -> tuple[Array, float]:
    """Mean, and total variance, of x ~ N(0, covariance) given the measurements of one tile."""
    live = measured.width[0] > 0
    h = measured.rows[0][live] * UNIT
    gain = covariance @ h.T @ np.linalg.inv(h @ covariance @ h.T + np.diag(measured.width[0][live] ** 2 / 12))
    return gain @ measured.y[0][live], float(np.trace(covariance - gain @ h @ covariance))


def check_sampler(prior: GaussianPrior, measured: Measured, layout: Layout, evaluations: int) -> None:
    """Mean within 10 % (of its norm, and of the posterior spread), total variance within 10 % of the closed form."""
    mean, variance = posterior(prior.covariance(layout.channels, layout.height, layout.width), measured)
    levels = schedule(16.0, 2.0**-5, evaluations)
    assert len(levels) <= 8
    count = 400
    nothing = torch.zeros(count, layout.channels, layout.height, layout.width)
    drawn = sample(
        prior, [measured], layout, 0, levels, nothing, antithetic(3, 0), turn=0, chunk=count, device="cpu"
    ).reshape(count, -1).double().numpy()  # fmt: skip
    error = np.linalg.norm(drawn.mean(0) - mean)
    assert error < 0.1 * np.linalg.norm(mean)
    assert error**2 < 0.1 * variance
    assert drawn.var(0, ddof=1).sum() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("k", [5, 24])
@pytest.mark.parametrize("noise_variance", [0.01, 0.1])
def test_sampler_with_random_rows_of_the_top_eigenspace(
    channels: int, k: int, noise_variance: float, prior: GaussianPrior
) -> None:
    """Eight evaluations of the denoiser are enough.

    The sampler takes rows for uncorrelated with everything else, as principal components are: rows are random within
    the span of the leading eigenvectors, not within the whole space.
    """
    layout = Layout(channels, 12, 10, 0, 0)
    covariance = prior.covariance(channels, 12, 10)
    rows = rows_in_top_eigenspace(covariance, k, seed=k)
    h = rows * UNIT
    x = prior.draw(channels, 12, 10, 5).ravel().astype(np.float64)
    y = h @ x + np.random.default_rng(1).standard_normal(k) * math.sqrt(noise_variance)
    measured = Measured(
        np.zeros(1, np.int64), rows[None].astype(np.float32), y[None], np.full((1, k), math.sqrt(12 * noise_variance)),
        np.diag(h @ covariance @ h.T)[None],
    )  # fmt: skip
    check_sampler(prior, measured, layout, 8)


def test_sampler_with_rows_that_a_walk_finds(prior: GaussianPrior) -> None:
    h, w = 12, 16
    x = torch.from_numpy(prior.draw(1, h, w, 5))[None]
    header = Header(w, h, True, "psc", 4, prior.digest[:2])
    setting = Setting.of(header, prior)
    found: list[State] = []
    stream.encode(x, header, setting, lambda state, encoder: bool(found.append(state)) or state.refresh == 8)
    for state in found[::3]:
        check_sampler(prior, state.measured[0], setting.layout, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("width", [0.5, 1.5, 4.0])
def test_sampler_keeps_to_cells(channels: int, width: float, prior: GaussianPrior) -> None:
    """Principal components known to lie in cells of `width` standard deviations, some far from zero: each is a normal
    variable cut off at its cell's ends, the rest of the picture as it was."""
    layout, k, count = Layout(channels, 12, 10, 0, 0), 12, 400
    covariance = prior.covariance(channels, 12, 10)
    values, vectors = np.linalg.eigh(covariance)
    rows, values = np.rint(vectors[:, ::-1][:, 1 : k + 1].T / UNIT), values[::-1]  # no noise hides the first one
    spread = np.sqrt(values[1 : k + 1])
    y = np.linspace(-2, 2, k) * spread
    measured = Measured(
        np.zeros(1, np.int64), rows[None].astype(np.float32), y[None], (width * spread)[None], spread[None] ** 2
    )
    drawn = sample(
        prior, [measured], layout, 0, schedule(32.0, 2.0**-5, 14), torch.zeros(count, channels, 12, 10),
        antithetic(3, 0), turn=0, chunk=count, device="cpu",
    ).reshape(count, -1).double().numpy()  # fmt: skip
    middles = y / spread
    cut = truncnorm(middles - width / 2, middles + width / 2)
    inside = drawn @ (rows * UNIT).T / spread
    assert (np.abs(inside - middles) < 0.505 * width + 0.01).all()
    np.testing.assert_allclose(inside.mean(0), cut.mean(), atol=0.06 * width)
    np.testing.assert_allclose(inside.std(0, ddof=1), cut.std(), rtol=0.15)
    others = drawn @ vectors[:, ::-1][:, k + 1 :]
    assert others.var(0, ddof=1).sum() == pytest.approx(values[k + 1 :].sum(), rel=0.1)


# Cells


@given(st.floats(-6, 6), st.floats(-3, 3), st.floats(0.01, 100))
def test_means_within_cells(offset: float, octaves: float, width: float) -> None:
    """As scipy has them, where the spread is 1/8 to 8 half widths; odd in the offset, and in the cell."""
    offset, spread = offset * width, 2.0**octaves * width / 2
    offsets = torch.tensor([[[offset], [-offset], [0.0]]], dtype=torch.float64)
    mean, mirrored, middle = within(offsets, np.array([[spread**2]]), np.array([[width]])).ravel().tolist()
    ends = (-width / 2 - offset) / spread, (width / 2 - offset) / spread
    assert mean == pytest.approx(offset + spread * truncnorm.mean(*ends), abs=0.03 * width)  # ratios go in steps of 2^(1/4)
    assert abs(mean) < width / 2
    assert (mirrored, middle) == (-mean, 0.0)


def test_means_within_cells_on_the_grid() -> None:
    """To a five-hundredth of the half width where the table has the ratio itself; nothing moves where there is no cell."""
    ratios = RATIOS[None, 4:]  # (1, k)
    offsets = np.linspace(-8, 8, 333)[None, :, None] * np.ones(ratios.shape)
    found = within(torch.from_numpy(offsets), ratios**2, 2.0 * np.ones(ratios.shape)).numpy()
    expected = offsets + ratios[:, None] * truncnorm.mean((-1 - offsets) / ratios[:, None], (1 - offsets) / ratios[:, None])
    np.testing.assert_allclose(found, expected, atol=0.002)
    assert (np.diff(found, axis=1) >= 0).all()
    nothing = within(torch.zeros(1, 4, 2, dtype=torch.float64), np.ones((1, 2)), np.zeros((1, 2)))
    assert not nothing.any()


def test_sample_does_not_depend_on_its_neighbours(prior: GaussianPrior) -> None:
    layout = Layout(1, 9, 7, 0, 0)
    few, many = (
        sample(
            prior, [], layout, 0, schedule(4.0, 0.1, 5), torch.zeros(n, 1, 9, 7), antithetic(0, 1),
            turn=0, chunk=c, device="cpu",
        )  # fmt: skip
        for n, c in ((3, 2), (9, 4))
    )
    assert torch.equal(few, many[:3])
    assert len(torch.unique(many.flatten(1), dim=0)) == 9


# Positions


@dataclass(frozen=True)
class Leaning:
    """A denoiser that errs otherwise in each position, on more pixels across than down, and keeps the shapes it saw."""

    turned: bool
    doubt: float = 1.0
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        ramp = torch.arange(x.shape[-1]) + 100.0 * torch.arange(x.shape[-2])[:, None]
        return x * 0.5 + ramp * sigma


def test_positions_are_the_eight_and_put_back() -> None:
    x = torch.randn(3, 4, 6)
    turned = [positions.put(x, position) for position in positions.ORDER]
    assert sorted(positions.ORDER) == list(range(8))
    assert [t.shape == x.shape for t in turned] == [True, False] * 4
    for i, (position, t) in enumerate(zip(positions.ORDER, turned, strict=True)):
        assert torch.equal(positions.put_back(t, position), x)
        for other in turned[:i]:
            assert t.shape != other.shape or not torch.equal(t, other)


def test_each_sample_in_a_position_of_its_own() -> None:
    prior, x = Leaning(True), torch.randn(11, 3, 4, 6).round()
    at_once = positions.denoise(prior, x, 0.5, 0, 3)
    assert sorted(prior.seen) == [(5, 3, 4, 6), (6, 3, 6, 4)]  # one evaluation of each shape
    for i in range(11):
        assert torch.equal(positions.denoise(prior, x[i : i + 1], 0.5, i, 3)[0], at_once[i])
        position = positions.ORDER[(i + 3) % 8]
        assert torch.equal(positions.put(at_once[i], position), prior(positions.put(x[i], position)[None], 0.5)[0])
    errors = at_once - x * 0.5
    assert len(torch.unique(errors[:8].flatten(1), dim=0)) == 8
    assert torch.equal(errors[:3], errors[8:])


def test_each_turn_is_another_position() -> None:
    x = torch.randn(1, 1, 5, 5)
    estimates = torch.cat([positions.denoise(Leaning(True), x, 0.5, 2, turn) for turn in range(9)])
    assert len(torch.unique(estimates.flatten(1), dim=0)) == 8
    assert torch.equal(estimates[0], estimates[8])


def test_priors_that_know_no_turned_pictures_see_none() -> None:
    prior, x = Leaning(False), torch.randn(5, 1, 4, 6)
    assert torch.equal(positions.denoise(prior, x, 0.5, 0, 1), prior(x, 0.5))
    assert prior.seen == [(5, 1, 4, 6)] * 2


def test_samples_and_chunks_keep_their_positions() -> None:
    """Of a solver's evaluations, whatever the chunk."""
    layout, start = Layout(1, 6, 8, 0, 0), torch.zeros(7, 1, 6, 8)
    levels = schedule(4.0, 0.1, 3)
    drawn = [
        sample(Leaning(True), [], layout, 0, levels, start, antithetic(0, 1), turn=5, chunk=c, device="cpu")
        for c in (1, 3, 7)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


# Principal directions


def integers(a: Array) -> Array:
    """Scaled to 13 bits and rounded, as deviations come."""
    scaled: Array = np.rint(a * (8191 / np.abs(a).max()))
    return scaled


def captured(rows: Array, covariance: Array) -> float:
    return float(np.trace(rows @ covariance @ rows.T))


def best(covariance: Array, rank: int) -> float:
    return float(np.linalg.eigvalsh(covariance)[-rank:].sum())


def check_rows(rows: Array, off: Array | None = None) -> Array:
    """Integer-valued, orthonormal, orthogonal to `off`; returned as unit vectors."""
    np.testing.assert_array_equal(rows, np.rint(rows))
    unit = rows * UNIT
    np.testing.assert_allclose(unit @ unit.T, np.eye(len(unit)), atol=2.0**-16)
    if off is not None:
        np.testing.assert_allclose(unit @ off.T, 0, atol=2.0**-14)
    return unit


@pytest.mark.parametrize(("p", "samples", "rank"), [(140, 100, 1), (140, 100, 8), (45, 16, 4), (75, 200, 24)])
def test_principal_directions_against_sklearn(p: int, samples: int, rank: int, prior: GaussianPrior) -> None:
    """Sample covariances of pictures: the rows capture 99 % of the variance that PCA does, and tell how much that is."""
    roots = np.linalg.cholesky(prior.covariance(1, 5, p // 5))
    drawn = np.stack([roots @ np.random.default_rng(i).standard_normal((p, samples)) for i in range(3)])
    a = np.stack([integers(d - d.mean(1, keepdims=True)) for d in drawn])
    rows, variances = principal_directions(a, rank, own=1.0 / (samples - 1), iterations=4)
    assert rows.shape == (3, rank, p)
    for deviations, found, told in zip(a, rows, variances, strict=True):
        unit = check_rows(found)
        reference = PCA(rank, svd_solver="full").fit(deviations.T)
        covariance = deviations @ deviations.T / (samples - 1)
        assert captured(unit, covariance) > 0.99 * reference.explained_variance_.sum()
        np.testing.assert_allclose(told, np.diag(unit @ covariance @ unit.T), rtol=1e-3)
        assert (np.diff(told) <= 0).all()


@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize("known", [0, 3, 10, 14])
def test_principal_directions_off_known_rows_with_a_pool(known: int, rank: int, prior: GaussianPrior) -> None:
    """own * A A' + weight * pool, off the rows known already, which are the leading ones: against numpy's eigh."""
    p, samples = 16, 8
    pool = prior.covariance(1, 4, 4)
    vectors = np.linalg.eigh(pool)[1][:, ::-1]
    rng = np.random.default_rng(known)
    own, weights = 0.3 / (samples - 1), rng.uniform(1e5, 1e6, 4)
    off = np.rint(vectors[:, :known].T / UNIT)[None].repeat(4, 0)
    roots = np.linalg.cholesky(pool)
    project = np.eye(p) - UNIT**2 * off[0].T @ off[0]
    a = np.stack([integers(project @ roots @ rng.standard_normal((p, samples))) for _ in range(4)])
    rows, variances = principal_directions(
        a, rank, own=own, pool=np.rint(pool * 1e6), pool_weight=weights * 1e-6, off=off, iterations=4
    )
    for deviations, weight, found, told in zip(a, weights, rows, variances, strict=True):
        live = found.any(axis=1)  # there are no directions beyond the dimensions left
        assert live.sum() == min(rank, p - known)
        unit = check_rows(found[live], off[0] * UNIT)
        covariance = project @ (own * deviations @ deviations.T + weight * pool) @ project
        assert captured(unit, covariance) > 0.99 * best(covariance, int(live.sum()))
        np.testing.assert_allclose(told[live], np.diag(unit @ covariance @ unit.T), rtol=1e-2)


def test_pool_alone_and_a_first_guess(prior: GaussianPrior) -> None:
    """Without samples of its own, a tile gets the pool's components; started from them, one iteration keeps them."""
    pool, nothing = prior.covariance(3, 4, 4), np.zeros((1, 48, 1))
    rows, variances = principal_directions(nothing, 12, pool=np.rint(pool * 1e6), pool_weight=1e-6, iterations=6)
    unit = check_rows(rows[0])
    assert captured(unit, pool) > 0.99 * best(pool, 12)
    assert variances[0].sum() == pytest.approx(best(pool, 12), rel=0.01)
    again, _ = principal_directions(
        nothing, 8, pool=np.rint(pool * 1e6), pool_weight=1e-6, start=rows[0], iterations=1
    )
    assert captured(check_rows(again[0]), pool) > 0.999 * best(pool, 8)


def test_jacobi_and_cholesky_qr(prior: GaussianPrior) -> None:
    """Eigenvalues as LAPACK has them; the span of rows kept, a dependent row zeroed."""
    for matrix in (prior.covariance(1, 4, 3), prior.covariance(1, 3, 3), prior.covariance(3, 1, 1), np.full((1, 1), 2.0)):
        values, vectors = jacobi(np.stack([matrix, 3.0 * matrix]), sweeps=6)  # of even and odd sizes
        for factor, value, vector in zip((1.0, 3.0), values, vectors, strict=True):
            np.testing.assert_allclose(np.sort(value), factor * np.linalg.eigvalsh(matrix), rtol=1e-9)
            np.testing.assert_allclose(factor * matrix @ vector, vector * value, atol=1e-9)
            np.testing.assert_allclose(vector.T @ vector, np.eye(len(matrix)), atol=1e-12)
    y = np.random.default_rng(0).integers(-(2**20), 2**20, (1, 5, 30)).astype(np.float64)
    y[0, 3] = y[0, 0] * 2 - y[0, 1]
    q = orthonormal(y)[0] * UNIT
    assert not q[3].any()
    kept = q[[0, 1, 2, 4]]
    np.testing.assert_allclose(kept @ kept.T, np.eye(4), atol=2.0**-18)
    np.testing.assert_allclose(y[0] @ kept.T @ kept, y[0], atol=8)


@pytest.mark.parametrize("p", [200, 4096, 1 << 17])
def test_the_gram_matrix_of_long_rows_knows_no_order(p: int) -> None:
    """Its sums pass 2**53, where a product of matrices depends on its blocking, here on the order of coefficients."""
    generator = np.random.default_rng(p)
    at = (2 * np.arange(p) + 1) * np.pi / (2 * p)
    y = np.rint(np.cos(at * np.arange(5)[:, None]) / UNIT)[None] + generator.integers(-2, 3, (2, 5, p))
    found = gram(y)
    for _ in range(3):
        y = np.ascontiguousarray(y[:, :, generator.permutation(p)])
        np.testing.assert_array_equal(gram(y), found)
    whole = y.astype(np.int64)
    np.testing.assert_allclose(found, np.matmul(whole, whole.transpose(0, 2, 1)).astype(np.float64), rtol=2.0**-50)


# Transforms


@pytest.mark.parametrize(
    ("channels", "h", "w", "levels", "tile"),
    [(3, 16, 32, 2, 4), (3, 17, 30, 2, 4), (1, 41, 23, 4, 4), (1, 2, 3, 1, 4), (3, 9, 7, 0, 0)],
)
def test_pyramid_inverts(channels: int, h: int, w: int, levels: int, tile: int) -> None:
    """At every scale synthesize inverts analyze, and a coarser picture has the same coarser bands; nothing lies outside of
    the support, which counts as many coefficients as there are pixels."""
    layout = Layout(channels, h, w, levels, tile)
    x = torch.randn(2, channels, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = analyze(x, layout)
    supports = [layout.support(i) for i in range(len(layout))]
    assert [b.shape[1:] for b in full] == [s.shape for s in supports]
    assert sum(int(s.sum()) for s in supports) == x[0].numel()
    assert not any((band * (1 - s)).any() for band, s in zip(full, supports, strict=True))
    for scale in range(levels + 1):
        bands = analyze(x, layout, scale)
        assert torch.allclose(synthesize(bands, layout), x, atol=1e-6)  # its constants are float32 numbers
        for mine, finer in zip(bands, full, strict=False):
            assert torch.allclose(mine, finer, atol=1e-6)
        if scale < levels:
            low, _ = split(x)
            bands = [*bands[:-1], torch.zeros_like(bands[-1])]
            assert torch.allclose(upsample(low / 2, layout, scale), synthesize(bands, layout), atol=1e-6)
            x = low / 2


def test_pyramid_is_nearly_orthonormal() -> None:
    """An error of one in any coefficient costs about one in the picture, and a flat picture has no details."""
    layout = Layout(1, 64, 64, 3, 4)
    for index in range(len(layout)):
        bands = [torch.zeros(1, *layout.support(i).shape, dtype=torch.float64) for i in range(len(layout))]
        bands[index] = torch.randn(bands[index].shape, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
        assert float(synthesize(bands, layout).square().sum() / bands[index].square().sum()) == pytest.approx(1.05, abs=0.2)
    low, *details = analyze(torch.ones(1, 1, 64, 64, dtype=torch.float64), layout)
    assert torch.allclose(low, torch.full_like(low, 8.0), atol=1e-5)
    assert all(band.abs().max() < 1e-5 for band in details)


def test_wavelet_is_that_of_the_jpeg_2000_standard() -> None:
    """The synthesis filters of an impulse, against the 9/7 filter taps (Antonini et al. 1992, table 1), times sqrt(2)."""
    low, detail = torch.zeros(1, 1, 8, 8, dtype=torch.float64), None
    low[0, 0, 4, 4] = 1.0
    taps = join(low, detail, 16, 16)[0, 0, 8]  # a row through the middle: h[0] h[n]
    expected = np.array([0.788485616405664, 0.418092273222212, -0.0406894176095584, -0.0645388826289385])
    np.testing.assert_allclose(taps[8:12].numpy(), expected * expected[0], atol=1e-6)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 1), (1, 20)])
def test_extension_mirrors(down: int, right: int) -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, down), (0, right)), mode="symmetric")
    np.testing.assert_array_equal(extend(x, down, right).numpy(), expected)


# The Gaussian prior


def test_covariance_is_that_of_its_definition(prior: GaussianPrior) -> None:
    """The DCT-II from its formula, an orthonormal colour transform, and draws that have the covariance."""
    for n in (1, 2, 5, 16):
        table = [
            [math.sqrt((2 if k else 1) / n) * math.cos(math.pi * (2 * i + 1) * k / (2 * n)) for i in range(n)]
            for k in range(n)
        ]
        np.testing.assert_allclose(dct_matrix(n), table, atol=1e-14)
    np.testing.assert_allclose(opponent() @ opponent().T, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(opponent()[0], math.sqrt(1 / 3), atol=1e-15)
    a, f0, p = PHOTO_SPECTRUM[1]
    by_hand = a * (f0**2 + (3 / 4) ** 2 + (2 / 5) ** 2) ** -p
    assert spectrum(4, 5, PHOTO_SPECTRUM)[1, 3, 2] == pytest.approx(by_hand, rel=1e-12)
    covariance = prior.covariance(3, 3, 2)
    drawn = np.stack([prior.draw(3, 3, 2, seed).ravel() for seed in range(4000)])
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn) / scale, covariance / scale, atol=0.1)


@pytest.mark.parametrize(("channels", "h", "w"), [(1, 12, 16), (3, 7, 9), (3, 1, 40), (1, 36, 1)])
def test_wiener_is_the_dense_wiener_filter(channels: int, h: int, w: int, prior: GaussianPrior) -> None:
    """C (C + sigma^2)^-1 x at all kinds of noise levels, to the precision of its fixed point."""
    covariance = prior.covariance(channels, h, w)
    for level in (0, 20, 48, len(SIGMAS) - 1):
        sigma = SIGMAS[level]
        z = noise.normal((1, 2, level), channels * h * w).reshape(channels, h, w)
        x = prior.draw(channels, h, w, level) + np.float32(sigma) * z
        noisy = covariance + sigma**2 * np.eye(len(covariance))
        expected = covariance @ np.linalg.solve(noisy, x.ravel().astype(np.float64))
        batch = torch.from_numpy(np.stack([x, -x]))
        out = wiener(batch, sigma, PHOTO_SPECTRUM)
        assert out.dtype == torch.float32
        np.testing.assert_allclose(out[0].ravel().numpy(), expected, atol=1e-3 * max(1.0, sigma / 8))
        assert torch.equal(out[0], -out[1])
        np.testing.assert_array_equal(prior(batch, sigma).numpy(), out.numpy())


def test_wiener_takes_pictures_in_any_memory_layout(prior: GaussianPrior) -> None:
    x = torch.randn(2, 3, 40, 28, generator=torch.Generator().manual_seed(0))
    for view in (x.mT.contiguous().mT, x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(prior(view, 0.5), prior(x, 0.5))


# Functions and noise


@given(st.floats(-690, 690))
def test_exp(x: float) -> None:
    assert float(functions.exp(x)) == pytest.approx(math.exp(x), rel=1e-14)


@given(st.floats(1e-300, 1e300))
def test_log(x: float) -> None:
    assert float(functions.log(x)) == pytest.approx(math.log(x), rel=1e-14, abs=1e-15)


@given(st.floats(-40, 40))
def test_normal_cdf(x: float) -> None:
    assert float(functions.normal_cdf(x)) == pytest.approx(0.5 * math.erfc(-x / math.sqrt(2)), abs=1e-15)


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**20))
def test_cos_turns(numerator: int, denominator: int) -> None:
    expected = math.cos(2 * math.pi * (numerator % denominator / denominator))
    assert float(functions.cos_turns(np.array(numerator), denominator)) == pytest.approx(expected, abs=2e-15)


def test_functions_at_special_points() -> None:
    np.testing.assert_array_equal(functions.exp([0.0, 1000.0, -1000.0]), functions.exp([0.0, 700.0, -700.0]))
    assert functions.exp(0.0) == 1.0
    assert functions.log(1.0) == 0.0
    np.testing.assert_allclose(functions.cos_turns(np.arange(6), 4), [1, 0, -1, 0, 1, 0], atol=1e-16)
    assert functions.cos_turns(np.array(2**40), 2**40) == 1.0
    grid = np.linspace(-14, 14, 20001)
    assert (np.diff(functions.normal_cdf(grid)) >= -1e-16).all()


def test_shared_noise_is_normal_and_belongs_to_its_key() -> None:
    z = noise.normal((1, 2, 3), 200_000).astype(np.float64)
    assert abs(z.mean()) < 0.01
    assert z.var() == pytest.approx(1, abs=0.01)
    assert (z**4).mean() == pytest.approx(3, abs=0.1)
    assert np.abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.01
    np.testing.assert_array_equal(np.rint(z * 4096), z * 4096)
    np.testing.assert_array_equal(noise.normal((1, 2, 3), 1001), z[:1001].astype(np.float32))
    for other in ((0, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert abs((noise.normal(other, 200_000) * z).mean()) < 0.01
    draw = antithetic(1, 2)
    np.testing.assert_array_equal(draw(4, 50), -draw(5, 50))
    assert (draw(4, 50) != draw(6, 50)).any()


def test_noise_of_a_round_sums_to_zero() -> None:
    draw = centred(1, 2, 8)
    z = np.stack([draw(i, 40_000) for i in range(8)]).astype(np.float64)
    assert np.abs(z.sum(0)).max() < 1e-5
    np.testing.assert_allclose(z.std(1), 1.0, atol=0.02)
    covariance = z @ z.T / z.shape[1]
    np.testing.assert_allclose(covariance[~np.eye(8, dtype=bool)], -1 / 7, atol=0.03)
    np.testing.assert_array_equal(draw(3, 40_000), centred(1, 2, 8)(3, 40_000))
