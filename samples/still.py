"""A still life: fruit on a table by a window, path traced over distance functions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from darkroom import Array, develop, dot, fbm, mix, noise, step, unit
from PIL import Image


class Solid(NamedTuple):
    """A thing on the table: bounding sphere, distance function and colour of local points, bump, gloss."""

    centre: tuple
    bound: float
    distance: Callable[[Array], Array]
    colour: Callable[[Array], Array]
    bump: Callable[[Array], Array] | None = None
    rough: float = 0.05


LAMP, LAMP_U, LAMP_V = (
    np.float32([-4.6, 3.6, 1.6]),
    np.float32([0.75, 0, 1.05]),
    np.float32([0.45, 1.25, -0.3]),
)
LAMP_N = unit(np.cross(LAMP_V, LAMP_U))
WALL = -2.9


def lathe(p: Array) -> tuple:
    """Distance from the axis and height of local points."""
    return np.hypot(p[:, 0], p[:, 2]), p[:, 1]


def stem(p: Array, y: float, lean: float) -> Array:
    """Distance to a thin bent stalk that starts at height y."""
    s = np.clip((p[:, 1] - y) / 0.28, 0, 1)
    return (
        np.sqrt((p[:, 0] - lean * s * s) ** 2 + (p[:, 1] - y - 0.28 * s) ** 2 + p[:, 2] ** 2)
        - 0.018
        - 0.012 * s
    )


def apple(blush: float) -> tuple:
    """Distance and colour functions of an apple: the outside of a spindle torus, with a stalk."""

    def distance(p: Array) -> Array:
        r, y = lathe(p)
        lobes = 0.012 * np.cos(5 * np.arctan2(p[:, 2], p[:, 0])) * step(0.1, -0.5, y)
        return np.minimum(np.hypot(r * (1 - 0.13 * y) - 0.2, y) - 0.34 - lobes, stem(p, 0.17, 0.09)) * 0.85

    def colour(p: Array) -> Array:
        r, y = lathe(p)
        turn = np.arctan2(p[:, 2], p[:, 0])
        streak = fbm(turn * 9 + 40, y * 1.6 + 5 + blush, octaves=4)
        red = step(
            0.30, 0.75, fbm(*(p.T * 1.9 + blush), octaves=3) + 0.55 * (streak - 0.5) + blush - 0.25 * y * y
        )
        skin = mix(mix([0.50, 0.40, 0.07], [0.36, 0.40, 0.06], streak), [0.36, 0.022, 0.020], red)
        skin = mix(skin, [0.62, 0.45, 0.22], 0.32 * step(0.74, 0.86, noise(*(p.T * 38))))
        skin = mix(skin, [0.30, 0.27, 0.06], step(0.20, 0.04, r) * step(0.1, 0.3, y))
        return mix(skin, [0.09, 0.05, 0.025], step(0.06, 0.05, r) * step(0.16, 0.2, y))

    return distance, colour


def pear(p: Array) -> Array:
    """Distance to a pear: two spheres blended, with a stalk."""
    r, y = lathe(p)
    low, high = np.hypot(r, y) - 0.47, np.hypot(r, y - 0.62) - 0.22
    k = np.clip(0.5 + 0.5 * (high - low) / 0.42, 0, 1)
    return np.minimum(high + (low - high) * k - 0.42 * k * (1 - k), stem(p, 0.82, -0.1)) * 0.85


def pear_skin(p: Array) -> Array:
    """Colour of a pear: yellow green, freckled, russet about the stalk."""
    base = mix([0.47, 0.42, 0.09], [0.33, 0.36, 0.07], fbm(*(p.T * 2.4), octaves=4))
    base = mix(
        base, [0.46, 0.20, 0.07], 0.8 * step(0.42, 0.7, fbm(*(p.T * 1.3 + 8), octaves=4) + 0.25 * p[:, 0])
    )
    base = mix(base, [0.20, 0.12, 0.04], 0.75 * step(0.66, 0.8, fbm(*(p.T * 24), octaves=2)))
    return mix(base, [0.13, 0.075, 0.03], step(0.75, 0.86, p[:, 1] + 0.1 * noise(*(p.T * 8))))


def orange_skin(p: Array) -> Array:
    """Colour of an orange."""
    base = mix([0.72, 0.23, 0.018], [0.80, 0.33, 0.03], fbm(*(p.T * 3), octaves=4))
    return mix(base, [0.16, 0.15, 0.04], step(0.07, 0.03, lathe(p)[0]) * step(0, 0.1, p[:, 1]))


GRAPES = np.random.default_rng(5).normal(0, 1, (26, 3)).astype(np.float32) * [0.34, 0.05, 0.20]
GRAPES[:, 1] = np.where(np.arange(26) % 3 > 0, 0.13, 0.31) + 0.03 * GRAPES[:, 0]


def grapes(p: Array) -> Array:
    """Distance to a heap of grapes."""
    return np.min([np.sqrt(((p - g) ** 2).sum(1)) for g in GRAPES.astype(np.float32)], axis=0) - 0.13


def grape_skin(p: Array) -> Array:
    """Colour of grapes: dark with a pale bloom."""
    bloom = step(0.42, 0.75, fbm(*(p.T * 5), octaves=5))
    return mix(
        mix([0.045, 0.012, 0.03], [0.10, 0.02, 0.03], noise(*(p.T * 4))), [0.20, 0.20, 0.30], 0.65 * bloom
    )


def bowl(p: Array) -> Array:
    """Distance to a thick-walled bowl on a foot."""
    r, y = lathe(p)
    shell = np.maximum(np.abs(np.hypot(r, (y - 0.95) * 1.12) - 1.02) - 0.035, y - 0.62)
    foot = np.maximum(np.abs(r - 0.42) - 0.04, np.abs(y + 0.07) - 0.09)
    return np.minimum(np.maximum(shell, -0.12 - y), foot) * 0.8


def glaze(p: Array) -> Array:
    """Colour of the bowl: speckled cream with two blue bands."""
    y = p[:, 1] + 0.012 * (fbm(*(p.T * 6), octaves=3) - 0.5)
    band = step(0.47, 0.485, y) * step(0.575, 0.56, y) + step(0.41, 0.42, y) * step(0.44, 0.43, y)
    cream = mix([0.66, 0.61, 0.50], [0.52, 0.46, 0.36], fbm(*(p.T * 2.5), octaves=5))
    return mix(
        mix(cream, [0.04, 0.07, 0.20], 0.85 * band), [0.2, 0.13, 0.07], step(0.80, 0.86, noise(*(p.T * 34)))
    )


def pores(p: Array) -> Array:
    """Bumps of orange peel."""
    return 0.0035 * step(0.30, 0.75, noise(*(p.T * 30)))


SOLIDS = [
    Solid((-0.15, 0.168, -0.75), 1.56, lambda p: 1.2 * bowl(p / 1.2), lambda p: glaze(p / 1.2), None, 0.03),
    Solid((-0.64, 0.90, -0.72), 0.75, *apple(0.30)),
    Solid((0.20, 1.00, -1.24), 0.50, lambda p: np.sqrt((p * p).sum(1)) - 0.46, orange_skin, pores, 0.16),
    Solid((0.25, 0.87, -0.32), 0.75, *apple(0.02)),
    Solid((1.50, 0.465, -0.50), 1.16, pear, pear_skin, None, 0.13),
    Solid((0.98, 0.36, 0.72), 0.75, *apple(0.22)),
    Solid((-1.10, 0.44, 0.55), 0.47, lambda p: np.sqrt((p * p).sum(1)) - 0.44, orange_skin, pores, 0.16),
    Solid((-0.12, 0.0, 0.85), 1.05, grapes, grape_skin, None, 0.12),
]


def trace(o: Array, d: Array, reach: Array) -> tuple:
    """Nearest hit of rays: distance (reach if none) and number: solids, then table, wall, nothing."""
    far, what = reach.copy(), np.full(len(o), len(SOLIDS) + 2)
    for number, t in (
        (len(SOLIDS), -o[:, 1] / (d[:, 1] + 1e-12)),
        (len(SOLIDS) + 1, (WALL - o[:, 2]) / (d[:, 2] + 1e-12)),
    ):
        near = (t > 1e-3) & (t < far)
        far[near], what[near] = t[near], number
    for number, solid in enumerate(SOLIDS):
        q = o - np.float32(solid.centre)
        b = dot(q, d)
        disc = b * b - dot(q, q) + solid.bound**2
        root = np.sqrt(np.maximum(disc, 0))
        live = np.flatnonzero((disc > 0) & (root > b) & (-b - root < far))
        t = np.maximum(-b[live] - root[live], 4e-3)
        end = np.minimum(far[live], -b[live] + root[live])
        for _ in range(56):
            if not live.size:
                break
            gap = solid.distance(q[live] + d[live] * t[:, None])
            hit = gap < 1.2e-3
            far[live[hit]], what[live[hit]] = t[hit], number
            t = t + gap
            keep = ~hit & (t < end)
            live, t, end = live[keep], t[keep], end[keep]
    return far, what


def lamp(o: Array, d: Array) -> Array:
    """Light of the window seen directly along rays, for glossy reflections: bright panes, dark bars."""
    t = dot(LAMP - o, LAMP_N) / np.where(np.abs(dot(d, LAMP_N)) < 1e-6, 1e-6, dot(d, LAMP_N))
    local = o + d * t[:, None] - LAMP
    u, v = dot(local, LAMP_U) / dot(LAMP_U, LAMP_U), dot(local, LAMP_V) / dot(LAMP_V, LAMP_V)
    pane = (np.abs(u) < 1) & (np.abs(v) < 1) & (np.abs(u) > 0.06) & (np.abs(v - 0.2) > 0.05) & (t > 0)
    return pane * (0.75 + 0.25 * v)


def timber(p: Array) -> tuple:
    """Colour and bump of the table: boards with rings, fibres and scratches."""
    board = np.floor(p[:, 2] / 0.82 + 0.37)
    gap = np.abs((p[:, 2] / 0.82 + 0.37) % 1 - 0.5) * 2
    x, z = p[:, 0] + 7.3 * board, p[:, 2] + 3.1 * board
    ring = np.sin(34 * (z + 0.55 * fbm(x * 0.35, z * 1.1, octaves=4) + 0.03 * fbm(x * 3, z * 9, octaves=3)))
    fibre = fbm(x * 2.2, z * 85, octaves=4)
    tone = (
        0.45 * (0.5 + 0.5 * ring)
        + 0.9 * (fibre - 0.2)
        + 0.35 * (fbm(x, z, octaves=4) - 0.5)
        + 0.15 * np.sin(5 * board)
    )
    colour = mix([0.24, 0.115, 0.048], [0.085, 0.036, 0.015], tone)
    return mix(colour, [0.012, 0.007, 0.004], step(0.975, 0.99, gap)), 0.5 * (fibre - 0.5)


def surface(p: Array, d: Array, what: Array) -> tuple:
    """Normal, colour, roughness and reflectance of the hit points."""
    n, colour = np.zeros_like(p), np.zeros_like(p)
    rough, coat = np.full(len(p), 0.1, np.float32), np.full(len(p), 0.04, np.float32)
    for number, solid in enumerate(SOLIDS):
        at = np.flatnonzero(what == number)
        q, e = p[at] - np.float32(solid.centre), np.float32(2e-3)
        height = solid.distance if solid.bump is None else lambda v, s=solid: s.distance(v) - s.bump(v)
        n[at] = np.stack([height(q + e * a) - height(q - e * a) for a in np.eye(3, dtype=np.float32)], -1)
        colour[at], rough[at] = solid.colour(q), solid.rough
    at = np.flatnonzero(what == len(SOLIDS))
    colour[at], tilt = timber(p[at])
    n[at] = np.stack([0.04 * tilt, np.ones(at.size), 0.10 * tilt], -1)
    rough[at] = 0.16
    at = np.flatnonzero(what == len(SOLIDS) + 1)
    x, y = p[at, 0], p[at, 1]
    stain = fbm(x * 0.9 + 2, y * 0.9, octaves=7, gain=0.58)
    colour[at] = mix([0.16, 0.18, 0.175], [0.31, 0.31, 0.27], 2.2 * (stain - 0.27))
    dents = [fbm(x * 5 + a, y * 5 + b, octaves=5, gain=0.6) for a, b in ((0, 0), (0.05, 0), (0, 0.05))]
    n[at] = np.stack([2.2 * (dents[0] - dents[1]), 2.2 * (dents[0] - dents[2]), np.ones(at.size)], -1)
    coat[at] = 0
    n = unit(n + 1e-9)
    return n, colour, rough, coat


def radiance(o: Array, d: Array, rng: np.random.Generator, aim: Array) -> Array:
    """Light arriving along rays: three bounces, the window sampled at each; aim steers the first."""
    total, weight = np.zeros_like(o), np.ones_like(o)
    index, mirror = np.arange(len(o)), np.zeros(len(o), bool)
    for bounce in range(3):
        t, what = trace(o, d, np.full(len(o), 60, np.float32))
        out = what == len(SOLIDS) + 2
        glow = np.float32([0.16, 0.15, 0.14]) * (0.7 + 0.6 * np.clip(d[:, 1:2], -1, 1))
        glow = glow + mirror[:, None] * lamp(o, d)[:, None] * np.float32([9.0, 8.8, 8.4])
        np.add.at(total, index[out], (weight * glow)[out])
        o, d, t, what, weight, index = (a[~out] for a in (o, d, t, what, weight, index))
        p = o + d * t[:, None]
        n, colour, rough, coat = surface(p, d, what)
        face = np.clip(-dot(n, d), 0, 1)
        fresnel = np.where(coat > 0, coat + (1 - coat) * (1 - face) ** 5 * (1 - 2 * rough), 0)
        chance = np.where(fresnel > 0, 0.4, 0) * (bounce == 0)
        dice = aim[index] if bounce == 0 else rng.random((len(p), 5), np.float32)
        mirror = dice[:, 4] < chance
        gain = np.where(mirror, fresnel / np.maximum(chance, 1e-6), (1 - fresnel) / (1 - chance))
        direct = weight * (1 - fresnel)[:, None] * colour
        weight = weight * gain[:, None] * np.where(mirror[:, None], 1, colour)
        p = p + n * 3e-3
        # The window, seen through the diffuse part of the surface.
        s = dice[:, :2] * 2 - 1
        to = LAMP + s[:, :1] * LAMP_U + s[:, 1:] * LAMP_V - p
        gap = np.sqrt(dot(to, to))
        to = to / gap[:, None]
        power = np.clip(dot(n, to), 0, 1) * np.abs(dot(to, LAMP_N)) / gap**2
        power = power * (0.75 + 0.25 * s[:, 1])
        lit = np.flatnonzero(power > 1e-5)
        lit = lit[trace(p[lit], to[lit], gap[lit])[1] == len(SOLIDS) + 2]
        np.add.at(total, index[lit], direct[lit] * power[lit, None] * np.float32([17.0, 16.0, 14.6]))
        up, turn = dice[:, 2] * 2 - 1, dice[:, 3] * 2 * np.pi
        ring = np.sqrt(1 - up * up)
        bound = unit(n + np.stack([ring * np.cos(turn), up, ring * np.sin(turn)], -1) * 0.999)
        shine = unit(d - 2 * dot(d, n)[:, None] * n + (rough[:, None] * 0.6) * rng.normal(0, 1, p.shape))
        o, d = p, np.where(mirror[:, None], shine, bound).astype(np.float32)
    return total


def still(size: int = 256, samples: int = 128) -> Image.Image:
    """Fruit on a wooden table by a window, path traced through a thin lens."""
    rng = np.random.default_rng(11)
    eye, target = np.float32([0.35, 1.95, 6.1]), np.float32([0.08, 0.62, -0.2])
    ahead = unit(target - eye)
    right = unit(np.cross(ahead, [0, 1, 0]))
    above = np.cross(right, ahead)
    focus, light = 5.6, np.zeros((size, size, 3))
    y, x = np.mgrid[0:size, 0:size].reshape(2, -1)
    offset = rng.random((size * size, 5), np.float32)
    for k in range(samples):
        u, v = (np.array([x, y]) + rng.normal(0.5, 0.4, (2, x.size))) / size - 0.5
        ray = ahead + 0.60 * (u[:, None] * right - v[:, None] * above)
        turn, r = rng.random(x.size) * 2 * np.pi, 0.075 * np.sqrt(rng.random(x.size))
        lens = (r * np.cos(turn))[:, None] * right + (r * np.sin(turn))[:, None] * above
        o, d = (eye + lens).astype(np.float32), unit(ray * focus - lens)
        aim = (offset + k * 1.1347241384 ** -np.arange(1.0, 6.0)).astype(np.float32) % 1  # low discrepancy
        light += np.minimum(radiance(o, d, rng, aim), 8).reshape(size, size, 3)
    return develop(light / samples, 2.3, 4)
