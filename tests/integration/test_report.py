"""`brics report`: what stands in the page, and what it makes of damaged, hostile, empty and large workspaces."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import brics, environment, error_line
from PIL import Image
from report_workspace import make_workspace, page_of, text_of
from store_files import write_store

from brics_cli.report import writing
from brics_cli.workspace import Artefact, Parent, write_provenance


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    return make_workspace(tmp_path_factory.mktemp("report") / "w", photographs)


@pytest.fixture(scope="module")
def page(workspace: Path) -> str:
    said = json.loads(brics("report", "--json", cwd=workspace, check=0).stdout)
    assert said["path"] == "report.html" and said["left_out"] == []
    assert said["num_bytes"] == (workspace / "report.html").stat().st_size < 8e6
    return page_of(workspace)


def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    assert "default-src 'none'; img-src data:" in html.unescape(page) and "unsafe" not in page
    for address in re.findall(r'(?:src|href|xlink:href|action|poster|data)="([^"]*)"', page):
        assert address.startswith(("data:image/", "#")), address
    assert not re.search(
        r"url\((?!#)|@import|<link|<iframe|<object|<embed|fetch\(|XMLHttpRequest|\sstyle=|\son\w+=", page
    )


def test_every_step_of_the_pipeline_is_in_it_in_order(page: str) -> None:
    titles = re.findall(r"<h2>([^<]*)</h2>", page)
    assert titles == [
        "Contents", "What was made from what", "The images", "Autoencoder", "Key codes", "Diffusion model", "Samples",
        "Scores", "How it was made",
    ]  # fmt: skip
    text = text_of(page)
    for said in (
        "48 images", "64 x 64 px", "Among all 48 images looked at", "training loss", "validation PSNR, dB",
        "Recipe tiny,",
        "training.steps", "(shipped: 1200)", "level 3: 33 vertices per axis, 8 groups", "codes to pixels",
        "bits per pixel",
        "principal components", "Measured of these codes by brics eval", "loss by noise level",
        "standard error over pairs", "48 / 48",
        "brics train-diffusion codes.h5", "Energy is an estimate",
    ):  # fmt: skip
        assert said in text, said


def test_its_figures_are_those_of_the_commands(page: str, workspace: Path) -> None:
    scores = {each["metric"]: each for each in json.loads((workspace / "scores.json").read_text())["results"]}
    text = text_of(page)
    assert f"{scores['psnr']['value']:.5g} ± {scores['psnr']['standard_error']:.2g} dB" in text
    row = re.search(r"best PSNR, dB ([\d.]+) ([\d.]+)", text)
    assert row is not None and float(row[1]) == pytest.approx(scores["psnr"]["value"], abs=0.006)
    worst = [float(db) for db in re.findall(r"<b>([\d.]+) dB</b>", page.split("10 worst")[1])]
    assert len(worst) == 10 and worst == sorted(worst) and worst[0] == float(row[2])


def test_a_seed_is_drawn_again_by_its_command(page: str, workspace: Path, tmp_path: Path) -> None:
    tile = re.search(r'data-command="([^"]*seed-3)"[^>]*><img src="data:image/webp;base64,([^"]*)"', page)
    assert tile is not None
    words = shlex.split(tile[1])
    assert words[:2] == ["brics", "sample"] and "3-3" in words
    brics(*words[1:-1], tmp_path / "again", "--format", "png", cwd=workspace, check=0)
    again = np.array(Image.open(next((tmp_path / "again").glob("*3.png"))))
    assert np.array_equal(again, np.array(Image.open(BytesIO(base64.b64decode(tile[2])))))


def test_status_names_it_and_it_is_replaced_only_when_asked(page: str, workspace: Path) -> None:
    assert re.search(r"page report.html +\d+ sections, [\d.]+ MB", brics("status", cwd=workspace, check=0).stdout)
    assert "--overwrite" in error_line(brics("report", cwd=workspace, check=4))
    (workspace / "mine.html").write_text("<!DOCTYPE html><p>mine</p>")
    refused = brics("report", "--out", "mine.html", "--overwrite", cwd=workspace, check=4)
    assert "was not made by brics" in error_line(refused)
    assert "x.html" in error_line(brics("report", "--out", "page.pdf", cwd=workspace, check=2))


def test_named_things_come_with_what_they_were_made_from(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.html"
    brics("report", "codes.h5", "scores.json", "--out", out, cwd=workspace, check=0)
    one = out.read_text()
    assert 'id="samples"' not in one and "Key codes" in one and "Autoencoder" in one and "Scores" in one
    refused = brics("report", "report-this", "--out", tmp_path / "no.html", cwd=workspace, check=2)
    assert "no such file or folder: report-this" in error_line(refused)
    shutil.copytree(workspace / "images", tmp_path / "images")
    refused = brics("report", tmp_path / "images", "--out", tmp_path / "no.html", cwd=workspace, check=2)
    assert "was not made by brics" in error_line(refused)


def test_pictures_become_smaller_and_then_fewer(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size_mb(name: str, *options: object) -> float:
        brics("report", "shards", "--out", tmp_path / name, *options, cwd=workspace, check=0)
        return (tmp_path / name).stat().st_size / 1e6

    whole = size_mb("whole.html")
    assert whole / 8 < size_mb("half.html", "--max-mb", whole / 2) <= whole / 2
    monkeypatch.setattr(writing, "DETAILS", writing.DETAILS[-1:])
    assert size_mb("coarse.html") < whole / 8
    coarse = (tmp_path / "coarse.html").read_text()
    assert "(the first 12 of 48, so that the page stays small)" in text_of(coarse) and coarse.count("data:image") == 12


def test_the_page_is_opened_when_asked(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: asked.append(address) or len(asked) == 1)
    out = tmp_path / "a b.html"
    brics("report", "shards", "--out", out, "--open", cwd=workspace, check=0)
    assert asked == [out.as_uri()] and "%20" in asked[0]
    again = brics("report", "shards", "--out", out, "--open", "--overwrite", cwd=workspace, check=0)
    assert "no browser was found" in again.stderr


def test_an_empty_workspace_is_exit_3(tmp_path: Path) -> None:
    assert "brics demo" in error_line(brics("report", cwd=tmp_path, check=3))


def test_it_loads_no_torch_until_codes_are_decoded() -> None:
    code = "import sys, brics_cli.report.writing; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "quotes": "\"'><img src=x onerror=alert(1)>",
    "right to left": "\u202egpj.exe",
    "hebrew": "שלום",
    "emoji": "🐈‍⬛ photo",
    "template": "{{ 7 * 7 }}{% raw %}",
    "formula": "$\\frac{1}{0}$",
    "long": "n" * 300,
    "newline": "two\nlines",
    "bytes": "caf\udce9",
    "style": "</style><style>*{display:none}",
    "dash": "--> <!--",
}


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """In file names, keys, classes, configs, provenance and reports."""
    for number, name in enumerate(HOSTILE.values()):
        safe = name.replace("/", "\u2215")
        run = tmp_path / "runs/autoencoder" / safe[:60]
        run.mkdir(parents=True)
        write_run(run, number, {"recipe": name, "summary": name})
        (run / "config.yaml").write_text(
            json.dumps({"kind": "autoencoder", "name": name.encode("utf-8", "replace").decode()})
        )
    folder = tmp_path / "images"
    for number, name in enumerate(HOSTILE.values()):
        directory = folder / name.replace("/", "\u2215")[:60]
        directory.mkdir(parents=True)
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(
            directory / f"{name.replace('/', '-')[:200]}.png"
        )
    brics("pack", folder, "--labels", "folder", "--size", 8, "--out", "shards", cwd=tmp_path, check=0)
    source = {"side": "real", "path": HOSTILE["script"], "description": HOSTILE["quotes"], "sha256": ""}
    result = {
        "metric": "psnr", "title": HOSTILE["script"], "real": "a", "fake": "b", "value": 1.0, "standard_error": None,
        "num_real": 1, "num_fake": 1, "unit": HOSTILE["quotes"], "better": "higher", "definition": HOSTILE["style"],
    }  # fmt: skip
    report = {"brics_report": 1, "results": [result], "sources": [source, source | {"side": "fake"}],
              "left_out": {HOSTILE["script"]: HOSTILE["template"]}, "unmatched_real": list(HOSTILE.values()),
              "provenance": {"packages": {"torch": HOSTILE["script"]}}}  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps(report))
    write_provenance(
        Artefact("report", tmp_path / "scores.json", "2026-01-01", True, (), {"summary": HOSTILE["quotes"]})
    )
    written = brics("report", cwd=tmp_path, check=0)
    page = page_of(tmp_path)
    assert page.count("<script") == 1 and page.count("<style") == 1 and "<img src=x" not in page
    assert "49" not in re.findall(r"<bdi>([^<]*)</bdi>", page) and "\u202e" not in page
    text = text_of(page)
    assert "<script>alert(1)</script>" in text and "\\u202egpj.exe" in text and "caf\\xe9" in text
    assert "{{ 7 * 7 }}{% raw %}" in text and "$\\frac{1}{0}$" in text and "שלום" in text and "n" * 250 in text
    assert "Traceback" not in written.stderr


def write_run(run: Path, number: int, details: dict, *, steps: int = 4, parents: tuple[Parent, ...] = ()) -> None:
    """A training run as far as its log and provenance go."""
    run.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": 50 * step, "train/loss": 1 / step + number, "train/lr": 1e-3, "time/img_per_s": 100.0}
        | ({"val/psnr": 20.0 + step, "val/ssim": 0.5} if step % 2 == 0 else {})
        for step in range(1, steps + 1)
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    created = f"2026-01-01T00:{number:02d}:00+00:00"
    write_provenance(Artefact("autoencoder", run, created, True, parents, {"step": 50 * steps, **details}))


def test_damaged_things_are_left_out_and_said(workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "w"
    shutil.copytree(workspace, root, ignore=shutil.ignore_patterns("report.html*"))
    run = root / "runs/autoencoder/a"
    (run / "metrics.jsonl").write_text('{"step": 1}\ngarbage\n{"step": 3}\n')
    (run / "config.yaml").write_text("{ not yaml")
    data = (root / "codes.h5").read_bytes()
    (root / "codes.h5").write_bytes(data[: len(data) // 2])
    (root / "scores.json").write_text('{"brics_report": 1, "results": [{}], "sources": []}')
    (root / "runs/samples/s/00000.tar").write_bytes(b"no tar")
    (root / "runs/diffusion/d/brics.json").write_text("[]")
    odd = root / "runs/autoencoder/odd"
    write_run(
        odd, 1, {"val/psnr": "high", "step": {"x": 1}, "summary": ["list"], "sha256": 5, "val/usage/level_0": None}
    )
    written = brics("report", cwd=root, check=0)
    text = text_of(page_of(root))
    for said in ("metrics.jsonl line 2 is damaged", "the provenance of runs/diffusion/d"):
        assert said in text and said in written.stderr, said
    for path in ("codes.h5", "scores.json", "samples/s"):
        assert path in text.split("Found, and left out of this page.")[1], path
    assert "config.yaml cannot be read" in text and "odd" in text
    assert "warning" in written.stderr and "not shown" in written.stdout


def test_forty_runs_are_one_page(tmp_path: Path) -> None:
    for number in range(40):
        write_run(
            tmp_path / f"runs/autoencoder/run-{number:02d}",
            number,
            {"recipe": "tiny", "val/psnr": 20 + number / 10},
            steps=20,
        )
    brics("report", cwd=tmp_path, check=0)
    page = page_of(tmp_path)
    assert len(page) < 2e6 and "8 newest of 40 runs" in text_of(page) and "27 more" in text_of(page)
    assert all(f"run-{number:02d}" in page for number in range(40))
    refused = brics("report", "--max-mb", 0.1, "--out", "small.html", cwd=tmp_path, check=2)
    assert "--max-mb is 0.1" in error_line(refused) and not (tmp_path / "small.html").exists()


def test_a_store_whose_collection_and_autoencoder_are_gone(tmp_path: Path) -> None:
    write_store(tmp_path / "codes.h5", ["a", "b"])
    brics("report", cwd=tmp_path, check=0)
    text = text_of(page_of(tmp_path))
    assert "2 images could not be encoded" in text and "(gone)" in text and "principal components" in text


@pytest.mark.slow
def test_of_a_million_codes_a_sample_is_read_and_said(tmp_path: Path) -> None:
    write_store(tmp_path / "codes.h5", [f"shard-{number}" for number in range(100)], per_shard=10_001)
    said = json.loads(brics("report", "--json", cwd=tmp_path, check=0).stdout)
    text = text_of(page_of(tmp_path))
    assert "1,000,000" in text and "a sample of 512 of 1,000,000" in text and said["seconds"] < 60


# In a real Chromium, from disk with the network cut: Debian's `chromium`, driven by Playwright.

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in BROWSERS if (found := shutil.which(name))), None)
"""Where axe.min.js of npm's axe-core is, is said by $AXE_CORE alone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs a Chromium, and there is none (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the group dev")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, page: str, workspace: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page at the width, in the scheme and with the scripts that a test asks for; it must stay silent."""
    address = (workspace / "report.html").as_uri()
    settings = {"width": 1600, "scheme": "light", "scripts": True} | getattr(request, "param", {})
    context = browser.new_context(
        viewport={"width": settings["width"], "height": 900},
        color_scheme=settings["scheme"],
        java_script_enabled=settings["scripts"],
        offline=True,
    )
    shown, heard = context.new_page(), []
    shown.on("console", lambda message: heard.append(message.text))
    shown.on("pageerror", lambda error: heard.append(str(error)))
    shown.on("request", lambda asked: heard.append(asked.url) if not asked.url.startswith(("data:", address)) else None)
    shown.goto(address)
    yield shown
    assert heard == []
    context.close()


@pytest.mark.parametrize("opened", [{"width": 360}, {"width": 1600}, {"width": 360, "scripts": False}], indirect=True)
def test_nothing_is_wider_than_the_window(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")
    images = opened.locator("main img")
    assert images.count() > 60
    whole = "[...document.images].every(i => !i.src || (i.complete && i.naturalWidth > 0 && i.alt))"
    assert opened.evaluate(whole)


def test_the_slider_follows_the_mouse_and_the_keys(opened: Any) -> None:
    at = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--at')"
    stage = opened.locator(".stage").first
    stage.scroll_into_view_if_needed()
    assert opened.evaluate(at) == "50%"
    box = stage.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    opened.mouse.down()
    opened.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20, steps=5)
    opened.mouse.up()
    assert abs(float(opened.evaluate(at).rstrip("%")) - 25) <= 2
    before = float(opened.evaluate(at).rstrip("%"))
    opened.keyboard.press("ArrowRight")
    assert float(opened.evaluate(at).rstrip("%")) == before + 1
    opened.keyboard.press("End")
    assert opened.evaluate(at) == "100%"
    assert opened.locator(".stage input").first.get_attribute("aria-valuetext") == "100% original"


def test_a_seed_opens_with_its_command_and_goes_on_by_key(opened: Any) -> None:
    tile = opened.locator("[data-command]").nth(3)
    tile.focus()
    opened.keyboard.press("Enter")
    viewer = opened.locator("#viewer")
    assert viewer.is_visible() and opened.locator("#command").inner_text() == tile.get_attribute("data-command")
    assert "--seeds 3-3" in opened.locator("#command").inner_text()
    assert opened.locator("#large").bounding_box()["width"] > 300 and opened.locator("#large").get_attribute("alt")
    opened.keyboard.press("ArrowRight")
    assert "--seeds 4-4" in opened.locator("#command").inner_text()
    opened.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert opened.evaluate("document.activeElement.dataset.command").count("--seeds 4-4") == 1


def test_contents_and_boxes_lead_to_sections(opened: Any) -> None:
    opened.locator("nav a", has_text="Key codes").click()
    for _ in range(50):  # it scrolls smoothly
        if abs(opened.locator("#codes").bounding_box()["y"]) < 60:
            break
        opened.wait_for_timeout(100)
    else:
        pytest.fail("the link did not lead to its section")
    for link in opened.locator("nav a, .diagram a, .lineage a, main td a, main th a").all():
        assert opened.locator(f"[id='{link.get_attribute('href')[1:]}']").count() == 1


def test_values_show_under_the_pointer_and_in_a_table(opened: Any) -> None:
    plot = opened.locator(".plot", has_text="training loss").first
    plot.scroll_into_view_if_needed()
    rows = plot.locator("tbody tr")
    last = [cell.strip() for cell in rows.last.locator("th, td").all_text_contents()]
    box = plot.locator(".drawing").bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] / 2)
    assert plot.locator(".readout").inner_text() == f"step {last[0]} · a {float(last[1]):g}"
    plot.locator("summary").click()
    assert rows.last.is_visible()


@pytest.mark.parametrize("opened", [{"scheme": "dark"}], indirect=True)
def test_it_is_dark_where_the_reader_is(opened: Any) -> None:
    luminance = "(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
    assert opened.evaluate(f"{luminance}(getComputedStyle(document.body).backgroundColor)") < 150
    text = "getComputedStyle(document.querySelector('.plot svg text')).fill"
    assert opened.evaluate(f"{luminance}({text})") > 600


def test_it_prints(opened: Any, tmp_path: Path) -> None:
    opened.emulate_media(media="print")
    for hidden in ("nav", ".stage input", ".plot details", ".recipe"):
        assert not opened.locator(hidden).first.is_visible(), hidden
    assert opened.locator(".after img").first.is_visible() and opened.locator(".lineage").is_visible()
    pdf = opened.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF") and 3 <= pdf.count(b"/Type /Page\n") <= 30


@pytest.mark.parametrize("opened", [{"width": 360}, {"scheme": "dark"}], indirect=True)
def test_axe_finds_nothing_serious(opened: Any) -> None:
    axe = os.environ.get("AXE_CORE")
    if not axe:
        pytest.skip("needs axe-core: npm install axe-core, then AXE_CORE=node_modules/axe-core/axe.min.js")
    found = opened.evaluate("async source => { (0, eval)(source); return await axe.run() }", Path(axe).read_text())
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]] == []
