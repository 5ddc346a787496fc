"""How does a trained float network become the exact integer network, without training again?

Layer by layer, from the input to the output, noisy photographs run through both networks side by side. What enters the
integer layer already has the errors of the layers before it; its weights are rounded so that the errors of one tap make
up for those of the others (GPTQ: Frantar et al. 2022, arXiv 2210.17323), its bias so that the mean is right.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as serialize
from torch import Tensor

from dcodec.exact.conv import MAX_WEIGHT
from dcodec.pictures import write_atomically
from dcodec.prior import SIGMAS
from dcodec.prior.catalog import Spectrum
from dcodec.prior.gaussian import wiener
from dcodec.prior.network import FINE_BITS, LEVELS, MULTIPLE, WRITTEN_BITS, Body, ending
from dcodec.prior.photo import wiener_rmse
from dcodec.train import model
from dcodec.train.balance import balance
from dcodec.train.data import Pictures, middles
from dcodec.train.model import State, affine, conv
from dcodec.transform import extend

CROPS_PER_LEVEL = 2
CROP = 128
CHECKED_PICTURES = 16
INPUT_EXPONENT = -11  # inputs to +-16, in steps of 1/2048: 8 sigma of the noisiest residual
POSITIONS = 16384  # windows that a layer's covariance is measured on
CHECKED = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # noise levels of the final comparison, to the nearest of SIGMAS


@dataclass(frozen=True)
class Pair:
    """The same activation (N, C, h, w) in the float network and in the integer one, both in real units."""

    true: Tensor
    ours: Tensor

    def __add__(self, other: "Pair") -> "Pair":
        return Pair(self.true + other.true, self.ours + other.ours)


@torch.no_grad()
def quantize(state: State, inp: Tensor, levels: Tensor) -> dict[str, Tensor]:
    """The tensors of `Body.load` for a float network.

    inp: (N, 2 C, h, w) calibration inputs, as the network gets them; levels: (N,) their noise levels, integer; all of
    0, ..., LEVELS - 1 should occur. Raises ValueError (from Conv, when loaded) for a network that does not fit.
    """
    out: dict[str, Tensor] = {}
    state = balance(state, inp, levels)
    e = model.embed_levels(state)
    coarsest = model.halvings(state)
    finest = MULTIPLE >> coarsest
    x, skips = Pair(torch.zeros(()), torch.zeros(())), []
    for i in range(coarsest + 1):
        if model.reads(state, i):
            seen = _input_layer(out, state, ending("inp", i), inp, finest << i)
            x = x + seen if i else seen
        for name in model.blocks(state, f"down.{i}"):
            x = _block(out, state, name, x, e, levels)
        if i < coarsest:
            skips.append(x)
            true = affine(state, f"ds.{i}", x.true, stride=2)
            x = _resample(out, f"narrow.{i}", x.ours, true, state[f"ds.{i}.weight"], stride=2)
    for i in reversed(range(coarsest + 1)):
        if i < coarsest:
            weight = state[f"us.{i}.weight"].permute(1, 2, 3, 0)  # (C, 2, 2, I)
            weight = weight.flatten(0, 2)[:, :, None, None]  # (4 C, I, 1, 1): the four pixels as channels (c, dy, dx)
            true = F.conv2d(x.true, weight, state[f"us.{i}.bias"].repeat_interleave(4))
            x = _resample(out, f"widen.{i}", x.ours, true, weight, stride=1)
            x = Pair(F.pixel_shuffle(x.true, 2), F.pixel_shuffle(x.ours, 2)) + skips.pop()
        for name in model.blocks(state, f"up.{i}"):
            x = _block(out, state, name, x, e, levels)
        if model.reads(state, i):
            _output_layer(out, state, ending("out", i), x)
    return out


def _input_layer(out: dict[str, Tensor], state: State, name: str, inp: Tensor, patch: int) -> Pair:
    """High and low bytes share the weights."""
    unit = math.ldexp(1.0, INPUT_EXPONENT)
    v = F.pixel_unshuffle((inp / unit).round().clamp(-(2**15), 2**15 - 1), patch)
    weight = state[f"{name}.weight"]
    shift = _shift(weight)
    coarse, fine = _planes(weight * _channels(shift.exp2()), FINE_BITS)
    true = affine(state, name, F.pixel_unshuffle(inp, patch), padding=1)
    step = (-shift).exp2() * unit  # (O,) real value of the accumulator's unit
    acc = conv(v, coarse + fine * 2.0**-FINE_BITS, padding=1)
    bias = _mean_bias(true, acc * _rows(step), step)
    _emit(out, name, coarse, bias, shift - INPUT_EXPONENT, INPUT_EXPONENT, fine)
    return Pair(true, (acc + _rows(bias)) * _rows(step))


def _block(out: dict[str, Tensor], state: State, name: str, x: Pair, e: Tensor, levels: Tensor) -> Pair:
    """All steps of a block share their weights: these are rounded for what the steps read, the later ones without errors."""
    path = _path(state, name, x.true, e[levels])
    exponent = _exponent(torch.cat([x.ours, *(at for at, _ in path[1:])]).relu(), 255)
    unit = math.ldexp(1.0, exponent)
    u = [(at / unit).round().clamp(0, 255) for at in (x.ours, *(at for at, _ in path[1:]))]

    # a: the unit of its result is free. The weights' grid follows: unit * grid * 2^shift = result.
    weight_a = state[f"{name}.a.weight"]
    result = _step(torch.cat([hidden for _, hidden in path]), 255)
    shift_a = torch.floor(torch.log2(MAX_WEIGHT * result / (unit * _peaks(weight_a))))
    step_a = result * (-shift_a).exp2()  # (C,) real value of the accumulator's unit
    a = round_compensated(weight_a * unit / _channels(step_a), torch.cat(u), padding=1)

    def respond(true: Tensor, u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Biases (LEVELS, C) of `a` and its result, from what the float and the integer network read."""
        acc = conv(u, a, padding=1)
        drift = (conv(true.relu(), weight_a, padding=1) - acc * _rows(step_a)).mean((0, 2, 3))
        biases = ((model.times(state, name, e, step) + state[f"{name}.a.bias"] + drift) / step_a).round()
        return biases, ((acc + biases[levels][:, :, None, None]) * _rows((-shift_a).exp2())).round().clamp(0, 255)

    # b: the gain g and the unit of a's result go into its weights; its own unit must be a power of two.
    weight_b = state[f"{name}.b.weight"] * state[f"{name}.g"].view(-1, 1, 1, 1) * result
    shift_b = _shift(weight_b)
    step_b = (-shift_b).exp2()
    first = respond(path[0][0], u[0], 0)
    later = [(hidden / result).round().clamp(0, 255) for _, hidden in path[1:]]
    b = round_compensated(weight_b / _channels(step_b), torch.cat([first[1], *later]), padding=1)

    v, biases_a, biases_b = None, [], []
    if model.flows(state, name):
        v = _resample(out, f"{name}.v", x.ours, affine(state, f"{name}.v", x.true), state[f"{name}.v.weight"], stride=1)
    for step, (at, hidden) in enumerate(path):
        bias_a, h = respond(at, (x.ours / unit).round().clamp(0, 255), step) if step else first
        acc, true = conv(h, b, padding=1), model.push(state, name, hidden)
        bias_b = _mean_bias(true, acc * _rows(step_b), step_b)
        push = Pair(true, (acc + _rows(bias_b)) * _rows(step_b))
        v = push if v is None else v + push
        x = x + v
        biases_a.append(bias_a)
        biases_b.append(bias_b)
    _emit(out, f"{name}.a", a, torch.cat(biases_a), shift_a)
    _emit(out, f"{name}.b", b, torch.stack(biases_b), shift_b)
    out[f"{name}.exponent"] = torch.tensor(exponent, dtype=torch.int8)
    return x


def _path(state: State, name: str, x: Tensor, e: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Where each step of a block starts in the float network, and its hidden layer there: (N, C, h, w) each."""
    v = affine(state, f"{name}.v", x) if model.flows(state, name) else torch.zeros(())
    path = []
    for step in range(model.steps(state, name)):
        hidden = model.hidden(state, name, x, e, step)
        path.append((x, hidden))
        v = v + model.push(state, name, hidden)
        x = x + v
    return path


def _resample(out: dict[str, Tensor], name: str, ours: Tensor, true: Tensor, weight: Tensor, stride: int) -> Pair:
    exponent = _exponent(ours, 127)
    unit = math.ldexp(1.0, exponent)
    u = (ours / unit).round().clamp(-128, 127)
    shift = _shift(weight)
    step = (-shift).exp2() * unit
    integers = round_compensated(weight * _channels(shift.exp2()), u, stride=stride)
    acc = conv(u, integers, stride=stride)
    bias = _mean_bias(true, acc * _rows(step), step)
    _emit(out, name, integers, bias, shift - exponent, exponent)
    return Pair(true, (acc + _rows(bias)) * _rows(step))


def _output_layer(out: dict[str, Tensor], state: State, name: str, x: Pair) -> None:
    exponent = _exponent(x.ours.relu(), 255)
    unit = math.ldexp(1.0, exponent)
    u = (x.ours / unit).round().clamp(0, 255)
    weight = state[f"{name}.weight"]
    grid = _peaks(weight) / MAX_WEIGHT  # any real number: one product undoes it at the end
    coarse, fine = _planes(weight / _channels(grid), WRITTEN_BITS)
    step = grid * unit
    true = affine(state, name, x.true.relu(), padding=1)
    acc = conv(u, coarse + fine * 2.0**-WRITTEN_BITS, padding=1)
    bias = _mean_bias(true, acc * _rows(step), step)
    _emit(out, name, coarse, bias, torch.zeros(len(step)), exponent, fine)
    out[f"{name}.gain"] = step


def _planes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers for weights, and what these leave, in units of 2^-bits: next to the picture most of the error is made.

    Both planes together leave so little that plain rounding will do.
    """
    coarse = weight.round()
    return coarse, ((weight - coarse) * 2**bits).round()


def round_compensated(weight: Tensor, u: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Integers -64, ..., 64 for weights (O, I, k, k), such that the layer's response to u (N, I, h, w) changes least.

    Tap by tap, the most active first: what rounding one tap adds is predicted from the taps still to come, and taken
    off them.
    """
    flat = weight.flatten(1)
    covariance = _covariance(u, weight.shape[-1], stride, padding)
    order = covariance.diagonal().argsort(descending=True)
    covariance = covariance[order][:, order]
    covariance.diagonal().add_(0.01 * covariance.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    upper = torch.linalg.cholesky(inverse, upper=True).float()  # row k: how tap k is predicted from the later ones
    rest = flat[:, order].contiguous()
    rounded = torch.empty_like(rest)
    for start in range(0, rest.shape[1], 128):
        end = min(start + 128, rest.shape[1])
        errors = torch.empty(len(rest), end - start)
        for k in range(start, end):
            rounded[:, k] = rest[:, k].round().clamp(-MAX_WEIGHT, MAX_WEIGHT)
            error = (rest[:, k] - rounded[:, k]) / upper[k, k]
            rest[:, k:end] -= torch.outer(error, upper[k, k:end])
            errors[:, k - start] = error
        rest[:, end:] -= errors @ upper[start:end, end:]
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result.view(weight.shape)


def _covariance(u: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Covariance (k k I, k k I) float64 of the windows that the layer sees, on at most about POSITIONS of them."""
    windows = (u.shape[2] // stride) * (u.shape[3] // stride)
    keep = max(1, POSITIONS // len(u))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for part in torch.split(u, 8):
        chosen = torch.randperm(windows, generator=generator)[:keep]
        rows.append(F.unfold(part, size, padding=padding, stride=stride)[:, :, chosen].mT.flatten(0, 1))
    x = torch.cat(rows)  # (positions, k k I)
    x -= x.mean(0)
    return (x.T @ x).double() / len(x)


def _exponent(x: Tensor, top: int) -> int:
    """The power of two that is the best step for reading `x` into 8 bits, 0, ..., top or -128, ..., top."""
    x = _sample(x)
    widest = math.ceil(math.log2(float(x.abs().max()) / top + 1e-12))
    return min(range(widest - 6, widest + 1), key=lambda k: _read_error(x, math.ldexp(1.0, k), top))


def _step(x: Tensor, top: int) -> float:
    """The best step for reading `x` >= 0 into 0, ..., top."""
    x = _sample(x)
    widest = float(x.max()) / top + 1e-9
    steps = [widest * math.pow(2.0, -j / 3) for j in range(14)]
    return min(steps, key=lambda step: _read_error(x, step, top))


def _sample(x: Tensor) -> Tensor:
    return x.flatten()[:: max(1, x.numel() // 2**19)]


def _read_error(x: Tensor, step: float, top: int) -> float:
    read = (x / step).round().clamp(0 if top == 255 else -128, top) * step
    return float((read - x).square().mean())


def _shift(weight: Tensor) -> Tensor:
    """Per output channel, the finest grid 2^-shift on which the weights (O, I, k, k) stay within -64, ..., 64."""
    return torch.floor(torch.log2(MAX_WEIGHT / _peaks(weight)))  # (O,)


def _peaks(weight: Tensor) -> Tensor:
    return weight.abs().flatten(1).max(1).values.clamp_min(1e-9)  # (O,)


def _mean_bias(true: Tensor, ours: Tensor, step: Tensor) -> Tensor:
    """The integer bias (O,) that makes the mean of `ours` that of `true`, both (N, O, h, w)."""
    return ((true - ours).mean((0, 2, 3)) / step).round()


def _emit(
    out: dict[str, Tensor], name: str, weight: Tensor, bias: Tensor, shift: Tensor, exponent: int | None = None,
    fine: Tensor | None = None,
) -> None:  # fmt: skip
    out[f"{name}.weight"] = weight.to(torch.int8).contiguous()
    out[f"{name}.bias"] = bias.to(torch.int32).reshape(-1, len(weight)).contiguous()
    out[f"{name}.shift"] = shift.to(torch.int8)
    if exponent is not None:
        out[f"{name}.exponent"] = torch.tensor(exponent, dtype=torch.int8)
    if fine is not None:
        out[f"{name}.fine"] = fine.to(torch.int8).contiguous()


def _rows(x: Tensor) -> Tensor:
    return x.view(1, -1, 1, 1)


def _channels(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)


def features(noisy: Tensor, level: int, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """The Wiener estimate (B, C, h', w') of noisy pictures (B, C, h, w), the network's input (B, 2 C, h', w').

    h', w': the next multiples of 16; the prior extends pictures just so.
    """
    sigma = SIGMAS[level]
    noisy = extend(noisy, -noisy.shape[2] % MULTIPLE, -noisy.shape[3] % MULTIPLE)
    linear = wiener(noisy, sigma, spectrum)
    return linear, torch.cat([(noisy - linear) * (2 / math.sqrt(sigma * sigma + 0.25)), linear * 2], 1)


def calibration(crops: Tensor, spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """Network inputs (N, 2 C, h', w') for crops (N, C, h, w) at all noise levels in turn, and the levels (N,)."""
    levels = torch.arange(len(crops)) % LEVELS
    sigmas = torch.tensor(SIGMAS)[levels].view(-1, 1, 1, 1)
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))
    noisy = crops + noise * sigmas
    order = torch.cat([torch.arange(level, len(crops), LEVELS) for level in range(LEVELS)])
    inputs = torch.cat([features(noisy[level::LEVELS], level, spectrum)[1] for level in range(LEVELS)])
    return inputs[order.argsort()], levels


def psnr(x: Tensor, true: Tensor) -> float:
    """In dB of pictures (N, C, h, w), not clipped, averaged over them."""
    error = (x - true).square().mean((1, 2, 3))
    peak = 2 * math.sqrt(3) if x.shape[1] == 1 else 2.0
    return float((10 * torch.log10(peak * peak / error)).mean())


@torch.no_grad()
def compare(state: State, body: Body, spectrum: Spectrum, crops: Tensor) -> Iterator[tuple[float, ...]]:
    """Per noise level: sigma, then the mean PSNR (dB) over crops of the Wiener filter, float and integer network."""
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(1))
    for wanted in CHECKED:
        level = min(range(LEVELS), key=lambda i: abs(math.log(SIGMAS[i] / wanted)))
        linear, inp = features(crops + noise * SIGMAS[level], level, spectrum)
        scale = wiener_rmse(SIGMAS[level], spectrum)
        true = model.body(state, inp, torch.full((len(inp),), level))
        estimates = (linear, linear + scale * true, linear + scale * body(inp, level))
        h, w = crops.shape[2:]
        yield SIGMAS[level], *(psnr(estimate[..., :h, :w], crops) for estimate in estimates)


def export(
    state: State, spectrum: Spectrum, pictures: Pictures, target: Path, training: Mapping[str, object], turned: bool
) -> Iterator[tuple[float, ...]]:  # fmt: skip
    """Write a float network as the exact prior `target`, calibrated on its training pictures; yields `compare`'s rows.

    training: what the file's metadata tells of how it was made. turned: whether the network knows turned pictures.
    """
    pool = middles(pictures.train, CROP)
    inp, levels = calibration(pool[torch.arange(CROPS_PER_LEVEL * LEVELS) * 7919 % len(pool)], spectrum)
    tensors = quantize(state, inp, levels)
    arch = {"name": f"{model.architecture(state)}-u8", "patch": MULTIPLE >> model.halvings(state), "fine_bits": FINE_BITS}
    metadata = {
        "arch": json.dumps(arch),
        "spectrum": json.dumps(spectrum),
        "levels": json.dumps({"count": LEVELS, "sigma": "2 ** (level / 8 - 6)"}),
        "training": json.dumps(training),
        "turned": json.dumps(turned),
    }
    body = Body.load(tensors)  # a network that cannot be exact is refused before it is written
    write_atomically(str(target), serialize(tensors, metadata))
    yield from compare(state, body, spectrum, middles(pictures.held, CROP)[:CHECKED_PICTURES])
