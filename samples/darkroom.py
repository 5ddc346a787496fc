"""Shared tools of the sample renderer: noises, small vector algebra, blurs, the darkroom."""

from itertools import product

import numpy as np
from PIL import Image

TABLE = np.random.default_rng(7).random(1 << 18).astype(np.float32)  # lattice values of all the noises
Array = np.ndarray


def noise(*coords: Array) -> Array:
    """Smooth value noise in [0, 1] in two or three dimensions."""
    bits = 18 // len(coords)
    mask = (1 << bits) - 1
    cells = [np.floor(c).astype(np.int32) for c in coords]
    fracs = [(c - i).astype(np.float32) for c, i in zip(coords, cells, strict=True)]
    fracs = [t * t * t * (t * (t * 6 - 15) + 10) for t in fracs]
    total = np.float32(0)
    for corner in product((0, 1), repeat=len(coords)):
        index, weight = 0, np.float32(1)
        for i, t, k in zip(cells, fracs, corner, strict=True):
            index = (index << bits) | ((i + k) & mask)
            weight = weight * (t if k else 1 - t)
        total = total + weight * TABLE[index]
    return total


def octave(coords: list, k: int) -> list:
    """Coordinates of octave k: doubled, turned and shifted so that lattices never line up."""
    a, b = coords[0], coords[1]
    c, s, f = np.cos(0.65 * k), np.sin(0.65 * k), 2.03**k
    return [(c * a - s * b) * f + 17.3 * k, (s * a + c * b) * f + 5.7 * k] + [
        q * f + 3.1 * k for q in coords[2:]
    ]


def fbm(*coords: Array, octaves: int = 6, gain: float = 0.5) -> Array:
    """Fractal noise: a sum of octaves, normalised to [0, 1]."""
    total, norm = 0.0, 0.0
    for k in range(octaves):
        total = total + gain**k * noise(*octave(list(coords), k))
        norm += gain**k
    return total / norm


def ridged(x: Array, y: Array, octaves: int) -> Array:
    """Ridged multifractal noise in about [0, 1]: sharp crests, smooth valleys."""
    total, weight = 0.0, 1.0
    for k in range(octaves):
        crest = (1 - np.sqrt((2 * noise(*octave([x, y], k)) - 1) ** 2 + 0.02 * 0.4**k)) ** 2 * weight
        weight = np.clip(crest * 1.7 + 0.1, 0, 1)
        total = total + crest * 0.47**k
    return total / 1.75


def step(lo: float, hi: float, x: Array) -> Array:
    """Smooth ramp from 0 at lo to 1 at hi."""
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array, b: Array, t: Array) -> Array:
    """Blend colours (last axis) a and b by the weight t."""
    a, b, t = np.asarray(a, np.float32), np.asarray(b, np.float32), np.asarray(t, np.float32)[..., None]
    return a + (b - a) * t


def unit(v: Array) -> Array:
    """Vectors (last axis) scaled to length one."""
    v = np.asarray(v, np.float32)
    return v / np.sqrt((v * v).sum(-1, keepdims=True))


def dot(a: Array, b: Array) -> Array:
    """Dot product along the last axis."""
    return np.einsum("...i,...i->...", a, b)


def blur(image: Array, radius: int) -> Array:
    """Near-Gaussian blur of the first two axes: three box filters in each."""
    for axis in (0, 1) * 3:
        pad = [(0, 0)] * image.ndim
        pad[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
        n, size = 2 * radius + 1, image.shape[axis]
        image = (np.take(sums, range(n, n + size), axis) - np.take(sums, range(size), axis)) / n
    return image.astype(np.float32)


def shrink(image: Array, factor: int) -> Array:
    """Average blocks of factor x factor samples."""
    h, w, c = image.shape
    return image.reshape(h // factor, factor, w // factor, factor, c).mean((1, 3))


def develop(light: Array, exposure: float, seed: int) -> Image.Image:
    """Turn linear light into a picture: bloom, vignette, filmic curve, sRGB, grain of one grey level."""
    h, w, _ = light.shape
    light = light * 0.94 + 0.06 * blur(np.minimum(light, 4), max(2, w // 50))
    y, x = np.mgrid[0:h, 0:w]
    radius = np.hypot((x + 0.5) / w - 0.5, (y + 0.5) / h - 0.5)
    light = light * (exposure * (1 - 0.55 * radius**2.2))[..., None]
    film = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    film = np.clip(film, 0, 1)
    srgb = np.where(film < 0.0031308, 12.92 * film, 1.055 * film ** (1 / 2.4) - 0.055)
    grain = np.random.default_rng(seed).normal(0, 1, (h, w, 1)) * 0.85
    grain = grain + np.random.default_rng(seed + 1).normal(0, 0.5, (h, w, 3))
    return Image.fromarray(np.clip(srgb * 255 + grain + 0.5, 0, 255).astype(np.uint8))
