"""Does every kind of picture become the right array, and does every bad one get its one line?"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcodec import pictures
from dcodec.pictures import OutputError, PictureError


def refused(match: str) -> pytest.RaisesExc[PictureError]:
    """PictureError, in one line that matches."""
    return pytest.raises(PictureError, match=re.compile(rf"\A[^\n]*{match}[^\n]*\Z"))


def pixels(x: np.ndarray) -> np.ndarray:
    """(C, h, w) in [-1, 1] -> the 8-bit values (h, w, C) that it shows."""
    return np.rint((x.transpose(1, 2, 0).astype(float) + 1) * 127.5).astype(int)


def gradient(h: int, w: int, channels: int) -> np.ndarray:
    return (np.arange(h * w * channels) * 37 % 256).astype(np.uint8).reshape(h, w, channels)


def png(w: int, h: int, depth: int, colour: int, raw: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand: of kinds that Pillow reads but does not write."""
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    body = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in body
    )


# ---------------------------------------------------------------------------------------------- modes

RGB = Image.fromarray(gradient(4, 5, 3))
GRAY = Image.fromarray(gradient(4, 5, 1)[:, :, 0])


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (GRAY.convert("1"), 1),
        (GRAY, 1),
        (GRAY.convert("LA"), 1),
        (GRAY.convert("LA").convert("La"), 1),
        (GRAY.convert("I;16"), 1),
        (GRAY.convert("I"), 1),
        (GRAY.convert("F"), 1),
        (RGB, 3),
        (RGB.quantize(8), 3),
        (GRAY.convert("P"), 3),
        (RGB.convert("RGBA"), 3),
        (RGB.convert("RGBA").convert("RGBa"), 3),
        (RGB.convert("RGBX"), 3),
        (RGB.convert("P").convert("PA"), 3),
        (RGB.convert("CMYK"), 3),
        (RGB.convert("YCbCr"), 3),
        (RGB.convert("HSV"), 3),
        (Image.new("LAB", (5, 4), (128, 128, 128)), 3),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode_becomes_gray_or_rgb(image: Image.Image, channels: int) -> None:
    before = image.tobytes()
    x = pictures.from_image(image)
    assert x.shape == (channels, 4, 5)
    assert x.dtype == np.float32
    assert x.flags["C_CONTIGUOUS"]
    assert -1 <= x.min() <= x.max() <= 1
    assert image.tobytes() == before


@pytest.mark.parametrize("image", [RGB, RGB.convert("RGBA"), RGB.convert("RGBX"), RGB.convert("CMYK")])
def test_colours_are_those_that_pillow_shows(image: Image.Image) -> None:
    assert np.array_equal(pixels(pictures.from_image(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("image", [GRAY, GRAY.convert("LA"), GRAY.convert("1")])
def test_grays_are_those_that_pillow_shows(image: Image.Image) -> None:
    assert np.array_equal(pixels(pictures.from_image(image))[:, :, 0], np.asarray(image.convert("L")))


def test_black_and_white_are_the_ends_of_the_range() -> None:
    assert pictures.from_image(Image.new("RGB", (2, 1), "white")).min() == 1
    assert pictures.from_image(Image.new("L", (2, 1), 0)).max() == -1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_pixel(mode: str) -> None:
    assert pictures.from_image(Image.new(mode, (1, 1))).shape[1:] == (1, 1)


@pytest.mark.parametrize("size", [(0, 3), (3, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with refused("empty"):
        pictures.from_image(Image.new("RGB", size))


# ---------------------------------------------------------------------------------------------- depth

DEEP = np.array([[0, 1, 257, 32768], [1000, 40000, 65534, 65535]], dtype=np.uint16)


def deep_files() -> list[tuple[str, bytes]]:
    big = DEEP.astype(">u2")
    tiff = io.BytesIO()
    Image.frombytes("I;16B", (4, 2), big.tobytes()).save(tiff, "TIFF")
    return [
        ("png", png(4, 2, 16, 0, b"".join(b"\0" + row.tobytes() for row in big))),
        ("tiff", tiff.getvalue()),
        ("pgm", b"P5 4 2 65535\n" + big.tobytes()),
    ]


@pytest.mark.parametrize("data", [data for _, data in deep_files()], ids=[kind for kind, _ in deep_files()])
def test_gray_of_16_bits_keeps_them(data: bytes) -> None:
    x = pictures.load(io.BytesIO(data))
    assert x.shape == (1, 2, 4)
    assert np.array_equal(np.rint((x[0].astype(float) + 1) * 32767.5), DEEP)


def test_colour_of_16_bits_is_read_as_pillow_gives_it() -> None:
    row = np.array([0, 65535, 32896, 65535, 0, 257], dtype=">u2")
    x = pictures.load(io.BytesIO(png(2, 1, 16, 2, b"\0" + row.tobytes())))
    assert pixels(x).tolist() == [[[0, 255, 128], [255, 0, 1]]]


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_pictures_of_both_usual_ranges(white: float) -> None:
    x = pictures.from_image(Image.fromarray(np.array([[0, 0.25, 1]], np.float32) * np.float32(white)))
    assert np.allclose(x, [[[-1, -0.5, 1]]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 1.02, 7.0, 1e6])  # 1.02: overshoot, not a dark picture of 0..255
def test_float_pictures_of_another_range(value: float) -> None:
    with refused(r"expected values of 0\.\.1 or 0\.\.255, found"):
        pictures.from_image(Image.fromarray(np.full((2, 2), value, np.float32)))


@pytest.mark.parametrize("value", [-1, 65536])
def test_integer_pictures_of_another_range(value: int) -> None:
    with refused(r"expected values of 0\.\.65535, found"):
        pictures.from_image(Image.fromarray(np.full((2, 2), value, np.int32)))


# ---------------------------------------------------------------------------------------------- transparency


def keyed(mode: str) -> Image.Image:
    """2x1, black and white; the black is transparent by a key instead of a channel."""
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), 1 if mode == "P" else (255,) * 3 if mode == "RGB" else 255)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    return Image.open(file)


def channel(mode: str) -> Image.Image:
    """2x1, black and white; the black is transparent."""
    image = Image.new("RGBA", (2, 1), "white")
    image.putpixel((0, 0), (0, 0, 0, 0))
    if mode in ("La", "RGBa"):
        return image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    return image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)


TRANSPARENT = [*(channel(mode) for mode in ("RGBA", "LA", "La", "RGBa")), *map(keyed, ("1", "L", "P", "RGB"))]


@pytest.mark.parametrize("image", TRANSPARENT, ids=lambda image: image.mode)
def test_transparency_is_refused_with_the_way_out(image: Image.Image) -> None:
    with refused("--background white"):
        pictures.from_image(image)


@pytest.mark.parametrize("image", TRANSPARENT, ids=lambda image: image.mode)
@pytest.mark.parametrize("background", ["white", "#808080", "red"])
def test_transparency_over_a_colour(image: Image.Image, background: str) -> None:
    x = pictures.from_image(image, background=background)
    gray = image.mode in ("1", "L", "LA", "La") and background != "red"
    assert len(x) == (1 if gray else 3)
    shown = pixels(x)[0]
    below = {"white": [255] * 3, "#808080": [128] * 3, "red": [255, 0, 0]}[background]
    assert shown[0].tolist() == below[: len(x)]
    assert (shown[1] == 255).all()


def test_palette_with_opacities() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 255, 255, 255])
    image.putpixel((1, 0), 1)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([0, 255]))
    with refused("transparent"):
        pictures.load(io.BytesIO(file.getvalue()))
    assert pixels(pictures.load(io.BytesIO(file.getvalue()), background="blue"))[0].tolist() == [
        [0, 0, 255],
        [255, 255, 255],
    ]


def test_deep_gray_with_a_transparent_value() -> None:
    row = np.array([1000, 65535], dtype=">u2")
    data = png(2, 1, 16, 0, b"\0" + row.tobytes(), (b"tRNS", struct.pack(">H", 1000)))
    with refused("transparent"):
        pictures.load(io.BytesIO(data))
    assert pictures.load(io.BytesIO(data), background="white").tolist() == [[[1, 1]]]


def test_half_transparent_pixels_are_mixed() -> None:
    x = pictures.from_image(Image.new("RGBA", (1, 1), (255, 0, 100, 51)), background="black")
    assert pixels(x)[0, 0].tolist() == [51, 0, 20]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_an_opaque_alpha_channel_is_no_obstacle(mode: str) -> None:
    image = (RGB.convert("P") if mode == "PA" else RGB).convert(mode)
    assert np.array_equal(pictures.from_image(image), pictures.from_image(image, background="red"))


@pytest.mark.parametrize("name", ["whit", "#12", "", "rgb(1,2", "x" * 500, "#ffffff00"])
def test_a_background_that_is_no_colour(name: str) -> None:
    with refused("colour"):
        pictures.from_image(RGB, background=name)


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{kind}"
    RGB.save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    a = np.asarray(RGB)
    upright = {
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.transpose(1, 0, 2),
        6: a.transpose(1, 0, 2)[:, ::-1],
        7: a.transpose(1, 0, 2)[::-1, ::-1],
        8: a.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert np.array_equal(pixels(pictures.load(path)), upright)


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
def test_broken_exif_does_not_matter(tmp_path: Path, exif: bytes) -> None:
    RGB.save(tmp_path / "odd.jpg", exif=exif)
    assert pictures.load(tmp_path / "odd.jpg").shape == (3, 4, 5)


def test_the_first_of_several_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert pixels(pictures.load(tmp_path / "two.gif"))[0, 0].tolist() == [255, 0, 0]


def test_a_stream_need_not_seek() -> None:
    read, write = os.pipe()
    with open(write, "wb") as file:
        RGB.save(file, "PNG")
    with open(read, "rb") as pipe:
        assert np.array_equal(pixels(pictures.load(pipe)), np.asarray(RGB))


@pytest.mark.parametrize("size", [(41, 3), (3, 41)])
def test_pictures_over_the_limit_name_the_option(size: tuple[int, int]) -> None:
    with refused("limit of 40 .*--max-side 41"):
        pictures.from_image(Image.new("L", size), max_side=40)
    assert pictures.from_image(Image.new("L", size), max_side=41).shape == (1, *size[::-1])


@pytest.mark.parametrize("side", [10_000, 30_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_unfolds(side: int) -> None:
    with refused("limit|bomb|damaged"):
        pictures.load(io.BytesIO(png(side, side, 8, 0, b"")))


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "bmp", "webp", "ppm"])
def test_cut_files(tmp_path: Path, kind: str) -> None:
    whole = io.BytesIO()
    Image.fromarray(gradient(64, 64, 3)).save(whole, kind)
    path = tmp_path / f"cut.{kind}"
    for share in (0.01, 0.1, 0.5):
        path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
        with refused(re.escape(str(path))):
            pictures.load(path)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["png", "jpeg", "gif", "tiff", "bmp", "webp", "ppm", "pcx", "tga"]), st.data())
def test_damaged_files_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    whole = io.BytesIO()
    RGB.save(whole, kind)
    damaged = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    message = ""
    try:
        x = pictures.load(io.BytesIO(bytes(damaged)), background="white")
        assert x.ndim == 3
        assert np.isfinite(x).all()
    except PictureError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("data", [b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_files_that_are_no_pictures(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "not.png"
    path.write_bytes(data)
    with refused("not.png"):
        pictures.load(path)
    with refused("expected a picture|not a picture"):
        pictures.load(io.BytesIO(data))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with refused("missing.png: No such file"):
        pictures.load(tmp_path / "missing.png")
    with refused(tmp_path.name):
        pictures.load(str(tmp_path))


# ---------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays(shape: tuple[int, ...], dtype: type) -> None:
    a = np.zeros(shape, dtype)
    a[1, 2] = np.iinfo(dtype).max
    x = pictures.from_array(a)
    assert x.shape == (3 if shape[2:] == (3,) else 1, 2, 3)
    assert x.dtype == np.float32
    assert (x[:, 1, 2] == 1).all()
    assert (x[:, 0] == -1).all()


@pytest.mark.parametrize(
    "a", [np.zeros((2, 3), float), np.zeros((2, 3, 4), np.uint8), np.zeros((0, 3), np.uint8), np.uint8(3)]
)
def test_other_arrays_are_refused(a: np.ndarray) -> None:
    with refused("expected pixels of .* found"):
        pictures.from_array(np.asarray(a))


@pytest.mark.parametrize("shape", [(256, 1), (1, 256, 1), (16, 16, 3)])
def test_8_bits_come_back_as_they_were(shape: tuple[int, ...]) -> None:
    a = np.resize(np.arange(256, dtype=np.uint8), shape)
    assert np.array_equal(np.asarray(pictures.to_image(pictures.from_array(a))).reshape(shape), a)


def test_to_image_rounds_to_the_nearest_and_clips() -> None:
    values = np.array([[[0.49, 1.51, 127.5, -9, 999]]]) / 127.5 - 1  # 127.5: the one half that floats hold
    assert np.asarray(pictures.to_image(values)).tolist() == [[0, 2, 128, 0, 255]]


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros((3, 0, 1)), np.full((1, 1, 1), np.nan)]
)
def test_to_image_refuses_other_things(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="array"):
        pictures.to_image(x)


def test_std_image_is_white_at_a_quarter_of_the_range() -> None:
    assert np.asarray(pictures.std_image(np.array([[0, 0.25, 0.5, 2]]))).tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("size", [(1, 1), (24, 20), (700, 30)])
def test_strip_shows_every_picture(size: tuple[int, int]) -> None:
    image = Image.new("L", size, 77)
    sheet = pictures.strip({"mean": [image] * 3, "std": [image] * 3}, ["0.01 bpp", "0.02 bpp", "0.03 bpp"])
    assert sheet.width > 3 * min(size[0], 640)
    assert (np.asarray(sheet) == 77).all(axis=2).sum() >= 6 * min(size[0], 640) * min(size[1], 27)


def test_animation_has_every_frame() -> None:
    frames = [Image.new("RGB", (5, 4), (value, 0, 0)) for value in (0, 100, 200)]
    with Image.open(io.BytesIO(pictures.animation(frames))) as gif:
        assert (gif.format, gif.n_frames, gif.size) == ("GIF", 3, (5, 4))


# ---------------------------------------------------------------------------------------------- output


@pytest.mark.parametrize("extension", ["png", "PNG", "webp", "tif", "tiff", "bmp", "ppm", "pnm"])
@pytest.mark.parametrize("image", [RGB, GRAY], ids=lambda image: image.mode)
def test_image_bytes_without_loss(image: Image.Image, extension: str) -> None:
    data = pictures.image_bytes(image, f"some.folder/x.{extension}")
    with Image.open(io.BytesIO(data)) as back:
        assert np.array_equal(np.asarray(back.convert("RGB")), np.asarray(image.convert("RGB")))


def test_image_bytes_of_other_kinds() -> None:
    assert pictures.image_bytes(RGB, "x.jpg").startswith(b"\xff\xd8")
    assert pictures.image_bytes(RGB, "x.gif").startswith(b"GIF8")
    assert pictures.image_bytes(RGB, "-").startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["x", "x.dcx", "x.txt", ".png", "x.png.", "a.png/x"])
def test_names_that_are_no_pictures(path: str) -> None:
    with pytest.raises(OutputError, match=r"\.png .*found"):
        pictures.image_bytes(RGB, path)


def test_a_picture_too_large_for_its_format() -> None:
    with pytest.raises(OutputError, match="try PNG"):
        pictures.image_bytes(Image.new("L", (70_000, 1)), "wide.jpg")


def test_write_makes_a_file_with_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new.bin"
    mask = os.umask(0o027)
    try:
        pictures.write_atomically(str(path), b"abc")
    finally:
        os.umask(mask)
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["new.bin"]


def test_write_replaces_a_file_and_keeps_its_permissions(tmp_path: Path) -> None:
    path, link = tmp_path / "old.bin", tmp_path / "link"
    path.write_bytes(b"old and long")
    path.chmod(0o604)
    link.symlink_to(path)
    pictures.write_atomically(str(link), b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_write_leaves_nothing_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "old.bin"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        pictures.write_atomically(str(path), b"new")
    assert os.listdir(tmp_path) == ["old.bin"]
    assert path.read_bytes() == b"old"


def test_write_to_a_device_does_not_replace_it() -> None:
    pictures.write_atomically(os.devnull, b"gone")
    assert not os.path.isfile(os.devnull)


def test_write_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    pictures.write_atomically("-", b"\x00\xff")
    assert capfdbinary.readouterr().out == b"\x00\xff"


@pytest.mark.parametrize("path", ["", "no/such/folder/x", ".", "./", "file/x", "x" * 300])
def test_unwritable_outputs_are_known_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"\A[^\n]+\Z"):
        pictures.check_writable(path)
    with pytest.raises(OutputError, match=r"\A[^\n]+\Z"):
        pictures.write_atomically(path, b"x")
    assert os.listdir(tmp_path) == ["file"]


def test_writable_outputs_are_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.png").write_bytes(b"old")
    for path in ("new.png", "./new.png", "old.png", str(tmp_path / "new.png"), os.devnull):
        pictures.check_writable(path)
    assert os.listdir(tmp_path) == ["old.png"]


def test_no_binary_data_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(OutputError, match="terminal"):
        pictures.check_writable("-")
