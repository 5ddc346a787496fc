"""What does the shipped photo denoiser compute?

    D(x, sigma) = w + c(sigma) * network([(x - w), w], sigma),    w = Wiener(x, sigma)

The network predicts what the best linear denoiser leaves, in units c of that filter's own error: it starts at second-order
statistics and its 8-bit precision is spent on the rest. All of it gives the same bits everywhere.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcodec.prior import DOUBT, SIGMAS
from dcodec.prior.catalog import Entry, Spectrum
from dcodec.prior.gaussian import spectrum, wiener
from dcodec.prior.network import MULTIPLE, Body
from dcodec.transform import extend

_LUMA = np.float32(0.57735026918962573)  # 1 / sqrt(3)


@dataclass(frozen=True)
class PhotoPrior:
    """The integer network behind its Wiener filter. One of colours takes gray pictures too, as luma with no chroma."""

    name: str
    digest: bytes
    parameters: Spectrum
    body: Body
    turned: bool

    @classmethod
    def load(cls, entry: Entry, device: str) -> "PhotoPrior":
        """Read a safetensors file made by `dcodec.train.quantize`; ValueError when it is not one."""
        try:
            with safe_open(str(entry.path), framework="pt") as f:
                metadata = f.metadata() or {}
                tensors = {key: f.get_tensor(key) for key in f.keys()}
            parameters = tuple((float(a), float(f0), float(p)) for a, f0, p in json.loads(metadata["spectrum"]))
            body = Body.load(tensors, device)
            turned = bool(json.loads(metadata.get("turned", "false")))
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{entry.path} is not a prior that this version reads: {error}") from error
        return cls(entry.name, entry.digest, parameters, body, turned)

    @property
    def size(self) -> None:
        """Any scale."""

    @property
    def doubt(self) -> float:
        """A network's."""
        return DOUBT

    @property
    def latent(self) -> None:
        """Pictures themselves."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channel counts it can denoise."""
        return (1,) if self.body.channels == 1 else (1, 3)

    def to(self, device: str) -> "PhotoPrior":
        """The same prior on a device."""
        return PhotoPrior(self.name, self.digest, self.parameters, self.body.to(device), self.turned)

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x = x0 + sigma n]: (B, C, h, w) float32, C one of `channels`, sigma in SIGMAS."""
        if x.shape[1] < self.body.channels:
            rgb = self((x * float(_LUMA)).expand(-1, 3, -1, -1).contiguous(), sigma)
            return ((rgb[:, :1] + rgb[:, 1:2]) + rgb[:, 2:]) * float(_LUMA)
        h, w = x.shape[2:]
        x = extend(x, -h % MULTIPLE, -w % MULTIPLE)
        linear = wiener(x, sigma, self.parameters)
        gain = float(np.float32(2.0 / math.sqrt(sigma * sigma + 0.25)))
        features = torch.cat([(x - linear) * gain, linear * 2.0], 1)
        rest = self.body(features, SIGMAS.index(sigma))
        return (linear + rest * wiener_rmse(sigma, self.parameters))[..., :h, :w]


@lru_cache(maxsize=len(SIGMAS))
def wiener_rmse(sigma: float, parameters: Spectrum) -> float:
    """Root mean squared error of the Wiener filter on 64 x 64 pictures of its own spectrum; a float32 number."""
    variance = spectrum(64, 64, parameters)
    error = variance * (sigma * sigma) / (variance + sigma * sigma)
    return float(np.float32(math.sqrt(math.fsum(error.ravel().tolist()) / error.size)))
