"""Do all machines make the same bytes of a picture, and the same pixels of the bytes?

Other machines are played by processes whose libraries are told to use other instructions, kernels and thread counts.
Each encodes the same pictures, and decodes what this process has encoded. Run as a script, this file is such a process.
"""

import json
import os
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.make import picture

import dcodec
from dcodec.prior import catalog

ROOT = Path(str(dcodec.__file__)).parents[1]
PRIORS = {"gaussian": (3, 48, 50), "photo": (3, 20, 30)}  # shapes of their pictures
SIZE = 50  # bytes of a stream
INSTALLED = [entry.name for entry in catalog.installed() if entry.name in PRIORS]
each_prior = pytest.mark.parametrize(
    "prior",
    [
        pytest.param(name, marks=pytest.mark.skipif(name not in INSTALLED, reason=f"no {name}.safetensors in this checkout"))
        for name in PRIORS
    ],
)


def numpy_features() -> list[str]:
    """Instruction sets that numpy has code for and uses now; they can be switched off by name."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]


WAIT = {"OMP_WAIT_POLICY": "passive"}  # threads that spin would wait for cores that other programs have
RANK = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}  # what PyTorch calls its kernels
# What some other machines are like; unknown values of these variables are ignored by the libraries.
OLD = {
    "OMP_NUM_THREADS": "2", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default",
    "NPY_DISABLE_CPU_FEATURES": " ".join(numpy_features()), "OPENBLAS_CORETYPE": "Prescott", "MKL_CBWR": "COMPATIBLE",
}  # fmt: skip
MIDDLE = {
    "OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
    "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in numpy_features() if "512" in name or "V4" in name),
    "OPENBLAS_CORETYPE": "Haswell", "MKL_CBWR": "AVX2",
}  # fmt: skip
NEW = {"OMP_NUM_THREADS": "2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"}
MACHINES = {"old": (OLD, 7)}  # settings, chunk
SINGLE = {"middle": (MIDDLE, 1), "new": (NEW, 32)} | {  # one setting at a time
    f"{name}={value}": ({name: value}, chunk)
    for name, value, chunk in [
        ("OMP_NUM_THREADS", "1", 32), ("OMP_NUM_THREADS", "2", 7),
        *[("ONEDNN_MAX_CPU_ISA", isa, 0) for isa in ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI", "DEFAULT")],
        *[("ATEN_CPU_CAPABILITY", level, 0) for level in ("default", "avx2", "avx512")],
        *[("NPY_DISABLE_CPU_FEATURES", " ".join(numpy_features()[i:]), 0) for i in range(len(numpy_features()))],
        *[("OPENBLAS_CORETYPE", core, 0) for core in ("Prescott", "Haswell")],
        ("MKL_CBWR", "COMPATIBLE", 0),
    ]
}  # fmt: skip


def hashes(data: bytes, chunk: int = 0, device: str = "cpu") -> list[str]:
    """Of mean and sample, as float32 pixels."""
    shown = dcodec.decode_many(data, samples=1, chunk=chunk, device=device)
    return [sha256(np.ascontiguousarray(x, "<f4").tobytes()).hexdigest() for x in (shown.mean, *shown.samples)]


def encode(prior: str, chunk: int = 0, device: str = "cpu") -> bytes:
    return dcodec.encode(picture(*PRIORS[prior]), size=SIZE, prior=prior, chunk=chunk, device=device)


@cache
def own(prior: str) -> tuple[bytes, list[str]]:
    """What this process makes: the stream and the hashes of what it shows."""
    data = encode(prior)
    return data, hashes(data)


def elsewhere(machine: str) -> dict[str, Any]:
    """What a process like that makes of the picture and of our streams; see `main`."""
    settings, chunk = (MACHINES | SINGLE)[machine]
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    job = {"chunk": chunk, "streams": {prior: own(prior)[0].hex() for prior in INSTALLED}}
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, **WAIT, "PYTHONPATH": path, **settings}, capture_output=True, text=True,
        input=json.dumps(job),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    # the settings were more than words
    if threads := settings.get("OMP_NUM_THREADS"):
        assert answer["threads"] == int(threads)
    if level := settings.get("ATEN_CPU_CAPABILITY"):
        assert RANK.get(answer["capability"], 0) <= RANK[level.upper()]
    assert not set(answer["numpy"]) & set(settings.get("NPY_DISABLE_CPU_FEATURES", "").split())
    return answer


def main() -> None:
    """A job from standard input: encode the picture, decode streams; say what came out and what was in force."""
    job = json.load(sys.stdin)
    answer = {
        "encoded": {prior: encode(prior, job["chunk"]).hex() for prior in job["streams"]},
        "decoded": {prior: hashes(bytes.fromhex(data), job["chunk"]) for prior, data in job["streams"].items()},
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "numpy": numpy_features(),
    }
    json.dump(answer, sys.stdout)


def check_machine(machine: str) -> None:
    answer = elsewhere(machine)
    for prior in INSTALLED:
        stream, decoded = own(prior)
        assert answer["encoded"][prior] == stream.hex(), prior
        assert answer["decoded"][prior] == decoded, prior


@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines_agree(machine: str) -> None:
    check_machine(machine)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SINGLE)
def test_no_single_setting_changes_a_bit(setting: str) -> None:
    check_machine(setting)


@each_prior
def test_the_streams_say_something(prior: str) -> None:
    """Hashes tell streams apart, and the picture that all agree on is the one encoded."""
    stream, decoded = own(prior)
    assert len(stream) == SIZE
    assert len({*decoded, *hashes(stream[: SIZE // 2])}) == 4
    shown, original = np.asarray(dcodec.decode(stream), np.float64), picture(*PRIORS[prior]).astype(np.float64)
    assert ((shown - original) ** 2).mean() < 0.5 * original.var()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@each_prior
def test_cuda_agrees_with_the_cpu(prior: str) -> None:
    """Encoded on either, decoded on the other."""
    stream, decoded = own(prior)
    assert encode(prior, device="cuda").hex() == stream.hex()
    for chunk in (0, 3):
        assert hashes(stream, chunk, "cuda") == decoded


if __name__ == "__main__":
    main()
