"""Which priors are installed, and which one does a stream ask for? Imports no torch until one is loaded."""

import json
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcodec.prior import folder

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
    """A prior that can be loaded. path: its weights, a folder for diffusers models, None for the closed form.

    digest: 32 bytes, empty where only loading tells (a folder that was not added). domain: what it knows. cost: GFLOP of an
    evaluation, where a record tells.
    """

    name: str
    path: Path | None
    size: int
    digest: bytes
    domain: str
    cost: float = 0.0


def gaussian_digest(parameters: Spectrum) -> bytes:
    """Identity of the Gaussian prior with a spectrum."""
    return sha256(repr(("gaussian", 1, parameters)).encode()).digest()


def installed() -> tuple[Entry, ...]:
    """The priors that come with the package, the default first, and those that were added."""
    return (*shipped(), *filter(None, (_added(*found) for found in folder.added())))


def _added(name: str, path: Path, record: dict[str, Any]) -> Entry | None:
    """A prior that was added; None when its record was edited by hand: as good as gone."""
    try:
        return Entry(name, path, int(record.get("bytes", 0)), bytes.fromhex(record.get("sha256", "")),
                     str(record.get("domain", "")), float(record.get("gflop", 0.0)))  # fmt: skip
    except (TypeError, ValueError):
        return None


@cache
def shipped() -> tuple[Entry, ...]:
    """The priors that come with the package, the default first."""
    domains = {"photo": "photographs, colour or gray, any size", "mnist": "handwritten digits, gray, 28x28"}
    weights = sorted(Path(str(files("dcodec.prior"))).glob("*.safetensors"), key=lambda p: p.stem != DEFAULT)
    gaussian = gaussian_digest(PHOTO_SPECTRUM)
    return (
        *(_entry(path.stem, path, domains.get(path.stem, "")) for path in weights),
        Entry("gaussian", None, 0, gaussian, "second-order statistics of photographs, no weights"),
    )


def _entry(name: str, path: Path, domain: str = "") -> Entry:
    data = path.read_bytes()
    return Entry(name, path, len(data), sha256(data).digest(), domain)


def gflop(entry: Entry, side: int = 256) -> float:
    """10^9 multiplications and additions of its network in one evaluation of a picture, `side` pixels a side; 0 without one.

    Of an added model, at the size that it was made for. Counted from the shapes that stand at the head of its file. Raises
    ValueError when it is not one of `dcodec train`'s.
    """
    if entry.path is None or entry.path.is_dir():
        return entry.cost
    try:
        with open(entry.path, "rb") as file:  # safetensors: length of the head, head in JSON, numbers
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        patch = json.loads(head["__metadata__"]["arch"])["patch"]
        total = 0.0
        for name, tensor in head.items():
            layer, _, part = name.rpartition(".")
            if part not in ("weight", "fine"):
                continue
            group, _, rest = layer.partition(".")
            halvings = int(rest.partition(".")[0]) + (group in ("narrow", "widen")) if rest else 0
            times = 2 if group == "inp" and part == "weight" else 1  # high and low bytes
            if part == "weight" and layer[-2:] in (".a", ".b"):  # as often as its block takes steps
                times = head[f"{layer[:-1]}b.bias"]["shape"][0]
            out, fan, k, _ = tensor["shape"]
            total += 2.0 * times * out * fan * k * k * (side / (patch << halvings)) ** 2
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{entry.path} is not a prior that this version reads: {error}") from error
    return total / 1e9


def find(name: str) -> Entry:
    """The prior called `name`, or in the safetensors file or folder `name`, or of a hub's id; ValueError if there is none."""
    for entry in installed():
        if entry.name == name:
            return entry
    path = Path(name)
    if path.is_dir() and (path / WEIGHTS).is_file():
        return _entry(path.resolve().name, path / WEIGHTS)
    if path.is_dir() and folder.is_model(path):
        return Entry(path.resolve().name, path.resolve(), folder.read(path).size(), b"", "")
    if path.is_file() and path.suffix == ".safetensors":
        return _entry(path.stem, path)
    if folder.looks_like_hub_id(name):
        copy = folder.download(name)
        return Entry(name, copy, folder.read(copy).size(), b"", "")
    known = ", ".join(entry.name for entry in installed())
    raise ValueError(
        f"prior {name!r} is neither installed ({known}) nor a .safetensors file, a folder with {WEIGHTS} or a diffusers model, "
        "or a hub's id (owner/model)"
    )


def identify(digest: bytes) -> Entry | None:
    """The installed prior whose digest starts with `digest`, if any."""
    return next((entry for entry in installed() if entry.digest and entry.digest.startswith(digest)), None)


@cache
def load(entry: Entry, device: str = "cpu", arithmetic: str = "exact") -> "Prior":
    """The prior itself, ready on `device`. ValueError when its file is not one that this version reads."""
    if entry.path is not None and entry.path.is_dir():
        from dcodec.prior.adapter import DiffusersPrior

        return DiffusersPrior.load(entry.path, entry.name, device, arithmetic)
    if arithmetic != "exact":
        raise ValueError(f"prior {entry.name} computes exactly as it is: --arithmetic native is for diffusers models")
    if entry.path is None:
        from dcodec.prior.gaussian import GaussianPrior

        return GaussianPrior()
    from dcodec.prior.photo import PhotoPrior

    return PhotoPrior.load(entry, device)


def prompted(prior: "Prior", prompt: str, guidance: float) -> "Prior":
    """The prior told what the picture shows; ValueError when it takes no prompt."""
    from dcodec.prior.adapter import DiffusersPrior

    if not isinstance(prior, DiffusersPrior):
        raise ValueError(f"prior {prior.name} takes no prompt")
    return prior.prompted(prompt, guidance)
