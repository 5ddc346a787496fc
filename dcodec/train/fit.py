"""How is the float network trained?

    python -m dcodec.train.fit CHECKPOINT.pt PHOTOS.tar [PHOTOS.tar ..] --minutes 105 [--start WEIGHTS.safetensors]

The network predicts what the Wiener filter leaves, (x0 - w) / c(sigma), on noisy crops at several sizes and scales; the plain
mean square of that target weighs all noise levels by the filter's own error. Bfloat16 convolutions, float32 residual stream,
exponential moving average, cosine decay over the time budget. A checkpoint that exists is resumed.
"""

import io
import math
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dcodec.prior import SIGMAS
from dcodec.prior.catalog import PHOTO_SPECTRUM
from dcodec.prior.gaussian import dct_matrix, opponent, spectrum
from dcodec.prior.network import CHANNELS_IN, PATCH
from dcodec.prior.photo import wiener_rmse
from dcodec.train.quantize import State, float_body

CHANNELS, BLOCKS, EMBEDDING = (96, 160, 224), 2, 96
BATCHES = ((32, 64), (14, 96), (8, 128))  # (pictures, side), in turn
SHARE_HALVED = 0.4  # weight of pictures at half and quarter size against those at full size
EMA = 0.9997


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


def read_pictures(archives: tuple[Path, ...]) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """All pictures (h, w, 3) of the archives at full, half and quarter size, sides of 64 and up, and how often to draw each."""
    pictures, weights = [], []
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (file := tar.extractfile(member)):
                    continue
                full = Image.open(io.BytesIO(file.read())).convert("RGB")
                for k in (1, 2, 4):
                    w, h = full.width // k, full.height // k
                    if min(w, h) >= BATCHES[0][1]:
                        pictures.append(np.asarray(full.resize((w, h), Image.Resampling.BOX)))
                        weights.append(math.sqrt(h * w * (1.0 if k == 1 else SHARE_HALVED)))
    return pictures, np.array(weights)


def crops(archives: tuple[Path, ...], rng: np.random.Generator) -> Iterator[Tensor]:
    """Endless batches (B, 3, s, s) float32 in [-1, 1], flipped and turned at random."""
    pictures, weights = read_pictures(archives)
    short = np.array([min(p.shape[:2]) for p in pictures])
    while True:
        for count, side in BATCHES:
            p = weights * (short >= side)
            out = []
            for i in rng.choice(len(pictures), count, p=p / p.sum()):
                y, x = (rng.integers(n - side + 1) for n in pictures[i].shape[:2])
                crop = pictures[i][y : y + side, x : x + side]
                crop = crop[:, ::-1] if rng.random() < 0.5 else crop
                out.append(crop.transpose(1, 0, 2) if rng.random() < 0.15 else crop)
            yield torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss(state: State, x: Tensor, levels: Tensor) -> Tensor:
    """Mean square of what the network leaves of (x0 - w) / c, on `x` (B, 3, s, s) with noise of `levels` (B,)."""
    sigma = torch.tensor(SIGMAS)[levels].view(-1, 1, 1, 1)
    noisy = x + sigma * torch.randn_like(x)
    side = x.shape[-1]
    dct, colours = torch.from_numpy(dct_matrix(side)).float(), torch.from_numpy(opponent()).float()
    variance = torch.from_numpy(spectrum(side, side, PHOTO_SPECTRUM)).float()
    z = dct @ torch.einsum("oc,bchw->bohw", colours, noisy) @ dct.T
    w = torch.einsum("oc,bohw->bchw", colours, dct.T @ (z * variance / (variance + sigma * sigma)) @ dct)
    rmse = torch.tensor([wiener_rmse(SIGMAS[i], PHOTO_SPECTRUM) for i in levels.tolist()]).view(-1, 1, 1, 1)
    features = torch.cat([(noisy - w) * 2 / (sigma * sigma + 0.25).sqrt(), w * 2], 1)
    with torch.autocast(x.device.type, torch.bfloat16):
        rest = float_body(state, features.contiguous(memory_format=torch.channels_last), levels)
    return (rest.float() - (x - w) / rmse).square().mean()


@click.command()
@click.argument("checkpoint", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("archives", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=6e-4, show_default=True, help="Of Adam.")
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Weights to go on from (safetensors).")
def main(checkpoint: Path, archives: tuple[Path, ...], minutes: float, rate: float, start: Path | None) -> None:
    """Train on the tar ARCHIVES of photographs; write and resume CHECKPOINT."""
    state = {k: v.float() for k, v in load_file(start).items()} if start else fresh()
    old = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
    state = {k: v.clone().requires_grad_() for k, v in old.get("net", state).items()}
    average = {k: v.clone() for k, v in old.get("sd", {k: v.detach() for k, v in state.items()}).items()}
    optimizer = torch.optim.Adam(state.values(), betas=(0.9, 0.99))
    if "opt" in old:
        optimizer.load_state_dict(old["opt"])
    steps, seen, shown = int(old.get("i", 0)), float(old.get("n", 0.0)), 0.0
    batches = crops(archives, np.random.default_rng(steps))
    torch.manual_seed(steps)
    begin = saved = time.monotonic()
    while (spent := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * spent)) * min(1.0, (steps + 1) / 300)
        x = next(batches)
        sigma = torch.exp(torch.randn(len(x)) * 1.3 - 1.0).clamp(SIGMAS[0], SIGMAS[-1])
        error = loss(state, x, torch.bucketize(sigma, torch.tensor(SIGMAS)))
        optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(state.values()), 1.0)
        optimizer.step()
        steps, seen = steps + 1, seen + x.numel() / (3 * 64 * 64)
        shown = error.item() if shown == 0.0 else 0.995 * shown + 0.005 * error.item()
        with torch.no_grad():
            for k, v in state.items():
                average[k].lerp_(v, 1 - min(EMA, steps / (steps + 9)))
        if time.monotonic() - saved > 240:
            _save(checkpoint, state, average, optimizer, steps, seen)
            saved = time.monotonic()
            click.echo(f"step {steps}  crops {seen:.0f}  loss {shown:.4f}  {100 * spent:.0f} %", err=True)
    _save(checkpoint, state, average, optimizer, steps, seen)


def _save(
    path: Path, state: State, average: State, optimizer: torch.optim.Optimizer, steps: int, seen: float
) -> None:
    part = path.with_suffix(".part")
    net = {k: v.detach() for k, v in state.items()}
    torch.save(
        {"A": PHOTO_SPECTRUM, "sd": average, "net": net, "opt": optimizer.state_dict(), "i": steps, "n": seen}, part
    )
    os.replace(part, path)


if __name__ == "__main__":
    main()
