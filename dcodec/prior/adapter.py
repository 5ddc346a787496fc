"""How does a diffusers model become a denoiser D(x, sigma), of any size, with the same bits everywhere?

    D(x, sigma) = b x + c model(a x, t)        t, a, b, c: `timesteps`;   same bits: `exact.operations`

Models of a fixed size see pictures through overlapping windows, averaged with weights that fall towards their borders, and
smaller pictures mirrored to their size.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcodec.exact.operations import Exact
from dcodec.prior import DOUBT
from dcodec.prior import folder as files
from dcodec.prior.latent import Latent
from dcodec.prior.timesteps import Timesteps
from dcodec.transform import extend

DENOISERS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
OVERLAP = 4  # windows share at least a fourth of their side
_ROOT3 = float(np.float32(1.7320508075688772))


@dataclass(frozen=True)
class Condition:
    """What a text-conditioned model is told: embeddings (1, N, D) of the prompt and of nothing; guidance: 1 for no more."""

    prompt: Tensor
    nothing: Tensor
    guidance: float


@dataclass(frozen=True, eq=False)
class DiffusersPrior:
    """A diffusers denoiser and its scheduler as a prior; see `dcodec.prior.Prior`.

    size: height and width that the model was made for, None for any multiple of `multiple`. latent: of latent models.
    text: tokenizer and text encoder, of models that take a prompt.
    """

    name: str
    digest: bytes
    model: Any
    timesteps: Timesteps
    size: tuple[int, int] | None
    multiple: int
    arithmetic: str
    context: AbstractContextManager[Any]
    latent: Latent | None = None
    text: tuple[Any, Any] | None = None
    condition: Condition | None = None
    device: str = "cpu"

    @property
    def doubt(self) -> float:
        """A network's."""
        return DOUBT

    @property
    def turned(self) -> bool:
        """Nothing tells."""
        return False

    @classmethod
    def load(cls, path: Path, name: str, device: str = "cpu", arithmetic: str = "exact") -> "DiffusersPrior":
        """Read a folder that diffusers wrote. Raises ValueError, one line, when its model cannot be used."""
        found = files.read(path)
        if found.denoiser.kind not in DENOISERS:
            raise ValueError(
                f"{found.denoiser.folder}: a {found.denoiser.kind or 'model without a class'} is not supported; "
                f"supported are {', '.join(DENOISERS)}"
            )
        if found.denoiser.config.get("num_class_embeds") and found.denoiser.kind != "DiTTransformer2DModel":
            raise ValueError(f"{found.denoiser.folder}: the model wants a class for each picture, and a codec has none")
        Timesteps.of(found.scheduler.config)  # refuses what it does not know before gigabytes are read
        modules = {part.name: _module(part) for part in found.parts if part.name != "scheduler"}
        text = None
        if found.text_encoder is not None and found.tokenizer is not None:
            text = (modules[found.tokenizer.name], modules[found.text_encoder.name])
        autoencoder = modules[found.autoencoder.name] if found.autoencoder else None
        denoiser = modules[found.denoiser.name]
        return cls.of(denoiser, found.scheduler.config, name, autoencoder, text, arithmetic=arithmetic).to(device)

    @classmethod
    def of(
        cls, model: Any, scheduler: Any, name: str, autoencoder: Any = None, text: tuple[Any, Any] | None = None, *,
        arithmetic: str = "exact",
    ) -> "DiffusersPrior":  # fmt: skip
        """From modules in memory. scheduler: one of diffusers', or its configuration. Raises ValueError as `load` does."""
        config = model.config
        modules = [module for module in (model, autoencoder, text[1] if text else None) if module is not None]
        for module in modules:
            module.eval().requires_grad_(False).float()
        if arithmetic not in ("exact", "native"):
            raise ValueError(f"arithmetic {arithmetic!r} is unknown: it is exact or native")
        context: AbstractContextManager[Any] = nullcontext()
        if arithmetic == "exact":
            context = _exact(modules)
        if not isinstance(scheduler, dict):  # in memory, a configuration does not tell its class
            scheduler = {**scheduler.config, "_class_name": type(scheduler).__name__}
        timesteps = Timesteps.of(scheduler)
        latent = Latent.of(autoencoder, context) if autoencoder is not None else None
        channels = latent.channels if latent else config.in_channels
        if config.in_channels != channels or (latent is None and channels not in (1, 3)):
            wanted = f"{channels}, its autoencoder's latents" if latent else "1 or 3"
            raise ValueError(f"{name}: the model denoises {config.in_channels} channels, expected {wanted}")
        if type(model).__name__ == "UNet2DConditionModel" and text is None:
            raise ValueError(f"{name}: the model is told of a prompt, but there is no text encoder with a tokenizer")
        side = getattr(config, "sample_size", None)
        size = None if side is None else (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        facts = [timesteps.prediction, timesteps.log_sigmas, size, latent and (latent.scale, latent.shift)]
        digest = _digest(modules, facts)
        multiple = 1 << (len(getattr(config, "block_out_channels", (0, 0, 0, 0))) - 1)
        prior = cls(name, digest, model, timesteps, size, multiple, arithmetic, context, latent, text)
        return prior if text is None else prior.prompted("", 1.0)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channel counts it can denoise."""
        return (self.model.config.in_channels,)

    def to(self, device: str) -> "DiffusersPrior":
        """The same prior on `device`."""
        condition = self.condition
        if condition is not None:
            condition = replace(condition, prompt=condition.prompt.to(device), nothing=condition.nothing.to(device))
        model, latent, context = self.model.to(device), self.latent and self.latent.to(device), self.context
        if isinstance(context, Exact):  # weights have moved: their grids are made anew
            context = _exact([model] if latent is None else [model, latent.module])
        latent = latent and replace(latent, arithmetic=context)
        return replace(self, model=model, context=context, latent=latent, condition=condition, device=device)

    def prompted(self, prompt: str, guidance: float) -> "DiffusersPrior":
        """The same prior, told what the picture shows. Raises ValueError for models that take no prompt."""
        if self.text is None:
            raise ValueError(f"prior {self.name} takes no prompt")
        return replace(self, condition=Condition(self._embed(prompt), self._embed(""), guidance))

    @torch.inference_mode()
    def _embed(self, prompt: str) -> Tensor:
        """(1, N, D): the text encoder's last states, as Stable Diffusion takes them."""
        assert self.text is not None
        tokenizer, encoder = self.text
        ids = tokenizer(
            prompt, padding="max_length", max_length=min(tokenizer.model_max_length, encoder.config.max_position_embeddings),
            truncation=True, return_tensors="pt",
        ).input_ids  # fmt: skip
        with _exact([encoder]) if self.arithmetic == "exact" else nullcontext():
            embedding: Tensor = encoder(ids.to(encoder.device))[0]
        return embedding.to(self.device)

    @torch.inference_mode()
    def gflop(self) -> float:
        """10^9 multiplications and additions of an evaluation, at the model's size or 256x256."""
        from torch.utils.flop_counter import FlopCounterMode

        x = torch.zeros(1, self.channels[0], *(self.size or (256, 256)), device=self.device)
        with FlopCounterMode(display=False) as counter:
            self._run(x, torch.ones(1, device=self.device), self.condition.prompt if self.condition else None)
        return counter.get_total_flops() / 1e9

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0 | x = x0 + sigma n]: (B, C, h, w) float32, any h and w, C the model's."""
        if x.shape[1] == 1 and self.latent is None:  # gray pictures come as luma, sqrt(3) times the gray the model knows
            return self._windowed(x / torch.full((), _ROOT3, device=x.device), sigma / _ROOT3) * _ROOT3
        return self._windowed(x, sigma)

    def _windowed(self, x: Tensor, sigma: float) -> Tensor:
        """D of any size from D of the model's."""
        h, w = x.shape[2:]
        height, width = self.size or (h + -h % self.multiple, w + -w % self.multiple)
        x = extend(x, max(height - h, 0), max(width - w, 0))
        total, weight = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        ramp = _ramp(height, x.device)[:, None] * _ramp(width, x.device)
        for top in starts(x.shape[2], height):
            for left in starts(x.shape[3], width):
                at = (..., slice(top, top + height), slice(left, left + width))
                total[at] += self._denoise(x[at].contiguous(), sigma) * ramp
                weight[at] += ramp
        return (total / weight)[..., :h, :w].contiguous()

    def _denoise(self, x: Tensor, sigma: float) -> Tensor:
        a, b, c = self.timesteps.scales(sigma)
        t = torch.full((len(x),), self.timesteps.at(sigma), dtype=torch.float32, device=x.device)
        said = self._say(x * a, t)
        x0 = x * b + said * c
        return x0 if self.latent else x0.clamp(-1.0, 1.0)

    def _say(self, x: Tensor, t: Tensor) -> Tensor:
        """What the model predicts, without the variances that some predict beside it; guided by the prompt where one is."""
        condition, c = self.condition, x.shape[1]
        if condition is None:
            return self._run(x, t, None)[:, :c]
        if condition.guidance == 1.0:
            return self._run(x, t, condition.prompt)[:, :c]
        # Ho and Salimans 2022, arXiv 2207.12598, eq. 6, in diffusers' scale of guidance
        nothing = self._run(x, t, condition.nothing)[:, :c]
        difference = self._run(x, t, condition.prompt)[:, :c] - nothing
        return nothing + difference * float(np.float32(condition.guidance))

    def _run(self, x: Tensor, t: Tensor, embedding: Tensor | None) -> Tensor:
        with self.context:
            if embedding is not None:
                return self.model(x, t, encoder_hidden_states=embedding.expand(len(x), -1, -1)).sample
            if type(self.model).__name__ == "DiTTransformer2DModel":  # its last class stands for none
                labels = torch.full((len(x),), self.model.config.num_embeds_ada_norm, device=x.device)
                return self.model(x, timestep=t, class_labels=labels).sample
            return self.model(x, t).sample


def _exact(modules: list[Any]) -> Exact:
    return Exact(p for module in modules for p in module.parameters())


def starts(length: int, side: int) -> list[int]:
    """Where windows of `side` begin so that they cover `length`, evenly spread, sharing a fourth or more."""
    if length <= side:
        return [0]
    count = 1 + -(-(length - side) // (side - side // OVERLAP))
    return [i * (length - side) // (count - 1) for i in range(count)]


def _ramp(side: int, device: torch.device) -> Tensor:
    """Weights 1, 2, ... up to a fourth of the side, level, and down again: (side,) float32 integers."""
    at = torch.arange(side, device=device)
    return torch.minimum(at + 1, side - at).clamp_max(max(side // OVERLAP, 1)).float()


def _digest(modules: list[Any], facts: list[Any]) -> bytes:
    """sha256 of all numbers, as float32 by name, and of what else the prior reads of the configuration."""
    digest = sha256(json.dumps(facts).encode())
    for key, value in _numbers(modules):
        digest.update(f"{key} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def _numbers(modules: list[Any]) -> Iterator[tuple[str, Tensor]]:
    """Weights, and float tables that a model makes as it is read (positions of DiT), by the library's own sines."""
    for i, module in enumerate(modules):
        tables = {key: value for key, value in module.named_buffers() if value.is_floating_point()}
        for key, value in sorted((tables | module.state_dict()).items()):
            yield f"{i}.{key}", value


def _module(part: files.Component) -> Any:
    """A part as the class that wrote it, from safetensors only. Raises ValueError when it cannot be read."""
    library = "transformers" if part.name in ("text_encoder", "tokenizer") else "diffusers"
    try:
        package = __import__(library)
        kind = getattr(package, part.kind, None)
        if kind is None:
            raise ValueError(f"{part.folder}: {library} has no class {part.kind or '(none is named)'}")
        if part.name == "tokenizer":
            return kind.from_pretrained(part.folder)
        options = {} if library == "transformers" else {"low_cpu_mem_usage": False}  # that needs accelerate
        return kind.from_pretrained(part.folder, use_safetensors=True, variant=part.variant, **options)
    except ImportError as error:
        raise ValueError(f"{part.folder} needs the package {library}: pip install 'dcodec[diffusers]'") from error
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{part.folder} does not hold a {part.kind} that can be read: {reason}") from error
