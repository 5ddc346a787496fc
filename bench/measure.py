"""How is a row measured, and kept? One task, one codec on one picture, adds its rows to a CSV.

A row is written whole, the moment it is measured, and never again: after a kill the same command goes on.
"""

import contextlib
import os
import platform
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench import kept, lpips, metrics, points, table
from dcodec.pictures import load, to_image

COLUMNS = (
    "codec", "version", "setting", "estimate", "image", "width", "height", "bytes", "bpp", "psnr_rgb", "ms_ssim", lpips.NAME,
    "encode_s", "decode_s", "nfe", "peak_mb", "prior", "commit", "machine",
)  # fmt: skip
KEY = ("codec", "setting", "estimate", "image", "prior")
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Task:
    """What one codec still has to do with one picture.

    lpips: weights to measure it with, None to leave it blank. keep: folder for decoded pictures, None to forget them.
    """

    out: Path
    codec: points.Codec
    jobs: tuple[points.Job, ...]
    path: Path
    image: str
    crop: int
    commit: str
    machine: str
    lpips: Path | None = None
    keep: Path | None = None


def resume(out: Path) -> list[dict[str, str]]:
    """Make `out` a CSV that rows can be added to, without the line that a kill cut off; the rows it holds.

    ValueError when it is another CSV.
    """
    head = (",".join(COLUMNS) + "\n").encode()
    data = out.read_bytes() if out.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and head.startswith(data):  # new, or killed while it began
        out.write_bytes(head)
    elif not whole.startswith(head):
        raise ValueError(f"{out}: expected a CSV of `bench rd`, found other columns")
    elif len(whole) < len(data):
        os.truncate(out, len(whole))
    return table.read(out)


def measure(task: Task) -> str:
    """Do a task, adding a row for each of its jobs; what was done, in one line."""
    picture = picture_of(task.path, task.crop)
    original = np.asarray(picture)
    psnr, peak = 0.0, 0.0
    forget_peak()
    for point in task.codec.points(picture, task.jobs):
        peak = max(peak, peak_mb())  # of the file and of all before it: one stream has many points
        psnr, similarity = metrics.psnr(original, point.shown), metrics.ms_ssim(original, point.shown)
        distance = lpips.lpips(original, point.shown, task.lpips) if task.lpips else None
        values = (
            task.codec.name, task.codec.version, point.setting, point.estimate, task.image,
            picture.width, picture.height, point.size, f"{8 * point.size / (picture.width * picture.height):.5f}",
            f"{psnr:.4f}", "" if similarity is None else f"{similarity:.6f}", "" if distance is None else f"{distance:.6f}",
            f"{point.encode_s:.4f}", "" if point.decode_s is None else f"{point.decode_s:.4f}",
            "" if point.nfe is None else point.nfe, f"{peak:.0f}" if peak else "",
            task.codec.prior, task.commit, task.machine,
        )  # fmt: skip
        if task.keep:
            kept.keep(task.keep, task.codec.name, task.image, original, point)
        table.append(task.out, [values])
        forget_peak()
    return f"{task.codec.name} {task.image}: {len(task.jobs)} rows, last {task.jobs[-1][0]} {psnr:.2f} dB"


def picture_of(path: Path, crop: int) -> Image.Image:
    """8-bit, mode L or RGB; the middle `crop` pixels square, where there are more."""
    picture = to_image(load(path))
    if crop:
        w, h = (min(crop, side) for side in picture.size)
        left, top = (picture.width - w) // 2, (picture.height - h) // 2
        picture = picture.crop((left, top, left + w, top + h))
    return picture


def forget_peak() -> None:
    """Begin `peak_mb` anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Most memory that this process held at once since `forget_peak`, MiB, Python and torch included; 0 where unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def end_with(parent: int) -> None:
    """End this process within a second of its parent: left alone it would go on, and write what a resumed run measures too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def commit() -> str:
    """The checkout that measures, "-dirty" when changed since; "" outside of one."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        return ""


def machine() -> str:
    """Architecture, processor and number of cores."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
        model = next(models, model)
    return f"{platform.machine()} {model} x{os.cpu_count()}".replace(",", "")
