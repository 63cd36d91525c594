"""Images of other sizes than the autoencoder was trained at: stores of them, and what is made of these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import brics, error_line
from PIL import Image
from random_autoencoder import make_autoencoder

from brics_cli.codes import KeyCodeStore
from brics_cli.runtime.reporting import SilentReporter
from brics_cli.training.plan import TrainOptions, plan_autoencoder
from brics_cli.workspace import Workspace


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with untrained autoencoders of 64 px, some of them tied to that size, and pictures of 100 px."""
    root = tmp_path_factory.mktemp("sizes")
    make_autoencoder(root / "ae", seed=0)
    make_autoencoder(root / "local", seed=0, overrides=["model.encoder.norm=place", "model.decoder.norm=place"])
    make_autoencoder(root / "attention", seed=0, overrides=["model.encoder.attention=true"])
    make_autoencoder(root / "positions", seed=0, overrides=["model.bottleneck.positions=image"])
    make_autoencoder(root / "styles", seed=0, overrides=["model.decoder.kind=style", "model.decoder.widths=[48,48,48]"])
    (root / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, (100, 120, 3), np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{number}.png")
    return root


def test_the_shape_of_a_store_goes_through_every_command(desk: Path) -> None:
    brics("encode-dataset", "pictures", "--ae", "ae", "--size", 96, "--out", "codes.h5", cwd=desk, check=0)
    store = KeyCodeStore(desk / "codes.h5")
    assert (store.code_shape, store.image_size) == ((16, 12, 12), 96)
    assert store.autoencoder["config"]["image_size"] == 64
    assert brics("info", "codes.h5", "--verify", cwd=desk, check=0)

    brics("decode", "codes.h5", "--out", "decoded", cwd=desk, check=0)
    assert {Image.open(path).size for path in (desk / "decoded").glob("*.png")} == {(96, 96)}
    measured = json.loads(brics("eval", "--metric", "psnr", "--json", cwd=desk, check=0).stdout)
    assert measured["num_pairs"] == 8 and {source["image_size"] for source in measured["sources"]} == {96}

    brics(
        "train-diffusion", "codes.h5", "--recipe", "tiny", "--set", "training.batch_size=4", "--steps", 2,
        "--out", "model", cwd=desk, check=0,
    )  # fmt: skip
    sampled = ("sample", "--n", 2, "--sampler", "ddim", "--steps", 2)
    said = json.loads(brics(*sampled, "--dry-run", "--json", cwd=desk, check=0).stdout)
    assert said["code_shape"] == [16, 12, 12] and said["image_size"] == 96
    brics(*sampled, "--out", "drawn.h5", cwd=desk, check=0)
    assert (KeyCodeStore(desk / "drawn.h5").code_shape, KeyCodeStore(desk / "drawn.h5").image_size) == (
        (16, 12, 12),
        96,
    )
    brics(*sampled, "--out", "drawn", "--format", "png", cwd=desk, check=0)
    assert {Image.open(path).size for path in (desk / "drawn").glob("*.png")} == {(96, 96)}
    compared = brics("eval", "--metric", "fd-random", "--fake", "drawn", "--dry-run", "--json", cwd=desk, check=0)
    assert json.loads(compared.stdout)["planned"][0]["size"] == 96


def test_the_default_is_the_trained_size_and_of_a_fully_convolutional_one_what_the_images_allow(desk: Path) -> None:
    encode = ("encode-dataset", "pictures", "--out", "new.h5", "--dry-run", "--json", "--ae")
    assert json.loads(brics(*encode, "ae", cwd=desk, check=0).stdout)["code_shape"] == [16, 8, 8]
    found = brics(*encode, "local", cwd=desk, check=0)
    assert json.loads(found.stdout)["code_shape"] == [16, 12, 12]
    assert "--size not given: 96 px (the median image side is 100 px; " in found.stderr
    for side, size in ((3, 8), (1000, 512)):
        (desk / f"of-{side}").mkdir()
        Image.new("RGB", (side, side)).save(desk / f"of-{side}" / "a.png")
        encode = ("encode-dataset", f"of-{side}", "--ae", "local", "--out", "new.h5", "--dry-run", "--json")
        assert json.loads(brics(*encode, cwd=desk, check=0).stdout)["code_shape"][1:] == [size // 8, size // 8]


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("attention", 96, "--size 96: {desk}/attention has self-attention and takes images of 64 px alone"),
        ("positions", 96, "--size 96: {desk}/positions has positions in the image and takes images of 64 px alone"),
        ("styles", 96, "--size 96: {desk}/styles has styles pooled over the image and takes images of 64 px alone"),
        (
            "ae",
            100,
            "--size 100 is not a multiple of 8, the pixels per code and axis of {desk}/ae. Use --size 96 or 104.",
        ),
        ("ae", 7, "--size 7 is not a multiple of 8, the pixels per code and axis of {desk}/ae. Use --size 8."),
    ],
)
def test_another_size_is_refused_in_one_line(desk: Path, name: str, size: int, said: str) -> None:
    line = error_line(
        brics("encode-dataset", "pictures", "--ae", name, "--size", size, "--out", "x.h5", cwd=desk, check=2)
    )
    assert said.format(desk=desk) in line and not (desk / "x.h5").exists()


def test_its_own_size_may_always_be_given(desk: Path) -> None:
    brics(
        "encode-dataset",
        "pictures",
        "--ae",
        "attention",
        "--size",
        64,
        "--out",
        "new.h5",
        "--dry-run",
        cwd=desk,
        check=0,
    )


def test_a_size_beyond_memory_is_one_line(desk: Path) -> None:
    line = error_line(brics("encode-dataset", "pictures", "--ae", "ae", "--size", 8 * 10**6, cwd=desk, check=6))
    assert "one such image takes more than" in line


def test_fine_tuning_takes_the_recipe_of_the_run_at_the_size_of_the_images(desk: Path, photographs: Path) -> None:
    quick = ("--set", "training.batch_size=4", "--steps", 1)
    pictures = desk / "small"
    pictures.mkdir()
    for path in sorted(photographs.iterdir())[:24]:
        Image.open(path).resize((40, 40)).save(pictures / path.name)
    setting = ("--set", "optimiser.lr=1e-4")
    brics("train-ae", photographs, "--recipe", "tiny", *quick, *setting, "--out", "first", cwd=desk, check=0)
    found = brics("train-ae", pictures, "--init-from", "first", *quick, "--out", "second", cwd=desk, check=0)
    assert (
        "--recipe not given: using first/config.yaml, that of --init-from at 40 px (the median image side is 40 px)"
    ) in found.stderr
    config = json.loads((desk / "second" / "model" / "config.json").read_text())
    assert config["model"]["image_size"] == 40
    assert "lr: 0.0001" in (desk / "second" / "config.yaml").read_text()
    named = ("--init-from", "second", *quick, "--set", "model.bottleneck.level_dim=8", "--out", "third")
    assert "another architecture" in error_line(brics("train-ae", pictures, *named, cwd=desk, check=3))


@pytest.mark.parametrize(
    ("steps", "asked", "warmup"),
    [
        (500, {}, 50),
        (5, {}, 0),
        (20_000, {}, 1000),
        (500, {"overrides": ["optimiser.warmup_steps=400"]}, 400),
        (500, {"recipe": "brics-mini"}, 1000),
    ],
    ids=["short", "shorter than ten", "long", "set", "recipe named"],
)
def test_fine_tuning_warms_up_for_a_tenth_of_its_steps_at_most_unless_told_otherwise(
    desk: Path, steps: int, asked: dict[str, Any], warmup: int
) -> None:
    options = TrainOptions(
        str(desk / "pictures"), steps=steps, init_from=Path("brics-mini"), out=desk / "new", device="cpu", **asked
    )
    plan = plan_autoencoder(options, workspace=Workspace(desk), reporter=SilentReporter())
    assert plan.recipe.optimiser.warmup_steps == warmup
