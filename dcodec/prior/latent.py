"""Where does a latent diffusion model walk, and how do pictures get there and back?

The walk runs on an autoencoder's latents (Rombach et al. 2022, arXiv 2112.10752), shifted and scaled as its denoiser was
trained on them; a sample's picture is its decoded latent, and the mean estimate averages pictures, not latents.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dcodec.transform import extend


@dataclass(frozen=True, eq=False)
class Latent:
    """An autoencoder with diffusers' interface: encode(x).latents or .latent_dist.mode(), decode(z).sample.

    scale, shift: (z - shift) * scale is what the walk sees. factor: pixels to a latent, a side. channels: of latents.
    arithmetic: the context it runs in.
    """

    module: Any
    scale: float
    shift: float
    factor: int
    channels: int
    arithmetic: AbstractContextManager[Any]
    device: str = "cpu"

    @classmethod
    def of(cls, module: Any, arithmetic: AbstractContextManager[Any]) -> "Latent":
        """Read an autoencoder's geometry off what it makes of an empty picture."""
        config = module.config
        where = next(module.parameters()).device
        with torch.inference_mode():
            z = _latents(module.encode(torch.zeros(1, 3, 64, 64, device=where)))
        scale, shift = float(getattr(config, "scaling_factor", 1.0)), float(getattr(config, "shift_factor", None) or 0.0)
        return cls(module, scale, shift, 64 // z.shape[-1], z.shape[1], arithmetic)

    def to(self, device: str) -> "Latent":
        """The same autoencoder on `device`."""
        return replace(self, module=self.module.to(device), device=device)

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Of the latents of a picture: (C, h, w), sides rounded up."""
        return self.channels, -(-height // self.factor), -(-width // self.factor)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) float32 in [-1, 1] -> latents (B, C, h, w) float32, CPU."""
        x = extend(x, -x.shape[2] % self.factor, -x.shape[3] % self.factor).to(self.device)
        with self.arithmetic:
            z = _latents(self.module.encode(x))
        return ((z - self.shift) * self.scale).cpu()

    @torch.inference_mode()
    def decode(self, z: Tensor, height: int, width: int) -> Tensor:
        """Latents (B, C, h, w) float32 -> pictures (B, 3, height, width) float32, about [-1, 1], CPU, one at a time."""
        pictures = []
        for i in range(len(z)):
            one = z[i : i + 1].to(self.device) / torch.full((), self.scale, device=self.device) + self.shift
            with self.arithmetic:
                pictures.append(self.module.decode(one).sample[..., :height, :width].cpu())
        return torch.cat(pictures)


def _latents(encoded: Any) -> Tensor:
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
