"""Which machine's floats are these? For streams of native arithmetic, that only the machine which wrote them reads."""

import platform
from hashlib import sha256

import torch

SIZE = 4


def check_device(device: str) -> None:
    """ValueError where torch cannot compute on `device`: cpu, or cuda where there is one."""
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} is unknown: it is cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("no CUDA device here: leave out --device cuda")


def fingerprint(device: str, chunk: int) -> bytes:
    """SIZE bytes that tell apart whatever may give other floats: host, processor, software, threads, device, batches."""
    on_gpu = device == "cuda" and torch.cuda.is_available()
    on = torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
    facts = (platform.node(), platform.machine(), on, torch.__version__, torch.get_num_threads(), device, chunk)
    return sha256(repr(facts).encode()).digest()[:SIZE]
