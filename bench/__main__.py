"""What does a user type? `python -m bench rd` adds measurements to a CSV, `report` draws it, `limit` tells what could be."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import numpy as np

from bench import codecs, kid, limit, lpips, measure, points, report, source, table
from bench import digits as small
from bench import prior as quality
from dcodec.pictures import load, to_image
from dcodec.prior import catalog
from dcodec.train.data import SUFFIXES

_OTHERS = ", ".join(name for name in codecs.NAMES if name not in codecs.DEFAULT)


def _decibels(_context: click.Context, _parameter: click.Parameter, text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: expected numbers with commas between") from error


def _rates(context: click.Context, parameter: click.Parameter, text: str | None) -> list[float] | None:
    rates = None if text is None else _decibels(context, parameter, text)
    if rates and not 0 < rates[0] <= rates[-1] <= 48:
        raise click.BadParameter(f"{text!r}: expected bits a pixel, above 0")
    return rates


def _pictures(images: Path, count: int | None) -> list[Path]:
    """The first `count` pictures of a folder by name; rows know them by their stems, so no two may share one."""
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES)[:count]
    twice = [stem for stem, times in Counter(path.stem for path in paths).items() if times > 1]
    if not paths or twice:
        raise click.ClickException(f"{images}: " + (f"two pictures are called {twice[0]}" if twice else "no pictures"))
    return paths


_weights = click.option(
    "--lpips", "weights", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=lpips.default_weights,
    help="SqueezeNet weights (.npz); no LPIPS without.  [default: metrics/lpips_squeeze.npz in DCODEC_DATA or ../shared/data]",
)


@click.group()
def main() -> None:
    """Rate, distortion and perception of dcodec, of classical codecs and of other codecs with the same prior."""


@main.command()
@click.option("--images", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.")
@click.option("--rates", default="0.1,0.2,0.3,0.5", callback=_rates, help="Bits a pixel of dcodec.", show_default=True)
@click.option("--codecs", "names", default=",".join(codecs.DEFAULT), show_default=True, help="Also: " + _OTHERS)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="CSV to add rows to.")
@click.option("--prior", default=catalog.DEFAULT, show_default=True, help="Of dcodec: a name or a safetensors file.")
@click.option("--limit", "count", type=click.IntRange(1), help="The first N pictures only.")
@click.option("--crop", type=click.IntRange(1), help="The middle N x N pixels only.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Processes, of one thread each.")
@click.option("--quick", is_flag=True, help="Classical codecs: some five settings each instead of a sweep.")
@click.option("--sample", is_flag=True, help="dcodec: also one sample of the posterior at each rate.")
@_weights
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Folder for decoded pictures, for `report`.")
@click.option("--walk-once", is_flag=True, help="dcodec: take states from the encoder, do not decode: half the time.")
def rd(
    images: Path, rates: list[float], names: str, out: Path, prior: str, count: int | None, crop: int | None, jobs: int,
    quick: bool, sample: bool, weights: Path | None, keep: Path | None, walk_once: bool,
) -> None:  # fmt: skip
    """Measure every picture of a folder; rows that the CSV already holds are not measured again."""
    paths = _pictures(images, count)
    chosen: list[points.Codec] = []
    try:
        for name in names.split(","):
            try:
                codec = codecs.find(name, rates, prior, sample=sample, quick=quick, walk_once=walk_once)
            except points.Missing as reason:
                click.echo(f"{name}: left out, {reason}", err=True)
                continue
            assert codec.prior is not None  # looked up now: an unknown prior ends here
            chosen.append(codec)
        held = {tuple(row[column] for column in measure.KEY): row for row in measure.resume(out)}
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    commit, machine, crop = measure.commit(), measure.machine(), crop or 0
    tasks, kept = [], Counter[str]()
    for path in paths:
        image = f"{path.stem} crop={crop}" if crop else path.stem
        for codec in chosen:
            keys = {job: (codec.name, *job, image, codec.prior) for job in codec.jobs}
            kept.update(held[key]["commit"] for key in keys.values() if key in held and codec.prior)
            todo = tuple(job for job, key in keys.items() if key not in held)
            if todo:
                tasks.append(measure.Task(out, codec, todo, path, image, crop, commit, machine, weights, keep))
    for other, count in kept.items():
        if other != commit:
            click.echo(f"{out}: {count} rows of dcodec are kept from commit {other or 'unknown'}", err=True)
    if jobs == 1:
        for task in tasks:
            click.echo(measure.measure(task), err=True)
        return
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # for the new processes
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, measure.end_with, (os.getpid(),)) as pool:  # notices processes that die
        for line in pool.map(measure.measure, tasks):
            click.echo(line, err=True)


@main.command("limit")
@click.option("--images", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="CSV to add curves to.")
@click.option("--rates", default="0.05,0.1,0.25,0.5", callback=_rates, help="Bits a pixel to print.", show_default=True)
@click.option("--prior", default=catalog.DEFAULT, show_default=True, help="A name or a safetensors file.")
@click.option("--limit", "count", type=click.IntRange(1), help="The first N pictures only.")
@click.option("--stride", type=click.IntRange(1), default=2, show_default=True, help="Eighths of an octave of noise a step.")
def show_limit(images: Path, out: Path, rates: list[float], prior: str, count: int | None, stride: int) -> None:
    """What an ideal code could do with a prior: the I-MMSE curve of every picture; those in the CSV are not measured again."""
    try:
        entry = catalog.find(prior)
        denoiser = catalog.load(entry)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    name = points.label(entry)
    held = {(row["prior"], row["image"]) for row in table.read(out)} if out.exists() else set()
    for path in _pictures(images, count):
        if (name, path.stem) not in held:
            picture = np.asarray(to_image(load(path)).convert("RGB"))
            curve = limit.limit(denoiser, picture, stride)
            limit.append(out, name, path.stem, curve)
            shown = zip(rates, limit.at_rates(curve, rates), strict=True)
            click.echo(f"{path.stem}: " + "  ".join(f"{rate:g} bpp {psnr:.2f} dB" for rate, psnr in shown))


@main.command("prior")
@click.option("--images", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder.")
@click.option("--prior", default=catalog.DEFAULT, show_default=True, help="A name, a safetensors file or a trained folder.")
@click.option("--float", "weights", type=click.Path(exists=True, path_type=Path), help="Its float weights (safetensors).")
@click.option("--rates", default="0.05,0.1,0.25,0.5", callback=_rates, help="Of the I-MMSE curve.", show_default=True)
@click.option("--parts", default=",".join(quality.PARTS), show_default=True, help="What to measure.")
@click.option("--limit", "count", type=click.IntRange(1), help="The first N pictures only.")
@click.option("--crop", type=click.IntRange(1), help="The middle N x N pixels only.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show_prior(
    images: Path, prior: str, weights: Path | None, rates: list[float], parts: str, count: int | None, crop: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """How good a prior is: denoising, super-resolution against bicubic, calibration, I-MMSE limit, speed."""
    chosen = parts.split(",")
    if unknown := set(chosen) - set(quality.PARTS):
        raise click.ClickException(f"unknown parts {', '.join(sorted(unknown))}: there are {', '.join(quality.PARTS)}")
    try:
        denoiser = catalog.load(catalog.find(prior))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    found = quality.report(
        denoiser, quality.float_form(weights) if weights else None, _pictures(images, count),
        lambda path: np.asarray(measure.picture_of(path, crop or 0).convert("RGB")), rates, chosen,
        lambda name: click.echo(name, err=True),
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, values in found.items():
        told = "  ".join(f"{key} {value:g}" for key, value in values.items()) if isinstance(values, dict) else values
        click.echo(f"{name}: {told}")


@main.command("source")
@click.option("--psnr", "targets", default="20,22,24,27", callback=_decibels, help="In dB.", show_default=True)
@click.option("--pictures", default=8, show_default=True, type=click.IntRange(1))
@click.option("--side", default=64, show_default=True, type=click.IntRange(8, 256))
def show_source(targets: list[float], pictures: int, side: int) -> None:
    """Bits on a Gaussian source (exact denoiser) over those of entropy-coded quantization on its true KLT."""
    found = source.ratios(targets, range(pictures), side)
    for target, column in zip(targets, found.T, strict=True):
        click.echo(f"{target:g} dB: {column.mean():.3f} +- {column.std():.3f}")
    click.echo(f"mean: {found.mean():.3f}")


@main.command("digits")
@click.argument("path", metavar="IDX", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--pack", type=click.Path(dir_okay=False, path_type=Path), help="Only write the digits to train on, as a tar.")
@click.option("--prior", default="mnist", show_default=True, help="A name, a safetensors file or a trained folder.")
@click.option("--preset", type=click.Choice(["fast", "whole", "psc"]), default="whole", show_default=True)
@click.option("--rows", type=click.IntRange(1, 31), help="Rows a step, psc only.")
@click.option("--bytes", "size", default=40, show_default=True, type=click.IntRange(16), help="Of dcodec's files, all of them.")
@click.option("--most", default=120, show_default=True, type=click.IntRange(16), help="Of the other codecs' files, at most.")
@click.option("--limit", "count", type=click.IntRange(1), help="The first N of the 1,000 digits only.")
@click.option("--codecs", "names", default="jpeg,jpeg2000,webp,jxl", show_default=True, help="The others.")
@click.option("--walk-once", is_flag=True, help="dcodec: take states from the encoder, do not decode: half the time.")
def show_digits(
    path: Path, pack: Path | None, prior: str, preset: str, rows: int | None, size: int, most: int, count: int | None,
    names: str, walk_once: bool,
) -> None:  # fmt: skip
    """MNIST's digits in a few bytes: mean PSNR of dcodec, and of classical codecs at the best file that is small enough."""
    try:
        digits = small.read(path)
        if pack is not None:
            small.pack(digits, pack)
            return
        chosen = digits[small.TRAIN :][:count]
        found = []
        for row in small.compare(chosen, size, most, prior, preset, rows, names.split(","), walk_once):
            found.append(row)
            if len(found) % 20 == 0:  # hours for all of them: say how it stands
                click.echo("\n".join(_digit_lines(found)), err=True)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(_digit_lines(found)))


def _digit_lines(found: list[dict[str, tuple[float, int] | None]]) -> Iterator[str]:
    """A line for each codec."""
    for name in found[0]:
        points = [point for row in found if (point := row[name]) is not None]
        mean = "-" if not points else "{:.2f} dB at {:.1f} bytes".format(*np.mean(points, axis=0))
        yield f"{name}: {mean}, {len(points)} of {len(found)} digits"


@main.command("table")
@click.argument("path", metavar="CSV", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rates", callback=_rates, help="Bits a pixel.  [default: those that dcodec was measured at]")
@click.option("--reference", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV of other codecs.")
@click.option("--quality", default="psnr", show_default=True, type=click.Choice(sorted(report.CHARTS)))
def show(path: Path, rates: list[float] | None, reference: Path | None, quality: str) -> None:
    """Print the mean quality at each rate as a Markdown table."""
    rows = report.one_name(table.read(path))
    others = report.one_name(table.read(reference)) if reference else []
    click.echo(table.markdown(rows, rates or table.rates_of(rows), others, report.CHARTS[quality]))


@main.command("peers")
@click.argument("path", metavar="CSV", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show_peers(path: Path) -> None:
    """Print quality, evaluations and time of all codecs that meet a rate exactly, as a Markdown table."""
    click.echo(table.side_by_side(table.read(path)))


@main.command("kid")
@click.argument("path", metavar="CSV", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of `rd --keep`.")
@_weights
def show_kid(path: Path, keep: Path, weights: Path | None) -> None:
    """Print how far patches of decoded pictures are from patches of the originals, as sets, as a Markdown table."""
    if weights is None:
        raise click.ClickException("no SqueezeNet weights; name a file with --lpips")
    try:
        click.echo(kid.markdown(report.one_name(table.read(path)), keep, weights))
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@main.command("report")
@click.argument("path", metavar="CSV", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="HTML file.")
@click.option("--reference", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CSV of other codecs.")
@click.option("--keep", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Pictures of `rd --keep`.")
@click.option("--curves", "drawn", type=click.Path(file_okay=False, path_type=Path), help="Folder for the charts as SVG files.")
@click.option("--title", default="dcodec: rate, distortion, perception", show_default=True)
def show_report(path: Path, out: Path, reference: Path | None, keep: Path | None, drawn: Path | None, title: str) -> None:
    """Draw curves, tables and pictures as one HTML file, from the rows of a CSV."""
    try:
        rows = report.beside(table.read(path), table.read(reference)) if reference else table.read(path)
        title += " (*: of the reference CSV)" if reference else ""
        out.write_text(report.page(rows, title, keep), encoding="utf-8")
    except (ValueError, KeyError) as error:
        raise click.ClickException(f"{path}: {error}") from error
    if drawn:
        drawn.mkdir(parents=True, exist_ok=True)
        for name, chart in report.charts(report.one_name(rows)).items():
            (drawn / f"{name}.svg").write_text(chart + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
