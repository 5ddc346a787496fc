"""Which names does `import dcodec` offer?

All of them load on first use, so that the import itself costs nothing.

    data = dcodec.encode(Image.open("photo.png"), bpp=0.05)     # bytes; any prefix of them is a picture
    dcodec.decode(data).save("mean.png")                        # least squared error
    dcodec.decode(data, estimate="sample").save("sample.png")   # looks real
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcodec.api import decode, decode_many, encode, info, priors, progressive
    from dcodec.container import BitstreamError
    from dcodec.pictures import PictureError

    __version__: str

__all__ = [
    "BitstreamError",
    "PictureError",
    "__version__",
    "decode",
    "decode_many",
    "encode",
    "info",
    "priors",
    "progressive",
]

_HOME = {"BitstreamError": "dcodec.container", "PictureError": "dcodec.pictures"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'dcodec' has no attribute {name!r}")
    home = _HOME.get(name, "dcodec.api")
    value: object = _version() if name == "__version__" else getattr(import_module(home), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dcodec")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.1.0"
