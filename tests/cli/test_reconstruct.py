"""`brics reconstruct`: the sheet shows originals beside what their codes decode to, with the PSNR of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import brics, error_line
from PIL import Image
from random_autoencoder import make_autoencoder
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio

from brics_cli.autoencoder.autoencoder import load_autoencoder, to_tensor, to_uint8
from brics_cli.images.pixels import load_pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs, a text, and an autoencoder with random weights."""
    root = tmp_path_factory.mktemp("reconstruct")
    Image.fromarray(photographs.astronaut()).save(root / "a.png")
    Image.fromarray(photographs.coffee()).save(root / "b.jpg")
    (root / "text.png").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(root / "bomb.png")
    make_autoencoder(root / "ae", seed=0)
    return root


def test_the_sheet_holds_both_and_the_psnr_is_theirs(folder, tmp_path):
    said = json.loads(
        brics("reconstruct", "a.png", "b.jpg", "--ae", "ae", "--out", tmp_path / "s.png", "--json", cwd=folder,
              check=0).stdout
    )  # fmt: skip
    autoencoder = load_autoencoder(folder / "ae")
    sheet = np.array(Image.open(tmp_path / "s.png"))
    for name, found in zip(("a.png", "b.jpg"), said["reconstructions"], strict=True):
        original = load_pixels((folder / name).read_bytes(), transform="crop-bicubic", size=64)
        with torch.inference_mode():
            codes = (autoencoder.encode(to_tensor(original[None])) * 255).round() / 255
            decoded = to_uint8(autoencoder.decode(codes))[0]
        assert found["psnr_db"] == pytest.approx(peak_signal_noise_ratio(original, decoded, data_range=255), abs=0.05)
        assert stands_in(sheet, original) and found["path"] == name
    assert said["mean_psnr_db"] == pytest.approx(np.mean([each["psnr_db"] for each in said["reconstructions"]]))


def stands_in(sheet: np.ndarray, image: np.ndarray) -> bool:
    """Whether the image is in the sheet's left column, enlarged twofold: 64 to 128 px."""
    large = image.repeat(2, axis=0).repeat(2, axis=1)
    return any(
        np.array_equal(sheet[top : top + len(large), 2 : 2 + large.shape[1]], large)
        for top in range(len(sheet) - len(large) + 1)
    )


def test_a_fully_convolutional_autoencoder_takes_any_size_and_shape(folder, tmp_path):
    local = ["model.encoder.norm=place", "model.decoder.norm=place"]
    make_autoencoder(tmp_path / "local", seed=0, overrides=local)
    shapes = {"photo": (97, 151), "strip": (1, 5000), "dot": (1, 1), "small": (5, 3)}
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / f"{name}.png")
    files = [f"{name}.png" for name in shapes]
    done = brics("reconstruct", *files, "--ae", "local", "--out", "s.png", "--json", cwd=tmp_path, check=0)
    said = json.loads(done.stdout)["reconstructions"]
    assert [tuple(each["code_shape"][1:]) for each in said] == [(13, 19), (1, 625), (1, 1), (1, 1)]
    assert {each["num_tiles"] for each in said} == {1}
    sheet = np.array(Image.open(tmp_path / "s.png"))
    assert sheet.shape[1] == 2 * 5000 + 6
    for name, (height, width) in shapes.items():
        original = np.array(Image.open(tmp_path / f"{name}.png"))
        rows = [top for top in range(len(sheet)) if np.array_equal(sheet[top, 2 : 2 + width], original[0])]
        assert rows and any(np.array_equal(sheet[top : top + height, 2 : 2 + width], original) for top in rows)


def test_a_file_that_is_no_image_is_told_and_left_out(folder, tmp_path):
    done = brics("reconstruct", "text.png", "a.png", "--ae", "ae", "--out", tmp_path / "s.png", cwd=folder, check=5)
    assert "warning: text.png: not an image" in done.stderr and "1 images through codes 16x8x8 uint8" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere.png",), 2, "nowhere.png is missing"),
        (("ae",), 2, "ae is a folder"),
        (("bomb.png",), 5, "bomb.png: decompression bomb: more than 89,478,485 pixels"),
        (("text.png",), 5, "none of 1 files can be read as an image; the first, text.png: not an image"),
        (("a.png", "--out", "s.jpg"), 2, "does not end in .png"),
        (("a.png", "--out", "b.jpg"), 2, "does not end in .png"),
        (("b.jpg", "--out", "a.png"), 4, "is already there"),
        (("a.png", "--ae", "nowhere"), 3, "no autoencoder run at"),
        ((), 2, "missing argument"),
    ],
)
def test_what_cannot_be_done(folder, arguments, code, said):
    settings = () if "--ae" in arguments else ("--ae", "ae")
    before = (folder / "a.png").read_bytes()
    assert said in error_line(brics("reconstruct", *arguments, *settings, cwd=folder, check=code))
    assert (folder / "a.png").read_bytes() == before and not (folder / "sheet.png").exists()
