"""How do pictures on disk become arrays, and arrays pictures on disk?

Inside dcodec a picture is float32 `(C, h, w)` in [-1, 1], C = 1 (gray) or 3 (RGB): -1 is black, 1 is white.
This module is the only one that knows of files, Pillow modes, bit depths, transparency and orientation.
Colour profiles are not applied: the numbers in the file are what is coded.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError, features

MAX_SIDE = 4096
STD_WHITE = 0.25  # the standard deviation, in units of the full range, that an uncertainty map shows as white

_GRAY = ("1", "L", "LA", "La")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_KEYED = ("1", "L", "P", "RGB")  # modes that may name one value or colour as transparent
_SAVE: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".gif": ("GIF", {}),
    ".pgm": ("PPM", {}),
    ".ppm": ("PPM", {}),
    ".pnm": ("PPM", {}),
}


class PictureError(ValueError):
    """A picture cannot be used. One line: what was expected, what was found, what to do."""


class OutputError(ValueError):
    """A file cannot be written. One line, like `PictureError`."""


# ------------------------------------------------------------------------------------------- picture -> array


def load(
    source: str | Path | BinaryIO, *, background: str | None = None, max_side: int = MAX_SIDE, name: str = ""
) -> NDArray[np.float32]:
    """Read a picture file: whatever Pillow opens, the first frame, turned as its EXIF orientation says.

    source: a path, or a binary stream that is read to its end. name: what errors call it, where it has no other.
    Returns and options: as `from_image`. Raises PictureError, also for files that are missing or damaged.
    """
    file: str | Path | BinaryIO
    if isinstance(source, (str, Path)):
        name, file = name or os.fspath(source), source
    else:
        name, data = name or str(getattr(source, "name", "input")), source.read()  # Pillow seeks, and a pipe cannot
        if not data:
            raise PictureError(f"{name}: expected a picture, found nothing (0 bytes)")
        file = io.BytesIO(data)
    try:
        with _pillow(), Image.open(file) as image:
            return from_image(image, background=background, max_side=max_side)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error.__cause__


def from_image(
    image: Image.Image, *, background: str | None = None, max_side: int = MAX_SIDE
) -> NDArray[np.float32]:
    """Turn a Pillow image of any mode into an array; its current frame, if there are several.

    background: the colour (a CSS name or hex) that shows through transparent pixels. Without it a picture
    that is not fully opaque is refused.
    max_side: the largest width or height that is accepted.
    Returns float32 (C, h, w) in [-1, 1]: C = 1 for gray modes, else 3. 16-bit gray keeps its precision.
    Raises PictureError.
    """
    backdrop = None if background is None else _colour(background)  # (3, 1, 1); a typo is told in any case
    w, h = image.size
    if not (w and h):
        raise PictureError(f"the picture is empty ({w}x{h}): it needs at least one pixel")
    if max(w, h) > max_side:
        raise PictureError(
            f"{w}x{h} is over the limit of {max_side} pixels a side: shrink the picture or raise the limit "
            f"with --max-side {max(w, h)} (max_side= in Python)"
        )
    with _pillow():
        image.load()  # before the orientation: some formats keep their metadata behind the pixels
        x, alpha = _planes(_upright(image))
    if alpha is None or alpha.min() == 1:
        return x
    if backdrop is None:
        raise PictureError(
            "the picture is partly transparent and the codec has no alpha channel: flatten it over a colour "
            "with --background white (background='white' in Python)"
        )
    if len(x) == 1 and (backdrop == backdrop[0]).all():
        backdrop = backdrop[:1]  # gray over gray stays gray
    return alpha * x + (1 - alpha) * backdrop


def from_array(a: NDArray[Any]) -> NDArray[np.float32]:
    """Turn pixels (h, w), (h, w, 1) or (h, w, 3), uint8 or uint16, into float32 (C, h, w) in [-1, 1].

    Raises PictureError for any other shape or dtype.
    """
    if a.dtype not in (np.uint8, np.uint16):
        raise PictureError(f"expected pixels of uint8 or uint16, found {a.dtype}")
    if a.size == 0 or a.ndim not in (2, 3) or a.shape[2:] not in ((), (1,), (3,)):
        raise PictureError(f"expected pixels of shape (h, w), (h, w, 1) or (h, w, 3), found {a.shape}")
    return _scaled(a if a.ndim == 3 else a[:, :, None], np.iinfo(a.dtype).max)


def _scaled(a: NDArray[Any], white: float) -> NDArray[np.float32]:  # (h, w, C) in [0, white] -> (C, h, w)
    x = a.astype(np.float32) / np.float32(white / 2) - np.float32(1)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def _planes(image: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Colour (C, h, w) in [-1, 1] and opacity (h, w) in [0, 1], None where the mode has no such thing."""
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        values = np.asarray(image)  # (h, w)
        x = _scaled(values[:, :, None], _white(values, image.mode))
        key = image.info.get("transparency")
        return x, None if key is None else (values != key).astype(np.float32)
    gray = image.mode in _GRAY
    if image.mode in _ALPHA or (image.mode in _KEYED and image.has_transparency_data):
        image = image.convert("LA" if gray else "RGBA")
        a = np.asarray(image)  # (h, w, C + 1)
        return _scaled(a[:, :, :-1], 255), a[:, :, -1].astype(np.float32) / np.float32(255)
    return from_array(np.asarray(image.convert("L" if gray else "RGB"))), None


def _white(values: NDArray[Any], mode: str) -> int:
    """The value that means white: modes I and F do not say, so only the usual ranges are taken.

    Floats a little above 1 may be meant for 0..1, and would be black in 0..255: those are not taken either.
    """
    low, high = values.min(), values.max()
    for dark, white in ((0, 1), (16, 255)) if mode == "F" else ((0, 65535),):
        if 0 <= low and dark <= high <= white:  # false for nan
            return white
    wanted = "0..1 or 0..255" if mode == "F" else "0..65535"
    raise PictureError(f"expected values of {wanted}, found {low:g}..{high:g}: convert it to 8 or 16 bits")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF of any kind; the pixels are sound, so show them as they lie
        return image


def _colour(name: str) -> NDArray[np.float32]:
    try:
        rgb = ImageColor.getrgb(name)
    except ValueError:
        raise PictureError(
            f"{name[:40]!r} is not a colour: give a name such as white, or hex such as #808080"
        ) from None
    if rgb[3:] not in ((), (255,)):
        raise PictureError(f"the background {name!r} is itself transparent: give an opaque colour")
    return _scaled(np.array(rgb[:3])[None, None], 255)


@contextmanager
def _pillow() -> Iterator[None]:
    """Whatever goes wrong inside Pillow leaves as one line; its warnings (odd metadata) are of no use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (PictureError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise PictureError("not a picture in any format known here: convert it to PNG first") from error
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"over Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels (a decompression bomb?): shrink the picture"
        ) from error
    except OSError as error:
        if error.filename is not None:  # the file itself: missing, a folder, not readable
            raise PictureError(error.strerror or "cannot be opened") from error
        raise PictureError(f"the picture is cut off or damaged ({_line(error)}): get it again") from error
    except Exception as error:  # decoders meet broken files with errors of every type
        raise PictureError(f"the picture is damaged ({_line(error)}): get it again") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ------------------------------------------------------------------------------------------- array -> picture


def to_image(x: NDArray[Any]) -> Image.Image:
    """Turn (C, h, w) in [-1, 1] into an 8-bit image: mode L for C = 1, RGB for 3; clipped, halves to even.

    Raises ValueError for another shape, or for values that are not finite.
    """
    if x.ndim != 3 or len(x) not in (1, 3) or x.size == 0:
        raise ValueError(f"expected an array (1, h, w) or (3, h, w), found {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("the array has values that are not finite")
    a = np.rint((np.clip(x, -1, 1).astype(np.float64) + 1) * 127.5).astype(np.uint8)
    return Image.fromarray(a[0] if len(a) == 1 else np.ascontiguousarray(a.transpose(1, 2, 0)))


def std_image(std: NDArray[Any]) -> Image.Image:
    """Turn standard deviations (h, w), in units of [-1, 1], into a mode L map, white a quarter of the range.

    Raises ValueError as `to_image`.
    """
    share = std / (2 * STD_WHITE)  # of white; the range from -1 to 1 is 2 wide
    return to_image((2 * share - 1)[None])


def strip(rows: Mapping[str, Sequence[Image.Image]], heads: Sequence[str]) -> Image.Image:
    """Lay pictures out as a labelled table, for looking at: one row per key, one column per head.

    Pictures are all of one size; tiny ones are magnified, and those over 640 pixels a side reduced.
    """
    font, gap = _font(), 6
    table = [[_fit(image) for image in images] for images in rows.values()]
    w, h = table[0][0].size
    line = _text_size(font, "Ag")[1]
    left = max(_text_size(font, key)[0] for key in rows) + 2 * gap
    pitch = max([w, *(_text_size(font, head)[0] for head in heads)]) + gap
    top = line + 2 * gap
    sheet = Image.new("RGB", (left + pitch * len(heads), top + (h + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for j, head in enumerate(heads):
        draw.text((left + pitch * j, gap), head, "black", font)
    for i, (key, images) in enumerate(zip(rows, table, strict=True)):
        y = top + (h + gap) * i
        draw.text((gap, y + max(0, (h - line) // 2)), key, "black", font)
        for j, image in enumerate(images):
            sheet.paste(image, (left + pitch * j, y))
    return sheet


def _fit(image: Image.Image) -> Image.Image:
    side = max(image.size)
    if side < 96:
        zoom = -(-96 // side)
        return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    if side > 640:
        return ImageOps.contain(image, (640, 640))
    return image


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(14) if features.check("freetype2") else ImageFont.load_default()


def _text_size(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> tuple[int, int]:
    box = font.getbbox(text)
    return round(box[2]), round(box[3])


def animation(frames: Sequence[Image.Image], *, milliseconds: int = 700) -> bytes:
    """Write frames of one size as a GIF that repeats for ever and rests on the last frame."""
    file = io.BytesIO()
    pauses = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    return file.getvalue()


# ---------------------------------------------------------------------------------------------- bytes -> disk


def image_format(path: str) -> tuple[str, dict[str, Any]]:
    """Pillow's name and options of the format for `path`, PNG for pipes. Raises OutputError if unknown."""
    extension = os.path.splitext(path)[1].lower()
    if path in ("-", os.devnull):
        return _SAVE[".png"]
    if extension not in _SAVE:
        found = f"'{extension}'" if extension else "no extension"
        raise OutputError(f"{path}: expected a picture file ({' '.join(_SAVE)}), found {found}")
    return _SAVE[extension]


def image_bytes(image: Image.Image, path: str) -> bytes:
    """The file that `path` shall hold: format by extension, lossy only JPEG and GIF. Raises OutputError."""
    name, options = image_format(path)
    file = io.BytesIO()
    if path.lower().endswith(".pgm"):
        image = image.convert("L")  # a graymap
    try:
        image.save(file, name, **options)
    except (OSError, ValueError) as error:  # such as a picture larger than the format allows
        raise OutputError(f"{path}: cannot be written as {name} ({_line(error)}): try PNG") from error
    return file.getvalue()


def check_writable(path: str) -> None:
    """Raise OutputError now if `write_atomically` could not write `path` later, after minutes of work."""
    if path == "-":
        if sys.stdout.isatty():
            raise OutputError("standard output is a terminal: redirect it (> file) or name a file")
        return
    if os.path.isdir(path) or not os.path.basename(path):
        raise OutputError(f"{path or repr(path)}: expected the name of a file, found a folder")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except OSError as error:  # such as a name that is too long
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    else:
        if not os.access(path, os.W_OK):
            raise OutputError(f"{path}: the file that is there is write-protected: choose another name")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: there is no folder {os.path.dirname(path) or folder}: make it first")
    if stat.S_ISREG(mode) and not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in that folder: choose another")


def write_atomically(path: str, data: bytes) -> None:
    """Write `data` as the whole of `path` (`-`: standard output), or leave what was there.

    A file that is replaced keeps its permissions; a new one gets the usual ones. Raises OutputError.
    """
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # not to be renamed over; pipes have no real path
            with open(path, "wb") as device:
                device.write(data)
        else:
            with replacing(path) as part, open(part, "xb") as file:
                file.write(data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """The name of a file to write, which takes the place of `path` at the end, with its permissions, or is gone."""
    target = os.path.realpath(path)  # a link stays a link
    # The temporary file is made here and not by tempfile, which would hide it from everybody but its owner.
    part = os.path.join(os.path.dirname(target), f".dcodec-{secrets.token_hex(8)}.part")
    try:
        yield part
        with suppress(FileNotFoundError):
            os.chmod(part, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(part, target)
    except BaseException:  # also an interrupt
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise
