"""Is patch-KID the distance that it says, and does its command find what `rd` kept?"""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bench import kid, lpips
from bench.__main__ import main
from dcodec.pictures import to_image


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """SqueezeNet as it is built, not as it was trained: random features tell sets apart too."""
    rng = np.random.default_rng(0)
    shapes = {"features.0": (64, 3, 3, 3)}
    inputs = 64
    for i, (squeeze, expand) in zip(
        (3, 4, 6, 7, 9, 10, 11, 12), ((16, 64),) * 2 + ((32, 128),) * 2 + ((48, 192),) * 2 + ((64, 256),) * 2, strict=True
    ):
        shapes[f"features.{i}.squeeze"] = squeeze, inputs, 1, 1
        shapes[f"features.{i}.expand1x1"] = expand, squeeze, 1, 1
        shapes[f"features.{i}.expand3x3"] = expand, squeeze, 3, 3
        inputs = 2 * expand
    arrays = {"lin6": np.zeros((1, 512, 1, 1), np.float32)}
    for name, shape in shapes.items():
        arrays[name + ".weight"] = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        arrays[name + ".bias"] = np.zeros(shape[0], np.float32)
    path = tmp_path_factory.mktemp("squeeze") / "weights.npz"
    np.savez(path, **arrays)
    return path


def run(*arguments):
    alone = CliRunner(env={"DCODEC_DATA": str(Path(__file__).parent)})  # without LPIPS' weights, which not every machine has
    return alone.invoke(main, [str(a) for a in arguments])


def test_kid_by_hand():
    """Kernels of one dimension: k(0, 0) = 1, k(1, 1) = 8, k(0, 1) = 1."""
    zeros, ones = np.zeros((2, 1)), np.ones((2, 1))
    assert kid.kid(zeros, ones) == pytest.approx(1 + 8 - 2)
    assert kid.kid(zeros, zeros) == 0
    with pytest.raises(ValueError, match="two patches"):
        kid.kid(zeros[:1], ones)


def test_kid_is_unbiased():
    """Sets drawn alike are 0 apart on average, others are not."""
    rng = np.random.default_rng(1)
    alike, apart = [], []
    for _ in range(400):
        a, b = rng.standard_normal((2, 6, 3))
        alike.append(kid.kid(a, b))
        apart.append(kid.kid(a, b + 1))
    error = np.std(alike) / 20
    assert abs(np.mean(alike)) < 3 * error
    assert np.mean(apart) > 20 * error


def test_features_are_those_of_whole_patches(weights, draw):
    picture = np.asarray(to_image(draw(3, 130, 200, 1)))
    found = kid.features(picture, weights)
    assert found.shape == (2 * 3, 512)
    np.testing.assert_array_equal(found[4], lpips.summary(picture[64:128, 64:128], weights))
    np.testing.assert_allclose(kid.features(picture[..., 0], weights), kid.features(picture[..., [0, 0, 0]], weights))


def test_worse_pictures_are_farther(weights, draw, tmp_path):
    """The command, over what `rd --keep` wrote: fewer bits, more distance."""
    (tmp_path / "in").mkdir()
    for name in range(2):
        to_image(draw(3, 128, 128, name)).save(tmp_path / "in" / f"p{name}.png")
    common = "--out", tmp_path / "rd.csv", "--keep", tmp_path / "kept"
    assert run("rd", "--images", tmp_path / "in", "--codecs", "jpeg", "--quick", *common).exit_code == 0
    printed = run("kid", tmp_path / "rd.csv", "--keep", tmp_path / "kept", "--lpips", weights)
    assert printed.exit_code == 0, printed.output
    *lines, last = printed.output.splitlines()
    assert last == "2 pictures, 8 patches."
    cells = [line.split("|")[3:5] for line in lines[2:] if line]
    rates, distances = np.array(cells, float).T
    assert len(rates) >= 4
    assert list(rates) == sorted(rates)
    assert distances[0] > distances[-1]


def test_kid_says_what_is_missing(weights, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "rd.csv").write_text("codec,setting,estimate,image,bpp\njpeg,q=2,,p,0.1\n")
    assert "--lpips" in run("kid", tmp_path / "rd.csv", "--keep", tmp_path).output
    assert "rd --keep" in run("kid", tmp_path / "rd.csv", "--keep", tmp_path, "--lpips", weights).output
