"""Is the network the same integers everywhere: for every kernel, batch, thread count and instruction set?

The references here are numpy with int64 sums, written from the definitions and sharing no code with the package.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from dcodec.exact import conv as exact
from dcodec.exact.conv import BLOCK, KERNEL_VARIABLE, KERNELS, Conv, choose, to_u8
from dcodec.prior import SIGMAS
from dcodec.prior.network import Body, ending
from dcodec.train import model
from dcodec.train import quantize as training
from dcodec.train.balance import balance

ROOT = Path(__file__).parent.parent
PHOTO = ROOT / "dcodec" / "prior" / "photo.safetensors"
CPU = torch.device("cpu")
WIDTHS = (8, 16, 24)  # of the tiny network
FINER = (16, 16, 16, 24)  # of one with a finer stage before these
TINY_GOLDEN = "31ce40cd40a2b06c464a7cead88137439f77985e44a4c593dfd51286af27ba77"  # at level 88

Ints = NDArray[np.int64]
needs_photo = pytest.mark.skipif(not PHOTO.exists(), reason="the weights photo.safetensors are not in this checkout")
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


# One layer


def reference_sum(x: Ints, weight: Ints, bias: Ints, stride: int, padding: int) -> Ints:
    """x (B, I, h, w), weight (O, I, k, k), bias (O,) -> (B, O, h', w')."""
    size = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bihwyx,oiyx->bohw", windows, weight) + bias[:, None, None]


def reference_relu(acc: Ints, shift: Ints) -> NDArray[np.uint8]:
    """clamp(round_half_even(acc * 2^-shift), 0, 255) in integers, shift >= 1."""
    s = shift[:, None, None]
    whole, rest, half = acc >> s, acc & ((1 << s) - 1), 1 << (s - 1)
    up = (rest > half) | ((rest == half) & (whole & 1 == 1))
    return np.clip(whole + up, 0, 255).astype(np.uint8)


def check_layer(conv: Conv, x: torch.Tensor, level: int = 0) -> None:
    shift = conv.shift.long().numpy()
    acc = reference_sum(
        x.long().numpy(), conv.weight.long().numpy(), conv.bias[level].long().numpy(), conv.stride, conv.padding
    )
    raw = conv.raw(x, level)
    assert raw.dtype == torch.float32
    np.testing.assert_array_equal(raw.double().numpy(), np.ldexp(acc.astype(np.float64), -shift[:, None, None]))
    relu = conv.relu(x, level)
    assert relu.dtype == torch.uint8
    np.testing.assert_array_equal(relu.numpy(), reference_relu(acc, shift))


@every_kernel
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (3, 1, 0), (2, 2, 0), (1, 1, 0)])
def test_layer_matches_int64(
    kernel: str, size: int, stride: int, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    rng = np.random.RandomState(size + 10 * padding)
    for inputs, outputs, height, width in ((3, 5, 6, 4), (40, 24, 12, 8), (96, 48, 4, 10)):
        for largest in (1, 64):
            conv = Conv(
                torch.from_numpy(rng.randint(-largest, largest + 1, (outputs, inputs, size, size))).to(torch.int8),
                torch.from_numpy(rng.randint(-3000, 3000, (2, outputs))),
                torch.from_numpy(rng.randint(1, 4 if largest == 1 else 14, outputs)),
                stride,
                padding,
            )
            for batch, grow in ((1, 0), (3, 0), (2, 6)):  # one layer object, other shapes than it began with
                x = torch.from_numpy(rng.randint(0, 256, (batch, inputs, height + grow, width + grow)))
                check_layer(conv, x.to(torch.uint8), level=batch % 2)


@every_kernel
@pytest.mark.parametrize("sign", [-1, 1])
def test_layer_at_the_edge_of_exactness(kernel: str, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    weight = torch.full((16, 112, 3, 3), sign * 64, dtype=torch.int8)
    spare = 2**24 - 1 - 255 * 64 * 112 * 9
    shift = torch.arange(1, 17)
    x = torch.full((2, 112, 6, 6), 255, dtype=torch.uint8)
    check_layer(Conv(weight, torch.full((1, 16), sign * spare), shift, padding=1), x)
    with pytest.raises(ValueError, match="below 2\\^24"):
        Conv(weight, torch.full((1, 16), sign * (spare + 1)), shift, padding=1)


def test_layer_refuses_what_it_cannot_do_exactly() -> None:
    weight, bias, shift = (
        torch.ones(4, 2, 3, 3, dtype=torch.int8),
        torch.zeros(1, 4, dtype=torch.int32),
        torch.ones(4).int(),
    )
    Conv(weight, bias, shift)
    for arguments in (
        (weight.float(), bias, shift),
        (weight * 65, bias, shift),
        (weight * -128, bias, shift),
        (weight, bias[0], shift),
        (weight, bias.float(), shift),
        (weight, bias, shift[:3]),
        (weight, bias, shift * 65),
    ):
        with pytest.raises(ValueError, match="must be"):
            Conv(*arguments)


@pytest.mark.parametrize("kernel", ["float32", "unfold"])
def test_layer_ignores_the_callers_precision_settings(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    rng = np.random.RandomState(0)
    weight = torch.from_numpy(rng.randint(-64, 65, (16, 32, 3, 3))).to(torch.int8)
    conv = Conv(weight, torch.from_numpy(rng.randint(-999, 999, (1, 16))), torch.full((16,), 9), padding=1)
    x = torch.from_numpy(rng.randint(0, 256, (16, 32, 16, 16))).to(torch.uint8)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check_layer(conv, x)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch._C._set_mkldnn_enabled(False)  # then batches of 16 go to NNPACK's Winograd, which rounds
    try:
        check_layer(conv, x)
    finally:
        torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (3, 1, 0), (2, 2, 0), (3, 2, 1)])
@pytest.mark.parametrize("most", [1, 3000, 20000])
def test_windows_a_strip_at_a_time(size: int, stride: int, padding: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of results at a time, some rows, and some pictures."""
    rng = np.random.RandomState(0)
    weight = torch.from_numpy(rng.randint(-64, 65, (5, 7, size, size))).to(torch.int8)
    conv = Conv(weight, torch.from_numpy(rng.randint(-999, 999, (1, 5))), torch.full((5,), 9), stride, padding)
    monkeypatch.setenv(KERNEL_VARIABLE, "unfold")
    monkeypatch.setattr(exact, "WINDOW_NUMBERS", most)
    check_layer(conv, torch.from_numpy(rng.randint(0, 256, (5, 7, 11, 14))).to(torch.uint8))


def test_rounding_to_u8() -> None:
    x = np.concatenate([np.arange(-600, 1200) / 4, [-1e30, 1e30, 0.49999997, 0.50000006, 254.49998]]).astype(np.float32)
    for exponent in (-5, 0, 3):
        scaled = np.ldexp(x, exponent).astype(np.float32)
        expected = np.clip(np.rint(x), 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(to_u8(torch.from_numpy(scaled), exponent).numpy(), expected)


def test_rounding_to_u8_a_cacheful_at_a_time() -> None:
    x = 150 * torch.randn(2, 48, 61, 37, generator=torch.Generator().manual_seed(0))
    assert x.numel() > BLOCK
    for layout in (torch.contiguous_format, torch.channels_last):
        y = to_u8(x.contiguous(memory_format=layout), 0)
        assert y.is_contiguous(memory_format=layout)
        assert torch.equal(y, x.round().clamp(0, 255).to(torch.uint8))
        assert torch.equal(to_u8(x.contiguous(memory_format=layout), 0, 128.0), (x + 128).round().clamp(0, 255).to(torch.uint8))
    assert torch.equal(to_u8(x[:, :, ::2, 1:], 0), y[:, :, ::2, 1:])


def _broken(*_: object) -> torch.Tensor:
    raise RuntimeError("no such operator")


def _off_by_one(conv: Conv, x: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = KERNELS["unfold"](conv, x, offset, dtype).clone()
    y[0, 0, 0, 0] += conv._scale[0].to(dtype)
    return y


@pytest.mark.parametrize("kernel", [_broken, _off_by_one])
def test_a_kernel_that_fails_its_test_is_not_chosen(
    kernel: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "KERNELS", KERNELS | {"onednn": kernel})
    assert choose.__wrapped__(CPU) == "float32"
    monkeypatch.setattr(exact, "KERNELS", dict.fromkeys(KERNELS, kernel))
    with pytest.raises(RuntimeError, match="no convolution kernel is exact"):
        choose.__wrapped__(CPU)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="DCODEC_KERNEL must be one of"):
        choose(CPU, "winograd")


# The whole network


def tiny_tensors(steps: int = 0, widths: tuple[int, ...] = WIDTHS) -> dict[str, torch.Tensor]:
    """A network of random integers, of residual blocks or of ODEs in some steps; the same everywhere: RandomState is frozen."""
    rng = np.random.RandomState(0)
    tensors = {}

    def layer(name: str, outputs: int, inputs: int, size: int, gain: int, levels: int = 1) -> None:
        weight = rng.randint(-64, 65, (outputs, inputs, size, size))
        tensors[f"{name}.weight"] = torch.from_numpy(weight).to(torch.int8)
        tensors[f"{name}.bias"] = torch.from_numpy(rng.randint(-20000, 20000, (levels, outputs)))
        shift = math.ceil(math.log2(inputs * size * size)) // 2 + gain
        tensors[f"{name}.shift"] = torch.from_numpy(rng.randint(shift - 1, shift + 2, outputs)).to(torch.int8)
        tensors[f"{name}.exponent"] = torch.tensor(-4, dtype=torch.int8)

    def blocks(name: str, width: int) -> None:
        if steps:
            layer(f"{name}.0.v", width, width, 1, 12)
            layer(f"{name}.0.a", width, width, 3, 7, steps * len(SIGMAS))
            layer(f"{name}.0.b", width, width, 3, 12, steps)
            tensors[f"{name}.0.exponent"] = torch.tensor(-5, dtype=torch.int8)
            return
        for i in range(2):
            layer(f"{name}.{i}.a", width, width, 3, 7, len(SIGMAS))
            layer(f"{name}.{i}.b", width, width, 3, 12)
            tensors[f"{name}.{i}.exponent"] = torch.tensor(-5 + i, dtype=torch.int8)

    for i in range(len(widths) - 2):  # one stage that reads and writes, or two
        name, patch = ending("inp", i), 16 >> (len(widths) - 1 - i)
        layer(name, widths[i], 6 * patch**2, 3, 16)
        tensors[f"{name}.exponent"] = torch.tensor(-11, dtype=torch.int8)
        tensors[f"{name}.fine"] = torch.from_numpy(rng.randint(-64, 65, (widths[i], 6 * patch**2, 3, 3))).to(torch.int8)
    for i, width in enumerate(widths):
        blocks(f"down.{i}", width)
    for i, (fine, coarse) in enumerate(zip(widths, widths[1:], strict=False)):
        layer(f"narrow.{i}", coarse, fine, 2, 10)
        layer(f"widen.{i}", 4 * fine, coarse, 1, 10)
        blocks(f"up.{i}", fine)
    for i in range(len(widths) - 2):
        name, patch = ending("out", i), 16 >> (len(widths) - 1 - i)
        layer(name, 3 * patch**2, widths[i], 3, 5)
        tensors[f"{name}.gain"] = torch.from_numpy((rng.randint(1, 1000, 3 * patch**2) / 300).astype(np.float32))
    return tensors


def reference_body(tensors: dict[str, torch.Tensor], inp: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    """The network from its definition: int64 sums, and a float32 stream of single operations."""

    def values(name: str) -> Ints:
        return tensors[name].long().numpy()

    def exponent(name: str) -> int:
        return int(tensors[f"{name}.exponent"])

    def raw(name: str, x: Ints, stride: int = 1, padding: int = 0, step: int = 0) -> NDArray[np.float32]:
        acc = reference_sum(x, values(f"{name}.weight"), values(f"{name}.bias")[step], stride, padding)
        return np.ldexp(acc, -values(f"{name}.shift")[:, None, None]).astype(np.float32)

    def read(x: NDArray[np.float32], k: int, least: int) -> Ints:
        above = x + np.float32(math.ldexp(-least, k))  # a float32 sum, which rounds where x is small
        return np.clip(np.rint(np.ldexp(above, -k)), 0, 255).astype(np.int64) + least

    def push(name: str, x: NDArray[np.float32], step: int = 0) -> NDArray[np.float32]:
        u = read(x, exponent(name), 0)
        acc = reference_sum(u, values(f"{name}.a.weight"), values(f"{name}.a.bias")[step * len(SIGMAS) + level], 1, 1)
        h = reference_relu(acc, values(f"{name}.a.shift")).astype(np.int64)
        return raw(f"{name}.b", h, padding=1, step=step)

    def blocks(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        if f"{name}.0.v.weight" not in tensors:
            for i in range(2):
                x = x + push(f"{name}.{i}", x)
            return x
        v = raw(f"{name}.0.v", read(x, exponent(f"{name}.0.v"), -128))
        for step in range(len(tensors[f"{name}.0.b.bias"])):
            v = v + push(f"{name}.0", x, step)
            x = x + v
        return x

    def shuffle(x: NDArray[np.float32], n: int) -> NDArray[np.float32]:
        b, c, h, w = x.shape
        x = x.reshape(b, c // (n * n), n, n, h, w).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(b, c // (n * n), n * h, n * w)

    def seen(name: str, n: int) -> NDArray[np.float32]:
        b, c, h, w = inp.shape
        v = np.clip(np.rint(np.ldexp(inp, -exponent(name))), -(2**15), 2**15 - 1).astype(np.int64)
        v = v.reshape(b, c, h // n, n, w // n, n).transpose(0, 1, 3, 5, 2, 4).reshape(b, c * n * n, h // n, w // n)
        high, low, none = v >> 8, v & 255, np.zeros_like(values(f"{name}.shift"))
        shift = -values(f"{name}.shift")[:, None, None]
        terms = (
            (high, f"{name}.weight", none, 8),
            (high, f"{name}.fine", none, 1),  # 2^8 for the byte, 2^-7 for the weight
            (low, f"{name}.weight", values(f"{name}.bias")[0], 0),
        )
        x, fine, last = (
            np.ldexp(reference_sum(u, values(name), bias, 1, 1), shift + more).astype(np.float32)
            for u, name, bias, more in terms
        )
        return (x + fine) + last

    coarsest = sum(key.startswith("narrow.") and key.endswith(".weight") for key in tensors)
    x, skips = seen("inp", 16 >> coarsest), []
    for i in range(coarsest + 1):
        if i and f"inp.{i}.weight" in tensors:
            x = x + seen(f"inp.{i}", 16 >> (coarsest - i))
        x = blocks(f"down.{i}", x)
        if i < coarsest:
            skips.append(x)
            x = raw(f"narrow.{i}", read(x, exponent(f"narrow.{i}"), -128), stride=2)
    y = np.zeros((), np.float32)
    for i in reversed(range(coarsest)):
        x = skips.pop() + shuffle(raw(f"widen.{i}", read(x, exponent(f"widen.{i}"), -128)), 2)
        x = blocks(f"up.{i}", x)
        name = ending("out", i)
        if f"{name}.weight" in tensors:
            u = read(x, exponent(name), 0)
            written = raw(name, u, padding=1)
            if f"{name}.fine" in tensors:
                none = np.zeros_like(values(f"{name}.shift"))
                rest = reference_sum(u, values(f"{name}.fine"), none, 1, 1)
                written = written + np.ldexp(rest, -values(f"{name}.shift")[:, None, None] - 5).astype(np.float32)
            y = y + shuffle(written * tensors[f"{name}.gain"].numpy()[:, None, None], 16 >> (coarsest - i))
    return y


def pictures(batch: int, height: int, width: int) -> torch.Tensor:
    """Network inputs (B, 6, h, w), among them values that are clipped; the first are the same for every B."""
    rng = np.random.RandomState(1)
    return torch.from_numpy(rng.randint(-36000, 36000, (batch, 6, height, width)).astype(np.float32) / 2100)


def digest(y: torch.Tensor) -> str:
    return sha256(y.contiguous().numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def photo() -> Body:
    return Body.load(load_file(PHOTO))


@every_kernel
def test_tiny_network_matches_int64(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    tensors, inp = tiny_tensors(), pictures(2, 32, 48)
    for level in (0, 88):
        expected = reference_body(tensors, inp.numpy(), level)
        assert expected.std() > 1
        y = Body.load(tensors)(inp, level)
        assert y.dtype == torch.float32
        np.testing.assert_array_equal(y.numpy(), expected)
    assert digest(y) == TINY_GOLDEN


@every_kernel
def test_a_tiny_network_with_a_finer_stage_matches_int64(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    tensors, inp, generator = tiny_tensors(widths=FINER), pictures(2, 32, 48), torch.Generator().manual_seed(0)
    for name in ("out", "out.1"):
        fine = torch.randint(-16, 17, tensors[f"{name}.weight"].shape, generator=generator)
        tensors[f"{name}.fine"] = fine.to(torch.int8)
    coarser_alone = tensors | {"out.gain": torch.zeros(12)}
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("out") or not name.endswith(".fine")}
    for level in (0, 88):
        expected = reference_body(tensors, inp.numpy(), level)
        assert np.isfinite(expected).all()
        assert expected.std() > 1
        np.testing.assert_array_equal(Body.load(tensors)(inp, level).numpy(), expected)
        assert reference_body(coarser_alone, inp.numpy(), level).std() > 1
        assert (reference_body(without, inp.numpy(), level) != expected).any()


@every_kernel
def test_a_tiny_network_of_odes_matches_int64(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    tensors, inp = tiny_tensors(steps=3), pictures(2, 32, 48)
    for level in (0, 88):
        expected = reference_body(tensors, inp.numpy(), level)
        assert np.isfinite(expected).all()
        assert expected.std() > 1
        np.testing.assert_array_equal(Body.load(tensors)(inp, level).numpy(), expected)
    with pytest.raises(ValueError, match=r"."):
        Body.load(tensors | {"up.0.0.a.bias": tensors["up.0.0.a.bias"][:-1]})


@needs_photo
@every_kernel
def test_batches_do_not_matter(photo: Body, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL_VARIABLE, kernel)
    inp = pictures(8, 32, 48)
    together = photo(inp, 40)
    for size in (1, 3):
        assert digest(torch.cat([photo(part, 40) for part in inp.split(size)])) == digest(together)


@needs_photo
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "unfold"])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 16), (8, 32, 16), (2, 16, 96), (1, 48, 32), (3, 16, 16)])
def test_narrow_pictures_do_not_matter(
    photo: Body, kernel: str, batch: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coarse maps one or two numbers wide: kernels of processors with AMX had them wrong."""
    found = []
    for name in (kernel, "unfold"):
        monkeypatch.setenv(KERNEL_VARIABLE, name)
        found.append(digest(photo(pictures(batch, height, width), 8)))
    assert found[0] == found[1]


@needs_photo
def test_threads_and_memory_layout_do_not_matter(photo: Body) -> None:
    inp, before, digests = pictures(3, 32, 48), torch.get_num_threads(), set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = digest(photo(inp, 40))
            assert digest(photo(inp.contiguous(memory_format=torch.channels_last), 40)) == y
            assert digest(torch.cat([photo(one, 40) for one in inp.split(1)])) == y
            digests.add(y)
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


@needs_photo
@pytest.mark.gpu
def test_cuda_does_not_matter(photo: Body) -> None:
    inp = pictures(3, 32, 48)
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        assert digest(photo.to("cuda")(inp.cuda(), 40).cpu()) == digest(photo(inp, 40))


def fingerprint() -> str:
    """One digest for each kernel, of the photo network on two sizes."""
    body, lines = Body.load(load_file(PHOTO)), []
    for kernel in KERNELS:
        os.environ[KERNEL_VARIABLE] = kernel
        lines.append(digest(body(pictures(3, 32, 48), 40)) + digest(body(pictures(1, 64, 16), 8)))
    return " ".join(lines)


@needs_photo
@pytest.mark.parametrize(
    ("onednn", "aten"), [("SSE41", "default"), ("AVX2", "avx2"), ("AVX512_CORE", "avx512"), ("DEFAULT", "")]
)
def test_instruction_sets_do_not_matter(photo: Body, onednn: str, aten: str) -> None:
    known = ["default", "avx2", "avx512"]
    best = torch.backends.cpu.get_cpu_capability().lower()
    if aten and known.index(aten) > (known.index(best) if best in known else 0):
        pytest.skip(f"this processor has no {aten}")
    settings = {"ONEDNN_MAX_CPU_ISA": onednn, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if aten:
        settings["ATEN_CPU_CAPABILITY"] = aten
    process = subprocess.run(
        [sys.executable, __file__], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    one = digest(photo(pictures(3, 32, 48), 40)) + digest(photo(pictures(1, 64, 16), 8))
    assert process.stdout.split() == [one] * len(KERNELS)


PACKED = """
import torch
from safetensors.torch import load_file
from dcodec.prior.network import Body
body = Body.load(load_file({path!r}))
for side in (32, 64, 32):
    inp = torch.zeros(3, 6, side, side)
    body(inp, 8)
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        body(inp, 8)
"""


@needs_photo
@pytest.mark.skipif(choose(torch.device("cpu")) != "onednn", reason="oneDNN's int8 kernels are not exact here")
def test_weights_are_packed_once_for_each_size() -> None:
    """By oneDNN's own account: packed for another size, small layers took VNNI a hundred times as long as their sums."""
    settings = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PACKED.format(path=str(PHOTO))], env=os.environ | settings, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    done = [line for line in process.stdout.splitlines() if ",exec,cpu," in line]
    assert sum(",convolution," in line for line in done) > 3 * 30
    assert not [line for line in done if ",reorder," in line]


def test_bad_calls_and_bad_tensors_are_refused() -> None:
    tensors = tiny_tensors()
    body = Body.load(tensors)
    inp = pictures(1, 16, 16)
    for arguments in ((inp.double(), 0), (inp[:, :3], 0), (inp[..., :8], 0), (inp, 89), (inp, -1)):
        with pytest.raises(ValueError, match="expected float32|must be"):
            body(*arguments)
    with pytest.raises(KeyError):
        Body.load({key: value for key, value in tensors.items() if key != "up.0.1.b.shift"})
    for layer in ("inp", "out"):
        with pytest.raises(KeyError):
            Body.load({key: value for key, value in tensors.items() if not key.startswith(f"{layer}.")})
    for widths in ((8, 8), (8, 8, 8, 8, 8)):
        with pytest.raises(ValueError, match="resolutions, not 3 or 4"):
            Body.load(tiny_tensors(widths=widths))
    for key, value in (
        ("down.0.0.a.weight", tensors["down.1.0.a.weight"]),
        ("down.0.0.a.bias", tensors["down.0.0.a.bias"][:5]),
        ("inp.exponent", torch.zeros(2)),
        ("out.gain", torch.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"."):
            Body.load(tensors | {key: value})


def float_network(arch: str, widths: tuple[int, ...], generator: torch.Generator) -> model.State:
    """Random weights, those that begin at zero too."""
    state = model.fresh(3, widths, arch)
    for name, weight in state.items():
        if name.endswith((".bias", ".t")):
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        elif not weight.any():
            size = 0.3 if name.endswith(".g") else (0.5 / math.prod(weight.shape[1:])) ** 0.5
            weight += size * torch.randn(weight.shape, generator=generator)
    return state


@pytest.mark.parametrize("widths", [WIDTHS, FINER])
@pytest.mark.parametrize("arch", model.ARCHITECTURES)
def test_balancing_evens_the_reach_of_channels_and_changes_nothing_else(arch: str, widths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = float_network(arch, widths, generator)
    levels = torch.arange(0, len(SIGMAS), 8)
    inp = torch.randn((len(levels), 6, 32, 32), generator=generator)
    unevenness: list[list[float]] = []

    def watch(stage: int, x: torch.Tensor) -> None:
        unevenness[-1].append(float(x.relu().transpose(0, 1).flatten(1).amax(1).clamp_min(1e-3).log().std()))

    outputs = []
    for weights in (state, balance(state, inp, levels)):
        unevenness.append([])
        outputs.append(model.body(weights, inp, levels, watch))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4 * float(outputs[0].abs().max()))
    before, after = map(sum, unevenness)
    assert after < 0.9 * before


@pytest.mark.parametrize("widths", [WIDTHS, FINER])
@pytest.mark.parametrize("arch", model.ARCHITECTURES)
def test_a_quantized_float_network_computes_nearly_the_same(arch: str, widths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = float_network(arch, widths, generator)
    levels = torch.arange(2 * len(SIGMAS)) % len(SIGMAS)
    inp = torch.randn((len(levels), 6, 32, 32), generator=generator)
    body = Body.load(training.quantize(state, inp, levels))
    for level in (0, 44, 88):
        fresh = torch.randn((4, 6, 32, 32), generator=generator)
        true = model.body(state, fresh, torch.full((4,), level))
        error = (body(fresh, level) - true).square().mean() / true.square().mean()
        assert error < 10**-2.5  # 25 dB


@pytest.mark.parametrize("widths", [WIDTHS, FINER])
def test_weights_that_write_to_the_picture_keep_twelve_bits(widths: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = float_network("unet", widths, generator)
    levels = torch.arange(len(SIGMAS))
    inp = torch.randn((len(levels), 6, 32, 32), generator=generator)
    tensors, state = training.quantize(state, inp, levels), balance(state, inp, levels)
    for name in ["out"] if widths == WIDTHS else ["out", "out.1"]:
        grid = tensors[f"{name}.gain"].view(-1, 1, 1, 1) * 2.0 ** -int(tensors[f"{name}.exponent"])
        kept = (tensors[f"{name}.weight"] + tensors[f"{name}.fine"] * 2.0**-5) * grid
        error = (kept - state[f"{name}.weight"]).abs().flatten(1).amax(1) / state[f"{name}.weight"].abs().flatten(1).amax(1)
        assert error.max() < 2.0**-11


if __name__ == "__main__":
    print(fingerprint())
