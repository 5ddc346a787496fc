"""Do benchmark rows say what was measured, once each, and does the table average them as it claims?"""

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import dcodec
from bench import codecs, curves, digits, limit, metrics, source, table
from bench import prior as quality
from bench.__main__ import main
from bench.bd import bd_rate
from bench.measure import COLUMNS
from dcodec.pictures import to_image
from dcodec.prior.gaussian import GaussianPrior, spectrum
from dcodec.train import data


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path, draw):
    """Two pictures of 48 x 40."""
    where = tmp_path / "pictures"
    where.mkdir()
    for seed in range(2):
        to_image(draw(3, 40, 48, seed)).save(where / f"p{seed}.png")
    return where


# ------------------------------------------------------------------------------------------- rows


def test_rows_are_those_of_decoded_files(folder, tmp_path):
    out = tmp_path / "rd.csv"
    run("rd", "--images", folder, "--rates", "0.25,0.5", "--codecs", "dcodec,jpeg", "--prior", "gaussian", "--limit", 1,
        "--out", out, "--quick", "--sample")  # fmt: skip
    rows = table.read(out)
    assert [tuple(row) for row in rows] == [COLUMNS] * (4 + 7)
    picture = Image.open(folder / "p0.png")
    data = dcodec.encode(picture, bpp=0.5, prior="gaussian")
    for row in rows[:4]:
        size = int(float(row["setting"].removeprefix("rate=")) * 48 * 40 / 8)
        report: dict[str, int] = {}
        shown = dcodec.decode(data, size=size, estimate=row["estimate"], report=report)
        assert int(row["bytes"]) == size
        assert float(row["psnr_rgb"]) == pytest.approx(metrics.psnr(np.asarray(picture), np.asarray(shown)), abs=1e-4)
        assert int(row["nfe"]) == report["nfe"]  # the walk of the other rates costs nothing
        assert row["ms_ssim"] == ""
        assert row["prior"].startswith("gaussian-")
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=2, optimize=True, progressive=True, subsampling="4:2:0")
    assert (rows[4]["setting"], int(rows[4]["bytes"])) == ("q=2", len(file.getvalue()))


def test_states_of_the_encoder_show_the_same(folder, tmp_path):
    """--walk-once measures what decoding does."""
    found = []
    for option in ([], ["--walk-once"]):
        out = tmp_path / f"{len(option)}.csv"
        run("rd", "--images", folder, "--rates", "0.3,0.6", "--codecs", "dcodec", "--prior", "gaussian", "--limit", 1,
            "--out", out, "--sample", *option)  # fmt: skip
        found.append(table.read(out))
    assert len(found[0]) == 4
    for mine, theirs in zip(*found, strict=True):
        assert all(mine[key] == theirs[key] for key in ("setting", "estimate", "bytes", "psnr_rgb"))
        assert mine["decode_s"]
        assert not theirs["decode_s"]


@pytest.mark.parametrize("cut", [0, 7, 200, 900, 1500, -1])
def test_a_kill_loses_no_row_and_doubles_none(folder, tmp_path, cut):
    out = tmp_path / "rd.csv"
    command = ("rd", "--images", folder, "--codecs", "jpeg,webp", "--out", out, "--quick", "--crop", 32)
    run(*command)
    whole = out.read_bytes()
    assert run(*command) == ""  # nothing left to do
    assert out.read_bytes() == whole
    out.write_bytes(whole[:cut])
    run(*command)

    def measured(data: bytes) -> list[list[str]]:  # without times and memory
        head, *rows = csv.reader(data.decode().splitlines())
        kept = [i for i, name in enumerate(head) if not name.endswith(("_s", "_mb"))]
        return [head, *sorted([row[i] for i in kept] for row in rows)]

    assert measured(out.read_bytes()) == measured(whole)


def test_processes_write_the_same_rows(folder, tmp_path):
    found = []
    for jobs in ("1", "2"):
        out = tmp_path / f"{jobs}.csv"
        arguments = ["rd", "--images", folder, "--codecs", "jpeg,jxl,bpg", "--out", out, "--quick", "--jobs", jobs]
        if jobs == "1":
            run(*arguments)
        else:  # what new processes import matters
            command = [sys.executable, "-m", "bench", *map(str, arguments)]
            subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, timeout=60)
        found.append(sorted(row["codec"] + row["image"] + row["setting"] + row["bytes"] for row in table.read(out)))
    assert found[0] == found[1] != []


def test_processes_end_with_the_one_that_began_them(tmp_path):
    """Killed, that one cannot tell them; and what they wrote later, a resumed run would measure too."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import multiprocessing, time\n"
        "from bench.measure import end_with\n"
        "import os\n"
        "def child(parent):\n"
        "    end_with(parent)\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    p = multiprocessing.get_context('spawn').Process(target=child, args=(os.getpid(),))\n"
        "    p.start()\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.8)  # it looks twice a second
        os.kill(child, 0)  # it lives
        parent.kill()
    for _ in range(100):
        try:
            os.kill(child, 0)
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                return
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the process goes on")


def test_a_foreign_csv_is_left_alone(folder, tmp_path):
    out = tmp_path / "other.csv"
    out.write_text("a,b\n1,2\n")
    result = CliRunner().invoke(main, ["rd", "--images", str(folder), "--codecs", "jpeg", "--out", str(out)])
    assert result.exit_code == 1
    assert "other columns" in result.output
    assert out.read_text() == "a,b\n1,2\n"


# ------------------------------------------------------------------------------------------- digits


@pytest.fixture
def idx(tmp_path):
    """Ten strokes, in the form of MNIST's files."""
    digits = np.zeros((10, 28, 28), np.uint8)
    for i in range(10):
        digits[i, 4:24, 8 + i : 11 + i] = 255
    path = tmp_path / "digits.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + np.array([10, 28, 28], ">u4").tobytes() + digits.tobytes()))
    return path


def test_digits_are_packed_for_training(idx, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "TRAIN", 7)  # the other three are for measuring
    run("digits", idx, "--pack", tmp_path / "train.tar")
    pictures = data.read([tmp_path / "train.tar"])
    assert (pictures.count, pictures.channels) == (7, 1)
    assert torch.equal(pictures.train[0][0], torch.tensor(digits.read(idx)[0]))


def test_digits_are_compared_at_equal_or_larger_files(idx, monkeypatch):
    monkeypatch.setattr(digits, "TRAIN", 7)
    command = "--prior gaussian --bytes 60 --most 400 --codecs jpeg,webp --limit 2".split()
    told = run("digits", idx, *command)
    assert run("digits", idx, *command, "--walk-once") == told
    lines = dict(line.split(": ") for line in told.splitlines())
    assert re.fullmatch(r"\d+\.\d\d dB at 60\.0 bytes, 2 of 2 digits", lines["dcodec"])
    assert float(lines["webp"].split()[0]) > float(lines["jpeg"].split()[0]) > 15
    found = digits.classical(digits.read(idx)[0], codecs.find("jpeg", (), ""), 400)
    assert found is not None
    assert found[1] <= 400
    assert digits.classical(digits.read(idx)[0], codecs.find("jpeg", (), ""), 40) is None
    (idx.parent / "bad.gz").write_bytes(gzip.compress(b"no digits"))
    result = CliRunner().invoke(main, ["digits", str(idx.parent / "bad.gz")])
    assert (result.exit_code, "expected a gzipped IDX file" in result.output) == (1, True)


# ------------------------------------------------------------------------------------------- limit


def test_limit_of_a_gaussian_source_is_its_information(folder, tmp_path, draw):
    """Mean over pictures drawn from the prior: R = 1/2 sum log2(1 + l / sigma^2), error = sum l sigma^2 / (l + sigma^2)."""
    prior = GaussianPrior()
    h = w = 24
    eigenvalues = spectrum(h, w, prior.parameters)
    curves = [limit.limit(prior, np.asarray(to_image(draw(3, h, w, seed))), 4) for seed in range(12)]
    for levels in list(zip(*curves, strict=True))[6:-10]:  # 8-bit pictures are clipped and rounded
        s2 = levels[0].sigma ** 2
        bits = float(np.log2(1 + eigenvalues / s2).sum()) / 2 / (h * w)
        error = float((eigenvalues * s2 / (eigenvalues + s2)).mean())
        assert np.mean([level.bpp for level in levels]) == pytest.approx(bits, rel=0.12)  # 12 draws of few large coefficients
        assert np.mean([level.mse for level in levels]) == pytest.approx(error, rel=0.12)
    assert limit.at_rates(curves[0], [curves[0][8].bpp]) == pytest.approx([curves[0][8].psnr])
    out = tmp_path / "limit.csv"
    command = ("limit", "--images", folder, "--prior", "gaussian", "--out", out, "--stride", 8, "--rates", "1")
    assert run(*command).startswith("p0: 1 bpp ")
    whole = out.read_bytes()
    assert len(table.read(out)) == 2 * 12
    assert run(*command) == ""  # nothing left to do
    assert out.read_bytes() == whole


# ------------------------------------------------------------------------------------------- prior


def test_denoising_is_that_of_the_posterior_mean(draw):
    """Of 8-bit pictures drawn from the prior: error = sum l sigma^2 / (l + sigma^2); their clipping matters little at 0.1."""
    prior = GaussianPrior()
    pictures = [np.asarray(to_image(draw(3, 32, 32, seed))) for seed in range(12)]
    found = np.mean([quality.denoising(prior, picture) for picture in pictures], axis=0)
    eigenvalues = spectrum(32, 32, prior.parameters)
    for sigma, dB in list(zip(quality.NOISES, found, strict=True))[1:4]:
        error = (eigenvalues * sigma**2 / (eigenvalues + sigma**2)).mean()
        assert dB == pytest.approx(10 * np.log10(4 / error), abs=0.3)


def test_super_resolution_knows_the_block_averages(draw):
    """The posterior mean keeps what was measured, and on pictures of the prior it is better than an interpolation."""
    pictures = [np.asarray(to_image(draw(3, 40, 37, seed))) for seed in range(6)]
    mean, bicubic = np.mean([quality.super_resolution(GaussianPrior(), picture, 4) for picture in pictures], axis=0)
    assert mean > bicubic


@pytest.mark.slow
def test_calibration_of_the_right_prior_is_near_one(draw):
    found = [list(quality.calibration(GaussianPrior(), np.asarray(to_image(draw(3, 48, 48, seed))))) for seed in range(12)]
    samples, shown, error = np.mean(found, axis=0).T
    assert len(error) == len(quality.RATES)
    assert samples / error == pytest.approx(1.1, abs=0.4)
    assert shown / error == pytest.approx(0.9, abs=0.3)


def test_prior_table(folder):
    command = ("prior", "--images", folder, "--prior", "gaussian", "--limit", 1, "--crop", 32)
    parts = "denoising,limit,resolution,calibration,speed"
    found = json.loads(run(*command, "--rates", "1", "--parts", parts, "--json").partition("\n")[2])
    assert found["pictures"] == 1
    assert list(found["denoising, exact (dB)"]) == [str(sigma) for sigma in quality.NOISES]
    assert found["I-MMSE limit (dB)"]["1.0"] > 15
    assert list(found["x8 mean, bicubic (dB)"]) == ["mean", "bicubic"]
    for name in ("samples", "map"):
        least, mean, greatest = (found[f"calibration, {name}{part}"] for part in (", least picture", "", ", greatest picture"))
        assert least == mean == greatest  # of one picture
        assert list(mean) == [str(rate) for rate in quality.RATES]
    assert found["ms an evaluation, 256x256"] > 0
    assert "denoising, exact (dB): 0.05 " in run(*command, "--parts", "denoising")
    result = CliRunner().invoke(main, [*map(str, command), "--parts", "beauty"])
    assert result.exit_code == 1
    assert "unknown parts beauty" in result.output


# ------------------------------------------------------------------------------------------- source


def test_quantization_by_entropy_and_centroid():
    """At high rates 1/4 bit above the Shannon bound (Gish & Pierce 1968), at low ones nothing for everything."""
    variances = np.array([0.5, 2.0])
    bits, error = source.ecsq(variances, 0.05)
    assert error == pytest.approx(2 * 0.05**2 / 12, rel=1e-3)
    assert bits == pytest.approx(0.5 * np.log2(variances / (0.05**2 / 12)).sum() + 2 * 0.2546, abs=1e-3)
    bits, error = source.ecsq(variances, 100.0)
    assert bits < 1e-6
    assert error == pytest.approx(2.5)
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.standard_normal(400_000) / 0.8)
    _, counts = np.unique(symbols, return_counts=True)
    p = counts / counts.sum()
    assert source.ecsq(np.ones(1), 0.8)[0] == pytest.approx(-(p * np.log2(p)).sum(), abs=0.01)


def test_walk_on_a_gaussian_source_stays_near_the_ideal_code():
    """Ratio of bits; the goal is 1.1 (measured: 1.257 over eight pictures and 20, 22, 24, 27 dB)."""
    found = source.ratios([22, 24], range(2), 64)
    assert found.shape == (2, 2)
    assert found.min() > 1
    assert found.mean() < 1.3


# ------------------------------------------------------------------------------------------- BD-rate


@pytest.mark.parametrize(
    ("anchor", "test", "percent"),  # by the package bjontegaard 1.3.0, method pchip; the first pair is its own example
    [
        (
            {9487.76: 40.037, 4593.60: 38.615, 2486.44: 36.845, 1358.24: 34.851},
            {9787.80: 40.121, 4469.00: 38.651, 2451.52: 36.970, 1356.24: 34.987},
            -4.417485350589045,
        ),
        (
            {686.76: 40.28, 309.58: 37.18, 157.11: 34.24, 85.95: 31.42},
            {893.34: 40.39, 407.8: 37.21, 204.93: 34.17, 112.75: 31.24},
            31.379878202397627,
        ),
    ],
)
def test_bd_rate_is_that_of_a_published_implementation(anchor, test, percent):
    assert bd_rate(anchor, test) == pytest.approx(percent, abs=1e-6)


def test_bd_rate_by_hand():
    curve = {0.1: 26.0, 0.2: 28.5, 0.4: 31.0, 0.8: 34.0}
    assert bd_rate(curve, curve) == 0
    assert bd_rate(curve, {0.9 * bpp: dB for bpp, dB in curve.items()}) == pytest.approx(-10)
    assert np.isnan(bd_rate(curve, {bpp: dB - 20 for bpp, dB in curve.items()}))
    # lines in log rate, 3 and 4 dB an octave, equal at 0.2: the mean of log2 is that in the middle of what they share
    three, four = ({0.2 * 2.0**k: 28 + slope * k for k in range(-1, 3)} for slope in (3, 4))
    middle = (25 + 34) / 2 - 28
    assert bd_rate(three, four) == pytest.approx(100 * (2 ** (middle / 4 - middle / 3) - 1))
    assert np.isnan(bd_rate(curve, {0.1: 10.0, 0.2: 12.0}))  # no quality shared
    assert np.isnan(bd_rate(curve, {0.1: 30.0}))
    assert bd_rate(curve, {**curve, 0.5: 30.0}) == pytest.approx(0)  # a point that no encoder would choose


# ------------------------------------------------------------------------------------------- table


def row(codec, setting, image, bpp, psnr, **more):
    return {"codec": codec, "setting": setting, "image": image, "bpp": str(bpp), "psnr_rgb": str(psnr), **more}


ROWS = [
    row("dcodec", "rate=0.1", "a", 0.0999, 30, prior="photo-12", estimate="mean"),
    row("dcodec", "rate=0.1", "b", 0.0999, 32, prior="photo-12", estimate="mean"),
    row("dcodec", "rate=0.2", "a", 0.1999, 33, prior="photo-12", estimate="mean"),
    row("jpeg", "q=1", "a", 0.3, 30),  # not in order
    row("jpeg", "q=2", "a", 0.1, 26),
    row("jpeg", "q=1", "b", 0.15, 28),
    row("jpeg", "q=2", "b", 0.25, 30),
]


def test_table_by_hand(tmp_path):
    lines = table.markdown(ROWS, [0.1, 0.2, 0.5]).splitlines()
    assert lines[0] == "| bpp | dcodec photo-12 | jpeg | dcodec photo-12 - jpeg |"
    assert lines[2:6] == [
        "| 0.1 | 31.00 | (1) | +4.00 (1) |",  # b's smallest JPEG is larger
        "| 0.2 | (1) | 28.50 | +5.00 (1) |",  # a: 28, b: 29
        "| 0.5 | (0) | (0) | (0) |",
        "| BD-rate |  | (0) |  |",  # a: JPEG ends at 30 dB, where dcodec begins; b has one point of dcodec
    ]
    assert "2 pictures" in lines[-1]
    assert table.rates_of(ROWS) == [0.1, 0.2]
    more = [*ROWS, row("jpeg", "q=0", "a", 0.9, 36)]
    expected = bd_rate({0.1: 26.0, 0.3: 30.0, 0.9: 36.0}, {0.1: 30.0, 0.2: 33.0})
    assert f"| BD-rate |  | {expected:+.1f} % (1) |  |" in table.markdown(more, [0.1]).splitlines()


def test_table_with_a_reference(tmp_path):
    reference = [row("jxl", "d=1", "a", 0.1, 31), row("jxl", "d=1", "b", 0.1, 35), row("jxl", "d=1", "c", 0.1, 99)]
    lines = table.markdown(ROWS, [0.1], reference).splitlines()
    assert lines[0] == "| bpp | dcodec photo-12 | jpeg | jxl* | dcodec photo-12 - jpeg |"
    assert lines[2] == "| 0.1 | 31.00 | (1) | 33.00 | +4.00 (1) |"
    path = tmp_path / "rd.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ROWS)
    assert "| 0.2 | (1) | 28.50 | +5.00 (1) |" in run("table", path)
    with_reference = run("table", path, "--rates", "0.1", "--reference", path)
    assert with_reference.startswith("| bpp | dcodec | jpeg | dcodec* | jpeg* | dcodec - jpeg |")


def test_table_of_perception_is_about_the_sample():
    points = {"jpeg": {0.1: 0.5, 0.2: 0.4, 0.4: 0.3}, "dcodec": {0.05: 0.5, 0.1: 0.4}, "sample": {0.05: 0.4, 0.1: 0.3}}
    more = [
        row(name.replace("sample", "dcodec"), f"rate={bpp}" if name != "jpeg" else f"q={bpp}", "a", bpp, 9,
            lpips_squeeze=str(value), estimate="" if name == "jpeg" else name.replace("dcodec", "mean"))
        for name, curve in points.items() for bpp, value in curve.items()
    ]  # fmt: skip
    lines = table.markdown(more, [0.05, 0.1], quality=curves.LPIPS).splitlines()
    assert lines[0] == "| bpp | jpeg | dcodec | dcodec sample | dcodec sample - jpeg |"
    assert lines[2:4] == ["| 0.05 | (0) | 0.500 | 0.400 | (0) |", "| 0.1 | 0.500 | 0.400 | 0.300 | -0.200 (1) |"]
    assert lines[4] == "| BD-rate | -75.0 % (1) |  |  |  |"  # a quarter of JPEG's bits at 0.4 and at 0.3


def test_peers_side_by_side(tmp_path):
    def measured(codec, setting, estimate, image, psnr, nfe):
        more = {"estimate": estimate, "prior": "p-1", "lpips_squeeze": "0.5", "nfe": str(nfe), "decode_s": "2", "bytes": "100"}
        return row(codec, setting, image, 0.1, psnr, **more)

    rows = [
        measured("dcodec", "rate=0.1", "mean", "a", 30, 500), measured("dcodec", "rate=0.1", "mean", "b", 31, 1500),
        measured("ddcm", "rate=0.1", "sample", "a", 20, 7), measured("ddcm", "rate=0.1", "sample", "b", 22, 7),
        measured("diffc-20", "rate=0.1", "flow", "a", 25, 7),  # not on b
        row("jpeg", "q=2", "a", 0.1, 20),  # meets no rate
    ]  # fmt: skip
    with open(tmp_path / "peers.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = run("peers", tmp_path / "peers.csv").splitlines()
    assert lines[2:] == [
        "| 0.1 | dcodec | 30.50 | 0.500 | 1,000 | 2.0 | 100 |",
        "| 0.1 | ddcm sample | 21.00 | 0.500 | 7 | 2.0 | 100 |",
        "",
        "Means over 2 pictures. p-1",
    ]
