"""Is the uncertainty that a decoder shows the walk's, whatever the spread of the samples that it is drawn with?"""

import torch

from bench import states
from dcodec import estimates, spread
from dcodec.container import Header
from dcodec.prior.gaussian import GaussianPrior
from dcodec.state import Setting, State, start
from dcodec.transform import analyze


def walked(size: int) -> tuple[Setting, State, torch.Tensor]:
    """Setting, state and samples after `size` bytes of a 48 x 40 picture."""
    prior = GaussianPrior()
    setting, written = states.walk(prior, torch.from_numpy(prior.draw(3, 48, 40, 5))[None], size)
    state = written.settled(setting, size - 15)
    return setting, state, estimates.estimate(setting, state, 6, 0, estimates.Passes(4))


def test_only_the_pattern_of_the_samples_counts() -> None:
    setting, state, drawn = walked(150)
    deviations = drawn - drawn.mean(0)
    plain = spread.calibrated(setting, state, drawn)
    assert plain.shape == drawn.shape
    torch.testing.assert_close(spread.calibrated(setting, state, drawn.mean(0) + 3.0 * deviations), plain, atol=1e-5, rtol=1e-4)
    for band, shown in zip(analyze(plain, setting.layout), analyze(deviations, setting.layout), strict=True):
        factor = (band * shown).sum() / shown.square().sum()  # one a band
        torch.testing.assert_close(band, shown * factor, atol=1e-4, rtol=1e-3)


def test_it_falls_with_the_bits() -> None:
    early, late = (spread.calibrated(*walked(size)).square().mean() for size in (60, 400))
    assert late < 0.5 * early


def test_without_gains_the_samples_are_all_there_is() -> None:
    prior = GaussianPrior()
    setting = Setting.of(Header(24, 24, False, "psc", 4, prior.digest[:2]), prior)
    drawn = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    calibrated = spread.calibrated(setting, start(setting), drawn)
    torch.testing.assert_close(calibrated, drawn - drawn.mean(0))
