"""Does the report show what the rows say, in one file, and does its slider move in a browser?"""

import base64
import importlib
import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bench import album, bpg, curves, data_folder, kept, report, svg, table
from bench.__main__ import main
from bench.bd import bootstrap
from bench.points import Point
from dcodec.pictures import to_image

REFERENCE = data_folder() / "reference" / "kodak_classic.csv"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None or importlib.util.find_spec("playwright") is None, reason="no Chromium on PATH, or no playwright"
)


def run(*arguments):
    alone = CliRunner(env={"DCODEC_DATA": str(Path(__file__).parent)})  # without LPIPS' weights, which not every machine has
    result = alone.invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def measured(tmp_path_factory, draw):
    """A CSV of a picture of 48 x 40, and the folder of what was decoded."""
    where = tmp_path_factory.mktemp("report")
    (where / "in").mkdir()
    to_image(draw(3, 40, 48, 1)).save(where / "in" / "p.png")
    run("rd", "--images", where / "in", "--codecs", "dcodec,jpeg,jpeg2000", "--rates", "0.6,1.2", "--prior", "gaussian",
        "--sample", "--quick", "--out", where / "rd.csv", "--keep", where / "kept")  # fmt: skip
    return where


@pytest.fixture(scope="module")
def page(measured):
    out = measured / "report.html"
    run("report", measured / "rd.csv", "--out", out, "--keep", measured / "kept", "--curves", measured / "curves")
    return out


# ------------------------------------------------------------------------------------------- curves


def row(codec, setting, image, bpp, psnr, distance="", **more):
    found = {"codec": codec, "setting": setting, "image": image, "bpp": str(bpp), "psnr_rgb": str(psnr), "estimate": ""}
    return {**found, "lpips_squeeze": str(distance), "bytes": "100", "ms_ssim": "", **more}


ROWS = [
    row("dcodec", "rate=0.1", "a", 0.0999, 30, 0.3, prior="p-1", estimate="mean"),
    row("dcodec", "rate=0.1", "a", 0.0999, 28, 0.2, prior="p-1", estimate="sample"),
    row("dcodec", "rate=0.2", "a", 0.1999, 33, 0.25, prior="p-1", estimate="mean"),
    row("dcodec", "rate=0.2", "a", 0.1999, 31, 0.15, prior="p-1", estimate="sample"),
    row("jpeg", "q=2", "a", 0.1, 26, 0.5), row("jpeg", "q=5", "a", 0.3, 30, 0.3), row("jpeg", "q=9", "a", 0.9, 36, 0.1),
]  # fmt: skip


def test_curves_by_hand():
    found = curves.curves(ROWS)
    assert list(found) == ["dcodec p-1", "dcodec p-1 sample", "jpeg"]
    assert found["dcodec p-1 sample"]["a"] == {0.1: 28, 0.2: 31}  # at the rates asked for
    assert curves.at(found["jpeg"], 0.2, exact=False) == {"a": 28}
    assert curves.at(found["jpeg"], 1.0, exact=False) == {}
    assert curves.curves(ROWS, curves.MS_SSIM) == {}
    more = [*ROWS, row("jpeg", "q=2", "b", 0.3, 32, 0.1), row("jpeg", "q=5", "b", 0.5, 34)]
    assert curves.averages(more, curves.PSNR, {"a", "b"}) == {"jpeg": [(0.2, 29), (0.4, 32)]}
    assert curves.averages(more, curves.LPIPS, {"a", "b"}) == {"jpeg": [(0.2, pytest.approx(0.3))]}
    assert curves.MS_SSIM.value(0.99) == pytest.approx(20)


def test_bootstrap_of_a_mean():
    assert bootstrap([3.0, 3.0]) == (3, 3)
    values = np.random.default_rng(1).normal(5, 2, 100)
    low, high = bootstrap(values.tolist())
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.05)  # as the normal law has it


# ------------------------------------------------------------------------------------------- charts


def test_charts_are_svg_with_all_points():
    line = svg.Line("a < b", [(0.1, 20), (1, 30)], 0)
    other = svg.Line("", [(0.3, 25)], 1, dashed=True, note="c")
    root = ElementTree.fromstring(svg.chart("title", "x", "y", [line, other], log_x=True))
    markers = root.findall(".//{*}circle")
    assert len(markers) == 3 + 2  # two are the legend's
    told = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "c", "title", "x", "y"} <= set(told)
    assert float(markers[0].get("cx")) < float(markers[1].get("cx"))
    assert float(markers[0].get("cy")) > float(markers[1].get("cy"))  # up is more
    with pytest.raises(ValueError, match="no point"):
        svg.chart("title", "x", "y", [])


@pytest.mark.parametrize(
    ("found", "expected"),
    [(svg.ticks(21.4, 33.2), [20, 22, 24, 26, 28, 30, 32, 34]), (svg.ticks(0.1, 0.1), [0.1]),
     (svg.ticks(0.11, 0.52), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), (svg.log_ticks(0.03, 0.9), [0.02, 0.05, 0.1, 0.2, 0.5, 1])],
)  # fmt: skip
def test_ticks_are_round(found, expected):
    assert found == pytest.approx(expected)


def test_charts_for_what_was_measured():
    assert list(report.charts(report.one_name(ROWS))) == ["psnr", "lpips", "trade"]
    only = [{**r, "lpips_squeeze": ""} for r in ROWS]
    assert list(report.charts(only)) == ["psnr"]


# ------------------------------------------------------------------------------------------- page


def test_page_tells_bd_rates_and_times(measured, page):
    text = page.read_text()
    assert len(re.findall("<svg", text)) == 1  # pictures too small for MS-SSIM, no weights of LPIPS
    assert 'Percent more bits than the line' in text
    (cell,) = re.findall(r"<tr><td>jpeg</td><td>([^<]*)</td>", text.partition("<h2>Time")[0])
    value, low, high, count = re.fullmatch(r"([-+\d.]+) \[([-+\d.]+), ([-+\d.]+)\] \((\d)\)", cell).groups()
    assert low == value == high  # of one picture
    assert count == "1"
    rows = [r for r in table.read(measured / "rd.csv") if (r["codec"], r["setting"]) == ("dcodec", "rate=1.2")]
    rows = [r for r in rows if r["estimate"] == "mean"]
    (nfe,) = re.findall(r"<td>dcodec</td><td>rate=1.2</td><td>[^<]*</td><td>[^<]*</td><td>([^<]*)</td>", text)
    assert float(nfe) == pytest.approx(np.mean([int(r["nfe"]) for r in rows]), rel=0.01)
    assert rows[0]["commit"] in text
    assert rows[0]["machine"] in text


def test_page_needs_nothing_else(page):
    text = page.read_text()
    assert set(re.findall(r"https?://[^\"' <)]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:link|iframe|script src|img src)", text)


def test_page_holds_the_decoded_pictures(measured, page):
    (data,) = re.findall(r'id="pictures">(.*?)</script>', page.read_text(), re.S)
    sources, pictures = json.loads(data).values()
    assert list(pictures) == ["p"]
    assert [step["title"] for step in pictures["p"]] == ["144 bytes, 0.600 bpp", "288 bytes, 1.200 bpp"]
    panels = pictures["p"][1]["panels"]
    assert tuple(panels) == album.PANELS
    with Image.open(io.BytesIO(base64.b64decode(sources[panels["mean"][0]].partition(",")[2]))) as shown:
        mine = np.asarray(shown)
    row = next(r for r in table.read(measured / "rd.csv")
               if (r["image"], r["setting"], r["estimate"]) == ("p", "rate=1.2", "mean"))  # fmt: skip
    with Image.open(measured / "in" / "p.png") as original:
        error = np.mean((mine.astype(float) - np.asarray(original)) ** 2)
    assert 10 * np.log10(255**2 / error) == pytest.approx(float(row["psnr_rgb"]), abs=1e-3)
    assert panels["mean"][1] == f"mean: {float(row['psnr_rgb']):.2f} dB"
    assert panels["bpg"] == [None, "bpg: no file within a factor of 1.3 of this rate"]


def test_curves_are_written_for_the_readme(measured, page):
    assert [path.name for path in (measured / "curves").iterdir()] == ["psnr.svg"]
    assert (measured / "curves" / "psnr.svg").read_text().strip() in page.read_text()


def test_a_csv_without_dcodec_makes_no_report(tmp_path):
    (tmp_path / "r.csv").write_text("codec,setting\njpeg,q=1\n")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "r.csv"), "--out", str(tmp_path / "r.html")])
    assert (result.exit_code, "expected rows of dcodec" in result.output) == (1, True)
    assert not (tmp_path / "r.html").exists()


def test_pictures_are_made_to_fit(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    std = np.zeros((64, 64), np.float32)
    for setting, shown in zip(("rate=0.1", "rate=0.2"), noise, strict=True):
        kept.keep(tmp_path, "dcodec", "a", noise[0], Point(setting, "mean", 1, shown, 0, None, std=std))
    kept.keep(tmp_path, "jpeg", "a", noise[0], Point("q=2", "", 1, noise[1], 0, None))
    kept.keep(tmp_path, "webp", "a", noise[0], Point("q=2", "", 1, noise[1], 0, None))  # not shown, so not kept
    assert len(list(tmp_path.rglob("*.png"))) == 2 * 2 + 1 + 1
    for most, kind in ((100_000, "png"), (20_000, "webp")):
        shown = album.collect(ROWS, tmp_path, most)
        (found,) = shown.pictures.values()
        assert len(shown.sources) == 2 * 2 + 1 + 1  # the original once
        assert {source.partition(";")[0] for source in shown.sources} == {f"data:image/{kind}"}
        assert sum(map(len, shown.sources)) < 1.4 * most
        assert found[0]["panels"]["jpeg"][1] == "jpeg q=2: 0.100 bpp, 26.00 dB, LPIPS 0.500"
        assert found[1]["panels"]["jpeg"][0] is None
        assert found[0]["panels"]["sample"] == [None, "sample: not measured"]
    with pytest.raises(ValueError, match="do not fit"):
        album.collect(ROWS, tmp_path, 100)


def test_readme_says_what_the_rows_say():
    """Its BD-rates and curves are drawn anew from the CSVs in git."""
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text()
    rows = report.one_name(table.read(root / "bench" / "results" / "crops.csv"))
    said = re.findall(r"^\| (\w[^|]*) \| ([-+.\d]+) % (\[[^|]*\]) \| ([-+.\d]+) % (\[[^|]*\]) \|$", readme, re.M)
    assert len(said) == 4
    names = {"JPEG": "jpeg", "JPEG 2000": "jpeg2000", "AVIF": "avif"}
    page = report.page(rows, "")
    for name, *cells in said:
        line = re.search(rf"<td>{re.escape(names.get(name, bpg.EQUIVALENT))}</td>(.*?)</tr>", page).group(1)
        found = re.findall(r"<td>([^<]*)</td>", line)
        assert [f"{cells[0]} {cells[1]} (8)", f"{cells[2]} {cells[3]} (8)"] == [found[0], found[3]]
    drawn = sorted((root / "bench" / "results" / "crops").glob("*.svg"))
    assert drawn
    for path in drawn:
        assert path.read_text().strip() == report.charts(rows)[path.stem]


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"no {REFERENCE} (set DCODEC_DATA)")
def test_readme_says_of_kodak_what_the_rows_say():
    """Tables and curves, printed and drawn anew beside the measured files of other codecs."""
    root = Path(__file__).parents[1]
    readme, rows = (root / "README.md").read_text(), report.one_name(table.read(root / "bench" / "results" / "kodak.csv"))
    for quality in (curves.PSNR, curves.LPIPS):
        said = table.markdown(rows, table.rates_of(rows), table.read(REFERENCE), quality)
        assert said[: said.index("\n\n") + 2] in readme
    rows = report.beside(rows, table.read(REFERENCE))
    names = re.findall(r'src="bench/results/kodak/(\w+).svg"', readme)
    assert sorted(names) == ["lpips", "psnr"]
    for name in names:
        assert (root / "bench" / "results" / "kodak" / f"{name}.svg").read_text().strip() == report.charts(rows)[name]


# ------------------------------------------------------------------------------------------- browser


@needs_browser
def test_the_slider_moves_in_a_browser(page):
    from playwright.sync_api import sync_playwright

    told, asked = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        figure = tab.locator("figure")

        def shown():
            sources = figure.locator("img").evaluate_all("all => all.map(i => [i.src, i.hidden, i.complete && i.naturalWidth])")
            return figure.locator("output").inner_text(), sources, figure.locator("span").all_inner_texts()

        before = shown()
        figure.locator("input").press("ArrowRight")
        after = shown()
        figure.locator("input").press("ArrowLeft")
        again = shown()
        browser.close()
    assert (before[0], after[0]) == ("144 bytes, 0.600 bpp", "288 bytes, 1.200 bpp")
    changed = [name for name, a, b in zip(album.PANELS, before[1], after[1], strict=True) if a[0] != b[0]]
    assert changed[:3] == ["mean", "sample", "uncertainty"]
    assert "original" not in changed
    assert all(hidden or width == 48 for _, hidden, width in after[1][:4])
    assert before[2] != after[2]
    assert again == before
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
