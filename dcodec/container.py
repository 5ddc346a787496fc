"""Which bytes make a .dcx file?  See SPEC.md; this module needs nothing but `struct` and `zlib`.

    header (15 bytes) | payload: range coder's words, big-endian, cut anywhere
"""

import struct
from dataclasses import dataclass
from zlib import crc32

MAGIC = b"\x8adx"
VERSION = 3
MAX_SIDE = 4096
PRESETS = ("fast", "psc", "whole")

_STRUCT = struct.Struct(">3sBHH2sBB2sB")
HEADER_SIZE = _STRUCT.size


class BitstreamError(ValueError):
    """The bytes are no .dcx stream that this decoder can decode; the message says what was found."""


@dataclass(frozen=True)
class Header:
    """All that the decoder is told besides symbols.

    width, height: 1 .. 65536 pixels. gray: one channel instead of three. preset: a name of PRESETS.
    rows: rows of H a step (preset psc), 1 .. 31; 0 for others. prior: first two bytes of the prior's sha256.
    seed: 0 .. 255, key of the shared noise. step: first quantization step, 128 and up: eighths of an
    octave above the preset's own.
    fingerprint: two bytes of a hash of the first step's directions.
    A check byte over all of them ends the header, so that damage is found before any work.
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
        kind = VERSION << 4 | PRESETS.index(self.preset) << 1 | int(self.gray)
        # psc needs no finer step than an octave (3 bits), others no rows
        step = self.rows << 3 | self.step >> 5 if self.preset == "psc" else self.step
        fields = _STRUCT.pack(
            MAGIC, kind, self.width - 1, self.height - 1, self.prior, self.seed, step, self.fingerprint, 0
        )
        return fields[:-1] + bytes([crc32(fields[:-1]) & 255])

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """Read the header of `data`; BitstreamError when it is not one of this version."""
        if not MAGIC.startswith(data[: len(MAGIC)]):
            raise BitstreamError("not a .dcx file: it does not start with the bytes 8A 64 78")
        if len(data) < HEADER_SIZE:
            raise BitstreamError(f"{len(data)} bytes are too few for a .dcx header of {HEADER_SIZE}")
        _, kind, width, height, prior, seed, step, fingerprint, check = _STRUCT.unpack_from(data)
        if kind >> 4 != VERSION:
            raise BitstreamError(f".dcx version {kind >> 4} is unknown to this decoder (it reads {VERSION})")
        if kind >> 1 & 7 >= len(PRESETS):
            raise BitstreamError(f"preset {kind >> 1 & 7} is unknown to this decoder")
        if check != crc32(data[: HEADER_SIZE - 1]) & 255:
            raise BitstreamError("the .dcx header is damaged: its check byte does not fit")
        preset = PRESETS[kind >> 1 & 7]
        rows = step >> 3 if preset == "psc" else 0
        if preset == "psc":
            if rows == 0:
                raise BitstreamError("preset psc with 0 rows a step")
            step = (step & 7) << 5
        if step < 128:
            raise BitstreamError(f"first step {step} is finer than the preset's own")
        return cls(width + 1, height + 1, bool(kind & 1), preset, rows, prior, seed, step, fingerprint)
