"""How is the float network trained?

The network predicts what the Wiener filter leaves, (x0 - w) / c(sigma), on noisy crops at several sizes and scales; the plain
mean square of that target weighs all noise levels by the filter's own error. Bfloat16 convolutions, float32 residual stream,
exponential moving average, cosine decay over the time given. A stretch of training starts where the last one ended: weights,
average and Adam's moments are kept as four files of under 16 MiB, so that any machine lent for minutes can go on.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from dcodec.pictures import write_atomically
from dcodec.prior import SIGMAS
from dcodec.prior.catalog import PHOTO_SPECTRUM
from dcodec.prior.gaussian import dct_matrix, opponent, spectrum
from dcodec.prior.network import CHANNELS_IN, PATCH
from dcodec.prior.photo import wiener_rmse
from dcodec.train.data import Pictures, batches, middles
from dcodec.train.quantize import CHECKED, State, float_body

CHANNELS, BLOCKS, EMBEDDING = (96, 160, 224), 2, 96
EMA = 0.9997
WARM_UP = 300  # steps
BETAS = (0.9, 0.99)
SAVE_SECONDS = 120.0
VALIDATED, VALIDATED_SIDE = 32, 128  # held-out middles that the curve is measured on, and their pixels a side
_PARTS = ("average", "net", "first", "second")  # files of a checkpoint: float16, float16, bfloat16, bfloat16


@dataclass
class Run:
    """Where training stands. net, average: weights; first, second: Adam's moments; crops: in units of 64 x 64 pixels."""

    net: State
    average: State
    first: State = field(default_factory=dict)
    second: State = field(default_factory=dict)
    steps: int = 0
    crops: float = 0.0


@dataclass(frozen=True)
class Report:
    """seconds: of this stretch; loss: running mean; psnr: dB on held-out pictures at CHECKED, when just measured."""

    seconds: float
    steps: int
    crops: float
    loss: float
    psnr: tuple[float, ...] | None


def fresh(seed: int = 0) -> State:
    """Weights to start from: every residual block and the output begin at zero, so the network begins as the filter."""
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def layer(name: str, out: int, fan: tuple[int, ...], gain: float = 1.0) -> None:
        state[f"{name}.weight"] = torch.randn(out, *fan, generator=rng) * gain * math.sqrt(2 / math.prod(fan))
        state[f"{name}.bias"] = torch.zeros(out)

    def blocks(group: str, c: int) -> None:
        for j in range(BLOCKS):
            layer(f"{group}.{j}.a", c, (c, 3, 3))
            layer(f"{group}.{j}.b", c, (c, 3, 3))
            layer(f"{group}.{j}.e", c, (EMBEDDING,), 0.0)
            state[f"{group}.{j}.g"] = torch.zeros(1, c, 1, 1)

    layer("emb.0", EMBEDDING, (16,))
    layer("emb.2", EMBEDDING, (EMBEDDING,))
    layer("inp", CHANNELS[0], (CHANNELS_IN * PATCH * PATCH, 3, 3))
    for i, c in enumerate(CHANNELS):
        blocks(f"down.{i}", c)
        if i + 1 < len(CHANNELS):
            layer(f"ds.{i}", CHANNELS[i + 1], (c, 2, 2))
            layer(f"us.{i}", CHANNELS[i + 1], (c, 2, 2))
            state[f"us.{i}.bias"] = torch.zeros(c)  # a transposed convolution: weights (in, out, 2, 2)
            blocks(f"up.{i}", c)
    layer("out", 3 * PATCH * PATCH, (CHANNELS[0], 3, 3), 0.0)
    return state


@lru_cache(maxsize=16)
def _filter(side: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """DCT (s, s), opponent colours (3, 3) and spectrum (3, s, s) on a device."""
    variance = spectrum(side, side, PHOTO_SPECTRUM)
    dct, colours, spread = (torch.from_numpy(a).float().to(device) for a in (dct_matrix(side), opponent(), variance))
    return dct, colours, spread


@lru_cache(maxsize=2)
def _levels(device: str) -> tuple[Tensor, Tensor]:
    """Every noise level, and the Wiener filter's error at it, (LEVELS,)."""
    errors = [wiener_rmse(sigma, PHOTO_SPECTRUM) for sigma in SIGMAS]
    return torch.tensor(SIGMAS, device=device), torch.tensor(errors, device=device)


def estimate(state: State, noisy: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """What the network adds to the Wiener filter, in units of its error, and the filter's answer: (B, 3, s, s) each."""
    sigmas, _ = _levels(str(noisy.device))
    sigma = sigmas[levels].view(-1, 1, 1, 1)
    dct, colours, variance = _filter(noisy.shape[-1], str(noisy.device))
    z = dct @ torch.einsum("oc,bchw->bohw", colours, noisy) @ dct.T
    w = torch.einsum("oc,bohw->bchw", colours, dct.T @ (z * variance / (variance + sigma * sigma)) @ dct)
    inp = torch.cat([(noisy - w) * 2 / (sigma * sigma + 0.25).sqrt(), w * 2], 1)
    with torch.autocast(noisy.device.type, torch.bfloat16):
        rest = float_body(state, inp.contiguous(memory_format=torch.channels_last), levels)
    return rest.float(), w


def loss(state: State, x: Tensor, levels: Tensor) -> Tensor:
    """Mean square of what the network leaves of (x0 - w) / c, on `x` (B, 3, s, s) with noise of `levels` (B,)."""
    sigmas, errors = _levels(str(x.device))
    noisy = x + sigmas[levels].view(-1, 1, 1, 1) * torch.randn_like(x)
    rest, w = estimate(state, noisy, levels)
    return (rest - (x - w) / errors[levels].view(-1, 1, 1, 1)).square().mean()


@torch.no_grad()
def validate(state: State, x: Tensor) -> tuple[float, ...]:
    """Mean PSNR (dB) over pictures (N, 3, s, s) of denoising at CHECKED, always with the same noise."""
    sigmas, errors = _levels(str(x.device))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.device)
    out = []
    for wanted in CHECKED:
        level = torch.full((len(x),), int((sigmas.log() - math.log(wanted)).abs().argmin()), device=x.device)
        scale = sigmas[level].view(-1, 1, 1, 1)
        rest, w = estimate(state, x + noise * scale, level)
        error = (w + rest * errors[level].view(-1, 1, 1, 1) - x).square().mean((1, 2, 3))
        out.append(float((10 * torch.log10(4 / error)).mean()))
    return tuple(out)


def fit(run: Run, pictures: Pictures, minutes: float, device: str, rate: float, times: int) -> Iterator[Report]:
    """Train for `minutes`, changing `run`; a report whenever there is something to save or to tell.

    device: cpu or cuda; rate: Adam's; times: crops a batch, in multiples of the usual ones.
    """
    pictures = pictures.to(device)
    held = middles(pictures.held, VALIDATED_SIDE)[:VALIDATED].to(device)
    net = {k: v.to(device).requires_grad_() for k, v in run.net.items()}
    average = {k: v.to(device) for k, v in run.average.items()}
    optimizer = torch.optim.Adam(net.values(), betas=BETAS)
    if run.first:
        for k, v in net.items():
            step = torch.tensor(float(run.steps))
            optimizer.state[v] = {"step": step, "exp_avg": run.first[k].to(v), "exp_avg_sq": run.second[k].to(v)}
    torch.manual_seed(run.steps)
    source = batches(pictures, run.steps, times)
    sigmas, _ = _levels(device)
    shown, first = math.nan, run.steps
    start = told = saved = time.monotonic()
    while (spent := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * spent)) * min(1.0, (run.steps - first + 1) / WARM_UP)
        x = next(source)
        sigma = torch.exp(torch.randn(len(x), device=device) * 1.3 - 1.0).clamp(SIGMAS[0], SIGMAS[-1])
        error = loss(net, x, torch.bucketize(sigma, sigmas))
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(net.values()), 1.0)
        optimizer.step()
        run.steps, run.crops = run.steps + 1, run.crops + x.numel() / (3 * 64 * 64)
        with torch.no_grad():
            for k, v in net.items():
                average[k].lerp_(v, 1 - min(EMA, run.steps / (run.steps + 9)))
        now = time.monotonic()
        if now - told > 5:
            value = error.item()
            shown = value if math.isnan(shown) else 0.9 * shown + 0.1 * value
            told = now
            if now - saved > SAVE_SECONDS:
                _keep(run, net, average, optimizer)
                yield Report(now - start, run.steps, run.crops, shown, validate(average, held))
                saved = time.monotonic()
            else:
                yield Report(now - start, run.steps, run.crops, shown, None)
    _keep(run, net, average, optimizer)
    yield Report(time.monotonic() - start, run.steps, run.crops, shown, validate(average, held))


def _keep(run: Run, net: State, average: State, optimizer: torch.optim.Optimizer) -> None:
    run.net = {k: v.detach().cpu() for k, v in net.items()}
    run.average = {k: v.cpu() for k, v in average.items()}
    run.first = {k: optimizer.state[v]["exp_avg"].cpu() for k, v in net.items() if v in optimizer.state}
    run.second = {k: optimizer.state[v]["exp_avg_sq"].cpu() for k, v in net.items() if v in optimizer.state}


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint's files, each whole or not at all."""
    told = {"run": json.dumps({"steps": run.steps, "crops": run.crops})}
    for name in _PARTS:
        kind = torch.float16 if name in ("average", "net") else torch.bfloat16
        tensors = {k: v.to(kind).contiguous() for k, v in getattr(run, name).items()}
        write_atomically(str(folder / f"{name}.safetensors"), serialize(tensors, told))


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


def begin(seed: int = 0) -> Run:
    """A run that begins with nothing learnt."""
    state = fresh(seed)
    return Run(state, {k: v.clone() for k, v in state.items()})


def load(path: Path) -> Run:
    """A run that begins with the weights of a safetensors file."""
    with safe_open(str(path), framework="pt") as file:
        told = json.loads((file.metadata() or {}).get("run", "{}"))
        state = {key: file.get_tensor(key).float() for key in file.keys()}
    return Run(state, {k: v.clone() for k, v in state.items()}, steps=told.get("steps", 0), crops=told.get("crops", 0.0))
