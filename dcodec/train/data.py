"""Which pictures does a network learn from? Folders and tar archives of them, cut into batches of crops.

Pictures are used at full size and at the coarser scales that a walk sees them at, by the walk's own wavelet; one in HELD is
kept out, to measure progress on, up to MOST_HELD in the order of the sources: in another order others are.
"""

import io
import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dcodec.pictures import check_writable, load, replacing, to_image
from dcodec.transform import split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".ppm", ".pgm", ".bmp", ".tif", ".tiff")
BATCHES = ((32, 64), (14, 96), (8, 128))  # (crops, side), in turn: as many pixels in each
MOST = 64  # crops of a batch, however small
SMALLEST = 16  # pixels a side that a picture must have
SCALES = 3  # halvings that a picture is used at, besides full size, as long as a crop fits
SHARE_TURNED = 0.15
HELD, MOST_HELD = 16, 64


@dataclass(frozen=True)
class Pictures:
    """train: (C, h, w) uint8 at all sizes, C = 1 when all are gray; weights (N,): how often to cut from each.

    held: pictures never trained on; names: of the sources; count: pictures in them; digest: sha256 over all, in order.
    """

    train: tuple[Tensor, ...]
    weights: NDArray[np.float64]
    held: tuple[Tensor, ...]
    names: tuple[str, ...]
    count: int
    digest: str

    @property
    def channels(self) -> int:
        """C."""
        return self.train[0].shape[0]

    def to(self, device: str) -> "Pictures":
        """The same pictures, those to train on kept on a device."""
        train = tuple(picture.to(device) for picture in self.train)
        return Pictures(train, self.weights, self.held, self.names, self.count, self.digest)


@dataclass(frozen=True)
class File:
    """A picture's file of `size` bytes. read: its content, while `files` has not gone on to the next."""

    name: str
    size: int
    read: Callable[[], bytes]


def files(sources: Sequence[Path]) -> Iterator[File]:
    """Every file that is called like a picture, in the order of names."""
    for source in sources:
        if source.is_dir():
            for path in sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES):
                yield File(str(path.relative_to(source)), path.stat().st_size, path.read_bytes)
            continue
        try:
            with tarfile.open(source) as archive:
                members = [m for m in archive if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
                for member in sorted(members, key=lambda member: member.name):
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file
                    yield File(member.name, member.size, content.read)
        except tarfile.TarError as error:
            raise ValueError(f"{source} is neither a folder nor a tar archive of pictures") from error


def read(sources: Sequence[Path]) -> Pictures:
    """All pictures of the sources; ValueError when there are fewer than two to use."""
    train: list[Tensor] = []
    held: list[Tensor] = []
    weights: list[float] = []
    digest, count = sha256(), 0
    for file in files(sources):
        content = file.read()
        picture = load(io.BytesIO(content), background="gray", max_side=1 << 16, name=file.name)
        full = to_image(picture).convert("RGB")
        if min(full.size) < SMALLEST:
            continue
        digest.update(sha256(content).digest())
        count += 1
        if count % HELD == 2 and len(held) < MOST_HELD:
            held.append(_tensor(full))
            continue
        for x in _scales(_tensor(full)):
            train.append(x)
            weights.append(math.sqrt(x.shape[1] * x.shape[2]))  # half as often a scale down
    if count < 2:
        raise ValueError(f"found {count} pictures of {SMALLEST}x{SMALLEST} and more: at least 2 are needed")
    names = tuple(source.name for source in sources)
    if all(torch.equal(p[:1].expand(3, -1, -1), p) for p in (*train, *held)):
        train, held = ([p[:1] for p in pictures] for pictures in (train, held))
    return Pictures(tuple(train), np.array(weights), tuple(held), names, count, digest.hexdigest())


def _scales(picture: Tensor) -> Iterator[Tensor]:
    """The picture (C, h, w) uint8 at full size, then low bands of the walk's own wavelet, (C, h / 2, w / 2) ..."""
    yield picture
    x = picture[None].float()
    for _ in range(SCALES):
        if (min(x.shape[2:]) + 1) // 2 < BATCHES[0][1]:
            return
        x = split(x)[0] * 0.5
        yield x[0].round().clamp(0, 255).to(torch.uint8)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def sides(pictures: Pictures) -> list[tuple[int, int]]:
    """BATCHES as far as the pictures are large enough; smaller ones when none is."""
    short = np.array([min(p.shape[1:]) for p in pictures.train])
    fitting = [(count, side) for count, side in BATCHES if (short >= side).mean() > 0.05]
    if fitting:
        return fitting
    side = int(np.median(short))
    return [(min(MOST, BATCHES[0][0] * BATCHES[0][1] ** 2 // side**2), side)]


def batches(pictures: Pictures, seed: int, times: int = 1, mirror: bool = True) -> Iterator[Tensor]:
    """Endless batches (B, C, s, s) float32 (see `scaled`), mirrored and turned at random if so wished; `times` the crops."""
    rng = np.random.default_rng(seed)
    short, sizes = np.array([min(p.shape[1:]) for p in pictures.train]), sides(pictures)
    while True:
        for count, side in sizes:
            p = pictures.weights * (short >= side)
            crops = [
                _crop(pictures.train[i], side, rng, mirror) for i in rng.choice(len(short), count * times, p=p / p.sum())
            ]
            yield scaled(torch.stack(crops))


def scaled(x: Tensor) -> Tensor:
    """Pictures (N, C, h, w) uint8 as priors see them: colours in [-1, 1], gray as luma, sqrt(3) times that."""
    return (x.float() / 127.5 - 1) * (math.sqrt(3) if x.shape[1] == 1 else 1.0)


def _crop(picture: Tensor, side: int, rng: np.random.Generator, mirror: bool) -> Tensor:
    y, x = (int(rng.integers(n - side + 1)) for n in picture.shape[1:])
    crop = picture[:, y : y + side, x : x + side]
    if not mirror:
        return crop
    crop = crop.flip(2) if rng.random() < 0.5 else crop
    return crop.transpose(1, 2) if rng.random() < SHARE_TURNED else crop


def middles(pictures: Sequence[Tensor], side: int) -> Tensor:
    """Middles (N, C, s, s) float32 (see `scaled`), s = `side` or as much as half of the pictures have."""
    shorts = [min(p.shape[1:]) for p in pictures]
    side = min(side, sorted(shorts)[len(shorts) // 2])
    out = []
    for p, short in zip(pictures, shorts, strict=True):
        if short >= side:
            y, x = ((n - side) // 2 for n in p.shape[1:])
            out.append(p[:, y : y + side, x : x + side])
    return scaled(torch.stack(out))


def pack(sources: Sequence[Path], out: Path, megabytes: float, seed: int = 0) -> tuple[int, int]:
    """Write a tar of at most `megabytes` MiB with a random choice of the pictures; (how many are in it, of how many)."""
    check_writable(str(out))
    sizes = [file.size for file in files(sources)]
    order = np.random.default_rng(seed).permutation(len(sizes))
    ends = np.cumsum([1024 + sizes[i] for i in order])  # a header and padding a member
    chosen = set(order[: int(np.searchsorted(ends, megabytes * 2**20 - 10240, "right"))].tolist())
    if not chosen:
        raise ValueError(f"none of {len(sizes)} pictures fits into {megabytes:g} MiB")
    with replacing(str(out)) as part, tarfile.open(part, "w") as archive:
        for i, file in enumerate(files(sources)):
            if i in chosen:
                member = tarfile.TarInfo(f"{i:06}-{Path(file.name).name}")
                member.size = file.size
                archive.addfile(member, io.BytesIO(file.read()))
    return len(chosen), len(sizes)
