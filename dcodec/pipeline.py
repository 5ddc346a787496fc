"""What does a user of diffusers call? `DcodecPipeline`: pictures to bitstreams and back, with the parts of other pipelines."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image

from dcodec import api
from dcodec.prior.adapter import DiffusersPrior


@dataclass
class DcodecOutput(BaseOutput):  # type: ignore[misc]
    """bitstream: the `.dcx` bytes. images: what they show, [a Pillow image] or an array (1, h, w, C) in [0, 1]."""

    bitstream: bytes
    images: Any


class DcodecPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Compression by a diffusion model, as a diffusers pipeline.

    unet: UNet2DModel, UNet2DConditionModel or DiTTransformer2DModel; scheduler: the one it was trained with, for its noise
    levels. vae: of latent models. text_encoder, tokenizer: of models that take a prompt.
    """

    _optional_components = ["vae", "text_encoder", "tokenizer"]  # diffusers adds lists to it

    def __init__(self, unet: Any, scheduler: Any, vae: Any = None, text_encoder: Any = None, tokenizer: Any = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)

    def __call__(
        self, image: Image.Image | NDArray[Any] | None = None, bitstream: bytes | None = None, bpp: float | None = None,
        size: int | None = None, estimate: str = "mean", prompt: str = "", guidance_scale: float = 1.0,
        preset: str = "fast", arithmetic: str = "exact", output_type: str = "pil", return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """Encode `image` (bpp or size, in bytes, tells how far), or decode `bitstream`, or as much of its start as they tell.

        estimate: `mean` or `sample`. output_type: `pil`, `np`, or `none` to encode without showing. prompt, guidance_scale,
        preset, arithmetic: of encoding; a stream carries its own. Returns DcodecOutput, or (bitstream, images).
        Raises ValueError (BitstreamError for damaged streams) when an argument does not make sense.
        """
        if (image is None) == (bitstream is None):
            raise ValueError("give exactly one of image and bitstream")
        if bitstream is None and bpp is None and size is None:
            raise ValueError("to encode, give bpp or size")
        if output_type not in ("pil", "np", "none"):
            raise ValueError(f"output_type {output_type!r} is unknown: it is pil, np or none")
        text = (self.tokenizer, self.text_encoder) if self.text_encoder is not None else None
        device = str(self.device)
        with self.progress_bar(total=100) as bar:

            def show(done: int, total: int, note: str) -> None:
                bar.update(int(100 * done / max(total, 1)) - bar.n)

            if bitstream is None:
                assert image is not None
                prior = self._prior(arithmetic, text, device)
                bitstream = api.encode(
                    image, bpp=bpp, size=size, preset=preset, prior=prior, prompt=prompt, guidance=guidance_scale,
                    arithmetic=arithmetic, device=device, progress=show,
                )  # fmt: skip
                size = None
            else:
                told = api.info(bitstream)
                prior = self._prior(str(told["arithmetic"]), text, device)
                size = size if bpp is None else api.budget(bpp, told["width"], told["height"])
            images = None
            if output_type != "none":
                shown = api.decode(bitstream, estimate=estimate, size=size, prior=prior, device=device, progress=show)
                images = [shown] if output_type == "pil" else self._arrays(shown)
        return DcodecOutput(bitstream, images) if return_dict else (bitstream, images)

    def _prior(self, arithmetic: str, text: tuple[Any, Any] | None, device: str) -> DiffusersPrior:
        return DiffusersPrior.of(self.unet, self.scheduler, "pipeline", self.vae, text, arithmetic=arithmetic).to(device)

    @staticmethod
    def _arrays(image: Image.Image) -> NDArray[np.float32]:
        x = np.asarray(image, np.float32) / 255.0
        return x[None] if x.ndim == 3 else x[None, ..., None]
