"""Which files make a diffusers model, and where are the ones that a user has added?

Reads folders as `save_pretrained` writes them (a pipeline with a folder a component, or one model with its scheduler), and
keeps named copies under DCODEC_HOME (default: XDG_DATA_HOME/dcodec). Weights are read as safetensors only: a pickle runs
whatever code it likes. Imports neither torch nor diffusers.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

DENOISERS = ("unet", "transformer", "prior")
AUTOENCODERS = ("vae", "vqvae", "movq")
RECORD = "dcodec.json"
_WEIGHTS = (".safetensors",)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors"]  # of a hub's repository: no pickles


@dataclass(frozen=True)
class Component:
    """A part of a pipeline. kind: its class in diffusers or transformers; folder: where its files are; config: of the part."""

    name: str
    kind: str
    folder: Path
    config: dict[str, Any]

    @property
    def variant(self) -> str | None:
        """`fp16` and the like, when its weights are there in that form only."""
        names = [path.name for path in self.weights]
        forms = {m.group(1) for name in names if (m := re.search(r"\.(fp16|bf16)(-\d+-of-\d+)?\.safetensors$", name))}
        plain = [name for name in names if not re.search(r"\.(fp16|bf16)", name)]
        return None if plain or not forms else sorted(forms)[0]

    @property
    def weights(self) -> list[Path]:
        """Its safetensors files."""
        return sorted(path for path in self.folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())


@dataclass(frozen=True)
class Model:
    """A denoiser, its scheduler, and what else the pipeline has of what a codec uses."""

    denoiser: Component
    scheduler: Component
    autoencoder: Component | None
    text_encoder: Component | None
    tokenizer: Component | None

    @property
    def parts(self) -> list[Component]:
        """All there are."""
        every = (self.denoiser, self.scheduler, self.autoencoder, self.text_encoder, self.tokenizer)
        return [part for part in every if part is not None]

    def size(self) -> int:
        """Bytes of all weights."""
        return sum(path.stat().st_size for part in self.parts for path in part.weights)


def is_model(folder: Path) -> bool:
    """Whether a folder looks like one that diffusers wrote."""
    return any((folder / name).is_file() for name in ("model_index.json", "config.json"))


def read(folder: Path) -> Model:
    """The model in `folder`. Raises ValueError, one line, when a part is missing, unreadable or pickled."""
    if (folder / "model_index.json").is_file():
        index = _json(folder / "model_index.json")
        listed = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    else:
        listed = {"unet": _json(folder / "config.json").get("_class_name", ""), "scheduler": ""}
    if "prior" in listed or any(name.endswith(("_2", "_3")) and "encoder" in name for name in listed):
        raise ValueError(f"{folder}: pipelines of several models or text encoders are not supported")
    denoiser = _part(folder, listed, DENOISERS)
    if denoiser is None:
        raise ValueError(f"{folder} has no denoiser: expected one of the parts {', '.join(DENOISERS)}")
    scheduler = _part(folder, listed, ("scheduler",))
    assert scheduler is not None  # listed, or it was refused
    return Model(
        denoiser, scheduler, _part(folder, listed, AUTOENCODERS), _part(folder, listed, ("text_encoder",)),
        _part(folder, listed, ("tokenizer",)),
    )  # fmt: skip


def _part(folder: Path, listed: dict[str, str], names: tuple[str, ...]) -> Component | None:
    """The first part of these names; in a folder of its own, or among the files of a model that is all there is."""
    name = next((name for name in names if name in listed), None)
    if name is None:
        if names == ("scheduler",):
            raise ValueError(f"{folder} has no scheduler, which tells the model's noise levels")
        return None
    own = folder / name if (folder / name).is_dir() else folder
    file = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(name, "config.json")
    config = _json(own / file)
    part = Component(name, listed[name] or str(config.get("_class_name", "")), own, config)
    if name not in ("scheduler", "tokenizer") and not part.weights:
        pickled = [path.name for path in sorted(own.iterdir()) if path.suffix in _PICKLES]
        if pickled:
            raise ValueError(
                f"{own / pickled[0]} is a pickle, which may run any code: convert it, on a machine that may, with "
                f"{part.kind or 'the model'}.from_pretrained(..).save_pretrained(.., safe_serialization=True)"
            )
        raise ValueError(f"{own} has no weights (.safetensors) of the {name}")
    return part


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {path.parent} is not a folder that diffusers' save_pretrained wrote") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a configuration")
    return content


# What a user has added. -----------------------------------------------------------------------------------------------


def home() -> Path:
    """Where added priors are kept."""
    if own := os.environ.get("DCODEC_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "dcodec"


def added() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(name, folder, record) of every prior that was added."""
    for record in sorted((home() / "priors").glob(f"*/{RECORD}")):
        try:
            content = _json(record)
            yield str(content["name"]), record.parent, content
        except (KeyError, ValueError):  # half removed by hand: as good as gone
            continue


def add(folder: Path, name: str, describe: Callable[[Path], dict[str, Any]]) -> Path:
    """Keep a copy of the model in `folder` as `name`; describe(folder) gives the rest of its record (sha256, domain, gflop).

    Raises ValueError when the name is unfit or taken, or the folder holds no model that can be read.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a prior's name: letters, digits, '.', '-', '_', and one '/' at most")
    target = home() / "priors" / name.replace("/", "--")
    if target.exists():
        raise ValueError(f"there is a prior {name} already, in {target}: remove that folder first, or choose another --name")
    model = read(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as workplace:  # a half-made copy never has the name
        copy = Path(workplace) / "copy"
        copy.mkdir()
        _copy(folder, copy, model)
        record = {"name": name, "bytes": model.size(), **describe(copy)}
        (copy / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        copy.replace(target)
    return target


def _copy(folder: Path, target: Path, model: Model) -> None:
    """The files of a model's parts, where they were."""
    if (folder / "model_index.json").is_file():
        shutil.copyfile(folder / "model_index.json", target / "model_index.json")
    for part in model.parts:
        to = target / part.folder.relative_to(folder)
        to.mkdir(parents=True, exist_ok=True)
        for path in part.folder.iterdir():
            if path.is_file() and path.suffix in (".json", ".txt", ".model", *_WEIGHTS):
                shutil.copyfile(path, to / path.name)


def looks_like_hub_id(name: str) -> bool:
    """Whether a name could be one of a model hub, owner/model."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def download(name: str) -> Path:
    """The folder of a hub's model, from the local cache or the network. Raises ValueError when it cannot be had."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError("a model from a hub needs huggingface_hub: pip install 'dcodec[diffusers]'") from error
    try:
        try:
            return Path(snapshot_download(name, allow_patterns=_WANTED, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(snapshot_download(name, allow_patterns=_WANTED))
    except Exception as error:  # its own, requests' and httpx' errors: whichever client it was built with
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{name} is neither a folder here nor to be had from the hub: {reason}") from error
