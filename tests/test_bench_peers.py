"""Do the peers spend what they say, and get what their papers promise, on pictures of a prior that is known exactly?"""

import functools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bench import limit, metrics, peers
from dcodec.pictures import to_image
from dcodec.prior import SIGMAS
from dcodec.prior.gaussian import GaussianPrior

RATES = (0.5, 1.0)


@pytest.fixture(scope="module")
def picture(draw):
    """24 x 24 in colour."""
    return to_image(draw(3, 24, 24, 5))


@pytest.fixture(scope="module")
def points(picture):
    """points(name): those of a peer at RATES, measured once."""

    @functools.cache
    def points(name):
        peer = peers.find(name, RATES, "gaussian")
        found = list(peer.points(picture, peer.jobs))
        assert [(p.setting, p.estimate) for p in found] == peer.jobs
        return found

    return points


@pytest.mark.parametrize("name", peers.NAMES)
def test_peers_spend_what_they_may_and_show_more_for_more(name, picture, points):
    found = points(name)
    half = len(found) // 2
    for point in found:
        budget = int(float(point.setting.removeprefix("rate=")) * 24 * 24 / 8)
        assert 0.85 * budget <= point.size <= budget
        assert point.shown.shape == (24, 24, 3)
    quality = [metrics.psnr(np.asarray(picture), point.shown) for point in found]
    assert all(more > less for less, more in zip(quality[:half], quality[half:], strict=True))
    assert quality[0] > 15


def test_gray_pictures_are_coded_as_luma(draw):
    picture = to_image(draw(1, 24, 24, 5))
    peer = peers.find("diffc-20", RATES, "gaussian")
    for point in peer.points(picture, peer.jobs):
        assert point.shown.shape == (24, 24)
        assert metrics.psnr(np.asarray(picture), point.shown) > 18


def test_evaluations_are_counted_as_the_methods_count_them(points):
    # rows of 8 bits: 36, so 3 steps of 16 samples; then 72, so 3 more
    spent = [(p.estimate, p.nfe) for p in points("psc-repository")]
    walk, restored, mean = 3 * 16 * 50, 50 * 10, 16 * 50
    assert spent == [("sample", walk + restored), ("mean", walk + mean),
                     ("sample", 2 * walk + restored), ("mean", 2 * walk + mean)]  # fmt: skip
    assert [p.nfe for p in points("ddcm")] == [288 // 10 + 1, 576 // 10 + 1]
    flow, denoise = points("diffc-20")[:2]
    assert flow.nfe == 20  # what is left of the schedule
    assert 5 < denoise.nfe < 20


def test_noise_levels_are_those_of_stable_diffusion():
    sigmas = peers.schedule(1000)
    assert sigmas[[0, -1]] == pytest.approx([14.6146, 0.0292], abs=1e-4)  # as every k-diffusion sampler prints them
    assert len(peers.schedule(50)) == 50
    assert (np.diff(peers.schedule(50)) < 0).all()
    assert min(SIGMAS) < sigmas[-1] < sigmas[0] < max(SIGMAS)


def test_a_step_of_diffc_costs_its_kl_divergence():
    x, guess, z = (torch.randn(5, 7, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    t, s = 0.8, 0.5
    ratio, spread = (s / t) ** 2, s * math.sqrt(1 - (s / t) ** 2)
    q, p = (Normal(mean + ratio * (z - mean), spread) for mean in (x, guess))
    assert float(kl_divergence(q, p).sum()) == pytest.approx(peers.step_cost(t, s, float((x - guess).square().sum())))


def test_diffc_nears_the_prior_s_own_limit_with_more_steps(draw):
    """Its rate is then what `bench limit` integrates; steps that are too long pay the error of their beginning."""
    prior, gains = GaussianPrior(), []
    for seed in range(4):
        x = draw(3, 24, 24, seed)
        picture = np.asarray(to_image(x))
        curve = limit.limit(prior, picture)
        for steps in (10, 500):
            for reached in peers.diffc(prior, torch.from_numpy(x)[None], [500, 1000], steps):
                shown = np.asarray(to_image(reached.ends["denoise"]()[0].numpy()))
                gains.append(metrics.psnr(picture, shown) - limit.at_rates(curve, [reached.bits / 24**2])[0])
    few, many = np.mean(np.reshape(gains, (4, 2, 2)), axis=(0, 2))
    assert abs(many) < 0.5
    assert few < many - 0.5


def test_pursuit_finds_what_trying_all_finds():
    g = torch.Generator().manual_seed(0)
    book, target = torch.randn(16, 50, generator=g), torch.randn(50, generator=g)
    one = peers.pursue(book, target, 1)
    assert torch.equal(one, book[int((book @ target).argmax())])
    tried = [one]
    for c in torch.linspace(0, 1, 8)[1:]:
        for noise in book:
            mixed = c.sqrt() * one + (1 - c).sqrt() * noise
            tried.append(mixed / mixed.norm() * 50**0.5)
    best = max(tried, key=lambda v: float(v @ target))
    assert torch.allclose(peers.pursue(book, target, 2), best, atol=1e-5)
    assert float(peers.pursue(book, target, 5) @ target) >= float(best @ target)


@pytest.mark.parametrize(("bits", "atoms", "steps"), [(40, 1, 4), (921, 1, 92), (10_009, 1, 1000), (10_010, 2, 435)])
def test_codebooks_use_a_budget_up(bits, atoms, steps):
    assert peers._codebook(bits) == (atoms, steps)
    assert 0 <= bits - steps * (atoms * 10 + (atoms - 1) * 3) < 10 * atoms + 3


def test_psc_s_samples_agree_with_what_was_sent(draw):
    x = torch.from_numpy(draw(3, 16, 16, 1))[None]
    prior = GaussianPrior()
    (reached,) = peers.psc(prior, x, [8 * 20])  # 20 rows: the second step gives eight
    assert reached.bits == 160
    rows, y = reached.ends["sample"].args[2:4]
    assert torch.allclose(rows @ rows.T, torch.eye(20), atol=0.02)  # the second step's off the first's
    assert torch.equal(y.to(torch.float8_e4m3fn).float(), y)
    assert torch.allclose(y, rows @ x.reshape(-1, 1), rtol=2**-4, atol=2**-9)
    for end in reached.ends.values():
        assert torch.allclose(rows @ end().reshape(-1, 1), y, atol=1e-3)
