"""A house front: bricks, two windows and ivy as a relief map, seen in perspective under low sun."""

import numpy as np
from darkroom import Array, blur, develop, dot, fbm, mix, noise, shrink, step, unit
from PIL import Image

SUN = unit([-0.62, 0.66, 0.52])
TEXEL, WIDE, TALL = 0.0035, 5.6, 4.0  # metres
WINDOWS = ((1.18, 2.05, 0.98, 1.62), (3.72, 2.05, 0.98, 1.62))  # centre and size
GLASS, PAINT, STONE, LEAF, WALL = 1, 2, 3, 4, 0


def box(u: Array, v: Array, cu: float, cv: float, wide: float, tall: float) -> Array:
    """Signed distance to a rectangle of the wall."""
    return np.maximum(np.abs(u - cu) - wide / 2, np.abs(v - cv) - tall / 2)


def bricks(u: Array, v: Array) -> tuple:
    """Relief and colour of a brick wall in stretcher and header courses."""
    u, v = (
        u + 0.006 * (fbm(u * 6, v * 6, octaves=3) - 0.5),
        v + 0.008 * (fbm(u * 4 + 9, v * 4, octaves=3) - 0.5),
    )
    course = np.floor(v / 0.075)
    length = np.where(course % 2 == 0, 0.225, 0.1125)
    along = u / length + 0.25 * (course % 2) + 0.13 * noise(course * 0.71, course * 0.37)
    brick = np.floor(along)
    edge = np.minimum(
        (0.5 - np.abs(along - brick - 0.5)) * length, (0.5 - np.abs(v / 0.075 - course - 0.5)) * 0.075
    )
    edge = edge + 0.004 * (fbm(u * 60, v * 60, octaves=3) - 0.5)
    body = step(0.0035, 0.0085, edge)
    grain = fbm(u * 45, v * 45, octaves=5, gain=0.6)
    one, two = noise(brick * 7.31 + 0.5, course * 3.77 + 0.5), noise(brick * 5.13 + 40.5, course * 9.17 + 0.5)
    clay = mix(
        mix([0.27, 0.105, 0.065], [0.35, 0.19, 0.125], one), [0.16, 0.075, 0.06], step(0.62, 0.95, two)
    )
    clay = clay * (0.62 + 0.76 * grain)[..., None]
    mortar = mix([0.36, 0.33, 0.28], [0.22, 0.20, 0.17], fbm(u * 9, v * 9, octaves=5))
    colour = mix(mortar, clay, body)
    damp = fbm(u * 1.3 + 3, v * 0.7, octaves=6) + 0.25 * step(1.1, 0.0, v)
    colour = colour * (1.12 - 0.55 * step(0.45, 0.8, damp))[..., None]
    colour = mix(colour, [0.42, 0.40, 0.37], 0.30 * step(0.55, 0.75, fbm(u * 2.3 + 20, v * 2.3, octaves=6)))
    return 0.007 * body * (0.75 + 0.5 * one) + 0.006 * (grain - 0.5), colour


def wall() -> tuple:
    """Maps of the whole front: height above the wall in metres, colour, material."""
    v, u = np.mgrid[0 : round(TALL / TEXEL), 0 : round(WIDE / TEXEL)].astype(np.float32) * np.float32(TEXEL)
    height, colour = bricks(u, v)
    kind = np.full(u.shape, WALL)
    worn = fbm(u * 7, v * 7, octaves=6, gain=0.6)
    masonry = mix([0.27, 0.25, 0.21], [0.50, 0.46, 0.38], 1.7 * worn - 0.35)
    plinth = v < 0.62 + 0.004 * worn
    joint = np.minimum(np.abs((u / 0.83 + 0.3) % 1 - 0.5) * 0.83, np.abs(v - 0.31))
    stones = [(plinth, 0.045 + 0.02 * (worn - 0.5) - 0.02 * step(0.010, 0.003, joint))]
    for cu, cv, wide, tall in WINDOWS:
        top, bottom = cv + tall / 2 + 0.11, cv - tall / 2 - 0.045
        stones.append((box(u, v, cu, top, wide + 0.34, 0.22) < 0.004 * (worn - 0.5), 0.022 + 0.012 * worn))
        stones.append((box(u, v, cu, bottom, wide + 0.22, 0.09) < 0.003 * (worn - 0.5), 0.075 + 0.010 * worn))
    for where, level in stones:
        height, kind = np.where(where, level, height), np.where(where, STONE, kind)
    streak = fbm(u * 13, v * 0.8, octaves=5)
    colour = np.where((kind == STONE)[..., None], masonry * (0.6 + 0.8 * streak)[..., None], colour)
    paint = mix([0.56, 0.56, 0.50], [0.36, 0.36, 0.31], 1.6 * fbm(u * 10, v * 3, octaves=6) - 0.4)
    paint = mix(paint, [0.17, 0.12, 0.08], step(0.63, 0.68, fbm(u * 16 + 7, v * 9, octaves=6)))
    for cu, cv, wide, tall in WINDOWS:
        drip = (
            step(0.6, 0.0, cv - tall / 2 - 0.09 - v)
            * (v < cv - tall / 2 - 0.08)
            * step(0.12, 0, np.abs(u - cu) - wide / 2)
        )
        colour = colour * (1 - 0.45 * drip * step(0.35, 0.65, fbm(u * 9 + 5, v * 0.9, octaves=4)))[..., None]
        opening = box(u, v, cu, cv, wide, tall)
        sash = np.minimum(np.abs(opening + 0.035), np.abs(v - cv - 0.02)) - 0.035
        bars = (
            np.minimum(np.abs(np.abs(u - cu) - wide * 0.155), np.abs(np.abs(v - cv) - tall * 0.245)) - 0.011
        )
        inside, frame = opening < 0, np.minimum(sash, bars) < 0
        level = np.where(sash < 0, -0.085, np.where(bars < 0, -0.10, -0.118))
        level = level + np.where(frame, 0.010 * step(0, -0.012, np.minimum(sash, bars)), 0)
        height = np.where(inside, level, height)
        kind = np.where(inside, np.where(frame, PAINT, GLASS), kind)
        colour = np.where((inside & frame)[..., None], paint, colour)
    return ivy(height.astype(np.float32), colour, kind)


def ivy(height: Array, colour: Array, kind: Array) -> tuple:
    """Stamp leaves over the maps, thickest at the right and along the foot of the wall."""
    rng = np.random.default_rng(21)
    rows, cols = height.shape
    for _ in range(15000):
        u, v = rng.random() * WIDE, rng.random() ** 1.1 * TALL
        reach = 4.75 - 0.9 * float(noise(np.array(v * 0.9), np.array(3.3))) + 0.25 * np.sin(v * 5)
        dense = step(reach - 0.45, reach + 0.35, np.array(u)) + step(0.55, 0.05, np.array(v)) * float(
            noise(np.array(u * 1.4), np.array(1.7))
        )
        dense = dense * (0.35 + float(fbm(np.array(u * 2.6), np.array(v * 2.6), octaves=4)))
        if rng.random() > dense:
            continue
        size = rng.uniform(0.026, 0.058)
        k = int(size * 1.5 / TEXEL)
        r, c = int(v / TEXEL), int(u / TEXEL)
        if r < k or c < k or r + k >= rows or c + k >= cols:
            continue
        dv, du = np.mgrid[-k : k + 1, -k : k + 1] * TEXEL / size
        turn = rng.normal(-np.pi / 2, 0.7)
        a, b = du * np.cos(turn) + dv * np.sin(turn), dv * np.cos(turn) - du * np.sin(turn)
        angle, radius = np.arctan2(b, a), np.hypot(a, b)
        outline = 0.62 + 0.24 * np.cos(3 * angle * 0.83) + 0.14 * np.cos(5 * angle)
        tilt, lift = rng.normal(0, 0.4, 2), 0.02 + 0.085 * rng.random() * min(1.0, float(dense))
        level = lift + size * (tilt[0] * a + tilt[1] * b - 0.22 * np.abs(b) - 0.15 * radius**2)
        window = np.s_[r - k : r + k + 1, c - k : c + k + 1]
        over = (radius < outline) & (level > height[window])
        vein = np.exp(-((np.abs(b) / 0.05) ** 2)) + 0.6 * np.exp(
            -(((np.abs(b) - 0.55 * (a + 0.2)) / 0.05) ** 2)
        )
        green = mix([0.035, 0.075, 0.016], [0.11, 0.15, 0.03], np.array(rng.random()))
        if rng.random() < 0.07:
            green = mix([0.22, 0.13, 0.03], [0.24, 0.05, 0.02], np.array(rng.random()))
        leaf = mix(green * rng.uniform(0.7, 1.2), [0.19, 0.22, 0.10], 0.35 * np.clip(vein, 0, 1))
        height[window] = np.where(over, level, height[window])
        colour[window] = np.where(over[..., None], leaf, colour[window])
        kind[window] = np.where(over, LEAF, kind[window])
    return height, colour, kind


def street(d: Array) -> Array:
    """What the panes mirror: bright sky above the dark shapes of trees and houses."""
    a, b = np.arctan2(d[..., 0], d[..., 2]) * 4, d[..., 1] * 4
    cloud = step(0.40, 0.66, fbm(a * 0.8, b * 1.5, octaves=6))
    sky = mix([0.30, 0.46, 0.80], [1.25, 1.20, 1.12], cloud)
    crown = (
        0.55
        + 1.1 * (fbm(a * 1.3 + 4, a * 0 + 2, octaves=3) - 0.35)
        + 0.7 * (fbm(a * 5, b * 5, octaves=5) - 0.5)
    )
    tree = mix([0.015, 0.022, 0.012], [0.10, 0.12, 0.05], fbm(a * 9, b * 9, octaves=5))
    return mix(sky, tree, step(0.07, -0.07, b - crown))


def facade(width: int = 320, height: int = 240, ss: int = 3) -> Image.Image:
    """March the rays of a slanted view into the relief of the wall and light what they find."""
    relief, tint, kind = wall()
    rows, cols = relief.shape
    w, h = width * ss, height * ss
    eye = np.float32([1.2, 1.65, 4.9])
    ahead = unit(np.float32([2.72, 1.83, 0]) - eye)
    right = unit(np.cross(ahead, [0, 1, 0]))
    above = np.cross(right, ahead)
    y, x = np.mgrid[0:h, 0:w]
    u, v = ((x + 0.5) / w - 0.5) * 0.80, (0.5 - (y + 0.5) / h) * 0.80 * h / w
    bend = 1 + 0.04 * (u * u + v * v)  # a little barrel distortion
    d = unit(ahead + (u * bend)[..., None] * right + (v * bend)[..., None] * above)

    def at(p: Array) -> tuple:
        """Texel under a point."""
        r = np.clip(p[..., 1] / TEXEL, 0, rows - 1).astype(np.int32)
        return r, np.clip(p[..., 0] / TEXEL, 0, cols - 1).astype(np.int32)

    low, high = -0.13, 0.14
    p, stride = eye + d * ((high - eye[2]) / d[..., 2])[..., None], d / -d[..., 2:] * ((high - low) / 110)
    for _ in range(110):
        p = np.where((p[..., 2] > relief[at(p)])[..., None], p + stride, p)
    free = np.ones(p.shape[:2], np.float32)
    for k in range(1, 72):
        t = 0.004 + 0.0042 * k
        q = p + SUN * t
        free = np.minimum(free, (q[..., 2] - relief[at(q)]) / (0.012 * t + 0.0008) + 0.5)
    leaves = fbm(p[..., 0] * 2.1 + 1.1 * p[..., 2] + 5, p[..., 1] * 2.1 + 8, octaves=5, gain=0.55)
    dapple = step(0.43, 0.56, leaves + 0.10 * (p[..., 0] - 2.2) / 2 + 0.05 * (p[..., 1] - 1.5))
    sun = step(0, 1, free) * (0.06 + 0.94 * dapple)
    soft = blur(relief, 1)
    slope_v, slope_u = (np.clip(g / TEXEL, -1.6, 1.6) for g in np.gradient(soft))
    cavity = np.clip(1 + 9 * (relief - blur(relief, 14)), 0.25, 1.15) * np.clip(
        1 + 14 * (relief - blur(relief, 4)), 0.4, 1.1
    )
    place = at(p)
    colour, what = tint[place], kind[place]
    n = unit(np.stack([-slope_u[place], -slope_v[place], np.ones_like(free)], -1))
    ambient = cavity[place] * (0.66 + 0.34 * n[..., 1]) * (0.75 + 0.25 * n[..., 2])
    light = colour * (
        (np.clip(dot(n, SUN), 0, 1) * sun)[..., None] * [3.5, 3.0, 2.45]
        + ambient[..., None] * [0.62, 0.70, 0.84]
    )
    half = unit(SUN - d)
    gloss = (
        np.clip(dot(n, half), 0, 1) ** 40 * sun * np.select([what == LEAF, what == PAINT], [0.45, 0.25], 0.0)
    )
    light = light + gloss[..., None] * [1.0, 0.95, 0.85]
    # Panes: each a little out of true, mirroring the street over a dim room with curtains.
    pane = np.floor(p[..., 0] * 3.3) * 1.7 + np.floor(p[..., 1] * 2.6) * 2.9
    wave = [
        0.05 * (noise(p[..., 0] * 4 + a, p[..., 1] * 3) - 0.5) + 0.05 * (noise(pane + a, pane * 0.3) - 0.5)
        for a in (0, 50)
    ]
    g = unit(np.stack([wave[0], wave[1], np.ones_like(free)], -1))
    mirror = street(d - 2 * dot(d, g)[..., None] * g)
    fold = fbm(p[..., 0] * 16 + 0.8 * np.sin(p[..., 1] * 2), p[..., 1] * 0.4, octaves=4)
    side = np.min([np.abs(np.abs(p[..., 0] - c[0]) - 0.42) for c in WINDOWS], axis=0)
    cloth = step(0.25, 0.17, side + 0.06 * (p[..., 1] - 2)) * (0.25 + 0.9 * fold)
    room = mix([0.012, 0.011, 0.010], [0.30, 0.27, 0.22], cloth) * (0.45 + 0.9 * sun)[..., None]
    fresnel = 0.10 + 0.90 * (1 - np.clip(-d[..., 2], 0, 1)) ** 4
    dust = 0.05 * fbm(p[..., 0] * 8, p[..., 1] * 8, octaves=5)
    glass = (
        mirror * (2.2 * fresnel)[..., None]
        + room * cavity[place][..., None]
        + (dust * (0.3 + sun))[..., None]
    )
    light = np.where((what == GLASS)[..., None], glass, light)
    return develop(shrink(np.minimum(light, 5), ss), 0.85, 6)
