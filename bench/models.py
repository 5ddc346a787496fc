"""Which small diffusers models are the adapters measured with? Trained here, as no hub is at hand; saved as diffusers saves.

    python -m bench.models digits IDX OUT --minutes 60       a 28x28 gray UNet2DModel, epsilon, with attention
    python -m bench.models latents TAR TAEF2 OUT --minutes 60    a UNet2DModel on the latents of a real autoencoder
    python -m bench.models compare MODEL TAEF2 --images DIR      pictures through the latter and through the shipped prior

TAEF2 is the folder of the small autoencoder for FLUX.2's latents (madebyollin/taesd) with a reader `taef2.py`; it is not one of
diffusers' classes, so `Taef2` gives it their interface.
"""

import importlib.util
import io
import itertools
import math
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import dcodec
from bench import digits as small
from bench import lpips
from bench.measure import picture_of
from bench.metrics import psnr
from dcodec.pictures import from_array, from_image, to_image
from dcodec.prior.adapter import DiffusersPrior

BATCH = 64
CROP = 192  # pixels a side of what the latent model learns from
LATENT_SCALE = 1.18  # 1 / standard deviation of TAEF2's latents of photographs


class Taef2(nn.Module):
    """TAEF2 with the interface of diffusers' autoencoders: pictures (B, 3, H, W) in [-1, 1], latents (B, 32, H/8, W/8)."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._reader = _module(folder / "taef2.py")
        self._names = {}
        for part, weights in self._reader.load(folder).items():
            self._names[part] = list(weights)
            for name, value in weights.items():
                self.register_parameter(self._flat(part, name), nn.Parameter(value, requires_grad=False))
        self.config = SimpleNamespace(scaling_factor=LATENT_SCALE)

    @staticmethod
    def _flat(part: str, name: str) -> str:
        return f"{part}.{name}".replace(".", "_")

    def _weights(self, part: str) -> dict[str, Tensor]:
        return {name: getattr(self, self._flat(part, name)) for name in self._names[part]}

    def encode(self, x: Tensor) -> Any:
        """As AutoencoderTiny."""
        return SimpleNamespace(latents=self._reader.encode(self._weights("encoder"), x * 0.5 + 0.5))

    def decode(self, z: Tensor) -> Any:
        """As AutoencoderTiny."""
        return SimpleNamespace(sample=self._reader.decode(self._weights("decoder"), z) * 2.0 - 1.0)


def _module(path: Path) -> ModuleType:
    """The Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(
    model: nn.Module, pictures: Iterator[Tensor], betas: Tensor, minutes: float, rate: float = 1e-3, velocity: bool = False
) -> Iterator[float]:
    """Train `model` to predict the noise of `pictures` batches for some minutes (Ho et al. 2020, algorithm 1); yields losses.

    velocity: predict what is left of the picture at high noise and of the noise at low noise (Salimans and Ho 2022, eq. 10).
    The weights end as their running average, warmed up and with the rate falling to zero over the time.
    """
    alphas = torch.cumprod(1.0 - betas.double(), 0)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-4)
    average = {key: value.detach().clone() for key, value in model.state_dict().items()}
    begin, step = time.monotonic(), 0
    while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
        x = next(pictures)
        t = torch.randint(0, len(betas), (len(x),))
        a = alphas[t].float().view(-1, 1, 1, 1)
        noise = torch.randn_like(x)
        with torch.autocast("cpu", torch.bfloat16):
            target = a.sqrt() * noise - (1 - a).sqrt() * x if velocity else noise
            loss = F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t).sample.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.step()
        step += 1
        keep = min(0.999, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            average[key].lerp_(value.detach(), 1 - keep)
        yield float(loss.detach())
    model.load_state_dict(average)


def batches(x: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    """Random batches, for ever."""
    while True:
        yield x[torch.randint(0, len(x), (size,))]


def tell(losses: Iterator[float], every: int = 200) -> None:
    """Run the training, print its loss now and then."""
    begin, recent = time.monotonic(), []
    for step, loss in enumerate(losses, start=1):
        recent.append(loss)
        if step % every == 0:
            click.echo(f"step {step}  loss {sum(recent) / len(recent):.4f}  {time.monotonic() - begin:.0f} s")
            recent.clear()


@click.group(help=__doc__)
def cli() -> None:
    """Train small models."""


@cli.command("digits")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, default=30.0, show_default=True)
def train_digits(source: Path, out: Path, minutes: float) -> None:
    """A DDPMPipeline of 28x28 gray digits."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    raw = small.read(source)[: small.TRAIN, None].astype(np.float32)
    model = UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, block_out_channels=(16, 48, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), attention_head_dim=16,
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    tell(fit(model, batches(torch.from_numpy(raw / 127.5 - 1.0)), scheduler.betas, minutes))
    DDPMPipeline(model, scheduler).save_pretrained(out)


def _crops(archive: Path) -> Iterator[Tensor]:
    """Two opposite corners of each photograph in a tar archive: (1, 3, CROP, CROP) float32 in [-1, 1]."""
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None  # photographs are regular files
            x = torch.from_numpy(from_image(Image.open(io.BytesIO(content.read()))))[None]
            if min(x.shape[2:]) > CROP and x.shape[1] == 3:
                yield x[..., :CROP, :CROP]
                yield x[..., -CROP:, -CROP:]


@cli.command("latents")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("autoencoder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, default=60.0, show_default=True)
@click.option("--crops", "count", type=int, default=1000, show_default=True, help="To learn from, two a photograph.")
def train_latents(source: Path, autoencoder: Path, out: Path, minutes: float, count: int) -> None:
    """A UNet2DModel and its scheduler for the latents of the photographs in a tar archive."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    codec = Taef2(autoencoder)
    with torch.inference_mode():
        latents = [codec.encode(crop).latents * LATENT_SCALE for crop in itertools.islice(_crops(source), count)]
    data = torch.cat(latents).clone()
    click.echo(f"{len(data)} latents, standard deviation {float(data.std()):.3f}")
    model = UNet2DModel(
        sample_size=CROP // 8, in_channels=32, out_channels=32, block_out_channels=(64, 96, 128), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=16, down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction")
    tell(fit(model, batches(data, 32), scheduler.betas, minutes, velocity=True))
    DDPMPipeline(model, scheduler).save_pretrained(out)


@cli.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("autoencoder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--images", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="PNG files.")
@click.option("--rates", default="0.1,0.2,0.5", show_default=True, help="Bits a pixel.")
@click.option("--crop", default=256, show_default=True, help="The middle N x N pixels.")
@click.option("--limit", type=int, default=4, show_default=True, help="Pictures.")
def compare(model: Path, autoencoder: Path, images: Path, rates: str, crop: int, limit: int) -> None:
    """A line a picture, rate and prior: PSNR and LPIPS of mean and sample, NFE, CPU seconds of encoding and both estimates.

    The latent model runs in native arithmetic, 7 bytes of header more than exact, which are not counted here; latents of the
    picture itself, decoded, are what no rate can pass.
    """
    from diffusers import DDPMPipeline

    parts = DDPMPipeline.from_pretrained(model)
    taef2 = Taef2(autoencoder)
    latent = DiffusersPrior.of(parts.unet, parts.scheduler, "latent", taef2, arithmetic="native")
    weights = lpips.default_weights()
    for path in sorted(images.glob("*.png"))[:limit]:
        picture = np.asarray(picture_of(path, crop).convert("RGB"))

        def told(shown: Any, picture: NDArray[np.uint8] = picture) -> str:
            distance = lpips.lpips(picture, np.asarray(shown), weights) if weights else None
            return f"{psnr(picture, np.asarray(shown)):6.2f} dB" + (f" {distance:.3f}" if distance is not None else "")

        with torch.inference_mode():
            x = torch.from_numpy(from_array(picture))[None]
            best = taef2.decode(taef2.encode(x).latents).sample[0].numpy()
        click.echo(f"{path.stem}  autoencoder alone  {told(to_image(best))}")
        for rate in map(float, rates.split(",")):
            for prior, more, arithmetic in (("photo", 0, "exact"), (latent, 7, "native")):
                begin, report = time.process_time(), dict[str, Any]()
                size = int(rate * crop * crop / 8) + more
                data = dcodec.encode(picture, size=size, prior=prior, arithmetic=arithmetic, report=report)
                mean, sample = (dcodec.decode(data, prior=prior, estimate=e) for e in ("mean", "sample"))
                name = prior if isinstance(prior, str) else prior.name
                click.echo(
                    f"{path.stem}  {rate:.2f} bpp  {name:6}  mean {told(mean)}  sample {told(sample)}  {report['nfe']} NFE"
                    f"  {time.process_time() - begin:.0f} s"
                )


if __name__ == "__main__":
    cli()
