"""Do metrics agree with the reference, and do baselines count whole files and give their pictures back?"""

import importlib
import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bench import bpg, codecs, data_folder, lpips, measure, metrics, plugins, points, table
from bench.__main__ import main
from dcodec.pictures import to_image

REFERENCE, WEIGHTS = data_folder() / "reference" / "kodak_classic.csv", data_folder() / "metrics" / "lpips_squeeze.npz"
needs_data = pytest.mark.skipif(not REFERENCE.exists(), reason=f"no {REFERENCE} (set DCODEC_DATA)")
needs_heif = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="no pillow-heif")


@pytest.fixture
def photo(draw):
    """A smooth colour picture of 96 x 80."""
    return to_image(draw(3, 80, 96, 3))


def codec(name):
    try:
        return codecs.find(name, [], "", quick=True)
    except points.Missing as reason:
        pytest.skip(str(reason))


# ------------------------------------------------------------------------------------------- metrics


@needs_data
@pytest.mark.parametrize(
    ("name", "image", "setting"),
    [("jpeg", "kodim01", "q=2"), ("jpeg", "kodim13", "q=75"), ("jpeg2000", "kodim13", "target_bpp=0.1"),
     ("jpeg2000", "kodim23", "target_bpp=0.8")],
)  # fmt: skip
def test_metrics_give_the_reference_values(name, image, setting):
    rows = table.read(REFERENCE)
    row = next(r for r in rows if (r["codec"], r["image"], r["setting"]) == (name, image, setting))
    with Image.open(data_folder() / "kodak" / f"{image}.png") as picture:
        picture = picture.convert("RGB")
    (point,) = codec(name).points(picture, [(setting, "")])
    original = np.asarray(picture)
    if point.size != int(row["bytes"]):
        pytest.skip("another build of the library made the reference")
    assert metrics.psnr(original, point.shown) == pytest.approx(float(row["psnr_rgb"]), abs=0.01)
    assert metrics.ms_ssim(original, point.shown) == pytest.approx(float(row["ms_ssim"]), abs=0.001)
    assert lpips.lpips(original, point.shown, WEIGHTS) == pytest.approx(float(row["lpips_squeeze"]), abs=0.002)


def test_metrics_at_their_ends():
    a = np.arange(176 * 177, dtype=np.uint8).reshape(176, 177)
    assert metrics.psnr(a, a) == np.inf
    assert metrics.ms_ssim(a, a) == pytest.approx(1)
    assert metrics.ms_ssim(a[:-1], a[:-1]) is None  # too small for five scales
    assert metrics.psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 5, np.uint8)) == pytest.approx(34.1514, abs=1e-4)
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(a, a[:-1])


@needs_data
def test_lpips_at_its_ends():
    a = np.arange(17 * 20, dtype=np.uint8).reshape(17, 20)
    assert lpips.lpips(a, a, WEIGHTS) == 0
    gray, colour = lpips.lpips(a, a[::-1], WEIGHTS), lpips.lpips(np.dstack([a] * 3), np.dstack([a[::-1]] * 3), WEIGHTS)
    assert gray == pytest.approx(colour)
    assert gray > 0.1
    assert lpips.lpips(a[1:], a[1:], WEIGHTS) is None  # too small for its network


def test_lpips_tells_of_wrong_weights(tmp_path):
    a = np.zeros((20, 20), np.uint8)
    np.savez(tmp_path / "other.npz", x=a)
    with pytest.raises(ValueError, match="SqueezeNet"):
        lpips.lpips(a, a, tmp_path / "other.npz")
    (tmp_path / "no.npz").write_bytes(b"none")
    with pytest.raises(ValueError, match="no.npz"):
        lpips.lpips(a, a, tmp_path / "no.npz")
    with pytest.raises(ValueError, match="one shape"):
        lpips.lpips(a, a[1:], tmp_path / "no.npz")


def test_lpips_weights_are_looked_for_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DCODEC_DATA", raising=False)
    assert data_folder() == Path(__file__).resolve().parents[2] / "shared" / "data"
    monkeypatch.setenv("DCODEC_DATA", str(tmp_path))
    assert lpips.default_weights() is None
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "lpips_squeeze.npz").touch()
    assert lpips.default_weights() == tmp_path / "metrics" / "lpips_squeeze.npz"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is known on Linux only")
def test_peak_memory_is_that_since_it_was_forgotten():
    measure.forget_peak()
    before = measure.peak_mb()
    np.ones(100 << 17)  # 100 MiB, and gone
    after = measure.peak_mb()
    measure.forget_peak()
    assert after - before > 90
    assert measure.peak_mb() < after - 90


@needs_data
def test_rows_hold_lpips_where_weights_are(photo, tmp_path):
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "a.png")
    found = []
    for option in ([], ["--lpips", str(WEIGHTS)]):
        out = tmp_path / f"{len(option)}.csv"
        command = ["rd", "--images", str(tmp_path / "in"), "--codecs", "jpeg", "--quick", "--out", str(out), *option]
        result = CliRunner(env={"DCODEC_DATA": str(tmp_path)}).invoke(main, command, catch_exceptions=False)
        assert result.exit_code == 0
        found.append([row["lpips_squeeze"] for row in table.read(out)])
    assert set(found[0]) == {""}
    assert [float(d) for d in found[1]] == sorted(map(float, found[1]), reverse=True)


# ------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize("name", codecs.CLASSIC)
def test_gray_pictures_stay_gray(name):
    (point,) = codec(name).points(Image.new("L", (32, 24), 100), codec(name).jobs[-1:])
    assert point.shown.shape == (24, 32)


@pytest.mark.parametrize("name", codecs.CLASSIC)
def test_more_bytes_show_more(name, photo):
    found = sorted((p.size, metrics.psnr(np.asarray(photo), p.shown)) for p in codec(name).points(photo, codec(name).jobs))
    assert len(found) >= 5
    assert found[-1][1] > found[0][1] + 2
    assert codec(name).version


def test_what_is_not_here_is_named_in_one_line(photo, tmp_path, monkeypatch):
    monkeypatch.setitem(plugins.PACKAGES, "heic", ("no_such_module", "pillow-heif"))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "in").mkdir()
    photo.save(tmp_path / "in" / "a.png")
    out = tmp_path / "r.csv"
    command = ["rd", "--images", str(tmp_path / "in"), "--codecs", "heic,bpg,jpeg", "--quick", "--out", str(out)]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    lines = result.output.splitlines()
    assert lines[0] == "heic: left out, it needs the package pillow-heif (pip install 'dcodec[bench]')"
    assert lines[1].startswith("bpg: left out, it needs")
    assert {row["codec"] for row in table.read(out)} == {"jpeg"}


@needs_heif
def test_hevc_slices_are_counted_with_a_bpg_header(photo):
    intra = bpg.HevcIntra("", (40,))
    (point,) = intra.points(photo, intra.jobs)
    file = io.BytesIO()
    photo.save(file, "HEIF", chroma=444, enc_params=bpg._X265 | {"x265:crf": "40"})
    heif = file.getvalue()
    slices = int.from_bytes(heif[(at := heif.index(b"mdat") + 4) : at + 4], "big")  # one NAL unit, and the file ends
    assert at + 4 + slices == len(heif)
    assert point.size == bpg.bpg_size(heif, 96, 80)
    assert slices + 15 < point.size < slices + 40 < len(heif)
    with pytest.raises(ValueError, match="HEIF"):
        bpg.bpg_size(b"\0\0\0\x08mdat", 96, 80)


@needs_data
@needs_heif
def test_hevc_intra_is_as_large_as_libbpg(monkeypatch):
    """Within 4 % at equal PSNR (measured on all of Kodak: NOTES.md)."""
    monkeypatch.setenv("PATH", "")  # the equivalent, even where BPG is
    found = codec("bpg")
    assert found.name == bpg.EQUIVALENT
    rows = [r for r in table.read(REFERENCE) if (r["codec"], r["image"]) == ("bpg-jctvc-444", "kodim23")]
    theirs = sorted((float(r["psnr_rgb"]), np.log(int(r["bytes"]))) for r in rows)
    with Image.open(data_folder() / "kodak" / "kodim23.png") as picture:
        picture = picture.convert("RGB")
    for point in found.points(picture, [("crf=34", ""), ("crf=42", "")]):
        quality = metrics.psnr(np.asarray(picture), point.shown)
        assert point.size == pytest.approx(np.exp(np.interp(quality, *zip(*theirs, strict=True))), rel=0.04)


def test_bpg_is_asked_by_its_programs(photo, tmp_path, monkeypatch):
    """Stand-ins: the encoder copies the PNG and adds its quantizer, the decoder gives the PNG back."""
    programs = {
        "bpgenc": 'if [ $# = 0 ]; then echo "BPG Image Encoder version 0.9.8"; exit 1; fi; cp "$7" "$6"; printf "$4" >> "$6"',
        "bpgdec": 'cp "$3" "$2"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = codec("bpg")
    assert (found.name, found.version) == ("bpg", "0.9.8")
    (point,) = found.points(photo, [("q=30", "")])
    photo.save(file := io.BytesIO(), "PNG")
    assert point.size == len(file.getvalue()) + 2
    assert np.array_equal(point.shown, np.asarray(photo))
    (tmp_path / "bpgdec").write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(ValueError, match="bpgdec failed: broken"):
        list(found.points(photo, [("q=30", "")]))
