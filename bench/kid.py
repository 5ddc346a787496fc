"""Do decoded pictures look like pictures, as a set? Patch-KID, from what `bench rd --keep` wrote.

The squared distance between two sets of features in the space of a cubic kernel (MMD: Binkowski et al. 2018, arXiv 1801.01401,
section 3), not of whole pictures but of their patches (as HiFiC does with FID: Mentzer et al. 2020, arXiv 2006.09965): a few
pictures have many. Features: SqueezeNet's last map (see `lpips`), averaged over a patch. Values compare only with others of
the same network, patches and pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench import kept, lpips
from bench.curves import Row, label_of
from bench.metrics import Shown

NAME = "patch-KID (SqueezeNet, 64x64), x 1000"
SIDE = 64  # of a patch

Features = NDArray[np.float64]


def features(picture: Shown, weights: Path) -> Features:
    """(n, 512): one vector for each whole patch of an 8-bit picture (h, w) or (h, w, 3); patches do not overlap."""
    h, w = (side // SIDE * SIDE for side in picture.shape[:2])
    patches = [picture[y : y + SIDE, x : x + SIDE] for y in range(0, h, SIDE) for x in range(0, w, SIDE)]
    return np.array([lpips.summary(patch, weights) for patch in patches]).reshape(len(patches), -1)


def kid(a: Features, b: Features, *, paired: bool = False) -> float:
    """The unbiased estimate for sets (m, d) and (n, d) of at least two vectors: 0 on average when they are drawn alike.

    paired: vector i of both is of the same place, so that these pairs are no witnesses of how alike the sets are.
    """
    m, n = len(a), len(b)
    if m < 2 or n < 2:
        raise ValueError(f"expected two patches of {SIDE}x{SIDE} pixels or more in each set, found {m} and {n}")
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    alike = (within_a.sum() - np.trace(within_a)) / (m * (m - 1)) + (within_b.sum() - np.trace(within_b)) / (n * (n - 1))
    across = _kernel(a, b)
    if paired:
        return float(alike - 2 * (across.sum() - np.trace(across)) / (m * (m - 1)))
    return float(alike - 2 * across.mean())


def _kernel(a: Features, b: Features) -> Features:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def markdown(rows: Sequence[Row], folder: Path, weights: Path) -> str:
    """A table of the codecs, settings and estimates that were kept for every picture of which any was.

    Raises ValueError when nothing was.
    """
    files: dict[tuple[str, str], dict[str, tuple[Path, float]]] = {}
    for row in rows:
        path = kept.path_of(folder, row["codec"], row["setting"], row["estimate"], row["image"])
        if path.exists():
            files.setdefault((label_of(row), row["setting"]), {})[row["image"]] = path, float(row["bpp"])
    images = set.union(set(), *(found.keys() for found in files.values()))
    whole = {key: found for key, found in files.items() if found.keys() == images}
    if not whole:
        raise ValueError(f"{folder}: no pictures of these rows; `bench rd --keep` writes them")
    originals = [kept.path_of(folder, kept.ORIGINAL, "", "", image) for image in sorted(images)]
    real = _all(originals, weights)
    lines = [f"| codec | setting | bpp | {NAME} |", "| --- | --- | ---: | ---: |"]
    for (label, setting), found in sorted(whole.items(), key=lambda item: (item[0][0], _rate(item[1]))):
        decoded = _all([path for path, _ in found.values()], weights)
        lines.append(f"| {label} | {setting} | {_rate(found):.3f} | {1000 * kid(decoded, real, paired=True):.2f} |")
    return "\n".join([*lines, "", f"{len(images)} pictures, {len(real)} patches."])


def _rate(found: dict[str, tuple[Path, float]]) -> float:
    return float(np.mean([bpp for _, bpp in found.values()]))


def _all(paths: Sequence[Path], weights: Path) -> Features:
    return np.concatenate([features(np.asarray(Image.open(path)), weights) for path in paths])
