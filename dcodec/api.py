"""What does Python code call? Pictures in, bytes out, and back: `dcodec.encode`, `decode`, `progressive`, `info`.

The method itself is in `codec`; here budgets, estimates and picture types meet it.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcodec.container import MACHINE_SIZE, MAX_SIDE, PRESETS, Header, second_part
from dcodec.pictures import PictureError, from_array, from_image, to_image
from dcodec.prior import catalog
from dcodec.session import Progress, Session

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from dcodec.entropy import Encoder
    from dcodec.prior import Prior
    from dcodec.state import Setting, State
    from dcodec.stream import Written

Pixels = NDArray[np.float32]  # (C, h, w) in [-1, 1]
Report = dict[str, Any]

MOST = 64  # bytes a value at most, far beyond the finest step


@dataclass(frozen=True)
class Decoded:
    """mean (C, h, w): least squared error; samples: realistic pictures, (C, h, w) each; std (h, w): of the error to expect."""

    mean: Pixels
    samples: tuple[Pixels, ...]
    std: Pixels


@dataclass(frozen=True)
class Snapshot:
    """What the first `size` bytes show. std (h, w): of the error to expect, from samples (`spread`), in units of [-1, 1]."""

    size: int
    bpp: float
    mean: "Image.Image"
    sample: "Image.Image"
    std: Pixels


def encode(
    image: "Image.Image | NDArray[Any]",
    *,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    preset: str = "fast",
    rows: int | None = None,
    prior: "str | os.PathLike[str] | Prior" = catalog.DEFAULT,
    prompt: str = "",
    guidance: float = 1.0,
    arithmetic: str = "exact",
    device: str = "cpu",
    seed: int = 0,
    chunk: int = 0,
    background: str | None = None,
    max_side: int = MAX_SIDE,
    report: Report | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Compress a picture to a `.dcx` stream.

    image: a Pillow image, uint8 or uint16 (h, w) or (h, w, 3), or float32 (C, h, w) in [-1, 1].
    bpp, size, psnr: exactly one; bits a pixel and bytes are met exactly, header included; psnr (dB) ends the stream at a
    prefix whose mean estimate reaches it, found by bisection.
    preset: `fast`, `whole`, or `psc` with `rows` rows a step (1).
    prior: a name, a safetensors file, a folder that diffusers wrote, a hub's id, or a Prior in memory.
    prompt, guidance: for priors that take one; stored in the stream.
    arithmetic: `exact`, or for diffusers models `native`, several times as fast, for streams that only this machine decodes.
    seed: of the shared noise.
    chunk: samples in the denoiser at once (0: by memory); never changes the bytes.
    background, max_side: of Pillow images: the colour behind transparent ones; most pixels a side.
    report: filled with bytes, bpp, psnr, refreshes, nfe (evaluations at full size, smaller ones as parts), seconds.
    progress: called as progress(bits, of, note).
    Raises ValueError (PictureError for the picture) when an argument does not make sense.
    """
    begin = time.perf_counter()
    if sum(option is not None for option in (bpp, size, psnr)) != 1:
        raise ValueError("give exactly one of bpp, size and psnr")
    if not all(math.isfinite(option) and option > 0 for option in (bpp, psnr) if option is not None):
        raise ValueError("bpp and psnr are finite and above zero")
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is unknown: it is one of {', '.join(PRESETS)}")
    if rows is not None and preset != "psc":
        raise ValueError("rows go with preset psc: the other presets choose theirs themselves")
    entry = catalog.find(os.fspath(prior)) if isinstance(prior, (str, os.PathLike)) else None
    x = _picture(image, background, max_side)
    c, h, w = x.shape
    if bpp is not None:
        size = budget(bpp, w, h)
    if arithmetic not in ("exact", "native"):
        raise ValueError(f"arithmetic {arithmetic!r} is unknown: it is exact or native")
    native = arithmetic == "native"
    rest = second_part(bytes(MACHINE_SIZE) if native else b"", prompt, guidance)
    header = Header(w, h, c == 1, preset, (rows or 1) if preset == "psc" else 0, b"\0\0", seed, rest=rest)
    header.pack()  # refuses fields out of range before the work starts
    if size is not None and size < header.size:
        raise ValueError(f"a budget of {size} bytes is smaller than the header of {header.size}: ask for more (--bytes)")
    if size is not None and size > max(MOST * x.size, 1 << 16):
        raise ValueError(f"a budget of {size} bytes is more than all there can be to say of {w}x{h} pixels")

    import torch

    from dcodec import estimates
    from dcodec.domain import enter
    from dcodec.exact.machine import check_device, fingerprint
    from dcodec.prior.counted import Counted
    from dcodec.state import Setting

    check_device(device)
    loaded = catalog.load(entry, device, arithmetic) if entry else prior
    assert not isinstance(loaded, (str, os.PathLike))
    header = replace(header, prior=loaded.digest[:2])
    if native:
        header = replace(header, rest=second_part(fingerprint(device, chunk), prompt, guidance))
    if prompt:
        loaded = catalog.prompted(loaded, prompt, header.guidance)
    counted = Counted(loaded, h, w)
    setting = Setting.of(header, counted, device, chunk)
    y = enter(setting, torch.from_numpy(x)[None])
    if size is not None:
        written, payload = _encode_to_size(y, header, setting, size - header.size, progress)
    else:
        assert psnr is not None
        written, payload = _encode_to_psnr(y, x, header, setting, psnr, progress)
    data = written.header.pack() + written.encoder.cut(payload)
    if report is not None:
        nfe = round(counted.evaluations)
        state = written.settled(setting, payload)
        report.update(
            bytes=len(data), bpp=8 * len(data) / (w * h), psnr=_psnr(x, estimates.mean(setting, state)),
            refreshes=len(written.turns), nfe=nfe, denoiser_seconds=counted.seconds, seconds=time.perf_counter() - begin,
        )  # fmt: skip
    return data


def budget(bpp: float, width: int, height: int) -> int:
    """Bytes of a file of at most `bpp` bits a pixel."""
    return math.floor(bpp * width * height / 8 + 1e-9)  # 0.7 * 480 / 8 is 42


def _encode_to_size(
    y: "Tensor", header: Header, setting: "Setting", payload: int, progress: Progress | None
) -> tuple["Written", int]:
    from dcodec import stream

    def enough(state: "State", encoder: "Encoder") -> bool:
        if progress:
            progress(min(encoder.bits, 8 * payload), 8 * payload, f"refresh {state.refresh}")
        return encoder.filled(payload)

    return stream.encode(y, header, setting, enough), payload


def _encode_to_psnr(
    y: "Tensor", x: Pixels, header: Header, setting: "Setting", target: float, progress: Progress | None
) -> tuple["Written", int]:
    """Walk past the target, then bisect for the shortest prefix that reaches it."""
    from dcodec import estimates, stream

    best, ends = 0.0, [0]

    def enough(state: "State", encoder: "Encoder") -> bool:
        nonlocal best
        if best >= target:  # one step further, so that no sealed end is ever shipped
            return True
        best = _psnr(x, estimates.mean(setting, state))
        ends.append(encoder.bits // 8)
        if progress:
            progress(int(100 * min(best, target)), int(100 * target), f"{best:.2f} dB at {encoder.bits} bit")
        return False

    written = stream.encode(y, header, setting, enough, keep=2)
    if best < target:
        raise ValueError(f"PSNR {target} dB is out of reach: all there is to say gives {best:.2f} dB")
    low, high = max(ends[-2] - 8, 0), ends[-1] + 8
    while high - low > max(1, high // 256):
        middle = (low + high) // 2
        if _psnr(x, estimates.mean(setting, written.settled(setting, middle))) >= target:
            high = middle
        else:
            low = middle
    return written, high


def decode(
    data: bytes,
    *,
    estimate: str = "mean",
    size: int | None = None,
    prior: "str | os.PathLike[str] | Prior | None" = None,
    device: str = "cpu",
    seed: int | None = None,
    chunk: int = 0,
    max_side: int = MAX_SIDE,
    progress: Progress | None = None,
    report: Report | None = None,
) -> "Image.Image":
    """The picture that a stream, or its first `size` bytes, describes.

    estimate: `mean` (least squared error) or `sample` (realistic). prior: as for `encode`, for streams of a prior that is not
    installed. seed: of the estimate's own noise; other seeds give other samples of the same bits.
    Raises BitstreamError when the stream is damaged or made with another prior, ValueError for senseless arguments.
    """
    if estimate not in ("mean", "sample"):
        raise ValueError(f"estimate {estimate!r} is unknown: it is mean or sample")
    session = Session.of(data, size, prior, device, chunk, max_side, progress)

    from dcodec import estimates  # now that there is something to decode

    (_, state), = session.states([session.size])
    place = session.setting
    x = estimates.mean(place, state, seed) if estimate == "mean" else estimates.samples(place, state, 1, seed)[0]
    session.fill(report)
    return to_image(x)


def decode_many(
    data: bytes,
    *,
    samples: int,
    size: int | None = None,
    prior: "str | os.PathLike[str] | Prior | None" = None,
    device: str = "cpu",
    seed: int | None = None,
    chunk: int = 0,
    max_side: int = MAX_SIDE,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Decoded:
    """Several pictures that all agree with the bits, their mean and how far off it may be; arguments as for `decode`."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    session = Session.of(data, size, prior, device, chunk, max_side, progress)

    from dcodec import estimates, spread

    (_, state), = session.states([session.size])
    drawn = estimates.samples(session.setting, state, samples, seed)
    mean = estimates.mean(session.setting, state, seed)
    session.fill(report)
    return Decoded(mean, tuple(drawn), spread.std(session.setting, state, drawn))


def progressive(
    data: bytes,
    *,
    steps: int = 6,
    prior: "str | os.PathLike[str] | Prior | None" = None,
    device: str = "cpu",
    chunk: int = 0,
    max_side: int = MAX_SIDE,
    progress: Progress | None = None,
) -> Iterator[Snapshot]:
    """What `steps` prefixes show, sizes rising geometrically to the whole stream; one walk for all of them."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    session = Session.of(data, None, prior, device, chunk, max_side, progress)

    from dcodec import estimates, spread

    first = min(max(len(data) / 32, session.header.size + 4.0), len(data))
    ratio = (len(data) / first) ** (1 / max(steps - 1, 1))
    sizes = sorted({round(len(data) / ratio**k) for k in range(steps)})
    pixels = session.header.width * session.header.height
    for size, state in session.states(sizes):
        drawn = estimates.behind_mean(session.setting, state)
        mean, sample = estimates.average(drawn), estimates.samples(session.setting, state, 1)[0]
        yield Snapshot(size, 8 * size / pixels, to_image(mean), to_image(sample), spread.std(session.setting, state, drawn))


def info(data: bytes) -> dict[str, Any]:
    """The header of a stream as plain values, its size, and the installed prior it asks for; needs no torch."""
    header = Header.unpack(data)
    entry = catalog.identify(header.prior)
    return {
        "width": header.width,
        "height": header.height,
        "mode": "L" if header.gray else "RGB",
        "bytes": len(data),
        "bpp": 8 * len(data) / (header.width * header.height),
        "preset": header.preset,
        "rows": header.rows,
        "prior": entry.name if entry else None,
        "prior_id": header.prior.hex(),
        "seed": header.seed,
        "step": header.step,
        "fingerprint": header.fingerprint.hex(),
        "arithmetic": "native" if header.machine else "exact",
        "prompt": header.prompt or None,
        "guidance": header.guidance,
    }


def priors() -> list[dict[str, Any]]:
    """Installed priors: name, path, bytes, gflop (of an evaluation at 256x256), sha256, domain; needs no torch."""
    return [
        {
            "name": entry.name,
            "path": str(entry.path) if entry.path else None,
            "bytes": entry.size,
            "gflop": round(catalog.gflop(entry), 3),
            "sha256": entry.digest.hex(),
            "domain": entry.domain,
        }
        for entry in catalog.installed()
    ]


def _picture(image: Any, background: str | None, max_side: int) -> Pixels:
    """Any accepted picture -> (C, h, w) float32 in [-1, 1]."""
    if isinstance(image, (str, os.PathLike, bytes)):
        raise PictureError("expected a picture, not the name or the bytes of a file: Image.open(..) of Pillow reads it")
    if not isinstance(image, np.ndarray):
        return from_image(image, background=background, max_side=max_side)
    if image.dtype != np.float32:
        return from_array(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise PictureError(f"expected a float32 picture of shape (1 or 3, h, w), not {image.shape}")
    if not np.isfinite(image).all():
        raise PictureError("the picture holds NaN or infinity")
    return image


def _psnr(x: Pixels, y: Pixels) -> float:
    """PSNR in dB of the 8-bit picture that `y` becomes, against `x` at its own depth."""
    shown = np.rint((np.clip(y.astype(np.float64), -1, 1) + 1) * 127.5)
    error = float(np.mean((shown - (x.astype(np.float64) + 1) * 127.5) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
