"""`brics-mini` as it ships: its size, and what comes back through its codes of 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from brics_cli import load_autoencoder
from brics_cli.autoencoder.autoencoder import Autoencoder, to_tensor, to_uint8
from brics_cli.evaluation.psnr import capped_psnr
from brics_cli.workspace.embedded import embedded_default


@pytest.fixture(scope="module")
def mini() -> Autoencoder:
    return load_autoencoder("brics-mini")


def through(model: Autoencoder, image: np.ndarray, *, noise: float = 0.0) -> tuple[np.ndarray, float]:
    """What comes back of an image (H, W, 3), and its PSNR in dB."""
    with torch.inference_mode():
        codes = (model.encode(to_tensor(image[None])) * 255).round() / 255
        codes += noise * torch.randn(codes.shape, generator=torch.Generator().manual_seed(0))
        back = to_uint8(model.decode(codes.clamp(0, 1)))
    return back[0], float(capped_psnr(image[None], back)[0])


def test_it_is_small_and_known_by_its_sha256(mini: Autoencoder) -> None:
    embedded = embedded_default("autoencoder")
    assert embedded is not None and embedded.name == "brics-mini"
    embedded.check()
    assert mini.weights_sha256 == embedded.sha256 and Path(mini.path) == embedded.directory
    assert (embedded.directory / "model.safetensors").stat().st_size <= 6_000_000
    assert (mini.config.downsampling, mini.config.code_channels, mini.config.bottleneck.kind) == (8, 16, "grid")


def test_a_photograph_comes_back_also_with_noise_on_its_codes(mini: Autoencoder) -> None:
    photograph = data.chelsea()[:296, :448]  # multiples of 8, not square
    clean, noisy = through(mini, photograph)[1], through(mini, photograph, noise=0.02)[1]
    assert clean > 32 and clean - noisy < 2


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (220, 20, 20), (10, 60, 200)])
def test_one_colour_stays_one_colour(mini: Autoencoder, colour: tuple[int, int, int]) -> None:
    image = np.full((64, 96, 3), colour, np.uint8)
    back, _ = through(mini, image)
    assert np.abs(back.astype(int) - image).max() <= 8
