"""Does the command do what its help says, and answer every mistake with one line?

Everything goes through the real entry point: mistakes in a process of their own, whose last words count; the
whole way in this one, which loads the heavy modules once.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import dcodec
from dcodec import cli

ROOT = Path(str(dcodec.__file__)).parents[1]
W, H = 24, 20
HEADER = b"\x8adx"


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str


def python(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **variables: str) -> Result:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, cwd=cwd, env=env)
    return Result(done.returncode, done.stdout, done.stderr.decode())


def spawn(*arguments: str, stdin: bytes = b"", cwd: Path | None = None, **variables: str) -> Result:
    return python("-m", "dcodec.cli", *arguments, stdin=stdin, cwd=cwd, **variables)


def run(*arguments: str, stdin: bytes = b"", cwd: Path | None = None) -> Result:
    given, out, err = (io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin, b"", b""))
    with (
        mock.patch.multiple(sys, argv=["dcodec", *arguments], stdin=given, stdout=out, stderr=err),
        contextlib.chdir(cwd or "."),
        pytest.raises(SystemExit) as stop,
    ):
        cli.main()
    out.flush()
    err.flush()
    return Result(stop.value.code, out.buffer.getvalue(), err.buffer.getvalue().decode())


def good(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def assert_one_line(result: Result, *words: str) -> None:
    """The promise for bad input: exit code 1, nothing on standard output, one line that names the trouble."""
    assert result.code == 1, result.err
    assert result.out == b""
    assert result.err.startswith("dcodec: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1, result.err
    for word in words:
        assert word in result.err


def picture() -> Image.Image:
    """24x20: a shaded ground and a disc, so that there is something to see at any rate."""
    y, x = np.mgrid[:H, :W]
    disc = (x - 9) ** 2 + (y - 8) ** 2 < 40
    planes = [np.where(disc, 220, 4 * x + 2 * y), np.where(disc, 90, 5 * y), np.where(disc, 40, 200 - 6 * x)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture().save(tmp_path / "in.png")
    (tmp_path / "note.txt").write_text("no picture\n")
    return tmp_path


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A stream of 80 bytes (4/3 bpp) of `picture()`."""
    folder = tmp_path_factory.mktemp("stream")
    picture().save(folder / "in.png")
    good(spawn("encode", "in.png", "out.dcx", "--bytes", "80", "--prior", "gaussian", cwd=folder))
    return (folder / "out.dcx").read_bytes()


def shown(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(float)


def error_of(path: Path) -> float:
    return float(np.mean((shown(path) - np.asarray(picture())) ** 2))


# ---------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("code", ["import dcodec", "from dcodec.cli import cli; cli(['--help'])"])
def test_start_takes_less_than_half_a_second(code: str) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        good(python("-c", code))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


HEAVY = "heavy = {'torch', 'numpy', 'PIL', 'diffusers'} & set(sys.modules)"


def test_import_leaves_the_heavy_modules_out() -> None:
    good(python("-c", f"import sys, dcodec, dcodec.cli; {HEAVY}; assert not heavy, heavy"))


def test_every_public_name_is_there() -> None:
    assert set(dcodec.__all__) <= set(dir(dcodec))
    for name in dcodec.__all__:
        assert getattr(dcodec, name) is not None
    assert issubclass(dcodec.BitstreamError, ValueError)
    assert issubclass(dcodec.PictureError, ValueError)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        dcodec.nonsense  # noqa: B018


def test_version() -> None:
    assert good(spawn("--version")).out.decode() == f"dcodec {dcodec.__version__}\n"


def test_help_tells_of_every_command() -> None:
    told = good(spawn("--help")).out.decode()
    for command in ("encode", "decode", "progress", "info", "priors", "train"):
        assert f"  {command} " in told
        assert good(spawn(command, "--help")).out.decode().startswith(f"Usage: dcodec {command}")


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "in.png", "x", "--bpp", "1", "--bytes", "9"],
        ["encode", "in.png", "x", "--bpp", "1", "--psnr", "30"],
        ["encode", "in.png", "x", "--bytes", "9", "--psnr", "30"],
        ["encode", "in.png", "x", "--bpp", "0"],
        ["encode", "in.png", "x", "--bpp", "nan"],
        ["encode", "in.png", "x", "--psnr", "inf"],
        ["encode", "in.png", "x", "--bytes", "-3"],
        ["encode", "in.png", "x", "--seed", "256"],
        ["encode", "in.png", "x", "--rows", "4"],
        ["encode", "in.png", "x", "--preset", "slow"],
        ["encode", "in.png", "x", "--device", "abacus"],
        ["encode", "in.png", "in.png"],
        ["encode", "in.png"],
        ["decode", "note.txt", "x.png", "--bpp", "1", "--bytes", "9"],
        ["decode", "note.txt", "-", "--samples", "2"],
        ["decode", "note.txt", "x.png", "--samples", "2", "--estimate", "mean"],
        ["decode", "note.txt", "x.png", "--std", "x.png"],
        ["decode", "note.txt", "-", "--std", "-"],
        ["decode", "note.txt", "note.txt"],
        ["progress", "note.txt", "x.jpg"],
        ["progress", "note.txt", "x.png", "--steps", "0"],
        ["transcode"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense(folder: Path, arguments: list[str]) -> None:
    before = sorted(os.listdir(folder))
    result = spawn(*arguments, cwd=folder)
    assert result.code == 2, result.err
    assert result.out == b""
    assert "Error: " in result.err
    assert "Traceback" not in result.err
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "note.txt", "x.dcx"], ["note.txt", "not a picture"]),
        (["encode", "missing.png", "x.dcx"], ["missing.png", "No such file"]),
        (["encode", ".", "x.dcx"], [".: Is a directory"]),
        (["encode", "cut.png", "x.dcx"], ["cut.png", "cut off or damaged"]),
        (["encode", "clear.png", "x.dcx"], ["clear.png", "--background white"]),
        (["encode", "clear.png", "x.dcx", "--background", "whit"], ["'whit' is not a colour"]),
        (["encode", "in.png", "x.dcx", "--max-side", "8"], ["in.png", "--max-side 24"]),
        (["encode", "in.png", "no/folder/x.dcx"], ["no/folder/x.dcx", "no folder no/folder"]),
        (["encode", "in.png", "."], ["found a folder"]),
        (["encode", "in.png", "note.txt/x.dcx"], ["note.txt/x.dcx"]),
        (["encode", "in.png", "x.dcx", "--prior", "no such prior"], ["no such prior"]),
        (["encode", "in.png", "x.dcx", "--prior", "gaussian", "--bytes", "3"], ["3 bytes"]),
        (["encode", "-", "x.dcx"], ["0 bytes"]),
        (["decode", "missing.dcx", "x.png"], ["missing.dcx: No such file"]),
        (["decode", ".", "x.png"], [".: Is a directory"]),
        (["decode", "note.txt", "x.png"], ["not a"]),
        (["decode", "in.png", "x.png"], ["not a"]),
        (["decode", "empty", "x.png"], ["empty", "0 bytes"]),
        (["decode", "-", "x.png"], ["0 bytes"]),
        (["encode", "in.png", "x.dcx", "--bpp", "1e300", "--prior", "gaussian"], ["more than all there can be to say"]),
        pytest.param(
            ["encode", "in.png", "x.dcx", "--device", "cuda", "--prior", "gaussian"], ["no CUDA device"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        (["decode", "note.txt", "x.txt"], ["x.txt", ".png"]),
        (["decode", "note.txt", "x.png", "--std", "x.std"], ["x.std", ".png"]),
        (["decode", "note.txt", "no/folder/x.png"], ["no folder"]),
        (["decode", "note.txt", "x.png", "--std", "no/folder/x.png"], ["no folder"]),
        (["decode", "note.txt", "no/folder/x.png", "--samples", "2"], ["no folder"]),
        (["progress", "note.txt", "x.png"], ["not a"]),
        (["progress", "note.txt", "x/"], ["not a"]),
        (["progress", "note.txt", "no/folder/"], ["no folder"]),
        (["progress", "note.txt", "empty/"], ["empty"]),
        (["info", "note.txt"], ["not a"]),
        (["info", "missing.dcx"], ["missing.dcx: No such file"]),
        (["info", "-"], ["0 bytes"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in ("encode", "decode", "progress", "info") else "",
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    folder: Path, arguments: list[str], words: list[str]
) -> None:
    (folder / "cut.png").write_bytes((folder / "in.png").read_bytes()[:90])
    (folder / "empty").write_bytes(b"")
    Image.new("RGBA", (3, 2)).save(folder / "clear.png")
    before = sorted(os.listdir(folder))
    result = spawn(*arguments, cwd=folder)
    assert_one_line(result, *words)
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("data", [HEADER, HEADER + bytes(30), HEADER + b"\xff" * 30], ids=["3", "00", "ff"])
@pytest.mark.parametrize("command", ["info", "decode"])
def test_streams_that_only_start_like_one(folder: Path, command: str, data: bytes) -> None:
    result = spawn(command, "-", *(["x.png"] if command == "decode" else []), stdin=data, cwd=folder)
    assert_one_line(result)
    assert not (folder / "x.png").exists()


def test_an_error_keeps_the_file_that_was_there(folder: Path) -> None:
    (folder / "old.dcx").write_bytes(b"old")
    assert_one_line(spawn("encode", "note.txt", "old.dcx", cwd=folder))
    assert (folder / "old.dcx").read_bytes() == b"old"


def test_the_traceback_is_there_for_those_who_ask(folder: Path) -> None:
    result = spawn("encode", "note.txt", "x.dcx", cwd=folder, DCODEC_TRACEBACK="1")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "PictureError" in result.err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("KeyboardInterrupt", ["interrupted"]),
        ("MemoryError", ["not enough memory"]),
        ("OSError(28, 'No space left on device', 'x')", ["x: No space left on device"]),
        ("RuntimeError('two\\nlines')", ["unexpected RuntimeError: two lines"]),
        ("ValueError", ["unexpected ValueError"]),
    ],
)
def test_errors_from_inside_are_one_line_too(error: str, words: list[str]) -> None:
    code = f"""if True:
        import dcodec.api
        def priors(): raise {error}
        dcodec.api.priors = priors
        import sys
        sys.argv = ["dcodec", "priors"]
        from dcodec.cli import main
        main()"""
    assert_one_line(python("-c", code), *words)


# ---------------------------------------------------------------------------------------------- whole way


def test_encode_meets_the_rate_and_says_so(folder: Path) -> None:
    result = good(run("encode", "in.png", "x.dcx", "--bpp", "1.5", "--prior", "gaussian", cwd=folder))
    assert (folder / "x.dcx").stat().st_size == int(1.5 * W * H / 8)
    assert result.out == b""
    assert result.err.count("\n") == 1
    for word in ("x.dcx: 90 bytes", "1.5000 bpp", "PSNR", "dB", "NFE", " s"):
        assert word in result.err


def test_quiet_says_nothing(folder: Path) -> None:
    result = good(run("encode", "in.png", "x.dcx", "--bytes", "60", "--prior", "gaussian", "-q", cwd=folder))
    assert (result.out, result.err) == (b"", "")


def test_encoding_again_gives_the_same_bytes(folder: Path, stream: bytes) -> None:
    arguments = ["encode", "in.png", "-", "--bytes", "80", "--prior", "gaussian", "-q"]
    assert good(run(*arguments, cwd=folder)).out == stream
    assert good(run(*arguments, "--seed", "7", cwd=folder)).out != stream


def test_encode_to_a_quality(folder: Path) -> None:
    sizes = []
    for psnr in ("18", "26"):
        good(run("encode", "in.png", "x.dcx", "--psnr", psnr, "--prior", "gaussian", cwd=folder))
        sizes.append((folder / "x.dcx").stat().st_size)
        good(run("decode", "x.dcx", "x.png", cwd=folder))
        assert 10 * np.log10(255**2 / error_of(folder / "x.png")) > float(psnr) - 1
    assert sizes[0] < sizes[1]


def test_decode_mean_and_sample(folder: Path, stream: bytes) -> None:
    (folder / "x.dcx").write_bytes(stream)
    result = good(run("decode", "x.dcx", "mean.png", cwd=folder))
    assert result.out == b""
    assert result.err.startswith("mean.png: 80 bytes")
    good(run("decode", "x.dcx", "sample.png", "--estimate", "sample", cwd=folder))
    assert shown(folder / "mean.png").shape == shown(folder / "sample.png").shape == (H, W, 3)
    assert error_of(folder / "mean.png") < error_of(folder / "sample.png")


def test_pipes(folder: Path, stream: bytes) -> None:
    data = (folder / "in.png").read_bytes()
    result = good(spawn("encode", "-", "-", "--bytes", "80", "--prior", "gaussian", stdin=data))
    assert result.out == stream
    assert "<stdout>: 80 bytes" in result.err
    back = good(spawn("decode", "-", "-", stdin=stream))
    assert back.out.startswith(b"\x89PNG")
    (folder / "x.dcx").write_bytes(stream)
    good(run("decode", "x.dcx", "x.png", cwd=folder))
    assert (folder / "x.png").read_bytes() == back.out


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no /dev/stdout")
def test_pipes_by_name(folder: Path, stream: bytes) -> None:
    """What stands behind such a name has no place that one could write to beside it."""
    piped = good(spawn("encode", "in.png", "/dev/stdout", "--bytes", "80", "--prior", "gaussian", cwd=folder))
    assert piped.out == stream


@pytest.mark.parametrize("bpp", ["0.35", "0.7", "0.95"])
def test_a_rate_is_the_same_both_ways(folder: Path, bpp: str) -> None:
    """24x20 at 0.7 bpp are 42 bytes, of which floats make 41.99."""
    good(run("encode", "in.png", "x.dcx", "--bpp", bpp, "--prior", "gaussian", cwd=folder))
    size = (folder / "x.dcx").stat().st_size
    assert size == round(float(bpp) * 60)
    assert f"x.png: {size} bytes" in good(run("decode", "x.dcx", "x.png", "--bpp", bpp, cwd=folder)).err


def test_a_tiny_picture_needs_no_rate(folder: Path) -> None:
    """0.1 bits a pixel are less than a header there."""
    assert "x.dcx: 40 bytes" in good(run("encode", "in.png", "x.dcx", "--prior", "gaussian", cwd=folder)).err


@pytest.mark.parametrize("prefix", [["--bytes", "60"], ["--bpp", "1"]])
def test_a_prefix_by_option_is_the_prefix_of_the_file(folder: Path, stream: bytes, prefix: list[str]) -> None:
    cut = good(run("decode", "-", "-", stdin=stream[:60])).out
    assert good(run("decode", "-", "-", *prefix, stdin=stream)).out == cut


def test_every_prefix_decodes_and_more_is_better(folder: Path, stream: bytes) -> None:
    errors = []
    for size in (15, 16, 40, 80, 9999):
        good(run("decode", "-", "x.png", "--bytes", str(size), stdin=stream, cwd=folder))
        errors.append(error_of(folder / "x.png"))
    assert errors[0] > errors[2] > errors[3] == errors[4]


@pytest.mark.parametrize("size", ["1", "13"])
def test_a_prefix_that_cuts_the_header(folder: Path, stream: bytes, size: str) -> None:
    assert_one_line(run("decode", "-", "x.png", "--bytes", size, stdin=stream, cwd=folder), size)
    assert not (folder / "x.png").exists()


def test_samples_are_numbered_and_differ(folder: Path, stream: bytes) -> None:
    (folder / "out").mkdir()
    good(run("decode", "-", "out/s.png", "--samples", "3", stdin=stream, cwd=folder))
    assert sorted(os.listdir(folder / "out")) == ["s-1.png", "s-2.png", "s-3.png"]
    assert len({path.read_bytes() for path in (folder / "out").iterdir()}) == 3


def test_std_is_a_gray_map(folder: Path, stream: bytes) -> None:
    good(run("decode", "-", "x.png", "--std", "std.png", stdin=stream, cwd=folder))
    assert shown(folder / "x.png").shape == (H, W, 3)
    late = shown(folder / "std.png")
    assert late.shape == (H, W)
    good(run("decode", "-", "x.png", "--std", "std.png", "--bytes", "15", stdin=stream, cwd=folder))
    assert shown(folder / "std.png").mean() > late.mean()


@pytest.mark.parametrize(("name", "mode"), [("x.jpg", "RGB"), ("x.webp", "RGB"), ("x.bmp", "RGB")])
def test_the_name_tells_the_format(folder: Path, stream: bytes, name: str, mode: str) -> None:
    good(run("decode", "-", name, stdin=stream, cwd=folder))
    with Image.open(folder / name) as image:
        assert (image.size, image.mode) == ((W, H), mode)


@pytest.mark.parametrize("mode", ["L", "I;16", "LA"])
def test_gray_stays_gray(folder: Path, mode: str) -> None:
    picture().convert("L").convert(mode).save(folder / "gray.png")
    good(run("encode", "gray.png", "x.dcx", "--bytes", "60", "--prior", "gaussian", cwd=folder))
    good(run("decode", "x.dcx", "x.png", cwd=folder))
    assert shown(folder / "x.png").shape == (H, W)


def test_one_pixel(folder: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    good(run("encode", "dot.png", "x.dcx", "--bytes", "20", "--prior", "gaussian", cwd=folder))
    assert (folder / "x.dcx").stat().st_size <= 20
    good(run("decode", "x.dcx", "x.png", cwd=folder))
    assert shown(folder / "x.png").shape == (1, 1, 3)


def test_transparent_picture_over_a_colour(folder: Path) -> None:
    Image.new("RGBA", (W, H), (0, 0, 0, 0)).save(folder / "clear.png")
    arguments = ["--background", "white", "--bytes", "60", "--prior", "gaussian"]
    good(run("encode", "clear.png", "x.dcx", *arguments, cwd=folder))
    good(run("decode", "x.dcx", "x.png", cwd=folder))
    assert shown(folder / "x.png").mean() > 240


def test_progress_as_strip_animation_and_folder(folder: Path, stream: bytes) -> None:
    (folder / "x.dcx").write_bytes(stream)
    good(run("progress", "x.dcx", "strip.png", "--steps", "3", cwd=folder))
    assert shown(folder / "strip.png").shape[0] > 3 * 4 * H  # magnified
    good(run("progress", "x.dcx", "grow.gif", "--steps", "3", cwd=folder))
    with Image.open(folder / "grow.gif") as gif:
        assert (gif.n_frames, gif.size) == (3, (W, H))
    good(run("progress", "x.dcx", "frames/", "--steps", "3", cwd=folder))
    good(run("progress", "x.dcx", "frames", "--steps", "3", cwd=folder))
    names = sorted(os.listdir(folder / "frames"))
    assert len(names) == 9
    assert {name.split("-")[2] for name in names} == {"mean.png", "sample.png", "uncertainty.png"}
    assert good(run("progress", "-", "-", "--steps", "2", stdin=stream)).out.startswith(b"\x89PNG")


def test_info_for_people_and_programs(stream: bytes) -> None:
    fields = json.loads(good(run("info", "-", "--json", stdin=stream)).out)
    assert (fields["width"], fields["height"], fields["bytes"], fields["bpp"]) == (W, H, 80, 80 * 8 / (W * H))
    lines = good(run("info", "-", stdin=stream)).out.decode().splitlines()
    assert [line.split()[0] for line in lines] == list(fields)


def test_info_and_priors_do_not_import_torch(folder: Path, stream: bytes) -> None:
    (folder / "x.dcx").write_bytes(stream)
    for arguments in (["info", "x.dcx"], ["priors"]):
        code = f"import sys; from dcodec.cli import cli; cli({arguments}, standalone_mode=False)"
        good(python("-c", f"{code}; assert 'torch' not in sys.modules", cwd=folder))


def test_priors_lists_the_one_without_weights() -> None:
    assert "gaussian" in good(run("priors")).out.decode()


def test_a_reader_that_has_seen_enough_is_no_error_to_tell(folder: Path, stream: bytes) -> None:
    (folder / "x.dcx").write_bytes(stream)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "dcodec.cli", "decode", "x.dcx", "-", "-q"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
