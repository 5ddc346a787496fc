"""Does damage of any kind end in a picture or in a BitstreamError, soon, and in nothing else?"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from conftest import Draw
from PIL import Image

import dcodec
from dcodec.container import HEADER_SIZE, MAGIC, PRESETS, Header
from dcodec.prior.gaussian import GaussianPrior
from dcodec.state import Setting
from dcodec.stream import states

SECONDS = 2  # of processor time, that damage may take to be found
MEMORY = 3 << 30  # bytes more than there are now


class TooSlow(BaseException):
    """Not an Exception, so that nothing mistakes it for damage."""


@contextmanager
def limits() -> Iterator[None]:
    """A deadline for each decoding, in processor time so that busy machines do not matter, and a bound on memory."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TooSlow

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def outcome(data: bytes) -> str:
    """What decoding comes to: 'image', 'refused', or a complaint."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        image = dcodec.decode(data)
    except dcodec.BitstreamError as error:
        return "refused" if str(error) else "an error that says nothing"
    except TooSlow:
        return f"more than {SECONDS} s"
    except Exception as error:  # whatever it is, it is a bug
        return repr(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    header = Header.unpack(data)
    fits = isinstance(image, Image.Image) and image.size == (header.width, header.height)
    return "image" if fits else f"an image of {image.size}"


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of several kinds of damage; nothing says whether it matters."""
    out = bytearray(data)
    kind = rng.integers(8)
    if kind == 0:  # bits flipped anywhere
        for bit in rng.integers(0, 8 * len(out), rng.integers(1, 4)):
            out[bit // 8] ^= 1 << bit % 8
    elif kind == 1:  # bits flipped in the header
        for bit in rng.integers(8 * len(MAGIC), 8 * HEADER_SIZE, rng.integers(1, 4)):
            out[bit // 8] ^= 1 << bit % 8
    elif kind == 2:  # cut
        out = out[: rng.integers(len(out))]
    elif kind == 3:  # other bytes altogether, half of the time behind the right magic
        out = bytearray(rng.bytes(rng.integers(0, 60)))
        out[: len(MAGIC)] = MAGIC if rng.integers(2) else out[: len(MAGIC)]
    elif kind == 4:  # any bytes in the header
        for at in rng.integers(len(MAGIC), HEADER_SIZE, rng.integers(1, 4)):
            out[at] = rng.integers(256)
    elif kind == 5:  # a header that makes sense, but tells of something else; psc of large pictures may take its time
        preset = PRESETS[rng.integers(2)]
        top = 4 if preset == "psc" else 13
        sides = {name: int(2 ** rng.uniform(1, top)) for name in ("width", "height") if rng.integers(2)}
        rows, step = int(rng.integers(1, 32)), int(rng.integers(128, 256))
        rows, step = (rows, step - step % 32) if preset == "psc" else (0, step)
        header = replace(
            Header.unpack(data), **sides, preset=preset, rows=rows, gray=bool(rng.integers(2)), seed=int(rng.integers(256)),
            step=step,
        )  # fmt: skip
        out[:HEADER_SIZE] = header.pack()
    elif kind == 6:  # more bytes behind
        out += rng.bytes(rng.integers(1, 25))
    else:  # another payload
        out[HEADER_SIZE:] = rng.bytes(rng.integers(0, 25))
    return bytes(out)


def check(streams: list[bytes], count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    complaints: dict[str, str] = {}
    seen = {"image": 0, "refused": 0}
    with limits():
        for i in range(count):
            data = mutate(streams[i % len(streams)], rng)
            result = outcome(data)
            if result in seen:
                seen[result] += 1
            else:
                complaints[data.hex()] = result
            if len(complaints) == 4:
                break
    assert not complaints, "\n".join(f"{what}: {data}" for data, what in complaints.items())
    assert min(seen.values()) > count // 8  # both kinds were met


@pytest.fixture(scope="module")
def streams(draw: Draw) -> list[bytes]:
    """Small ones of either preset, in colour and gray."""
    return [
        dcodec.encode(draw(3, 8, 7), size=28, prior="gaussian"),
        dcodec.encode(draw(1, 8, 10), size=24, prior="gaussian"),
        dcodec.encode(draw(1, 6, 5), size=18, prior="gaussian", preset="psc", rows=8),
    ]


@pytest.mark.parametrize(
    ("count", "seed"),
    [(100, 1), *(pytest.param(300 if i == 1 else 500, i, marks=pytest.mark.slow) for i in range(1, 6))],
)  # in parts, for workers to share
def test_damaged_streams(count: int, seed: int, streams: list[bytes]) -> None:
    check(streams, count, seed)


@pytest.mark.parametrize("bit", range(8 * len(MAGIC), 8 * HEADER_SIZE))
def test_every_bit_of_the_header_counts(bit: int, streams: list[bytes]) -> None:
    """A header with one bit flipped is never taken for another picture's: it is refused, and soon."""
    out = bytearray(streams[0])
    out[bit // 8] ^= 1 << bit % 8
    with limits():
        assert outcome(bytes(out)) == "refused"


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"width": 9}, {"height": 9}, {"gray": True}, {"step": 129}, {"step": 255},
     {"preset": "psc", "rows": 3}, {"fingerprint": b"ab"}],
    ids=str,
)  # fmt: skip
def test_a_header_of_another_picture_is_refused(change: dict[str, Any], streams: list[bytes]) -> None:
    """Its check byte fits, so the first step's directions have to tell."""
    header = replace(Header.unpack(streams[0]), **change)
    with limits():
        assert outcome(header.pack() + streams[0][HEADER_SIZE:]) == "refused"
        assert outcome(header.pack()) == "refused"


@pytest.mark.parametrize("step", [0, 96, 127])
def test_a_first_step_finer_than_the_presets_is_refused(step: int, streams: list[bytes]) -> None:
    """Such a walk may end before its first step, or start at full size: no encoder writes it."""
    data = bytearray(streams[0])
    data[11] = step
    data[HEADER_SIZE - 1] = crc32(bytes(data[: HEADER_SIZE - 1])) & 255
    with limits():
        assert outcome(bytes(data)) == "refused"


def test_other_arithmetic_is_refused(streams: list[bytes]) -> None:
    """A prior that computes a little differently, under the right name."""

    class Other(GaussianPrior):
        def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            return super().__call__(x, sigma) * (1 + 2.0**-10)

    header = Header.unpack(streams[0])
    setting = Setting.of(header, Other())
    with pytest.raises(dcodec.BitstreamError, match="first step differs"):
        list(states(streams[0], header, setting, [len(streams[0])]))
    honest = Setting.of(header, GaussianPrior())
    assert len(list(states(streams[0], header, honest, [len(streams[0])]))) == 1


def test_damage_in_the_payload_is_no_error(streams: list[bytes]) -> None:
    """Any payload is a picture: a range coder has no wrong bits."""
    rng = np.random.default_rng(0)
    with limits():
        for data in streams:
            for _ in range(5):
                assert outcome(data[:HEADER_SIZE] + rng.bytes(len(data) - HEADER_SIZE)) == "image"
