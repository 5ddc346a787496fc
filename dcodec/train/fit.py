"""How is the float network trained?

The network predicts what the Wiener filter leaves, (x0 - w) / c(sigma), on noisy crops at several sizes and scales; the mean
square of that target weighs all noise levels by the filter's own error, crops besides by their own. The filter's spectrum is
fitted first. Bfloat16 inside the network where the processor has it, exponential moving average, cosine decay over the time
given. A stretch of training starts where the last one ended: weights, average and moments are kept as four files of two bytes a
weight, so that any machine lent for minutes can go on.
"""

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from dcodec.pictures import write_atomically
from dcodec.prior import SIGMAS
from dcodec.prior.catalog import PHOTO_SPECTRUM, Spectrum
from dcodec.prior.gaussian import dct_matrix, opponent, spectrum
from dcodec.prior.network import MULTIPLE
from dcodec.prior.photo import wiener_rmse
from dcodec.train import model
from dcodec.train.data import Pictures, batches, middles
from dcodec.train.learner import Learner
from dcodec.train.model import State
from dcodec.train.quantize import CHECKED, psnr
from dcodec.transform import extend

EMA = 0.999  # a longer memory holds weights of higher rates when the rate has come down (bench/NOTES.md)
WARM_UP = 300  # steps
WALKED = (0.7, -1.4, 0.8)  # share of crops, mean and deviation of their log sigma: a walk evaluates at 0.06 to 0.5 ...
OTHERS = (0.0, 1.5)  # ... and starts, estimates and other presets at all the rest
EVEN, LEAST = 0.5, 0.05  # a crop of error r counts by (r + LEAST)^-EVEN: PSNR and bits go by ratios of errors (bench/NOTES.md)
TELL_SECONDS, SAVE_SECONDS = 5.0, 120.0  # between reports; between checkpoints
MEASURING = 0.03  # share of the time that measuring the curve may take
VALIDATED, VALIDATED_SIDE = 32, 128  # held-out middles that the curve is measured on, and their pixels a side
FITTED, FITTED_SIDE = 2048, 64  # middles that the spectrum is fitted to, and their pixels a side
_PARTS = ("average", "net", "first", "second")  # files of a checkpoint: float16, float16, bfloat16, bfloat16


@dataclass
class Run:
    """Where training stands. net, average: weights; first, second: moments (see learner.py).

    crops: in units of 64 x 64 pixels. spectrum: of the Wiener filter that the network stands behind.
    mirror: whether it was last shown mirrored and turned crops.
    """

    net: State
    average: State
    spectrum: Spectrum = PHOTO_SPECTRUM
    first: State = field(default_factory=dict)
    second: State = field(default_factory=dict)
    steps: int = 0
    crops: float = 0.0
    mirror: bool = True


@dataclass(frozen=True)
class Report:
    """seconds: of this stretch; spent: share of what it may take; loss: running mean; kept: whether `run` is of now.

    psnr: dB on held-out pictures at CHECKED, when just measured; `run` is of now then, too.
    """

    seconds: float
    spent: float
    steps: int
    crops: float
    loss: float
    kept: bool
    psnr: tuple[float, ...] | None


@lru_cache(maxsize=16)
def _filter(side: int, parameters: Spectrum, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """DCT (s, s), colours (C, C), opponent ones unless gray, and spectrum (C, s, s) on a device."""
    colours, variance = opponent() if len(parameters) == 3 else np.eye(1), spectrum(side, side, parameters)
    dct, mix, spread = (torch.from_numpy(a).float().to(device) for a in (dct_matrix(side), colours, variance))
    return dct, mix, spread


@lru_cache(maxsize=4)
def _levels(parameters: Spectrum, device: str) -> tuple[Tensor, Tensor]:
    """Every noise level, and the Wiener filter's error at it, (LEVELS,)."""
    errors = [wiener_rmse(sigma, parameters) for sigma in SIGMAS]
    return torch.tensor(SIGMAS, device=device), torch.tensor(errors, device=device)


def estimate(state: State, parameters: Spectrum, noisy: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """What the network adds to the Wiener filter, in units of its error, and the filter's answer: (B, C, s, s) each."""
    sigmas, _ = _levels(parameters, str(noisy.device))
    sigma, side = sigmas[levels].view(-1, 1, 1, 1), noisy.shape[-1]
    noisy = extend(noisy, -side % MULTIPLE, -side % MULTIPLE)
    dct, colours, variance = _filter(noisy.shape[-1], parameters, str(noisy.device))
    z = dct @ torch.einsum("oc,bchw->bohw", colours, noisy) @ dct.T
    w = torch.einsum("oc,bohw->bchw", colours, dct.T @ (z * variance / (variance + sigma * sigma)) @ dct)
    inp = torch.cat([(noisy - w) * 2 / (sigma * sigma + 0.25).sqrt(), w * 2], 1)
    with torch.autocast(noisy.device.type, torch.bfloat16, enabled=_has_bfloat16(noisy.device.type)):
        rest = model.body(state, inp.contiguous(memory_format=torch.channels_last), levels)
    return rest.float()[..., :side, :side], w[..., :side, :side]


@cache
def _has_bfloat16(device: str) -> bool:
    """Whether convolutions in bfloat16 are the faster ones: on processors without it they take ten times as long.

    A private operator of PyTorch tells; where there is none, float32 is safe.
    """
    return device != "cpu" or bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)())


def loss(state: State, parameters: Spectrum, x: Tensor, levels: Tensor) -> Tensor:
    """Mean square of what the network leaves of (x0 - w) / c, on `x` (B, C, s, s) with noise of `levels` (B,).

    Its gradient counts crops of large errors for less, in relation: smooth pictures would hardly be heard beside textured ones.
    """
    sigmas, errors = _levels(parameters, str(x.device))
    noisy = x + sigmas[levels].view(-1, 1, 1, 1) * torch.randn_like(x)
    rest, w = estimate(state, parameters, noisy, levels)
    left = (rest - (x - w) / errors[levels].view(-1, 1, 1, 1)).square().mean((1, 2, 3))  # (B,)
    fixed = left.detach()
    counts = (fixed + LEAST) ** -EVEN
    return (counts * left).mean() * fixed.mean() / (counts * fixed).mean()


def noises(n: int, device: str) -> Tensor:
    """What sigma `n` crops are shown with, at random: (n,), within SIGMAS."""
    share, mean, deviation = WALKED
    z, walked = torch.randn(n, device=device), torch.rand(n, device=device) < share
    return torch.where(walked, z * deviation + mean, z * OTHERS[1] + OTHERS[0]).exp().clamp(SIGMAS[0], SIGMAS[-1])


@torch.no_grad()
def validate(state: State, parameters: Spectrum, x: Tensor) -> tuple[float, ...]:
    """Mean PSNR (dB) over pictures (N, C, s, s) of denoising at CHECKED, always with the same noise."""
    sigmas, errors = _levels(parameters, str(x.device))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)
    out = []
    for wanted in CHECKED:
        level = torch.full((len(x),), int((sigmas.log() - math.log(wanted)).abs().argmin()), device=x.device)
        scale = sigmas[level].view(-1, 1, 1, 1)
        rest, w = estimate(state, parameters, x + noise * scale, level)
        out.append(psnr(w + rest * errors[level].view(-1, 1, 1, 1), x))
    return tuple(out)


def fit(
    run: Run, pictures: Pictures, minutes: float, device: str, rate: float, times: int, mirror: bool = True,
    steps: int | None = None,
) -> Iterator[Report]:  # fmt: skip
    """Train for `minutes`, or for `steps` however long they take, changing `run`; reports when there is something to tell.

    device: cpu or cuda; rate: at its highest; times: crops a batch, in multiples of the usual ones; mirror: crops at random.
    """
    pictures = pictures.to(device)
    held = middles(pictures.held, VALIDATED_SIDE)[:VALIDATED].to(device)
    learner = Learner(run.net, run.first, run.second, run.steps, device)
    average = {k: v.to(device, copy=True) for k, v in run.average.items()}
    torch.manual_seed(run.steps)
    run.mirror = mirror
    source = batches(pictures, run.steps, times, mirror)
    sigmas, _ = _levels(run.spectrum, device)
    shown, first = math.nan, run.steps
    start = told = saved = due = time.monotonic()

    def spent() -> float:
        return (run.steps - first) / steps if steps else (time.monotonic() - start) / (60 * minutes)

    while (share := spent()) < 1:
        x = next(source)
        error = loss(learner.net(), run.spectrum, x, torch.bucketize(noises(len(x), device), sigmas))
        learner.step(error, rate * (0.5 + 0.5 * math.cos(math.pi * share)) * min(1.0, (run.steps - first + 1) / WARM_UP))
        run.steps, run.crops = run.steps + 1, run.crops + x.numel() / (x.shape[1] * 64 * 64)
        with torch.no_grad():
            for k, v in learner.net().items():
                average[k].lerp_(v, 1 - min(EMA, run.steps / (run.steps + 9)))
        now = time.monotonic()
        if now - told > TELL_SECONDS:
            value = error.item()
            shown = value if math.isnan(shown) else 0.9 * shown + 0.1 * value
            told = now
            if keep := now - saved > SAVE_SECONDS:
                _keep(run, learner, average)
                saved = now
            found = None
            if keep and now > due:
                found = validate(average, run.spectrum, held)
                due = time.monotonic() + (time.monotonic() - now) / MEASURING
            yield Report(now - start, share, run.steps, run.crops, shown, keep, found)
    _keep(run, learner, average)
    yield Report(time.monotonic() - start, 1.0, run.steps, run.crops, shown, True, validate(average, run.spectrum, held))


def _keep(run: Run, learner: Learner, average: State) -> None:
    with torch.no_grad():
        parts = (learner.net(), average, *learner.moments())
    run.net, run.average, run.first, run.second = ({k: v.cpu() for k, v in part.items()} for part in parts)


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint's files, each whole or not at all."""
    told = {key: getattr(run, key) for key in ("steps", "crops", "spectrum", "mirror")}
    for name in _PARTS:
        kind = torch.float16 if name in ("average", "net") else torch.bfloat16
        tensors = {k: v.to(kind).contiguous() for k, v in getattr(run, name).items()}
        write_atomically(str(folder / f"{name}.safetensors"), serialize(tensors, {"run": json.dumps(told)}))


def resume(folder: Path) -> Run | None:
    """The run that `folder` holds, None when it holds none. Files of different ages: the average starts a new one."""
    if not (folder / "average.safetensors").exists():
        return None
    run, steps = load(folder / "average.safetensors"), []
    for name in _PARTS:
        if not (folder / f"{name}.safetensors").exists():
            return run
        part = load(folder / f"{name}.safetensors")
        steps.append(part.steps)
        setattr(run, name, part.average)
    return run if len(set(steps)) == 1 else load(folder / "average.safetensors")


def begin(pictures: Pictures, widths: Sequence[int] | None = None, arch: str = "unet") -> Run:
    """A run that begins with nothing learnt but the pictures' spectrum; widths, arch: as for `model.fresh`."""
    state = model.fresh(pictures.channels, widths, arch)
    return Run(state, {k: v.clone() for k, v in state.items()}, fit_spectrum(middles(pictures.train, FITTED_SIDE)[:FITTED]))


def grown(run: Run, widths: Sequence[int]) -> Run:
    """The run with a larger network of the same function; widths: its channels, finest first. Moments begin anew.

    One width more puts a finer resolution before the network's own, as many give these more channels. Raises ValueError when
    they do neither.
    """
    own = model.widths(run.net)
    if list(widths[1:]) == own:
        net, average = (model.finer(state, widths[0]) for state in (run.net, run.average))
    elif len(widths) == len(own) and list(widths) != own and all(new >= old for new, old in zip(widths, own, strict=True)):
        net, average = (model.wider(state, widths) for state in (run.net, run.average))
    else:
        raise ValueError(
            f"--widths with --start are one before the network's own, {','.join(map(str, own))}, or as many and more channels"
        )
    return Run(net, average, run.spectrum, steps=run.steps, crops=run.crops, mirror=run.mirror)


def fit_spectrum(x: Tensor) -> Spectrum:
    """(a, f0, p) for each colour of pictures (N, C, s, s): L = a (f0^2 + f^2)^-p by greatest likelihood (Whittle 1953)."""
    side, out = x.shape[-1], []
    dct, colours, _ = (a.double() for a in _filter(side, PHOTO_SPECTRUM[: 3 if x.shape[1] == 3 else 1], "cpu"))
    z = dct @ torch.einsum("oc,bchw->bohw", colours, x.double()) @ dct.T
    for energy in z.square().mean(0).numpy():  # (s, s)
        def fitted(f0: float, p: float, energy: NDArray[np.float64] = energy) -> tuple[float, float]:
            shape = spectrum(side, side, ((1.0, f0, p),))[0]
            a = float((energy / shape).mean())
            return float(np.log(a * shape).mean()), a

        grid = itertools.product(np.geomspace(0.005, 0.5, 41).tolist(), np.linspace(0.6, 3.0, 49).tolist())
        f0, p = min(grid, key=lambda pair: fitted(*pair)[0])
        out.append((fitted(f0, p)[1], f0, p))
    return tuple(out)


def load(path: Path) -> Run:
    """A run that begins with the weights of a safetensors file; ValueError when it is no checkpoint."""
    try:
        with safe_open(str(path), framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("run", "{}"))
            state = {key: file.get_tensor(key).float() for key in file.keys()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no weights that can be read: {error}") from error
    if "emb.0.weight" not in state:
        raise ValueError(f"{path} holds no network of `dcodec train`: give average.safetensors of its folder")
    parameters = tuple((a, f0, p) for a, f0, p in told.get("spectrum", PHOTO_SPECTRUM))
    average = {k: v.clone() for k, v in state.items()}
    mirror = told.get("mirror", len(parameters) == 3)  # of checkpoints that do not tell, photographs were, digits were not
    return Run(state, average, parameters, steps=told.get("steps", 0), crops=told.get("crops", 0.0), mirror=mirror)
