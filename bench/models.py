"""Which small diffusers models are the adapters measured with? Trained here, as no hub is at hand; saved as diffusers saves.

    python -m bench.models digits IDX OUT --minutes 30      a 28x28 gray UNet2DModel, epsilon, with attention: a real prior
"""

import gzip
import math
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRAINING_DIGITS = 9000  # of the 10,000 in the file; the rest are for tests
BATCH = 64


def digits(path: Path) -> Tensor:
    """The training digits of an IDX file, (N, 1, 28, 28) float32 in [-1, 1]."""
    raw = np.frombuffer(gzip.open(path).read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(raw[:TRAINING_DIGITS].astype(np.float32) / 127.5 - 1.0)


def fit(model: nn.Module, pictures: Iterator[Tensor], betas: Tensor, minutes: float, rate: float = 1e-3) -> Iterator[float]:
    """Train `model` to predict the noise of `pictures` batches for some minutes (Ho et al. 2020, algorithm 1); yields losses.

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
            loss = F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t).sample.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
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
    model = UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, block_out_channels=(16, 48, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), attention_head_dim=16,
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    tell(fit(model, batches(digits(source)), scheduler.betas, minutes))
    DDPMPipeline(model, scheduler).save_pretrained(out)


if __name__ == "__main__":
    cli()
