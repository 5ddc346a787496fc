"""Are bytes and pixels still those of the first release?

`golden/make.py` wrote them. A difference means that old files decode wrongly now: a bug, or a new version of the format.
"""

import json
from hashlib import sha256

import pytest
from golden import make

from dcodec.container import Header
from dcodec.prior import catalog

TABLE = json.loads(make.TABLE.read_text())
each = pytest.mark.parametrize("name", make.CASES)


def stream(name: str) -> bytes:
    return (make.HERE / f"{name}.dcx").read_bytes()


def test_the_table_is_complete() -> None:
    assert sorted(TABLE) == sorted(make.CASES)
    assert sorted(path.stem for path in make.HERE.glob("*.dcx")) == sorted(make.CASES)


@each
def test_encode_gives_these_bytes(name: str) -> None:
    shape, _ = make.CASES[name]
    assert sha256(make.picture(*shape).tobytes()).hexdigest() == TABLE[name]["picture"]
    assert make.encode(name).hex() == stream(name).hex()


@each
def test_decode_gives_these_pixels(name: str) -> None:
    assert make.decode(stream(name)) == {key: value for key, value in TABLE[name].items() if key != "picture"}


def test_header_bytes() -> None:
    """Every field where SPEC.md says, as literal bytes; the streams' headers begin alike."""
    fast = Header(640, 480, False, "fast", 0, b"\xaa\xbb", seed=7, step=130, fingerprint=b"\xcc\xdd")
    assert fast.pack().hex(" ") == "8a 64 78 a0 02 7f 01 df aa bb 07 82 cc dd ce"
    psc = Header(1, 65536, True, "psc", 5, b"\xaa\xbb", seed=255, step=128, fingerprint=b"\xcc\xdd")
    assert psc.pack().hex(" ") == "8a 64 78 a3 00 00 ff ff aa bb ff 2c cc dd 30"
    gaussian = catalog.find("gaussian").digest[:2].hex(" ")
    assert stream("fast-colour")[:12].hex(" ") == f"8a 64 78 a0 00 27 00 1b {gaussian} 00 80"
    assert stream("psc-colour")[:12].hex(" ") == f"8a 64 78 a2 00 03 00 04 {gaussian} ff 2c"
    assert gaussian == "1b f8"
