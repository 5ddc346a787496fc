"""Small diffusers models, made in diffusers' own layout; as a script: encode with one in this process, under its settings.

Their weights are random: exactness and plumbing do not depend on what they know.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dcodec

KINDS = ("epsilon", "v_prediction", "sample", "gray", "latent", "text", "transformer")
PROMPT = {"text": "a cat"}


def unet(**options: Any) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        **{
            "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
            "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **options,
        }
    )  # fmt: skip


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, sample_size=32,
    )  # fmt: skip


def text_parts(folder: Path) -> tuple[Any, Any]:
    """A tokenizer of single letters and a text encoder for it."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config)


def make(kind: str, folder: Path) -> Path:
    """Save a model of one of KINDS as a pipeline."""
    import diffusers

    torch.manual_seed(1)
    scheduler = diffusers.DDPMScheduler(prediction_type=kind if kind in ("v_prediction", "sample") else "epsilon")
    pipeline: Any
    if kind == "taef2":
        pipeline = diffusers.DDPMPipeline(unet(in_channels=32, out_channels=32, sample_size=4), scheduler)
    elif kind == "gray":
        pipeline = diffusers.DDPMPipeline(unet(in_channels=1, out_channels=1), scheduler)
    elif kind == "latent":
        pipeline = diffusers.LDMPipeline(autoencoder(), unet(in_channels=4, out_channels=4, sample_size=8), scheduler)
    elif kind == "text":
        tokenizer, encoder = text_parts(folder / "words")
        model = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            cross_attention_dim=16, attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        pipeline = diffusers.StableDiffusionPipeline(
            autoencoder(), encoder, tokenizer, model, scheduler, None, None, requires_safety_checker=False  # type: ignore[arg-type]
        )
    elif kind == "transformer":
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
            num_embeds_ada_norm=5, norm_num_groups=4,
        )  # fmt: skip
        pipeline = diffusers.DiTPipeline(model, autoencoder(), scheduler)
    else:
        pipeline = diffusers.DDPMPipeline(unet(), scheduler)
    pipeline.save_pretrained(folder)
    return folder


def picture(kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Something to code: uint8, smooth and edged; larger than its model for one kind, smaller for others."""
    y, x = np.mgrid[:21, :18] if kind in ("latent", "taef2") else np.mgrid[:13, :10] if kind == "epsilon" else np.mgrid[:7, :8]
    gray = 128 + 60 * np.sin(x / 3) + 50 * (y > 4)
    return np.stack([gray, 255 - gray, gray // 2], 2).astype(np.uint8) if kind != "gray" else gray.astype(np.uint8)


def real(kind: str, folder: str) -> Any:
    """What to name as the prior: the folder, or for `taef2` a denoiser of the latents of a real autoencoder.

    Its folder has a pipeline for the denoiser, and the autoencoder's path in the file `taef2`.
    """
    if kind != "taef2":
        return folder
    from diffusers import DDPMPipeline

    from bench.models import Taef2
    from dcodec.prior.adapter import DiffusersPrior

    parts = DDPMPipeline.from_pretrained(folder)
    return DiffusersPrior.of(parts.unet, parts.scheduler, "taef2", Taef2(Path(Path(folder, "taef2").read_text())))


def size(kind: str) -> int:
    """Bytes of a stream that takes two refreshes and more."""
    return 45 if kind in ("latent", "taef2") else 34


def encode(kind: str, folder: str, chunk: int = 0, **options: Any) -> bytes:
    """A stream of `size(kind)` bytes."""
    prompt = {"prompt": PROMPT[kind], "guidance": 2.0} if kind in PROMPT else {}
    return dcodec.encode(picture(kind), size=size(kind), prior=real(kind, folder), chunk=chunk, **prompt, **options)


def shown(data: bytes, kind: str, folder: str, chunk: int = 0) -> str:
    """Hash of a sample's pixels."""
    image = dcodec.decode(data, prior=real(kind, folder), chunk=chunk, estimate="sample")
    return sha256(np.asarray(image).tobytes()).hexdigest()


if __name__ == "__main__":  # standard input: chunk and, for each kind, folder and stream; output: a stream and a hash for each
    chunk, jobs = json.load(sys.stdin)
    answers = {
        kind: (encode(kind, folder, chunk).hex(), shown(bytes.fromhex(stream), kind, folder, chunk))
        for kind, (folder, stream) in jobs.items()
    }
    print(json.dumps(answers))
