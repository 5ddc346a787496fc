"""Do rows that turned out large make the next ones of their tile, and of those around it, expected larger, and only they?"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from dcodec import chains, stream
from dcodec.container import Header
from dcodec.posterior import level
from dcodec.prior import SIGMAS
from dcodec.prior.gaussian import GaussianPrior
from dcodec.state import Setting, State, start
from dcodec.surprise import ABOVE, BESIDE, COMMON, FORGET, LIMIT, TRUST, Account, factors
from dcodec.transform import Layout, analyze


@dataclass(frozen=True)
class Doubted(GaussianPrior):
    """A prior that may be wrong, as networks are."""

    @property
    def doubt(self) -> float:
        """As networks have."""
        return 2.0


def drawn(layout: Layout, seed: int) -> list[Account]:
    rng = np.random.default_rng(seed)
    sizes = [int(np.prod(layout.grid(i))) for i in range(len(layout))]
    return [Account(rng.exponential(3, n) * (rng.random(n) < 0.5), rng.exponential(1, n)) for n in sizes]


def weight(layout: Layout, index: int, tile: tuple[int, int], other: int, there: tuple[int, int]) -> float:
    """By the definition: how much tile `there` of band `other` counts for `tile` of band `index`."""
    (y, x), (v, u) = tile, there
    if other == index:
        return {0: 1.0, 1: BESIDE}.get(max(abs(y - v), abs(x - u)), 0.0)
    rows, cols = layout.grid(other)
    above = (min(y // 2, rows - 1), min(x // 2, cols - 1)) == there
    return ABOVE if other == index - 1 and index > 1 and above else 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 3), st.integers(0, 99))
def test_factors_are_those_of_the_definition(h: int, w: int, levels: int, seed: int) -> None:
    layout = Layout(3, h, w, min(levels, min(h, w).bit_length() - 1), 4)
    accounts = drawn(layout, seed)
    for index, factor in enumerate(factors(accounts, layout)):
        found, foreseen = np.zeros(len(factor)), np.zeros(len(factor))
        for t in range(len(factor)):
            for other in range(max(index - 1, 0), index + 1):
                for there in range(len(accounts[other].found)):
                    one, two = (divmod(k, layout.grid(i)[1]) for i, k in ((index, t), (other, there)))
                    weighs = weight(layout, index, one, other, two)
                    found[t] += weighs * accounts[other].found[there]
                    foreseen[t] += weighs * accounts[other].foreseen[there]
        usual = (COMMON + found.sum()) / (COMMON + foreseen.sum())
        expected = np.clip((TRUST + found) / (TRUST + usual * foreseen), 1 / LIMIT, LIMIT)
        np.testing.assert_allclose(factor, expected)


def half_smooth(prior: GaussianPrior) -> NDArray[np.float32]:
    """One region, so one gain: left as the prior draws it, but a tenth of that, right as it is."""
    x = prior.draw(3, 96, 96, 1)
    x[:, :, :48] *= 0.1
    return x


def walked(prior: GaussianPrior, refreshes: int) -> tuple[Setting, stream.Written]:
    x = half_smooth(prior)
    header = Header(96, 96, False, "fast", 0, prior.digest[:2], 0)
    setting = Setting.of(header, prior)
    enough = lambda state, encoder: state.refresh >= refreshes  # noqa: E731
    return setting, stream.encode(torch.from_numpy(x)[None], header, setting, enough, keep=refreshes)


@cache
def walked_doubting() -> tuple[Setting, stream.Written]:
    """Fifteen refreshes with a prior that may be wrong."""
    return walked(Doubted(), 15)


def sides(setting: Setting, state: State) -> tuple[float, float]:
    """Means of the finest band's factors, left and right, away from the middle."""
    index = len(setting.layout) - 1
    factor = factors(state.accounts, setting.layout)[index].reshape(setting.layout.grid(index))
    third = factor.shape[1] // 3
    return float(factor[:, :third].mean()), float(factor[:, -third:].mean())


def test_texture_is_found_within_a_region() -> None:
    setting, own = walked_doubting()
    assert max(setting.layout.regions(len(setting.layout) - 1)) == 1
    smooth, textured = sides(setting, own.steps[-1].after)
    assert smooth < 0.5 * textured


def test_a_right_prior_is_not_surprised() -> None:
    setting, own = walked(GaussianPrior(), 12)
    assert sides(setting, own.steps[-1].after) == (1.0, 1.0)


def test_decoders_keep_the_same_accounts() -> None:
    """Whole streams, and prefixes that end within a refresh."""
    setting, own = walked_doubting()
    header, end = own.header, own.header.size
    whole = own.encoder.bits // 8 - 8  # all of it settled
    sizes = [whole // 2, whole - 20, whole]
    assert own.encoder.filled(whole)
    data = header.pack() + own.encoder.cut(sizes[-1])
    for size, state in stream.states(data, header, setting, [end + size for size in sizes]):
        theirs = own.settled(setting, size - end).accounts
        assert any(account.found.any() for account in theirs)
        for a, b in zip(state.accounts, theirs, strict=True):
            np.testing.assert_array_equal(a.found, b.found)
            np.testing.assert_array_equal(a.foreseen, b.foreseen)


def test_accounts_hold_what_symbols_told() -> None:
    """Squares in steps of new rows and, without factors and forgetting, the variances that they were coded with."""
    setting, own = walked_doubting()
    step = own.steps[8]
    d, layout = step.directions, setting.layout
    before, after = step.before.accounts, step.after.accounts
    for index, (old, account) in enumerate(zip(before, after, strict=True)):
        mine = np.flatnonzero((d.band == index) & (d.width == 0.0))
        foreseen = old.foreseen * FORGET
        if index < len(d.bands):
            candidates, at = d.bands[index], d.tile[mine]
            np.add.at(foreseen, candidates.tiles[at], d.variance[mine] / d.step**2 / candidates.factor[at])
        np.testing.assert_allclose(account.foreseen, foreseen)
        assert (account.found >= old.found * FORGET).all()
    x = torch.from_numpy(half_smooth(Doubted()))[None]
    bands = analyze(x, layout)[: len(d.bands)]
    true = ((d.project(bands) - d.loc) / d.step) ** 2
    told = sum(float((a.found - FORGET * b.found).sum()) for a, b in zip(after, before, strict=True))
    assert told == pytest.approx(float(true[d.width == 0.0].sum()), rel=0.15)


@dataclass(frozen=True)
class Shrinking(GaussianPrior):
    """x0 ~ N(0, 1) on every number: D keeps a share of it, 1 / (1 + s^2)."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x]."""
        return x * float(np.float32(1.0 / (1.0 + sigma * sigma)))


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_over_relaxed_rounds_settle_where_theory_says(step: float) -> None:
    """At w l / (2 - w + w l) of the posterior's variance s^2 l / (1 - l), here 1."""
    prior = Shrinking()
    header = Header(16, 16, False, "fast", 0, prior.digest[:2], 0)
    setting = Setting.of(header, prior)
    p = replace(setting.profile, rounds=60, samples=64)
    setting = replace(setting, profile=p)
    state = replace(start(setting), step=step, samples=torch.zeros(64, 3, 16, 16), scale=0)
    *rounds, last = chains.draw_samples(setting, state, 0)
    sigma = SIGMAS[level(p.noise * step)]
    share, w = 1 / (1 + sigma**2), p.relaxation
    expected = w * share / (2 - w + w * share)
    assert float(torch.stack(rounds[30:]).var(1).mean()) == pytest.approx(expected, rel=0.03)
    assert float(last.var(0).mean()) == pytest.approx(share**2 * (expected + sigma**2), rel=0.06)
