"""Which bytes make a .dcx file?  See SPEC.md; this module needs nothing but `struct` and `zlib`.

    header (15 bytes, or more: see `Header`) | payload: range coder's words, big-endian, cut anywhere
"""

import struct
import zlib
from dataclasses import dataclass
from zlib import crc32

MAGIC = b"\x8adx"
VERSION = 10
MAX_SIDE = 4096
PRESETS = ("fast", "psc", "whole")
MAX_PROMPT = 2000  # bytes of UTF-8
MACHINE_SIZE = 4

_STRUCT = struct.Struct(">3sBHH2sBB2sB")
HEADER_SIZE = _STRUCT.size  # of most headers, and of the first part of others
_LONG, _NATIVE, _PROMPT = 8, 1, 2  # bit of the kind; bits of the second part's first byte


class BitstreamError(ValueError):
    """The bytes are no .dcx stream that this decoder can decode; the message says what was found."""


@dataclass(frozen=True)
class Header:
    """All that the decoder is told besides symbols.

    width, height: 1 .. 65536 pixels. gray: one channel instead of three. preset: a name of PRESETS.
    rows: rows of H a step (preset psc), 1 .. 31; 0 for others. prior: first two bytes of the prior's sha256.
    seed: 0 .. 255, key of the shared noise. step: first quantization step, 128 and up: eighths of an
    octave above the preset's own; a multiple of 32 for psc.
    fingerprint: two bytes of a hash of the first step's directions.
    A check byte over all of them ends the first part, so that damage is found before any work.
    rest: the second part, made by `second_part`; empty for exact arithmetic without a prompt. Bytes, as another zlib packs
    them otherwise.
    """

    width: int
    height: int
    gray: bool
    preset: str
    rows: int
    prior: bytes
    seed: int = 0
    step: int = 128
    fingerprint: bytes = b"\0\0"
    rest: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the header."""
        return HEADER_SIZE + len(self.rest)

    @property
    def machine(self) -> bytes:
        """Four bytes that name the only machine whose float arithmetic decodes the stream; empty for exact arithmetic."""
        return _read(self.rest)[0]

    @property
    def prompt(self) -> str:
        """What a text-conditioned prior is told."""
        return _read(self.rest)[1]

    @property
    def guidance(self) -> float:
        """By how much the prompt is exaggerated: 1 for not at all."""
        return _read(self.rest)[2] / 8

    def pack(self) -> bytes:
        """The header bytes; ValueError when a field is out of its range."""
        if not (1 <= self.width <= 65536 and 1 <= self.height <= 65536):
            raise ValueError(f"picture size {self.width}x{self.height} is outside 1..65536")
        if not (0 <= self.seed <= 255 and 128 <= self.step <= 255):
            raise ValueError("seed or step out of range (0..255, 128..255)")
        if self.rows not in (range(1, 32) if self.preset == "psc" else range(1)):
            raise ValueError(f"{self.rows} rows a step do not go with preset {self.preset} (psc: 1..31, others: 0)")
        if len(self.prior) != 2 or len(self.fingerprint) != 2:
            raise ValueError("prior and fingerprint are two bytes each")
        kind = VERSION << 4 | (_LONG if self.rest else 0) | PRESETS.index(self.preset) << 1 | int(self.gray)
        if self.preset == "psc" and self.step % 32:
            raise ValueError("preset psc has a first step of whole multiples of four octaves")
        # so it needs three bits for the step; other presets have no rows
        step = self.rows << 3 | self.step >> 5 if self.preset == "psc" else self.step
        fields = _STRUCT.pack(
            MAGIC, kind, self.width - 1, self.height - 1, self.prior, self.seed, step, self.fingerprint, 0
        )
        return fields[:-1] + bytes([crc32(fields[:-1] + self.rest) & 255]) + self.rest

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Read the header of `data`; BitstreamError when it is not one of this version."""
        if not isinstance(data, bytes):
            raise BitstreamError(f"expected the bytes of a stream, found {type(data).__name__}")
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise BitstreamError("not a .dcx file: it does not start with the bytes 8A 64 78")
        if len(data) < HEADER_SIZE:
            raise BitstreamError(f"{len(data)} bytes are too few for a .dcx header of {HEADER_SIZE}")
        _, kind, width, height, prior, seed, step, fingerprint, check = _STRUCT.unpack_from(data)
        if kind >> 4 != VERSION:
            raise BitstreamError(f".dcx version {kind >> 4} is unknown to this decoder (it reads {VERSION})")
        if kind >> 1 & 3 >= len(PRESETS):
            raise BitstreamError(f"preset {kind >> 1 & 3} is unknown to this decoder")
        rest = _rest(data) if kind & _LONG else b""
        if check != crc32(data[: HEADER_SIZE - 1] + rest) & 255:
            raise BitstreamError("the .dcx header is damaged: its check byte does not fit")
        _read(rest)
        preset = PRESETS[kind >> 1 & 3]
        rows = step >> 3 if preset == "psc" else 0
        if preset == "psc":
            if rows == 0:
                raise BitstreamError("preset psc with 0 rows a step")
            step = (step & 7) << 5
        if step < 128:
            raise BitstreamError(f"first step {step} is finer than the preset's own")
        return cls(width + 1, height + 1, bool(kind & 1), preset, rows, prior, seed, step, fingerprint, rest)


def second_part(machine: bytes = b"", prompt: str = "", guidance: float = 1.0) -> bytes:
    """The second part of a header, for arithmetic of one machine or a prompt; empty for neither.

    machine: MACHINE_SIZE bytes or none. prompt: at most MAX_PROMPT bytes of UTF-8. guidance: 0 .. 31.875, in eighths.
    Raises ValueError for others.
    """
    text, eighths = prompt.encode(), round(guidance * 8)
    if len(machine) not in (0, MACHINE_SIZE):
        raise ValueError(f"machine is {MACHINE_SIZE} bytes or none")
    if len(text) > MAX_PROMPT:
        raise ValueError(f"the prompt has {len(text)} bytes, the limit is {MAX_PROMPT}")
    if not 0 <= eighths <= 255 or (eighths != 8 and not prompt):
        raise ValueError("guidance is 0 .. 31.875 and goes with a prompt")
    body = machine
    if prompt:
        deflate = zlib.compressobj(9, wbits=-15)
        body += bytes([eighths]) + deflate.compress(text) + deflate.flush()
    flags = (_NATIVE if machine else 0) | (_PROMPT if prompt else 0)
    return struct.pack(">HB", 1 + len(body), flags) + body if flags else b""


def _rest(data: bytes) -> bytes:
    """The second part of a long header, its length included."""
    start = data[HEADER_SIZE : HEADER_SIZE + 2]
    end = HEADER_SIZE + 2 + int.from_bytes(start, "big")
    if len(start) < 2 or len(data) < end:
        raise BitstreamError(f"{len(data)} bytes are too few for this .dcx header")
    return data[HEADER_SIZE:end]


def _read(rest: bytes) -> tuple[bytes, str, int]:
    """Machine, prompt and guidance (eighths) of a second part; BitstreamError when it is none."""
    flags, body = (rest[2] if len(rest) > 2 else 0), rest[3:]
    if flags not in range(1, 4) and rest:
        raise BitstreamError("the .dcx header has fields that are unknown to this decoder")
    machine, body = (body[:MACHINE_SIZE], body[MACHINE_SIZE:]) if flags & _NATIVE else (b"", body)
    if not flags & _PROMPT:
        if body or len(machine) not in (0, MACHINE_SIZE):
            raise BitstreamError("the .dcx header is damaged: its second part has another length")
        return machine, "", 8
    try:
        inflate = zlib.decompressobj(wbits=-15)
        text = inflate.decompress(body[1:], MAX_PROMPT + 1)
        if not text or len(text) > MAX_PROMPT or not inflate.eof or inflate.unused_data:
            raise ValueError("wrong length")
        return machine, text.decode(), body[0]
    except (ValueError, zlib.error) as error:
        raise BitstreamError(f"the .dcx header is damaged: its prompt cannot be read ({error})") from error

