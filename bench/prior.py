"""How good is a prior at what the codec asks of it? Denoising, super-resolution, calibration, ideal rate, speed.

Everything is of colour pictures in [-1, 1], at full size unless `crop` says otherwise, and PSNR is that of 8-bit pictures
averaged in dB, as the field reports it; sigma 0.196 and 0.392 are noise of 25 and 50 levels of 255.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench import limit, states
from bench.metrics import psnr
from dcodec import estimates, spread
from dcodec.container import HEADER_SIZE
from dcodec.exact.noise import normal
from dcodec.exact.pca import BITS
from dcodec.pictures import to_image
from dcodec.posterior import Measured, antithetic, sample, schedule
from dcodec.prior import SIGMAS, Prior
from dcodec.prior.gaussian import opponent
from dcodec.transform import Layout, to_tiles

Picture = NDArray[np.uint8]  # (h, w, 3)
Denoiser = Callable[[Tensor, float], Tensor]

NOISES = (0.05, 0.1, 0.196, 0.392, 0.8, 1.6, 3.2)
FACTORS = (4, 8)
RATES = (0.05, 0.1, 0.3)
SAMPLES = 8
HIDING, ROUND = 1.0, 0.5  # noise at which super-resolution begins, and of its rounds


def to_tensor(picture: Picture) -> Tensor:
    """(1, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1


def shown(x: Tensor) -> Picture:
    """The 8-bit picture of (1, 3, h, w)."""
    return np.asarray(to_image(x[0].numpy()))


def denoising(denoiser: Denoiser, picture: Picture) -> list[float]:
    """PSNR at NOISES; the denoiser is told the nearest level it knows."""
    x = to_tensor(picture)
    z = torch.from_numpy(normal((0, 1 << 22, 0), x.numel())).view(x.shape)
    out = []
    for sigma in NOISES:
        level = min(SIGMAS, key=lambda s: abs(math.log(s / sigma)))
        out.append(psnr(picture, shown(denoiser(x + sigma * z, level))))
    return out


def super_resolution(prior: Prior, picture: Picture, factor: int) -> tuple[float, float]:
    """PSNR of the posterior mean given block averages, and of bicubic interpolation of them.

    The mean is made as a decoder makes it that has no samples of a walk: few evaluations, here from noise that hides what the
    interpolation lacks, then rounds of noising and denoising; many evaluations in one pass give samples of more spread, whose
    mean is worse (bench/NOTES.md).
    """
    h, w = (n // factor * factor for n in picture.shape[:2])
    picture = picture[:h, :w]
    x = to_tensor(picture)
    low = torch.nn.functional.avg_pool2d(x, factor)
    bands = [Image.fromarray(band) for band in low[0].numpy()]
    wide = np.stack([np.asarray(band.resize((w, h), Image.Resampling.BICUBIC)) for band in bands])
    bicubic = torch.from_numpy(wide)[None]
    layout = Layout(3, h, w, 0, factor)
    measured = block_averages(x, layout, factor)
    drawn = bicubic.expand(SAMPLES, -1, -1, -1)
    how = estimates.COLD_MEAN
    passes = [schedule(HIDING, 2.0**-6, how.first)] + [schedule(ROUND, 2.0**-4, how.each)] * how.rounds
    turn = 0
    for i, levels in enumerate(passes):
        drawn = sample(prior, [measured], layout, 0, levels, drawn, antithetic(0, i), turn=turn, chunk=1, device="cpu")
        turn += len(levels)
    return psnr(picture, shown(drawn.mean(0, keepdim=True))), psnr(picture, shown(bicubic))


def block_averages(x: Tensor, layout: Layout, factor: int) -> Measured:
    """What is known of (1, 3, h, w) when all averages of blocks factor x factor are; layout: of one band in such tiles."""
    rows = np.zeros((3, 3 * factor * factor), np.float32)  # of opponent colours, orthonormal
    for i, colour in enumerate(opponent()):
        rows[i] = np.rint(np.repeat(colour, factor * factor) / factor * 2.0**BITS)
    tiles = to_tiles(x, layout, 0)[0].double().numpy()  # (T, p)
    y = tiles @ rows.T.astype(np.float64) * 2.0**-BITS
    everywhere = np.ascontiguousarray(np.broadcast_to(rows, (len(tiles), *rows.shape)))
    variance = np.broadcast_to(y.var(axis=0) + 1e-6, y.shape).copy()
    return Measured(np.arange(len(tiles)), everywhere, y, np.full(y.shape, 2.0**-8), variance)


def calibration(prior: Prior, picture: Picture, rates: Sequence[float] = RATES) -> Iterator[tuple[float, float, float]]:
    """Variance of the samples that a decoder shows, of its uncertainty map, and squared error of its mean; at each rate.

    The samples behind the mean (`estimates.MEAN`) are no measure of it: their few evaluations make them smooth.
    """
    x = to_tensor(picture)
    sizes = [max(HEADER_SIZE, int(rate * x[0, 0].numel() / 8)) for rate in rates]
    setting, written = states.walk(prior, x, max(sizes))
    for size in sizes:
        state = written.settled(setting, size - HEADER_SIZE)
        drawn = estimates.estimate(setting, state, SAMPLES, 0, estimates.SAMPLE)
        error = torch.from_numpy(estimates.mean(setting, state)) - x[0]
        shown = np.square(spread.std(setting, state, drawn.numpy()), dtype=np.float64).mean()
        yield float(drawn.double().var(0).mean()), float(shown), float(error.double().square().mean())


def float_form(path: Path) -> Denoiser:
    """The float network of a checkpoint's weights behind its filter, as it was trained."""
    from dcodec.prior.photo import wiener_rmse
    from dcodec.train import fit, model, quantize

    run = fit.load(path)

    @torch.no_grad()
    def denoise(x: Tensor, sigma: float) -> Tensor:
        h, w = x.shape[2:]
        linear, inp = quantize.features(x, SIGMAS.index(sigma), run.spectrum)
        rest = model.body(run.average, inp, torch.full((len(x),), SIGMAS.index(sigma)))
        return (linear + rest * wiener_rmse(sigma, run.spectrum))[..., :h, :w]

    return denoise


def milliseconds(prior: Prior, side: int = 256, times: int = 5) -> float:
    """CPU time of one evaluation of a picture, all threads, the fastest of some: other work on the machine counts little."""
    x = torch.zeros(1, 3, side, side)
    prior(x, 1.0)
    best = math.inf
    for _ in range(times):
        begin = time.process_time()
        prior(x, 1.0)
        best = min(best, time.process_time() - begin)
    return 1e3 * best


def report(
    prior: Prior, float_form: Denoiser | None, paths: Sequence[Path], load: Callable[[Path], Picture], rates: Sequence[float],
    parts: Sequence[str], progress: Callable[[str], None],
) -> dict[str, object]:  # fmt: skip
    """All figures, means over pictures: for `bench prior`. parts: of PARTS, those to measure."""
    columns: dict[str, list[list[float]]] = {}

    def add(name: str, values: Sequence[float]) -> None:
        columns.setdefault(name, []).append(list(values))

    for path in paths:
        picture = load(path)
        if "denoising" in parts:
            add("denoising, exact (dB)", denoising(prior, picture))
            if float_form:
                add("denoising, float (dB)", denoising(float_form, picture))
        if "limit" in parts:
            add("I-MMSE limit (dB)", limit.at_rates(limit.limit(prior, picture, 2), rates))
        if "resolution" in parts:
            for factor in FACTORS:
                add(f"x{factor} mean, bicubic (dB)", super_resolution(prior, picture, factor))
        if "calibration" in parts:
            add("calibration", [value for point in calibration(prior, picture) for value in point])
        progress(path.stem)
    heads: dict[str, Sequence[float | str]] = {"denoising": NOISES, "I-MMSE": rates, "x": ("mean", "bicubic")}
    out: dict[str, object] = {"prior": prior.name, "sha256": prior.digest.hex(), "pictures": len(paths)}
    calibrated = np.array(columns.pop("calibration", [])).reshape(-1, len(RATES), 3)
    for name, rows in columns.items():
        head = next(value for key, value in heads.items() if name.startswith(key))
        out[name] = _row(head, np.mean(rows, axis=0))
    if len(calibrated):
        error = calibrated[..., 2]  # (pictures, rates)
        for which, name in enumerate(("samples", "map")):
            variance = calibrated[..., which]
            out[f"calibration, {name}"] = _row(RATES, variance.mean(0) / error.mean(0))
            out[f"calibration, {name}, least picture"] = _row(RATES, (variance / error).min(0))
            out[f"calibration, {name}, greatest picture"] = _row(RATES, (variance / error).max(0))
    if "speed" in parts:
        out["ms an evaluation, 256x256"] = round(milliseconds(prior), 1)
    return out


def _row(head: Sequence[float | str], values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(map(str, head), values.round(4).tolist(), strict=True))


PARTS = ("denoising", "limit", "resolution", "calibration", "speed")
