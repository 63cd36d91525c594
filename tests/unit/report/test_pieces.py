"""The pieces that the page of `brics report` is made of."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brics_cli.images import open_collection
from brics_cli.report.codes import curves_of_diffusability
from brics_cli.report.collection import look, repeated
from brics_cli.report.diffusion import sample_command
from brics_cli.report.gathering import Node, short_names
from brics_cli.report.lineage import MOST_ROWS, diagram
from brics_cli.report.making import watts_of
from brics_cli.report.pictures import DETAILS, Picture
from brics_cli.report.plots import Series, line_plot
from brics_cli.report.runs import recipe_block
from brics_cli.workspace import Artefact, Parent


def lines(num: int = 2) -> list[Series]:
    x = np.arange(1.0, 1001.0)
    return [Series(f"run {number}", x, np.exp(-x / 300) + number, number) for number in range(num)]


def test_a_plot_has_no_style_of_its_own_and_the_colours_of_the_page() -> None:
    plot = line_plot("loss", lines(), x_label="step")
    assert "style" not in plot.svg and "<metadata" not in plot.svg and "font-family" not in plot.svg
    assert "var(--line-0)" in plot.svg and "var(--line-1)" in plot.svg and "var(--ink)" in plot.svg
    assert not re.search(r"#0[0-9a-f]0\d0\d\b", plot.svg), "a stand-in was left"
    assert re.search(r"<text[^>]*>1000<", plot.svg) and "font-size" in plot.svg
    assert plot.alt == "loss against step: run 0 0.9967 to 0.03567; run 1 1.997 to 1.036."
    ids = re.findall(r'\bid="([^"]+)"', plot.svg)
    assert len(ids) == len(set(ids)) and all(f'="{each}"' in plot.svg for each in ids)
    others = re.findall(r'\bid="([^"]+)"', line_plot("another", lines(), x_label="step").svg)
    assert not set(ids) & set(others)


def test_the_table_behind_a_plot_has_its_ends_and_empty_cells() -> None:
    short = Series("short", np.array([1.0, 500.0]), np.array([1.0, 2.0]), 1)
    plot = line_plot("loss", [lines(1)[0], short], x_label="step")
    assert plot.head == ["step", "run 0", "short"] and len(plot.rows) <= 202
    assert plot.rows[0] == ["1", "0.99667", "1"] and plot.rows[-1][0] == "1000" and plot.rows[-1][2] == ""
    assert len(line_plot("loss", lines(40), x_label="step").rows) <= 40


def test_pictures_are_exact_when_small_and_smaller_when_they_must_be() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    sizes = [len(Picture(pixels).uri(detail)) for detail in DETAILS]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 4 * sizes[-1]
    assert len(Picture(pixels, exact=True).uri(DETAILS[-1])) > sizes[0]


def test_what_is_in_a_collection_twice(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name in "abc":
        small = Image.fromarray(noise.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.png")
    (tmp_path / "copy-of-a.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.open(tmp_path / "b.png").save(tmp_path / "again.jpg", quality=92)
    for name in ("flat", "also-flat"):
        Image.new("RGB", (64, 64), (9, 9, 9 + len(name))).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    looked = look(open_collection(tmp_path))
    identical, nearly = repeated(looked)
    assert [{looked.keys[a], looked.keys[b]} for a, b in identical] == [{"a", "copy-of-a"}]
    assert [{looked.keys[a], looked.keys[b]} for a, b, _ in nearly] == [{"b", "again"}]
    assert [key for key, _ in looked.failures] == ["broken"] and looked.how_many == "all 8 images"


def test_names_are_as_long_as_they_must_be() -> None:
    paths = [Path(path) for path in ("/w/a/run", "/w/b/run", "/w/other", "/w/b/run/x")]
    assert short_names(paths) == ["a/run", "b/run", "other", "x"]
    assert short_names([Path("/same")]) == ["same"]


def test_a_command_says_what_is_not_the_default() -> None:
    model = Node("diffusion", Path("runs/diffusion/d"))
    settings = {"sampler": "ddim", "steps": 9, "guidance": 2.5, "clip": False, "class": 3, "batch_size": 48}
    guide = Parent("guide", "/weak", "0" * 64)
    artefact = Artefact("samples", Path("s"), "", True, (guide,), {"settings": settings})
    node = Node("samples", Path("s"), artefact, parents=[model])
    assert " ".join(sample_command(node, "7-7")) == (
        "brics sample --model runs/diffusion/d --seeds 7-7 --sampler ddim --steps 9 --guidance 2.5 --class 3 "
        "--batch-size 48 --dtype fp32 --no-clip --guide /weak"
    )
    assert sample_command(Node("samples", Path("s"), artefact)) == []


def test_what_a_run_changed_of_its_recipe(tmp_path: Path) -> None:
    from brics_cli.config import dump_yaml, load_recipe

    recipe = load_recipe("tiny", kind="autoencoder", overrides=["model.bottleneck.kind=kl", "training.steps=7"])
    (tmp_path / "config.yaml").write_text(dump_yaml(recipe))
    facts, block = recipe_block(Node("autoencoder", tmp_path), "autoencoder")
    assert dict(facts.rows) == {  # type: ignore[attr-defined]
        "model.bottleneck.kind": "kl (shipped: grid)",
        "model.bottleneck.weight": "1.0e-06 (not in the shipped one)",
        "training.steps": "7 (shipped: 1200)",
    }
    assert ("    kind: kl", "shipped: grid") in block.lines and ("  bottleneck:", None) in block.lines  # type: ignore[attr-defined]
    own = dump_yaml(recipe).replace("name: tiny", "name: mine")
    (tmp_path / "config.yaml").write_text(own)
    (block,) = recipe_block(Node("autoencoder", tmp_path), "autoencoder")
    assert "none of that name ships" in block.summary  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("device", "watts"), [("cpu", 20), ("NVIDIA H100 80GB HBM3", 700), ("NVIDIA H100 PCIe", 350), ("mps", None)]
)
def test_the_power_that_is_assumed(device: str, watts: float | None) -> None:
    assert watts_of(device, 2) == watts


def test_many_boxes_become_one() -> None:
    root = Node("collection", Path("/images"))
    nodes = [root]
    for number in range(40):
        made = Artefact("autoencoder", Path(f"/r/{number}"), f"2026-{number:02d}", number % 2 == 0)
        nodes.append(Node("autoencoder", made.path, made, parents=[root]))
    drawn = diagram(nodes, {nodes[-1].id})
    runs = [box for box in drawn.boxes if box.stage == "autoencoder"]
    assert len(runs) == MOST_ROWS and runs[0].name == "27 more" and len({(box.x, box.y) for box in runs}) == MOST_ROWS
    assert [box.to for box in runs if box.to] == [nodes[-1].id] and "unfinished" in {box.state for box in runs}
    assert len(drawn.edges) == MOST_ROWS and drawn.height >= max(box.y for box in drawn.boxes) + 44


def test_curves_of_diffusability_are_drawn_from_a_report() -> None:
    curve = {"t": [0.1, 0.5, 0.9], "viv": [0.2, 0.6, 0.3], "errors": [0.01, 0.02, 0.01]}
    spectra = {"codes": [4.0, 2.0, 1.0], "images": [8.0, 1.0, 0.1]}
    plots = curves_of_diffusability({"viv": {"details": curve}, "spectrum-excess": {"details": spectra}, "x": {}})
    assert [plot.title for plot in plots] == ["Spectrum in zigzag order", "Irreducible variance of the velocity"]
    assert plots[0].rows[-1] == ["1", "1", "0.1"] and plots[1].rows[1] == ["0.5", "0.6 ± 0.02"]
