"""Does `dcodec train` make a prior of pictures that the codec uses, and can it be stopped and go on?"""

import csv
import io
import math
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from dcodec.cli import cli
from dcodec.pictures import to_image
from dcodec.prior import SIGMAS, catalog
from dcodec.prior.gaussian import GaussianPrior, wiener
from dcodec.train import data, fit, model, quantize
from dcodec.train.learner import Learner, orthogonalized
from dcodec.transform import Layout, analyze, from_tiles


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 40 to 72 pixels a side, in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for i in range(40):
        h, w = 40 + 8 * (i % 5), 72 - 8 * (i % 3)
        image = to_image(GaussianPrior().draw(3, h, w, i))
        image.save(folder / ("more" if i % 2 else ".") / f"{i:02}.png")
    (folder / "readme.txt").write_text("not a picture")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that seconds suffice for."""
    monkeypatch.setattr(model, "WIDTHS", (16, 24, 32))
    monkeypatch.setattr(model, "EMBEDDING", 16)
    monkeypatch.setattr(fit, "FITTED_SIDE", 16)
    monkeypatch.setattr(quantize, "CROPS_PER_LEVEL", 1)
    monkeypatch.setattr(quantize, "CROP", 32)


def untrained(widths: Sequence[int], arch: str) -> fit.Run:
    """A network all of whose weights matter."""
    rng = torch.Generator().manual_seed(0)
    state = {k: v + 0.1 * torch.randn(v.shape, generator=rng) for k, v in model.fresh(3, widths, arch).items()}
    return fit.Run(state, state, steps=20)


def grown_alike(before: fit.Run, widths: list[int]) -> fit.Run:
    """`before` with a larger network, which computes the same."""
    after = fit.grown(before, widths)
    assert model.widths(after.net) == widths
    assert after.steps == before.steps
    inp, levels = torch.randn(3, 6, 32, 48, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 44, 88])
    expected = model.body(before.net, inp, levels)
    assert expected.std() > 0.001
    torch.testing.assert_close(model.body(after.net, inp, levels), expected, rtol=0, atol=1e-6)
    return after


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("arch", ["unet", pytest.param("cunet", marks=pytest.mark.slow)])
def test_a_trained_prior_encodes_here_and_decodes_in_another_process(arch: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    told = run(photos, "--out", out, "--minutes", 0.01, "--arch", arch)
    assert "40 pictures, 3 held out; from step 0" in told
    first = fit.resume(out)
    assert first is not None
    assert first.steps > 0
    assert first.crops > 0
    again = run(photos, "--out", out, "--steps", 3)
    assert f"from step {first.steps}" in again
    second = fit.resume(out)
    assert second is not None
    assert second.steps == first.steps + 3
    assert model.architecture(second.average) == arch
    with open(out / "curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) for row in rows] == [first.steps, second.steps]

    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert max(sizes.values()) < 16 << 20
    assert set(sizes) == {"prior.safetensors", "curve.csv", *(f"{name}.safetensors" for name in fit._PARTS)}
    picture, stream = photos / "00.png", tmp_path / "a.dcx"
    assert catalog.find(str(out)).name == "mine"
    assert catalog.load(catalog.find(str(out))).turned
    result = CliRunner().invoke(cli, ["encode", str(picture), str(stream), "--bpp", "0.5", "--prior", str(out)])
    assert result.exit_code == 0, result.output
    shown = []
    for name in ("here", "there"):
        target = tmp_path / f"{name}.png"
        command = ["decode", str(stream), str(target), "--prior", str(out)]
        if name == "here":
            assert CliRunner().invoke(cli, command).exit_code == 0
        else:
            subprocess.run([sys.executable, "-m", "dcodec.cli", *command], check=True, env={"OMP_NUM_THREADS": "1"})
        shown.append(np.asarray(Image.open(target)))
    np.testing.assert_array_equal(*shown)
    without = CliRunner().invoke(cli, ["decode", str(stream), str(tmp_path / "b.png")])
    assert without.exit_code == 1
    assert "needs prior" in without.output


@pytest.mark.usefixtures("small")
def test_gray_pictures_make_a_gray_prior(photos: Path, tmp_path: Path) -> None:
    """Of pictures smaller than any crop, not mirrored: it denoises one channel, and codes."""
    (tmp_path / "gray").mkdir()
    for i, path in enumerate(sorted(photos.rglob("*.png"))):
        with Image.open(path) as image:
            image.convert("L").crop((0, 0, 28, 28)).save(tmp_path / "gray" / f"{i}.png")
    out = tmp_path / "mine"
    told = run(tmp_path / "gray", "--out", out, "--minutes", 0.01, "--no-mirror", "--widths", "16,16,24")
    assert "40 pictures, 3 held out" in told
    entry = catalog.find(str(out))
    prior = catalog.load(entry)
    assert prior.channels == (1,)
    assert not prior.turned
    run(tmp_path / "gray", "--out", out, "--minutes", 0)
    assert not catalog.load(catalog.find(str(out))).turned  # the checkpoint tells
    assert prior(torch.zeros(2, 1, 28, 28), 1.0).shape == (2, 1, 28, 28)
    assert 0 < catalog.gflop(entry) < 1
    picture, stream, shown = tmp_path / "gray" / "0.png", tmp_path / "a.dcx", tmp_path / "a.png"
    for command in (["encode", picture, stream, "--bytes", 60], ["decode", stream, shown]):
        result = CliRunner().invoke(cli, [*map(str, command), "--prior", str(out)])
        assert result.exit_code == 0, result.output
    with Image.open(shown) as image:
        assert image.mode == "L"
    colour = CliRunner().invoke(cli, ["encode", str(photos / "00.png"), str(stream), "--prior", str(out)])
    assert colour.exit_code == 1
    assert "knows pictures of 1 channels, not of 3" in colour.output
    mixed = CliRunner().invoke(cli, ["train", str(photos), "--out", str(out), "--minutes", "0"])
    assert mixed.exit_code == 1
    assert "the pictures have 3 channels" in mixed.output


@pytest.mark.usefixtures("small")
def test_checkpoints_are_many_and_measurements_few(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit, "MEASURING", 1e-6)
    pictures = data.read([photos])
    reports = list(fit.fit(fit.begin(pictures), pictures, 0, "cpu", 1e-3, 1, steps=4))
    assert [report.psnr is not None for report in reports] == [True, False, False, False, True]
    assert all(report.kept for report in reports)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("quiet", [True, False])
def test_a_terminal_shows_progress_unless_quiet(
    quiet: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    arguments = ["train", str(photos), "--out", str(tmp_path / "mine"), "--steps", "3", *(["-q"] if quiet else [])]
    cli.main(arguments, standalone_mode=False)
    assert ("\rstep 2 " in screen.getvalue()) is not quiet
    assert bool(screen.getvalue()) is not quiet


def test_noise_is_what_a_walk_takes_off_and_all_else() -> None:
    torch.manual_seed(0)
    sigma = fit.noises(1 << 16, "cpu")
    octaves = torch.bincount((sigma.clamp(2**-5, 15.9).log2() + 5).long(), minlength=9) / len(sigma)  # from 1/32 on
    assert sigma.min() == SIGMAS[0]
    assert sigma.max() <= SIGMAS[-1]
    assert octaves[1:4].sum() > 0.6  # 1/16 to 1/2
    assert octaves.min() > 0.005


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("arch", ["unet", pytest.param("cunet", marks=pytest.mark.slow)])
def test_a_finer_stage_changes_nothing_until_it_is_trained(arch: str, photos: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "average.safetensors", tmp_path / "new"
    before = untrained(model.WIDTHS, arch)
    fit.save(before, tmp_path)
    grown_alike(before, [8, 16, 24, 32])
    run(photos, "--out", new, "--steps", 3, "--start", old, "--widths", "8,16,24,32")
    assert "inp.1.weight" in load_file(new / "prior.safetensors")
    list(quantize.export(before.net, before.spectrum, data.read([photos]), tmp_path / "prior.safetensors", {}, True))
    prior, shallow = (catalog.find(str(folder)) for folder in (new, tmp_path))
    assert catalog.gflop(prior) > catalog.gflop(shallow)
    assert not torch.equal(catalog.load(prior)(torch.zeros(1, 3, 32, 32), 1.0), torch.zeros(1, 3, 32, 32))
    refusals = (("8,16,24,40", "a"), ("16,24,32", "b"), ("16,16,40", "c"), ("8,8,16,24", "new"))
    for widths, folder in ((widths, tmp_path / name) for widths, name in refusals):
        start = ["--start", str(old)] if folder != new else []
        refused = CliRunner().invoke(cli, ["train", str(photos), "--out", str(folder), *start, "--widths", widths])
        assert refused.exit_code == 1
        assert "--widths" in refused.output
    refused = CliRunner().invoke(cli, ["train", str(photos), "--out", str(new), "--arch", "unet"])
    assert refused.exit_code == 1
    assert "--arch" in refused.output
    assert "--widths" not in refused.output


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("arch", model.ARCHITECTURES)
def test_more_channels_change_nothing_until_they_are_trained(arch: str) -> None:
    before = untrained((8, 16, 24, 32), arch)
    after = grown_alike(before, [8, 24, 24, 48])
    learner = Learner(after.net, {}, {}, after.steps, "cpu")
    for _ in range(3):  # what reads the new channels, then what writes them
        learner.step(fit.loss(learner.net(), after.spectrum, torch.rand(2, 3, 32, 32) - 0.5, torch.tensor([30, 60])), 1e-3)
    for key, learnt in learner.net().items():
        if learnt.ndim == 4 and key.endswith(".weight"):
            moved = (learnt - after.net[key]).flatten(2).abs().amax(2) > 0  # (out, in)
            assert moved.float().mean() > 0.95, key


def test_the_spectrum_of_a_gaussian_source_is_found() -> None:
    x = np.stack([GaussianPrior().draw(3, 64, 64, seed) for seed in range(24)])
    found = fit.fit_spectrum(torch.from_numpy(x))
    for true, mine in zip(catalog.PHOTO_SPECTRUM, found, strict=True):
        for frequency in (0.05, 0.2, 0.8):
            ratio = (mine[0] * (mine[1] ** 2 + frequency**2) ** -mine[2]) / (
                true[0] * (true[1] ** 2 + frequency**2) ** -true[2]
            )
            assert 0.9 < ratio < 1.1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("arch", model.ARCHITECTURES)
def test_multiplications_are_counted(arch: str, photos: Path, tmp_path: Path) -> None:
    """Against torch's own count of the float network; the integer one reads its input thrice and writes its output twice."""
    network = model.fresh(3, arch=arch)
    list(quantize.export(network, catalog.PHOTO_SPECTRUM, data.read([photos]), tmp_path / "a.safetensors", {}, True))
    with FlopCounterMode(display=False) as counter:
        model.body(network, torch.zeros(1, 6, 256, 256), torch.zeros(1, dtype=torch.long))
    more = 2 * (2 * network["inp.weight"].numel() + network["out.weight"].numel()) * 64 * 64
    found = catalog.gflop(catalog.find(str(tmp_path / "a.safetensors")))
    assert found == pytest.approx((counter.get_total_flops() + more) / 1e9, rel=1e-3)


@pytest.mark.usefixtures("small")
def test_a_stretch_goes_on_where_the_last_one_ended(photos: Path, tmp_path: Path) -> None:
    """Weights and moments come back within the precision that they are kept in; a torn checkpoint gives the average."""
    pictures = data.read([photos])
    state = fit.begin(pictures)
    list(fit.fit(state, pictures, 0, "cpu", 1e-3, 1, steps=3))
    fit.save(state, tmp_path)
    back = fit.resume(tmp_path)
    assert back is not None
    assert (back.steps, back.crops) == (state.steps, state.crops)
    for name, precision in (("net", 2**-11), ("average", 2**-11), ("first", 2**-8), ("second", 2**-8)):
        for key, value in getattr(state, name).items():
            torch.testing.assert_close(getattr(back, name)[key], value, rtol=precision, atol=1e-6, msg=f"{name} {key}")
    torn = fit.begin(pictures)
    list(fit.fit(torn, pictures, 0, "cpu", 1e-3, 1, steps=1))
    torn.steps += 1000
    (tmp_path / "other").mkdir()
    fit.save(torn, tmp_path / "other")
    (tmp_path / "other" / "second.safetensors").replace(tmp_path / "second.safetensors")
    mended = fit.resume(tmp_path)
    assert mended is not None
    assert not mended.first
    assert mended.steps == state.steps
    torch.testing.assert_close(mended.net, mended.average)


@pytest.mark.usefixtures("small")
def test_a_learner_goes_on_as_if_it_had_not_stopped() -> None:
    """Convolutions keep one moment, all else two; nothing else is remembered."""
    start = model.fresh()

    def learn(learner: Learner, steps: range) -> None:
        for i in steps:
            target = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(i))
            error = model.body(learner.net(), target.repeat(1, 2, 1, 1), torch.tensor([3, 50])).sub(target).square().mean()
            learner.step(error, 1e-3)

    through = Learner(start, {}, {}, 0, "cpu")
    learn(through, range(6))
    before = Learner(start, {}, {}, 0, "cpu")
    learn(before, range(3))
    first, second = before.moments()
    assert set(first) == set(start)
    assert {k for k in start if start[k].ndim == 4 and k.endswith("weight")} == set(start) - set(second)
    assert all(first[k].shape == start[k].shape for k in first)
    after = Learner(before.net(), first, second, 3, "cpu")
    learn(after, range(3, 6))
    for k, v in through.net().items():
        assert torch.equal(after.net()[k], v), k
        assert not torch.equal(start[k], v), k


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (1, 9)])
def test_orthogonalized_is_what_torchs_muon_takes(shape: tuple[int, int]) -> None:
    """Up to its bfloat16; the same singular vectors, all of about the same length."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = x
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    made = orthogonalized(x)
    torch.testing.assert_close(made, -weight.data / max(1.0, shape[0] / shape[1]) ** 0.5, atol=0.05, rtol=0.0)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    turned = u.T @ made @ v.T
    assert 0.6 < turned.diagonal().min() <= turned.diagonal().max() < 1.3
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-3, rtol=0.0)


@pytest.mark.usefixtures("small")
def test_crops_count_by_the_root_of_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of two is that of each alone, the one of the larger error weighed down; their loss is the plain mean."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    x[1] *= 0.1
    levels = torch.full((2,), SIGMAS.index(0.5))

    def descend(part: slice) -> tuple[float, torch.Tensor]:
        net = {k: v.requires_grad_() for k, v in model.fresh().items()}
        error = fit.loss(net, catalog.PHOTO_SPECTRUM, x[part], levels[part])
        error.backward()
        gradient = net["out.weight"].grad
        assert gradient is not None
        return error.item(), gradient

    (large, first), (little, second), (both, together) = (descend(part) for part in (slice(1), slice(1, 2), slice(2)))
    assert large > 10 * little
    assert math.isclose(both, (large + little) / 2, rel_tol=1e-5)
    weights = [(error + fit.LEAST) ** -fit.EVEN for error in (large, little)]
    share = (large + little) / (weights[0] * large + weights[1] * little)
    torch.testing.assert_close(together, share * (weights[0] * first + weights[1] * second) / 2, rtol=0.02, atol=1e-3)


@pytest.mark.usefixtures("small")
def test_training_lowers_the_loss(photos: Path) -> None:
    """On a few crops seen again and again, so that seconds suffice: the network learns what the filter leaves."""
    torch.manual_seed(0)
    x = next(data.batches(data.read([photos]), 0))
    levels = torch.full((len(x),), SIGMAS.index(0.5))
    net = {k: v.requires_grad_() for k, v in model.fresh().items()}
    optimizer = torch.optim.Adam(net.values(), 3e-3)
    losses = []
    for _ in range(60):
        torch.manual_seed(1)
        error = fit.loss(net, catalog.PHOTO_SPECTRUM, x, levels)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.9 * losses[0]


def test_nothing_learnt_is_the_wiener_filter(photos: Path) -> None:
    x = data.middles(data.read([photos]).held, 32)
    assert x.shape == (3, 3, 32, 32)
    level = SIGMAS.index(0.5)
    noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    rest, w = fit.estimate(model.fresh(), catalog.PHOTO_SPECTRUM, noisy, torch.full((3,), level))
    assert not rest.any()
    torch.testing.assert_close(w, wiener(noisy, 0.5, catalog.PHOTO_SPECTRUM), atol=1e-4, rtol=0)


def test_folders_and_archives_are_the_same_pictures(photos: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(photos.rglob("*")):
            tar.add(path, str(path.relative_to(photos)), recursive=False)
    one, other = data.read([photos]), data.read([archive])
    assert (one.count, one.digest) == (other.count, other.digest)
    assert all(torch.equal(a, b) for a, b in zip(one.train, other.train, strict=True))
    held = {picture.numpy().tobytes() for picture in one.held}
    assert len(held) == 3
    assert not held & {picture.numpy().tobytes() for picture in one.train}


def test_pictures_are_seen_at_the_scales_of_a_walk(tmp_path: Path) -> None:
    """Full size, then the walk's own low bands for as long as a crop fits; one picture in sixteen is held out."""
    for i in range(2):
        to_image(GaussianPrior().draw(3, 131, 200, i)).save(tmp_path / f"{i}.png")
    pictures = data.read([tmp_path])
    assert [tuple(p.shape) for p in pictures.train] == [(3, 131, 200), (3, 66, 100)]
    full, half = (p[None].float() for p in pictures.train)
    layout = Layout(3, 131, 200, levels=1, tile=0)
    low = from_tiles(analyze(full, layout)[0], layout, 0) / 2  # a constant picture's band is twice the constant
    assert (half - low.clamp(0, 255)).abs().max() <= 0.501
    np.testing.assert_allclose(pictures.weights[0] / pictures.weights[1], 2, rtol=0.01)


def test_deep_and_turned_pictures_are_read_as_a_codec_reads_them(tmp_path: Path) -> None:
    """16 bits of gray are not clipped to white, and what a camera turned stands upright."""
    ramp = np.linspace(0, 65535, 64 * 40).reshape(40, 64).astype(np.uint16)
    for i in range(3):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    assert 120 < float(data.read([tmp_path]).train[0].float().mean()) < 135
    for i in range(3):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / f"{i}.png", exif=exif)
    assert data.read([tmp_path]).train[0].shape == (1, 64, 40)
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png: not a picture"):
        data.read([tmp_path])


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="holds no weights that can be read"):
        fit.load(tmp_path / "a.safetensors")
    save_file({"other": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no network"):
        fit.load(tmp_path / "a.safetensors")


def test_crops_are_as_large_as_the_pictures_allow(photos: Path) -> None:
    pictures = data.read([photos])
    assert data.sides(pictures) == [(32, 64)]
    batch = next(data.batches(pictures, 0, times=2))
    assert batch.shape == (64, 3, 64, 64)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() < batch.max() <= 1
    tiny = data.Pictures(tuple(p[:, :30, :40] for p in pictures.train), pictures.weights, pictures.held, (), 40, "")
    assert data.sides(tiny) == [(64, 30)]


def test_a_pack_holds_what_fits_and_is_read_like_any_archive(photos: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    assert "40 of 40 pictures" in run(photos, "--pack", packed, "--megabytes", 1)
    assert data.read([packed]).count == 40
    assert packed.stat().st_size <= 1 << 20
    chosen, found = data.pack([photos], packed, 0.2)
    assert (chosen, found) == (data.read([packed]).count, 40)
    assert 5 < chosen < 35
    assert packed.stat().st_size <= 0.2 * 2**20
    for out, message in ((tmp_path, "found a folder"), (tmp_path / "none" / "a.tar", "there is no folder")):
        with pytest.raises(ValueError, match=message):
            data.pack([photos], out, 1)
    with pytest.raises(ValueError, match="none of 40 pictures fits"):
        data.pack([photos], tmp_path / "b.tar", 0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed.tar"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="at least 2"):
        data.read([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{photos}", "--out", "{out}", "--pack", "x.tar"], "one of --out and --pack"),
        (["{photos}/nowhere", "--out", "{out}"], "No such file"),
        (["{photos}/readme.txt", "--out", "{out}"], "neither a folder nor a tar archive"),
        (["{photos}/more/01.png", "--out", "{out}"], "neither a folder nor a tar archive"),
    ],
)
def test_bad_calls_get_one_line_and_leave_nothing(
    arguments: list[str], line: str, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["train", *(a.format(photos=photos, out=out) for a in arguments)])
    assert result.exit_code in (1, 2)
    assert line in result.output
    assert "Traceback" not in result.output
    assert not out.exists()


@pytest.mark.slow
def test_two_minutes_on_two_hundred_small_pictures(tmp_path: Path) -> None:
    """The real network, through the real entry point, in processes of their own."""
    (tmp_path / "photos").mkdir()
    for i in range(200):
        to_image(GaussianPrior().draw(3, 80, 96, i)).save(tmp_path / "photos" / f"{i:03}.png")
    dcodec = [sys.executable, "-m", "dcodec.cli"]
    subprocess.run([*dcodec, "train", "photos", "--out", "mine", "--minutes", "2"], check=True, cwd=tmp_path)
    for command in (
        ["encode", "photos/000.png", "a.dcx", "--bpp", "0.5", "--prior", "mine"],
        ["decode", "a.dcx", "a.png", "--prior", "mine"],
    ):
        subprocess.run([*dcodec, *command], check=True, cwd=tmp_path)
    with Image.open(tmp_path / "a.png") as shown:
        assert shown.size == (96, 80)
