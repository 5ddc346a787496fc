"""What does a user type? The `dcodec` command: files and pipes around `dcodec.api`.

Nothing heavy is imported before it is needed, so that `--help` and `info` answer at once. Results go to files
or standard output, everything else to standard error. A failure is one line there and exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import dcodec
from dcodec.prior.command import priors
from dcodec.shell import Positive, Shell
from dcodec.train.command import train

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_BPP = 0.1
LEAST = 40  # bytes of a file whose rate nobody asked for: some pictures are tiny, and a header takes 15
STD_SAMPLES = 16  # enough to tell the flat from the open parts: a standard deviation within some 18 percent


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"dcodec {dcodec.__version__}")
        ctx.exit()


# Paths are checked where they are used, to fail with one line: click would print the usage as well.
_PATH = click.Path(readable=False, allow_dash=True)
_in = click.argument("source", metavar="IN", type=_PATH)
_out = click.argument("out", metavar="OUT", type=_PATH)
_bpp = click.option("--bpp", type=Positive(), metavar="B", help="Bits per pixel of the whole file.")
_bytes = click.option("--bytes", "size", type=click.IntRange(1), metavar="N", help="Bytes of the whole file.")
_device = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
)
_seed = click.option("--seed", type=click.IntRange(0, 255), metavar="N", help="Key of the random numbers.")
_max_side = click.option(
    "--max-side", type=click.IntRange(1), metavar="N", default=4096, show_default=True,
    help="Refuse pictures with more pixels a side.",
)  # fmt: skip
_quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar and no closing line.")
_prior_file = click.option(
    "--prior", metavar="NAME|PATH|ID",
    help="The prior, where it is not an installed one that the stream names: as for encode."
)


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version,
    help="Show the version.",
)  # fmt: skip
def cli() -> None:
    """Compress pictures with a diffusion model: any prefix of a .dcx file is a picture.

    \b
    dcodec encode photo.png photo.dcx --bpp 0.05
    dcodec decode photo.dcx mean.png                       # least squared error
    dcodec decode photo.dcx sample.png --estimate sample   # looks real
    head -c 500 photo.dcx | dcodec decode - early.png      # the first 500 bytes are a picture too

    IN and OUT may be -, for standard input and output.
    """


@cli.command()
@_in
@_out
@_bpp
@_bytes
@click.option("--psnr", type=Positive(), metavar="DB", help="Stop when the mean reaches this quality.")
@click.option(
    "--preset", type=click.Choice(["fast", "whole", "psc"]), default="fast", show_default=True,
    help="fast: hundreds of rows a step; whole: for pictures of some 32x32; psc: the published method, far slower.",
)  # fmt: skip
@click.option("--rows", type=click.IntRange(1, 31), metavar="N", help="Rows a step, psc only.  [default: 1]")
@click.option(
    "--prior", metavar="NAME|PATH|ID", default="photo", show_default=True,
    help="One of `dcodec priors`, the file or folder of another, a folder that diffusers wrote, or a hub's owner/model.",
)  # fmt: skip
@click.option("--prompt", default="", metavar="TEXT", help="What the picture shows, for models of text; part of OUT.")
@click.option(
    "--guidance", type=click.FloatRange(0, 31.875), default=1.0, show_default=True, metavar="G",
    help="How far to exaggerate the prompt (classifier-free guidance), in eighths.",
)  # fmt: skip
@click.option(
    "--arithmetic", type=click.Choice(["exact", "native"]), default="exact", show_default=True,
    help="native: diffusers models run several times as fast, and only this machine reads OUT.",
)  # fmt: skip
@_device
@_seed
@click.option("--background", metavar="COLOR", help="Flatten a transparent picture over this colour.")
@_max_side
@_quiet
def encode(
    source: str, out: str, bpp: float | None, size: int | None, psnr: float | None, preset: str,
    rows: int | None, prior: str, prompt: str, guidance: float, arithmetic: str, device: str, seed: int | None,
    background: str | None, max_side: int, quiet: bool,
) -> None:  # fmt: skip
    """Compress the picture IN to the stream OUT.

    Give at most one of --bpp, --bytes and --psnr; with none of them it is --bpp 0.1, 40 bytes at least. A rate counts the
    whole file and is never exceeded. What is left after cutting OUT anywhere still decodes, so that one
    encoding serves all lower rates.

    \b
    dcodec encode photo.png photo.dcx --bpp 0.05
    dcodec encode photo.jpg photo.dcx --bytes 2000
    dcodec encode logo.png logo.dcx --psnr 30 --background white
    cat photo.png | dcodec encode - - | ssh host 'cat > photo.dcx'
    dcodec encode face.png face.dcx --prior google/ddpm-celebahq-256
    dcodec encode cat.png cat.dcx --prior ./stable-diffusion --prompt "a cat on a sofa"
    """
    _at_most_one({"--bpp": bpp, "--bytes": size, "--psnr": psnr})
    if rows is not None and preset != "psc":
        raise click.UsageError("--rows goes with --preset psc: the other presets choose their rows themselves.")
    from dcodec import api, pictures

    _prepare(source, out)
    x = pictures.load(sys.stdin.buffer if source == "-" else source, background=background, max_side=max_side)
    if bpp is None and size is None and psnr is None:
        size = max(api.budget(DEFAULT_BPP, x.shape[2], x.shape[1]), LEAST)
    report: dict[str, Any] = {}
    with _bar("encoding", quiet) as progress:
        data = dcodec.encode(
            x, bpp=bpp, size=size, psnr=psnr, preset=preset, rows=rows, prior=prior, prompt=prompt, guidance=guidance,
            arithmetic=arithmetic, device=device, seed=seed or 0, report=report, progress=progress,
        )  # fmt: skip
    pictures.write_atomically(out, data)
    _close(out, report, quiet)


@cli.command()
@_in
@_out
@click.option(
    "--estimate", type=click.Choice(["mean", "sample"]), show_default="mean",
    help="mean: least squared error; sample: looks real.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(1), default=1, metavar="N",
    help="Write N samples, numbered: OUT-1.png to OUT-N.png.",
)  # fmt: skip
@click.option(
    "--std", type=_PATH, metavar="STD.png",
    help="Write the uncertainty too: gray is the standard deviation of a pixel over samples (mean of its "
    "colours), black 0, white a quarter of the full range or more.",
)  # fmt: skip
@_bpp
@_bytes
@_prior_file
@_device
@_seed
@_max_side
@_quiet
def decode(
    source: str, out: str, estimate: str | None, samples: int, std: str | None, bpp: float | None,
    size: int | None, prior: str | None, device: str, seed: int | None, max_side: int, quiet: bool,
) -> None:  # fmt: skip
    """Show the stream IN, or a prefix of it, as the picture OUT.

    With --bpp or --bytes only that much of the start of IN is used. The format of OUT follows its name: .png,
    .jpg, .webp, .tif, .bmp, .ppm, .gif; - is PNG.

    \b
    dcodec decode photo.dcx photo.png
    dcodec decode photo.dcx early.png --bpp 0.01
    dcodec decode photo.dcx face.png --samples 4           # face-1.png ... face-4.png
    dcodec decode photo.dcx photo.png --std unknown.png
    """
    _at_most_one({"--bpp": bpp, "--bytes": size})
    if samples > 1 and out == "-":
        raise click.UsageError("--samples writes numbered files: OUT cannot be -.")
    if samples > 1 and estimate == "mean":
        raise click.UsageError("--samples writes samples: leave out --estimate mean.")
    if out == std == "-":
        raise click.UsageError("OUT and --std cannot both be -.")
    from dcodec import api, pictures

    stem, extension = os.path.splitext(out)
    names = [f"{stem}-{i}{extension}" for i in range(1, samples + 1)] if samples > 1 else [out]
    _prepare(source, *names, *([] if std is None else [std]))
    for name in names if std is None else [*names, std]:
        pictures.image_format(name)
    data = _read(source)
    if bpp is not None:
        header = dcodec.info(data)
        size = api.budget(bpp, header["width"], header["height"])
    wants_sample = samples > 1 or estimate == "sample"
    report: dict[str, Any] = {}
    common: dict[str, Any] = {
        "size": size, "prior": prior, "device": device, "seed": seed, "max_side": max_side, "report": report
    }  # fmt: skip
    with _bar("decoding", quiet) as progress:
        if samples == 1 and std is None:
            estimate = "sample" if wants_sample else "mean"
            images = [dcodec.decode(data, estimate=estimate, progress=progress, **common)]
        else:
            drawn = samples if std is None else max(samples, STD_SAMPLES)
            many = dcodec.decode_many(data, samples=drawn, progress=progress, **common)
            shown = many.samples[:samples] if wants_sample else [many.mean]
            images = [pictures.to_image(x) for x in shown]
    # All files are made before the first is written: a format that refuses leaves nothing half done.
    if std is not None:
        names, images = [*names, std], [*images, pictures.std_image(many.std)]
    files = [(name, pictures.image_bytes(image, name)) for name, image in zip(names, images, strict=True)]
    for name, content in files:
        pictures.write_atomically(name, content)
    _close(out if samples == 1 else f"{names[0]} ... {names[samples - 1]}", report, quiet)


@cli.command()
@_in
@_out
@click.option("--steps", type=click.IntRange(1, 64), metavar="N", default=6, help="Prefixes.  [default: 6]")
@_prior_file
@_device
@_max_side
@_quiet
def progress(
    source: str, out: str, steps: int, prior: str | None, device: str, max_side: int, quiet: bool
) -> None:
    """Show how the picture grows with the prefixes of IN.

    OUT is a table as PNG (rates across; sample, mean and uncertainty down), a GIF that runs through the
    means, or a folder (one that exists, or a name ending in /) that gets each picture as a file of its own.
    The table magnifies tiny pictures and reduces those over 640 pixels; a folder has them as they are.

    \b
    dcodec progress photo.dcx strip.png
    dcodec progress photo.dcx growing.gif --steps 12
    dcodec progress photo.dcx frames/
    """
    from dcodec import pictures

    folder = out != "-" and (out.endswith(("/", os.sep)) or os.path.isdir(out))
    kind = os.path.splitext(out)[1].lower()
    if not (folder or out == "-" or kind in (".png", ".gif")):
        raise click.UsageError(f"OUT is a .png, a .gif or a folder (ending in /), not {out}.")
    probe = os.path.normpath(out)
    _prepare(source, os.path.join(probe, "mean.png") if folder and os.path.exists(probe) else probe)
    data = _read(source)
    start = time.monotonic()
    rows: dict[str, list[Image.Image]] = {"sample": [], "mean": [], "uncertainty": []}
    heads: list[str] = []
    with _bar("decoding prefixes", quiet) as show:
        for snapshot in dcodec.progressive(data, steps=steps, prior=prior, device=device, max_side=max_side):
            rows["sample"].append(snapshot.sample)
            rows["mean"].append(snapshot.mean)
            rows["uncertainty"].append(pictures.std_image(snapshot.std))
            heads.append(f"{snapshot.bpp:.4f} bpp")
            if show is not None:
                show(len(heads), max(steps, len(heads)), heads[-1])
    if folder:
        os.makedirs(out, exist_ok=True)
        for row, images in rows.items():
            for i, (image, head) in enumerate(zip(images, heads, strict=True), start=1):
                name = os.path.join(out, f"{i:02}-{head.replace(' ', '')}-{row}.png")
                pictures.write_atomically(name, pictures.image_bytes(image, name))
    elif kind == ".gif":
        pictures.write_atomically(out, pictures.animation(rows["mean"]))
    else:
        pictures.write_atomically(out, pictures.image_bytes(pictures.strip(rows, heads), out))
    _close(out, {"prefixes": len(heads), "bytes": len(data), "seconds": time.monotonic() - start}, quiet)


@cli.command()
@_in
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(source: str, as_json: bool) -> None:
    """Tell what the header of the stream IN says."""
    fields = dcodec.info(_read(source))
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    width = max(map(len, fields))
    for key, value in fields.items():
        if isinstance(value, str) and not value.isprintable():  # a prompt could hold what a terminal obeys
            value = ascii(value)
        click.echo(f"{key:{width}}  {value:.6g}" if isinstance(value, float) else f"{key:{width}}  {value}")


cli.add_command(priors)
cli.add_command(train)


def _at_most_one(options: dict[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"Give only one of {', '.join(options)}, not {' and '.join(given)}.")


def _prepare(source: str, *outs: str) -> None:
    """Make sure before the long work that every OUT can be written without destroying IN or another OUT."""
    from dcodec import pictures

    paths = [path for path in (source, *outs) if path != "-"]
    files = [os.path.realpath(path) for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    if len(set(files)) < len(files):
        raise click.UsageError("IN and every OUT must be different files.")
    for out in outs:
        pictures.check_writable(out)


def _read(source: str) -> bytes:
    data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    if not data:
        name = "<stdin>" if source == "-" else source
        raise ValueError(f"{name}: expected a .dcx stream, found nothing (0 bytes)")
    return data


@contextmanager
def _bar(label: str, quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A progress bar for people: yields a callable (done, total, text), or None if nobody would see it."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    told = ""

    def note(item: int | None) -> str:  # the bar shows notes in the place of its items
        return told

    with click.progressbar(length=1, label=label, file=sys.stderr, show_pos=True, item_show_func=note) as bar:

        def show(done: int, total: int, text: str) -> None:
            nonlocal told
            bar.length, told = total, text
            bar.update(done - bar.pos)

        yield show


def _close(out: str, report: dict[str, Any], quiet: bool) -> None:
    """The line at the end: what the result cost, as far as `report` tells."""
    parts = {
        "prefixes": "{} prefixes",
        "bytes": "{} bytes",
        "bpp": "{:.4f} bpp",
        "psnr": "PSNR {:.2f} dB (mean)",
        "refreshes": "{} refreshes",
        "nfe": "{} NFE",
        "seconds": "{:.1f} s",
    }
    told = [form.format(report[key]) for key, form in parts.items() if report.get(key) is not None]
    if not quiet:
        click.echo(f"{'<stdout>' if out == '-' else out}: {', '.join(told)}", err=True)


def main() -> None:
    """Run the `dcodec` command and exit: 0, 1 after a failure, 2 for a command line that makes no sense."""
    cli.main(prog_name="dcodec")


if __name__ == "__main__":
    main()
