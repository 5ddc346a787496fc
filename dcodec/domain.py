"""Where does the walk run? On pictures, on the luma of gray ones, or on a latent model's latents: the way there and back."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dcodec.state import Setting

Pixels = NDArray[np.float32]  # (B, C, h, w)
LUMA = math.sqrt(3.0)  # gray pictures are coded as the luma coordinate of equal R, G and B


def enter(setting: Setting, x: Tensor) -> Tensor:
    """Pictures (B, C, h, w) float32 in [-1, 1] as the walk sees them: luma of gray ones, latents where the prior has them."""
    if setting.prior.latent is not None:
        return setting.prior.latent.encode(x.expand(-1, 3, -1, -1).contiguous())
    return x * LUMA if setting.layout.channels == 1 else x.expand(-1, setting.layout.channels, -1, -1).contiguous()


def leave(setting: Setting, x: Tensor) -> Pixels:
    """The way back: (B, C, h, w) float32, about [-1, 1], not clipped."""
    channels, height, width = setting.picture
    if setting.prior.latent is not None:
        x = setting.prior.latent.decode(x, height, width)
    pixels: Pixels = x.numpy()
    if channels == pixels.shape[1]:
        return (pixels / LUMA).astype(np.float32) if setting.layout.channels == 1 else pixels
    return pixels.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
