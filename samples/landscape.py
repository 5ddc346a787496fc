"""A mountain lake: terrain from fractal noise, drawn column by column."""

from collections.abc import Callable
from itertools import product

import numpy as np
from darkroom import TABLE, Array, blur, develop, dot, fbm, mix, noise, ridged, shrink, step, unit
from PIL import Image, ImageDraw

SUN = unit([0.74, 0.40, 0.52])


def scatter(x: Array, z: Array, cell: float, profile: Callable, reach: int = 1) -> Array:
    """Greatest profile(distance, random) over objects placed at random, one in each square cell."""
    best = np.zeros(x.shape, np.float32)
    ix, iz = np.floor(x / cell).astype(np.int32), np.floor(z / cell).astype(np.int32)
    for dx, dz in product(range(-reach, reach + 1), repeat=2):
        key = (((ix + dx) & 511) << 9) | ((iz + dz) & 511)
        px = (ix + dx + TABLE[key]) * cell - x
        pz = (iz + dz + TABLE[key ^ 0x15A5A]) * cell - z
        np.maximum(best, profile(np.hypot(px, pz), TABLE[key ^ 0x2C3C3]), out=best)
    return best


def terrain(x: Array, z: Array, octaves: int = 11) -> Array:
    """Height of the bare ground in metres above the lake."""
    warp = fbm(x / 700, z / 700, octaves=4) - 0.5
    shore = np.hypot((x - 40) / 300, (z - 520) / 470) + 1.3 * warp * step(60, 400, z)
    axis = 300 * np.sin(z / 2100 + 0.6) + 100
    valley = np.maximum(0.16 + 0.84 * step(150, 1500, np.abs(x - axis)), step(4200, 7000, z))
    peaks = ridged((x + 420 * warp) / 2900 + 3.35, (z - 420 * warp) / 2900 + 1.1, octaves)
    hills = 90 * step(1, 3.2, shore) * fbm(x / 240, z / 240, octaves=min(octaves, 7))
    knoll = 9 * step(66, 6, z + 0.25 * x + 16 * (noise(x / 9, z / 9) - 0.5)) + 0.7 * fbm(
        x / 4, z / 4, octaves=5
    )
    return (
        7 * np.clip(shore - 1, -1, 1.2) + hills + 1900 * step(1.05, 7, shore) * valley * peaks**1.15 + knoll
    )


def sky(d: Array) -> Array:
    """Light of the sky in the directions d: gradient, glow about the sun, drifting clouds."""
    up = np.maximum(d[..., 1], 0.012)
    towards = np.clip(dot(d, SUN), 0, 1)
    clear = mix([0.62, 0.74, 0.88], [0.13, 0.29, 0.62], 1 - np.exp(-up * 3.4))
    clear = clear + (0.55 * towards[..., None] ** 6 + 1.2 * towards[..., None] ** 60) * [1.0, 0.78, 0.5]
    u, v = d[..., 0] / (up + 0.09) * 1.25 + 4.2, d[..., 2] / (up + 0.09) * 1.25 + 9.4

    def density(a: Array, b: Array) -> Array:
        bend = fbm(a * 0.7 + 31, b * 0.7, octaves=4) - 0.5
        return fbm(a + bend, b + 1.6 * bend, octaves=8, gain=0.53)

    here = density(u, v)
    ahead = density(u + 0.10 * SUN[0], v + 0.10 * SUN[2])
    cover = step(0.47, 0.66, here) * step(0.0, 0.10, up)
    lit = np.clip(0.72 + 3.2 * (here - ahead) - 1.1 * (here - 0.55), 0.25, 1.25)
    cloud = lit[..., None] * mix([0.62, 0.66, 0.74], [1.25, 1.12, 0.98], np.clip(lit - 0.1, 0, 1))
    cloud = cloud + 0.5 * towards[..., None] ** 5 * [1.0, 0.8, 0.55]
    return mix(clear, cloud, 0.93 * cover)


def air(colour: Array, distance: Array, d: Array) -> Array:
    """Aerial perspective: the surface colour seen through the haze of the given distance."""
    clear = np.exp(-distance[..., None] * np.array([5.6e-5, 8.0e-5, 12.5e-5]))
    glow = np.clip(dot(d, SUN), 0, 1)[..., None] ** 4
    return colour * clear + (1 - clear) * (np.array([0.50, 0.62, 0.79]) + glow * [0.5, 0.36, 0.16])


def first_hit(slope: Array, rows: Array) -> Array:
    """Index of the first depth sample whose greatest slope so far reaches each row; the size if none."""
    crest = np.maximum.accumulate(slope, axis=1)
    return np.stack([np.searchsorted(c, rows) for c in crest])


def landscape(width: int = 384, height: int = 256, ss: int = 3) -> Image.Image:
    """A lake between forested mountains: one height profile for each column of the picture."""
    w, h = width * ss, height * ss
    tan_x = (np.arange(w) + 0.5 - w / 2) / (0.93 * w)
    tan_y = (0.455 * h - np.arange(h) - 0.5) / (0.93 * w)
    depth = np.geomspace(1.0, 15000, 2600).astype(np.float32)
    x, z = tan_x[:, None].astype(np.float32) * depth, np.broadcast_to(depth, (w, depth.size))
    far = int(np.searchsorted(depth, 1500))  # beyond, finer octaves would only alias
    ground = np.hstack([terrain(x[:, :far], z[:, :far]), terrain(x[:, far:], z[:, far:], 8)])
    slope = np.hypot(
        np.gradient(ground, axis=1) / np.gradient(depth), np.gradient(ground, axis=0) / (depth / (0.93 * w))
    )
    stand = fbm(x / 160 + 9, z / 160, octaves=5)
    woods = (
        step(3, 9, ground)
        * step(430, 260, ground + 330 * (stand - 0.5))
        * step(0.30, 0.42, stand)
        * step(90, 130, z)
    )
    tree = scatter(x, z, 6.5, lambda d, r: (9 + 13 * r) * np.clip(1 - d / (1.9 + 1.5 * r), 0, 1) ** 0.85)
    tree = tree * woods * (0.8 + 0.4 * noise(x * 1.3, z * 1.3))
    rocks = scatter(
        x, z, 2.1, lambda d, r: 0.8 * r**5 * np.sqrt(np.clip(1 - (d / (0.9 * r**3 + 0.01)) ** 2, 0, 1))
    )
    rocks = rocks * step(150, 70, z) * (0.7 + 0.6 * fbm(x * 3, z * 3, octaves=4))
    top = ground + tree + rocks
    eye = float(terrain(np.zeros(1), np.zeros(1))[0]) + 1.75

    def shade(hit: Array, col: Array, d: Array) -> Array:
        """Colour of the terrain at depth sample `hit` of column `col`, seen along d; sky beyond the last."""
        k = np.minimum(hit, depth.size - 2)
        px, pz, g = x[col, k], depth[k], ground[col, k]
        nx = -(top[np.minimum(col + 1, w - 1), k] - top[np.maximum(col - 1, 0), k]) / (2 * pz / (0.93 * w))
        nz = -(top[col, k + 1] - top[col, k - 1]) / (depth[k + 1] - depth[k - 1])
        bump = fbm(px * 2.2, pz * 2.2, g * 2.2, octaves=3) - 0.5
        n = unit(np.stack([np.clip(nx, -4, 4) + bump, np.ones_like(nx), np.clip(nz, -4, 4) - bump], -1))
        rough = fbm(px / 14, pz / 14, g / 9, octaves=6)
        patch = fbm(px / 90, pz / 90, octaves=5)
        strata = fbm(px / 400, g / 22 + 3 * patch, octaves=5)
        rock = mix([0.10, 0.09, 0.08], [0.36, 0.32, 0.28], 1.3 * rough - 0.4 + 1.3 * (strata - 0.3))
        grass = mix([0.075, 0.095, 0.022], [0.22, 0.20, 0.06], 1.5 * patch - 0.5 + 0.7 * (rough - 0.4))
        grass = grass * (0.45 + 1.1 * fbm(px * 9, pz * 9, octaves=4))[..., None]
        colour = mix(grass, rock, step(0.55, 0.95, slope[col, k] + 0.9 * (rough - 0.5) + g / 1500))
        colour = mix(colour, [0.20, 0.18, 0.14], step(1.8, 0.6, g + 1.2 * rough))  # the gravel of the shore
        colour = mix(
            colour, [0.88, 0.90, 0.94], step(560, 820, g + 900 * (rough - 0.5) - 330 * slope[col, k])
        )
        colour = mix(colour, [0.06, 0.06, 0.035], 0.75 * woods[col, k])
        leafy = step(0.4, 2.5, tree[col, k])
        leaf = mix([0.022, 0.034, 0.012], [0.10, 0.105, 0.030], 0.45 * rough + 0.5 * patch)
        colour = mix(colour, leaf, leafy)
        colour = mix(
            colour, mix([0.12, 0.11, 0.10], [0.36, 0.34, 0.31], rough), step(0.03, 0.08, rocks[col, k])
        )
        sun = np.clip(dot(n, SUN), 0, 1) * shadow(px, top[col, k], pz)
        sun = sun * (1 - 0.35 * leafy)
        inside = 1 - 0.75 * leafy * step(11, 1, tree[col, k])
        ambient = (0.45 + 0.55 * n[..., 1]) * inside * (0.75 + 0.5 * rough)
        lit = colour * (
            sun[..., None] * [3.3, 2.75, 2.05] * inside[..., None] + ambient[..., None] * [0.45, 0.54, 0.68]
        )
        return np.where((hit < depth.size - 1)[..., None], air(lit, pz, d), sky(d))

    coarse_x, coarse_z = np.meshgrid(np.arange(-7000, 11000, 16.0), np.arange(0, 18000, 16.0), indexing="ij")
    coarse = terrain(coarse_x.astype(np.float32), coarse_z.astype(np.float32), 7)

    def shadow(px: Array, py: Array, pz: Array) -> Array:
        """Soft shadow of the mountains: how far the ray to the sun clears the coarse terrain."""
        free = np.ones(px.shape, np.float32)
        for t in np.geomspace(40, 5000, 44):
            i = np.clip((px + SUN[0] * t + 7000) / 16, 0, coarse.shape[0] - 1).astype(int)
            j = np.clip((pz + SUN[2] * t) / 16, 0, coarse.shape[1] - 1).astype(int)
            free = np.minimum(free, (py + 6 + SUN[1] * t - coarse[i, j]) / (0.03 * t + 4) + 0.5)
        return step(0, 1, free)

    col, row = np.meshgrid(np.arange(w), np.arange(h), indexing="ij")
    view = unit(np.stack(np.broadcast_arrays(tan_x[:, None], tan_y, 1.0), -1))
    hit = first_hit((np.maximum(top, -0.5) - eye) / depth, tan_y)
    surface = shade(hit, col, view)
    # Water: where the ray meets the lake before the ground, mix the mirrored scene with the deep.
    reach = eye / np.maximum(-tan_y, 1e-6)
    wet = (top[col, np.minimum(hit, depth.size - 1)] <= 0.02) & (tan_y < 0) & (hit < depth.size - 1)
    wx, wz = tan_x[:, None] * reach, np.minimum(reach, 15000)
    gust = step(0.40, 0.66, fbm(wx / 130, wz / 60, octaves=4))
    ripple = (fbm(wx / 1.6, wz / 0.8, octaves=4) - 0.5) * (0.02 + 0.10 * gust)
    mirror = np.where((depth > 160) & (top > 0.1) & (rocks < 0.02), (top + eye) / depth, -1)
    up_y = np.abs(np.abs(tan_y) + ripple)
    lane = np.clip(col + (ripple * 90 * ss).astype(int), 0, w - 1)
    crest = np.maximum.accumulate(mirror, axis=1)
    back = np.stack([np.searchsorted(crest[c], up_y[c]) for c in range(w)])
    seen = shade(back, lane, unit(np.stack(np.broadcast_arrays(tan_x[:, None], up_y, 1.0), -1)))
    fresnel = 0.04 + 0.96 * (1 - np.clip(-view[..., 1] + 0.4 * ripple, 0, 1)) ** 4.2
    shallow = step(-0.1, -3, ground[col, np.minimum(hit, depth.size - 1)])
    water = seen * fresnel[..., None] + mix([0.10, 0.10, 0.06], [0.018, 0.045, 0.05], shallow) * (
        1 - fresnel[..., None]
    )
    light = np.where(wet[..., None], air(water, reach, view), surface).transpose(1, 0, 2)
    distance = np.where(hit < depth.size, depth[np.minimum(hit, depth.size - 1)], 1e5).T
    light = meadow(light, distance, tan_x, x, depth, ground, eye, 0.93 * w, 0.455 * h)
    near = step(7.5, 3.0, distance)[..., None]
    light = light + (blur(light, ss + 1) - light) * near
    return develop(shrink(np.minimum(light, 6), ss), 0.70, 1)


def meadow(
    light: Array,
    distance: Array,
    tan_x: Array,
    x: Array,
    depth: Array,
    ground: Array,
    eye: float,
    focal: float,
    horizon: float,
) -> Array:
    """Paint blades of grass and a few flowers over the foreground, far ones first."""
    rng = np.random.default_rng(3)
    h, w, _ = light.shape
    canvas = Image.fromarray((np.clip(light / 3, 0, 1) ** 0.5 * 255).astype(np.uint8))
    before = np.asarray(canvas).copy()
    pen = ImageDraw.Draw(canvas)
    for z in np.sort(np.exp(rng.uniform(np.log(2.6), np.log(45), 30000)))[::-1]:
        c, k = rng.integers(0, w), int(np.searchsorted(depth, z))
        sx, sy = float(c), horizon - (ground[c, k] - eye) / z * focal
        clump = float(noise(np.array(x[c, k] * 1.7), np.array(z * 1.7)))
        if (
            sy >= h * 1.25
            or (sy < h and distance[int(max(sy, 0)), c] < z * 0.93)
            or ground[c, k] < 1.2
            or clump < 0.5 * rng.random()
        ):
            continue
        size = (0.08 + 0.34 * clump * rng.random()) / z * focal
        lean, thick = rng.normal(0.16, 0.3) * size, max(0.6, 0.0042 / z * focal)
        tone = rng.uniform(0.55, 1.25) * (0.6 + 0.7 * clump)
        base = np.array([0.055, 0.07, 0.015]) * tone
        tip = np.array([0.46, 0.41, 0.18] if rng.random() < 0.4 else [0.22, 0.28, 0.07]) * tone
        for i in range(3):
            a, b = i / 3, (i + 1) / 3
            quad = [
                (sx + lean * a * a - thick * (1 - a), sy - size * a),
                (sx + lean * a * a + thick * (1 - a), sy - size * a),
                (sx + lean * b * b + thick * (1 - b), sy - size * b),
                (sx + lean * b * b - thick * (1 - b), sy - size * b),
            ]
            shade = np.clip((base + (tip - base) * (a + 0.3)) / 3, 0, 1) ** 0.5 * 255
            pen.polygon(quad, fill=tuple(int(s) for s in shade))
        if rng.random() < 0.012:
            r, petal = (
                max(1.0, 0.016 / z * focal),
                [(250, 240, 235), (230, 190, 40), (150, 110, 220)][rng.integers(3)],
            )
            pen.ellipse(
                (sx + lean - r, sy - size - 0.7 * r, sx + lean + r, sy - size + 0.7 * r),
                fill=tuple(int(p * (0.58 + 0.1 * rng.random())) for p in petal),
            )
    after = np.asarray(canvas)
    return np.where((after != before).any(-1, keepdims=True), (after / 255.0) ** 2 * 3, light)
