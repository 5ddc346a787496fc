"""What would other codecs make of a picture with the very same diffusion prior? DiffC, DDCM, and PSC as its repository runs it.

The method is compared then, and not the weights. All three are simulated: the picture is what their decoder would show, the
bits are what the method itself counts (DiffC: the ideal ones), without any header. Written anew from the papers; here x_t is
always x + sigma n, which is the papers' sqrt(a_t) x + sqrt(1 - a_t) n divided by sqrt(a_t).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.points import Job, Point, label
from dcodec.domain import LUMA
from dcodec.pictures import from_array, to_image
from dcodec.prior import SIGMAS, Prior, catalog
from dcodec.prior.counted import Counted

DDCM_MOST_STEPS, DDCM_INDEX_BITS, DDCM_COEFFICIENT_BITS = 1000, 10, 3  # T - 1, log2 K and C; T and K the repository's defaults
PSC_ROWS, PSC_SAMPLES, PSC_STEPS, PSC_INNER_STEPS = 12, 16, 50, 10


@dataclass(frozen=True)
class Reached:
    """A walk has spent a budget. bits: what was spent; ends: by estimate, what shows the picture (1, C, h, w)."""

    bits: float
    ends: dict[str, Callable[[], Tensor]]


Method = Callable[[Prior, Tensor, Sequence[int]], Iterator[Reached]]  # prior, x (1, C, h, w), rising budgets in bits


@dataclass(frozen=True)
class Peer:
    """A method at given rates (bits a pixel), behind the interface of all codecs.

    embedded: one walk passes all rates; otherwise there is one a rate. Encoder and decoder walk alike, so encode_s is the
    decoder's walk, decode_s the walk and the estimate.
    """

    name: str
    method: Method
    estimates: tuple[str, ...]
    embedded: bool
    rates: tuple[float, ...]
    weights: str = catalog.DEFAULT
    version = "as published"

    @cached_property
    def prior(self) -> str:
        """See points.label."""
        return label(catalog.find(self.weights))

    @property
    def jobs(self) -> list[Job]:
        """Every rate, every estimate."""
        return [(f"rate={rate}", estimate) for rate in sorted(self.rates) for estimate in self.estimates]

    def points(self, picture: Image.Image, jobs: Sequence[Job]) -> Iterator[Point]:
        """See points.Codec."""
        pixels = picture.width * picture.height
        settings = sorted({setting for setting, _ in jobs}, key=lambda s: float(s.removeprefix("rate=")))
        budgets = [8 * int(float(s.removeprefix("rate=")) * pixels / 8 + 1e-9) for s in settings]
        luma = LUMA if picture.mode == "L" else 1.0
        x = torch.from_numpy(from_array(np.asarray(picture)))[None] * luma
        catalog.load(catalog.find(self.weights), "cpu")  # now, so that no time below includes it
        for part in [slice(None)] if self.embedded else [slice(i, i + 1) for i in range(len(budgets))]:
            counted = Counted(catalog.load(catalog.find(self.weights), "cpu"), picture.height, picture.width)
            walk_s, walk_nfe, begin, mark = 0.0, Fraction(0), time.process_time(), Fraction(0)
            for setting, reached in zip(settings[part], self.method(counted, x, budgets[part]), strict=True):
                walk_s += time.process_time() - begin
                walk_nfe += counted.evaluations - mark
                for estimate, end in reached.ends.items():
                    if (setting, estimate) in jobs:
                        begin, mark = time.process_time(), counted.evaluations
                        shown = np.asarray(to_image((end()[0] / luma).numpy().astype(np.float32)))
                        decode_s, nfe = walk_s + time.process_time() - begin, round(walk_nfe + counted.evaluations - mark)
                        yield Point(setting, estimate, math.ceil(reached.bits / 8), shown, walk_s, decode_s, nfe)
                begin, mark = time.process_time(), counted.evaluations


def schedule(steps: int) -> NDArray[np.float64]:
    """(steps,) falling noise levels: Stable Diffusion's 1,000 (Rombach et al. 2022, the repositories' `scaled_linear`
    betas from 0.00085 to 0.012), evenly thinned out; 14.6 down to 0.029."""
    kept = np.cumprod(1.0 - np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2)
    sigmas = np.sqrt((1.0 - kept) / kept)
    return sigmas[np.rint(np.linspace(999, 0, steps)).astype(int)]


def denoise(prior: Prior, z: Tensor, sigma: float) -> Tensor:
    """E[x | z = x + sigma n], by the prior's nearest level, at most 4.4 % off."""
    return prior(z, SIGMAS[min(max(round(8 * math.log2(sigma)) + 48, 0), len(SIGMAS) - 1)])


def flow(prior: Prior, z: Tensor, first: float, last: float, n: int) -> Tensor:
    """Solve the probability-flow ODE from z at `first` in `n` evaluations, evenly on log sigma (DPM-Solver++ 2M: Lu et al.
    2022, arXiv 2211.01095, algorithm 2); the estimate of x at `last`."""
    before: Tensor | None = None
    ratio = (last / first) ** (1 / max(n - 1, 1))
    for i in range(n):
        x0 = denoise(prior, z, first * ratio**i)
        d = x0 if before is None else x0 + (x0 - before) / 2
        z, before = d + (z - d) * ratio, x0
    return x0


def _noise(shape: torch.Size, *key: int) -> Tensor:
    """Normals that both sides can draw."""
    return torch.from_numpy(np.random.default_rng(key).standard_normal(tuple(shape), np.float32))


def diffc(prior: Prior, x: Tensor, budgets: Sequence[int], steps: int) -> Iterator[Reached]:
    """DiffC (Theis et al. 2022, arXiv 2206.08889, section 3.1) at its ideal rate, which no channel simulation reaches.

    From z_t to z_s the encoder sends a draw of q(z_s | z_t, x); under p(z_s | z_t) with D(z_t) for x it costs their KL
    divergence, 1/2 (1 / s^2 - 1 / t^2) |x - D(z_t)|^2 nats. A budget ends within a step: s is where it is used up.
    Ends: `flow`, the probability-flow ODE (their DiffC-F), `denoise`, D(z).
    """
    sigmas = schedule(steps).tolist()
    start, n = sigmas[0], 0
    z = x + start * _noise(x.shape, n)
    spent = float(x.double().square().sum()) / (2 * start**2)  # z_T against N(0, sigma_T^2)
    waiting = [bits * math.log(2) for bits in budgets]
    for i, t in enumerate(sigmas[:-1]):
        x0 = denoise(prior, z, t)
        error = float((x - x0).double().square().sum())
        while True:
            cost = step_cost(t, sigmas[i + 1], error)
            if not waiting or spent + cost < waiting[0]:
                break
            stop = (t**-2 + 2 * max(waiting[0] - spent, 0.0) / error) ** -0.5
            n += 1
            at = _between(x, z, t, stop, n)
            yield Reached(
                waiting.pop(0) / math.log(2),
                {
                    "flow": partial(flow, prior, at, stop, sigmas[-1], steps - 1 - i),
                    "denoise": partial(denoise, prior, at, stop),
                },
            )
        if not waiting:
            return
        n += 1
        z, spent = _between(x, z, t, sigmas[i + 1], n), spent + cost
    raise ValueError(f"DiffC has sent all it can with {spent / math.log(2):.0f} bits")


def step_cost(t: float, s: float, error: float) -> float:
    """Nats of a step from noise t to s: KL divergence of q(z_s | z_t, x) from p(z_s | z_t); error: |x - D(z_t)|^2."""
    return 0.5 * (s**-2 - t**-2) * error


def _between(x: Tensor, z: Tensor, t: float, s: float, key: int) -> Tensor:
    """A draw of z_s given z at t and x: q of the forward process for the picture x, p of the reverse one for x = D(z)."""
    ratio = (s / t) ** 2
    return x + ratio * (z - x) + s * math.sqrt(max(1 - ratio, 0.0)) * _noise(z.shape, key)


def ddcm(prior: Prior, x: Tensor, budgets: Sequence[int]) -> Iterator[Reached]:
    """DDCM (Ohayon et al. 2025, arXiv 2502.01189, section 3 and appendix on matching pursuit): DDPM whose noise is chosen.

    Each of T - 1 steps sends M indices into a codebook of K shared noises, those that point most to x - D(z), and M - 1
    coefficients of C bits: (T - 1) (M log2 K + (M - 1) C) bits. `_codebook` picks M and T for a budget.
    """
    for bits in budgets:
        atoms, steps = _codebook(bits)
        sigmas = schedule(steps + 1).tolist()
        z = sigmas[0] * _noise(x.shape, 0)
        for i, (t, s) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            x0 = denoise(prior, z, t)
            book = _noise(torch.Size((1 << DDCM_INDEX_BITS, x.numel())), 1, i)
            chosen = pursue(book, (x - x0).flatten(), atoms).view(x.shape)
            ratio = (s / t) ** 2
            z = x0 + ratio * (z - x0) + s * math.sqrt(1 - ratio) * chosen
        yield Reached(steps * _step_bits(atoms), {"sample": partial(denoise, prior, z, sigmas[-1])})


def _codebook(bits: int) -> tuple[int, int]:
    """M and T - 1 for a budget: a second atom, and more, only once T would pass its most (NOTES.md: what else was tried)."""
    atoms = 1
    while bits // _step_bits(atoms) > DDCM_MOST_STEPS:
        atoms += 1
    return atoms, bits // _step_bits(atoms)


def _step_bits(atoms: int) -> int:
    return atoms * DDCM_INDEX_BITS + (atoms - 1) * DDCM_COEFFICIENT_BITS


def pursue(book: Tensor, target: Tensor, atoms: int) -> Tensor:
    """The noise (d,) of a book (K, d) that points most to a target (d,), then mixed with `atoms` - 1 others, one by one,
    sqrt(c) and sqrt(1 - c) of each and brought back to unit variance, where that points to it still more."""
    towards = book @ target
    best = book[int(towards.argmax())]
    length = math.sqrt(len(target))
    coefficients = torch.linspace(0, 1, 1 << DDCM_COEFFICIENT_BITS)[1:, None]  # 0 says that none is better
    for _ in range(atoms - 1):
        a, b = coefficients.sqrt(), (1 - coefficients).sqrt()  # (c, 1)
        squares = (a * best.norm()) ** 2 + (b * book.norm(dim=1)) ** 2 + 2 * a * b * (book @ best)
        scores = (a * (best @ target) + b * towards) / squares.sqrt() * length  # (c, K)
        c, k = divmod(int(scores.argmax()), len(book))
        if float(scores[c, k]) <= float(best @ target):
            break
        best = a[c] * best + b[c] * book[k]
        best = best / best.norm() * length
    return best


def psc(prior: Prior, x: Tensor, budgets: Sequence[int]) -> Iterator[Reached]:
    """PSC as github.com/noamelata/PSC runs it (commit ce77729; paper: arXiv 2407.09896, algorithm 1), a byte a row.

    A step draws 16 samples of P(x|y) with 50 evaluations each, takes their 12 leading principal directions as rows and sends
    the picture's projections as float8 (e4m3). Ends: `sample`, its restoration by nested diffusion (50 x 10 evaluations),
    `mean`, of 16 more samples. A budget may end within a step. Its last sampling step adds no noise here.
    """
    rows, y = torch.zeros(0, x.numel()), torch.zeros(0, 1)
    for bits in budgets:
        while len(rows) < bits // 8:
            samples = _posterior(prior, x.shape, rows, y, len(rows)).flatten(1)
            directions = torch.linalg.svd(samples - samples.mean(0), full_matrices=False)[2][:PSC_ROWS]
            # of a step that is to end at this budget the rest is sent for the next one, with directions found anew
            directions = directions[: bits // 8 - len(rows)]
            rows = torch.cat([rows, directions])
            y = torch.cat([y, directions @ x.reshape(-1, 1)]).to(torch.float8_e4m3fn).float()
        mean = partial(_mean, prior, x.shape, rows, y)
        yield Reached(8.0 * len(rows), {"sample": partial(_restore, prior, x.shape, rows, y), "mean": mean})


def _posterior(prior: Prior, shape: torch.Size, rows: Tensor, y: Tensor, key: int) -> Tensor:
    """(16, C, h, w) samples: D(z) put right on the rows, then noised anew (DDRM's update with eta = 1, without its weights)."""
    many, inverse = torch.Size((PSC_SAMPLES, *shape[1:])), torch.linalg.pinv(rows)
    sigmas = schedule(PSC_STEPS).tolist()
    z = (inverse @ y).view(shape) + sigmas[0] * _noise(many, 2, key)
    for i, sigma in enumerate(sigmas):
        x0 = _consistent(denoise(prior, z, sigma), rows, inverse, y)
        if i + 1 < len(sigmas):
            z = x0 + sigmas[i + 1] * _noise(many, 3, key, i)
    return x0


def _consistent(x0: Tensor, rows: Tensor, inverse: Tensor, y: Tensor) -> Tensor:
    flat = x0.flatten(1)
    return (flat + (y - rows @ flat.T).T @ inverse.T).view(x0.shape)


def _restore(prior: Prior, shape: torch.Size, rows: Tensor, y: Tensor) -> Tensor:
    """One sample by nested diffusion (Elata et al. 2024, arXiv 2305.19066): an ODE of 10 evaluations where D(z) stood."""
    inverse, sigmas = torch.linalg.pinv(rows), schedule(PSC_STEPS).tolist()
    z = (inverse @ y).view(shape) + sigmas[0] * _noise(shape, 4)
    for i, sigma in enumerate(sigmas):
        x0 = _consistent(flow(prior, z, sigma, sigmas[-1], PSC_INNER_STEPS), rows, inverse, y)
        if i + 1 < len(sigmas):
            z = x0 + sigmas[i + 1] * _noise(shape, 5, i)
    return x0


def _mean(prior: Prior, shape: torch.Size, rows: Tensor, y: Tensor) -> Tensor:
    return _posterior(prior, shape, rows, y, len(rows)).mean(0, keepdim=True)


_METHODS: dict[str, tuple[Method, tuple[str, ...], bool]] = {
    "psc-repository": (psc, ("sample", "mean"), True),
    "ddcm": (ddcm, ("sample",), False),
    "diffc-20": (partial(diffc, steps=20), ("flow", "denoise"), True),
    "diffc-100": (partial(diffc, steps=100), ("flow", "denoise"), True),
}
NAMES = tuple(_METHODS)


def find(name: str, rates: Sequence[float], weights: str) -> Peer:
    """The peer of a name of NAMES, at rates in bits a pixel, with a prior's name or file."""
    method, estimates, embedded = _METHODS[name]
    return Peer(name, method, estimates, embedded, tuple(rates), weights)
