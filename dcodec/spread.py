"""How far may the picture be from its mean estimate? The samples' spread, at the size that the walk has learnt.

An imperfect prior in a few evaluations makes samples of too much or too little spread, by factors of up to eight in the fine
bands (bench/NOTES.md). The walk knows better, band by band: what its own samples showed off the measured rows, times the gain
that the encoder sent, less what was measured then, and on all measured rows what quantization has left.
"""

import numpy as np
import torch
from torch import Tensor

from dcodec.domain import Pixels, enter, leave
from dcodec.state import Setting, State
from dcodec.transform import analyze, synthesize


def std(setting: Setting, state: State, drawn: Pixels) -> Pixels:
    """Samples (S, C, h, w) -> (h, w), root of the error's variance to expect, averaged over channels, in units of [-1, 1].

    Latent models know pixels by their samples alone: there it is the samples' own.
    """
    if setting.prior.latent is not None:
        deviations = drawn - drawn.mean(axis=0)
    else:
        deviations = leave(setting, calibrated(setting, state, enter(setting, torch.from_numpy(drawn))))
    energy = np.square(deviations, dtype=np.float64).sum(axis=0).mean(axis=0)
    std: Pixels = np.sqrt(energy / max(len(drawn) - 1, 1)).astype(np.float32)
    return std


def calibrated(setting: Setting, state: State, drawn: Tensor) -> Tensor:
    """Deviations of samples (S, C, h, w) float32 from their mean, (S, C, h, w), each band scaled to the energy to expect.

    Presets that send no gains, and streams that hold none yet, leave the deviations as they are.
    """
    deviations = drawn - drawn.mean(0)
    if not len(state.energy) or not setting.profile.gains or len(drawn) < 2:
        return deviations
    bands, factor = analyze(deviations, setting.layout), 1.0
    for index, band in enumerate(bands):
        shown = float(band.double().square().sum()) / (len(drawn) - 1)
        if index < len(state.energy) and shown:  # bands that the walk has not opened yet: like the finest that it has
            factor = float(np.sqrt((state.energy[index] + state.measured[index].left().sum()) / shown))
        bands[index] = band * factor
    return synthesize(bands, setting.layout)
