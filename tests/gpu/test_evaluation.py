"""The metrics on a CUDA device give the figures of the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import standin_weights
import torch

from brics_cli.evaluation.kernel import kernel_distance
from brics_cli.evaluation.manifold import manifold_scores
from brics_cli.evaluation.reconstruction import ms_ssim
from brics_cli.evaluation.rows import ArrayRows
from brics_cli.networks.features import load_network
from brics_cli.networks.perceptual import load_lpips_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

FILES = {
    "inception-clean": standin_weights.save_random_inception,
    "inception-legacy-tensorflow": standin_weights.save_random_inception,
    "inception-legacy-pytorch": standin_weights.save_inception_pytorch,
    "clip": standin_weights.save_clip,
    "dinov2": standin_weights.save_dinov2,
    "efficientnet-lite0": standin_weights.save_efficientnet,
    "nvidia-vgg16": standin_weights.save_nvidia_vgg16,
    "vgg16-fc2": standin_weights.save_vgg16,
}


def images(num: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("key", sorted(FILES))
def test_features_in_full_float32(key: str, tmp_path: Path) -> None:
    """TensorFloat-32 would show at 1e-3."""
    path = FILES[key](tmp_path)
    torch.set_float32_matmul_precision("high")
    try:
        on_cpu, on_gpu = (
            load_network(key, path, sha256="", device=device).features(list(images(3, 96)))
            for device in ("cpu", "cuda")
        )
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=5e-5 * np.abs(on_cpu).max())


def test_scores() -> None:
    generator = np.random.default_rng(0)
    real, fake = (ArrayRows(generator.normal(size=(num, 16)).astype(np.float32)) for num in (300, 200))
    kid = [kernel_distance(real, fake, subset_size=100, device=device).value for device in ("cpu", "cuda")]
    assert kid[1] == pytest.approx(kid[0], rel=1e-9)
    scores = [manifold_scores(real, fake, k=3, closed=True, device=device, block=64) for device in ("cpu", "cuda")]
    for name in ("precision", "recall", "density", "coverage"):
        np.testing.assert_array_equal(scores[1].of(name), scores[0].of(name))
    a, b = images(2, 176), images(2, 176)[::-1].copy()
    np.testing.assert_allclose(ms_ssim(a, b, device="cuda"), ms_ssim(a, b), rtol=1e-9)


def test_lpips_features(tmp_path: Path) -> None:
    path = standin_weights.save_alexnet(tmp_path)
    a, b = images(2, 64), images(2, 64)[::-1].copy()
    distances = [load_lpips_features(path, net="alex", device=device).distance(a, b) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(distances[1], distances[0], rtol=1e-4)
