"""Which priors are installed, and which one does a stream ask for? Imports no torch until one is loaded."""

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcodec.prior import Prior

Spectrum = tuple[tuple[float, float, float], ...]

# (a, f0, p) per opponent channel: luma, red - blue, green against both; fitted to the training photographs
PHOTO_SPECTRUM: Spectrum = (
    (0.017921557, 0.020799780, 1.288100848),
    (0.000342764, 0.072246834, 1.797980787),
    (0.000149637, 0.057459376, 1.619926010),
)

DEFAULT = "photo"
WEIGHTS = "prior.safetensors"  # the prior in a folder that `dcodec train` wrote


@dataclass(frozen=True)
class Entry:
    """An installed prior. path: its weights, None for the closed form; digest: 32 bytes; domain: what it knows."""

    name: str
    path: Path | None
    size: int
    digest: bytes
    domain: str


def gaussian_digest(parameters: Spectrum) -> bytes:
    """Identity of the Gaussian prior with a spectrum."""
    return sha256(repr(("gaussian", 1, parameters)).encode()).digest()


@cache
def installed() -> tuple[Entry, ...]:
    """The priors that come with the package, the default first."""
    domains = {"photo": "photographs, colour or gray, any size"}
    weights = sorted(Path(str(files("dcodec.prior"))).glob("*.safetensors"), key=lambda p: p.stem != DEFAULT)
    gaussian = gaussian_digest(PHOTO_SPECTRUM)
    return (
        *(_entry(path.stem, path, domains.get(path.stem, "")) for path in weights),
        Entry("gaussian", None, 0, gaussian, "second-order statistics of photographs, no weights"),
    )


def _entry(name: str, path: Path, domain: str = "") -> Entry:
    data = path.read_bytes()
    return Entry(name, path, len(data), sha256(data).digest(), domain)


def find(name: str) -> Entry:
    """The prior called `name`, or in the safetensors file or trained folder `name`; ValueError with what there is, if none."""
    for entry in installed():
        if entry.name == name:
            return entry
    path = Path(name)
    if path.is_dir() and (path / WEIGHTS).is_file():
        return _entry(path.resolve().name, path / WEIGHTS)
    if path.is_file() and path.suffix == ".safetensors":
        return _entry(path.stem, path)
    known = ", ".join(entry.name for entry in installed())
    raise ValueError(f"prior {name!r} is neither installed ({known}) nor a .safetensors file or a folder with {WEIGHTS}")


def identify(digest: bytes) -> Entry | None:
    """The installed prior whose digest starts with `digest`, if any."""
    return next((entry for entry in installed() if entry.digest.startswith(digest)), None)


@cache
def load(entry: Entry, device: str = "cpu") -> "Prior":
    """The prior itself, ready on `device`. ValueError when its file is not one that this version reads."""
    if entry.path is None:
        from dcodec.prior.gaussian import GaussianPrior

        return GaussianPrior()
    from dcodec.prior.photo import PhotoPrior

    return PhotoPrior.load(entry, device)
