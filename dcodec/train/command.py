"""What does `dcodec train` do? Pictures in, a prior out: read, train, make exact, measure."""

import csv
import hashlib
import os
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dcodec.shell import Finite

if TYPE_CHECKING:
    from dcodec.train.fit import Report


def _widths(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    parts = value.split(",")
    if len(parts) not in (3, 4) or not all(part.isdigit() and 8 <= int(part) <= 1024 and int(part) % 8 == 0 for part in parts):
        raise click.BadParameter("three or four multiples of 8 from 8 to 1024 are needed, as in 64,96,128")
    return [int(part) for part in parts]


@click.command()
@click.argument("sources", metavar="FOLDER|TAR..", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the prior and its checkpoint.")
@click.option(
    "--minutes", type=Finite(), default=60.0, show_default=True,
    help="To train for; 0 only makes the checkpoint in DIR exact again.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="To train for instead of --minutes: the same on any machine.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to train.")
@click.option("--start", metavar="NAME|PATH", help="Weights to go on from: of photo or mnist, as shipped, or a checkpoint's.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=6e-4, show_default=True, help="Learning rate.")
@click.option("--batch", type=click.IntRange(1), help="Crops a step, in multiples of 32.  [default: 1, cuda 8]")
@click.option("--mirror/--no-mirror", default=True, show_default=True, help="Mirror and turn some crops: not for letters.")
@click.option(
    "--arch", type=click.Choice(["unet", "cunet"]),
    help="Of a new network: residual blocks, or ODEs that share weights between their steps.  [default: unet]",
)  # fmt: skip
@click.option(
    "--widths", callback=_widths, metavar="N,N,..",
    help="Channels at each resolution of a new network, finest first: the coarsest sees 16 pixels as one. One more than the "
    "network of --start has puts a finer resolution before its own, as many and more channels widen it.  [default: 96,160,224]",
)  # fmt: skip
@click.option("--pack", type=click.Path(path_type=Path), metavar="TAR", help="Do not train: choose pictures for this file.")
@click.option("--megabytes", type=click.FloatRange(1), default=56.0, show_default=True, help="Of --pack at most, in MiB.")
@click.option("-q", "--quiet", is_flag=True, help="Tell nothing.")
def train(
    sources: tuple[Path, ...], out: Path | None, minutes: float, steps: int | None, device: str, start: str | None, rate: float,
    batch: int | None, mirror: bool, arch: str | None, widths: list[int] | None, pack: Path | None, megabytes: float,
    quiet: bool,
) -> None:  # fmt: skip
    """Train a prior on your own pictures: folders, or tar archives of them.

    DIR gets prior.safetensors, which --prior DIR of encode and decode takes, curve.csv (quality on pictures held out)
    and the checkpoint. The same command again, without --start, --widths and --arch, goes on where the last one ended, on this
    machine or another.

    \b
    dcodec train photos/ --out mine --minutes 120
    dcodec encode photo.png photo.dcx --prior mine
    dcodec train photos/ --pack photos.tar --megabytes 56     # for a machine that has no disk of pictures
    dcodec train photos.tar --out mine --minutes 9 --device cuda
    """
    if (out is None) == (pack is None):
        raise click.UsageError("Give one of --out and --pack.")
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(2, os.strerror(2), str(source))
    from dcodec.train import data

    if pack is not None:
        chosen, found = data.pack(sources, pack, megabytes)
        _tell(quiet, f"{pack}: {chosen} of {found} pictures, {pack.stat().st_size} bytes")
        return
    assert out is not None
    from dcodec.exact.machine import check_device
    from dcodec.prior.catalog import WEIGHTS
    from dcodec.train import fit, quantize

    check_device(device)
    begin = time.monotonic()
    run = fit.resume(out)
    if run is None:
        shipped = Path(str(files("dcodec.train"))) / f"{start}.safetensors"
        run = None if start is None else fit.load(shipped if shipped.exists() else Path(start))
        if run is not None and widths:
            run, widths = fit.grown(run, widths), None
    elif start is not None:
        raise ValueError(f"{out} holds a checkpoint already: leave out --start, or choose another folder")
    if run is not None and arch:
        raise ValueError("--arch is for a network that starts anew")
    if run is not None and widths:
        raise ValueError("--widths are for a network that starts anew, or for --start")
    pictures = data.read(sources)
    run = run or fit.begin(pictures, widths, arch or "unet")
    if len(run.spectrum) != pictures.channels:
        raise ValueError(f"the pictures have {pictures.channels} channels, those that the network knows {len(run.spectrum)}")
    out.mkdir(parents=True, exist_ok=True)
    _tell(quiet, f"{pictures.count} pictures, {len(pictures.held)} held out; from step {run.steps}")
    before = run.crops
    if minutes or steps:
        times = batch or (8 if device == "cuda" else 1)
        for report in fit.fit(run, pictures, minutes, device, rate, times, mirror, steps):
            left = report.seconds * (1 - report.spent) / max(report.spent, 1e-6)
            speed = (report.crops - before) / report.seconds
            line = f"step {report.steps}  {speed:.0f} crops/s  loss {report.loss:.4f}  {_clock(left)} left"
            if report.kept:
                fit.save(run, out)
            if report.psnr is not None:
                _add(out / "curve.csv", report, quantize.CHECKED)
                _tell(quiet, f"{line}  " + " ".join(f"{psnr:.2f}" for psnr in report.psnr) + " dB")
            elif sys.stderr.isatty():
                _tell(quiet, f"{line}  ", stay=False)
            elif report.kept:
                _tell(quiet, line)
    _tell(quiet, "making it exact ..")
    target = out / WEIGHTS
    told = {"steps": run.steps, "crops": round(run.crops), "data": pictures.names, "pictures": pictures.count,
            "pictures_sha256": pictures.digest}  # fmt: skip
    rows = list(quantize.export(run.average, run.spectrum, pictures, target, told, run.mirror))
    _tell(quiet, "sigma    Wiener  float   exact   (dB, pictures held out)")
    for row in rows:
        _tell(quiet, "{:7.4f}  {:6.3f}  {:6.3f}  {:6.3f}".format(*row))
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    _tell(quiet, f"{target}: {target.stat().st_size} bytes, sha256 {digest[:16]}, {time.monotonic() - begin:.0f} s")


def _tell(quiet: bool, line: str, stay: bool = True) -> None:
    """stay: without it, the next line takes its place; for terminals."""
    if not quiet:
        click.echo(f"\r{line}" if sys.stderr.isatty() else line, nl=stay, err=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _add(path: Path, report: "Report", sigmas: tuple[float, ...]) -> None:
    """Add a row to the validation curve."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(("steps", "crops", "seconds", "loss", *(f"psnr_{sigma:g}" for sigma in sigmas)))
        numbers = (f"{value:.3f}" for value in report.psnr or ())
        writer.writerow((report.steps, round(report.crops), round(report.seconds), f"{report.loss:.5f}", *numbers))
