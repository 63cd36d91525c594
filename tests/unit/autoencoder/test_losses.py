from pathlib import Path

import lpips
import numpy as np
import pytest
import standin_weights
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from brics_cli.autoencoder import ms_ssim as of_tensors
from brics_cli.autoencoder.losses import (
    LEAST_CONTRAST,
    laplacian_l1,
    multiscale,
    perceptual_distance,
    perceptual_weights,
    reconstruction_loss,
)
from brics_cli.config import LossConfig
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.networks import registry


def pair(size: int, *, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Smooth images and disturbed copies, in [-1, 1]."""
    generator = torch.Generator().manual_seed(size)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator) * 2 - 1
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)
    return images, (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """As in the loss."""
    weights = of_tensors.weights_that_fit(*a.shape[2:])
    return of_tensors.ms_ssim(a, b, value_range=2.0, weights=weights, least=LEAST_CONTRAST)


def loss_config(**values: object) -> LossConfig:
    return LossConfig.model_validate(values)


def test_one_scale_of_ms_ssim_is_scikit_images_ssim() -> None:
    images, disturbed = pair(20)  # half of it is smaller than the window
    expected = [
        structural_similarity(
            a.numpy(), b.numpy(), channel_axis=0, data_range=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(images, disturbed, strict=True)
    ]  # fmt: skip
    assert ms_ssim(images, disturbed).numpy() == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize("size", [20, 64, 200])
def test_ms_ssim_is_1_for_equal_images_and_falls_with_noise(size: int) -> None:
    images, disturbed = pair(size)
    assert ms_ssim(images, images).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (ms_ssim(images, disturbed) < ms_ssim(images, (images + disturbed) / 2)).all()
    inverted = ms_ssim(images, -images)  # structure is negative
    assert inverted.isfinite().all() and (inverted < ms_ssim(images, disturbed)).all()


def test_ms_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="at least 11 px"):
        ms_ssim(*pair(10))


def test_the_laplacian_pyramid_sees_every_scale() -> None:
    difference = torch.zeros(1, 3, 64, 64)
    assert float(laplacian_l1(difference)) == 0
    assert float(laplacian_l1(difference + 0.5)) == pytest.approx(0.5, abs=1e-5)  # a constant is in the last level
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2 - 1).expand(1, 3, 64, 64).float()
    assert float(laplacian_l1(checkers)) == pytest.approx(1.0, abs=0.05)  # the finest pattern is in the first


def test_a_batchs_multiscale_loss_is_the_mean_of_its_images() -> None:
    images, disturbed = pair(64, batch=4)
    parts = [multiscale(disturbed[i : i + 1], images[i : i + 1]) for i in range(4)]
    assert float(multiscale(disturbed, images)) == pytest.approx(float(torch.stack(parts).mean()), abs=1e-6)


def test_gradients_are_finite_even_for_equal_and_inverted_images() -> None:
    images, _ = pair(32)
    for start in (images, -images):
        reconstructions = start.clone().requires_grad_(True)
        multiscale(reconstructions, images).backward()
        assert reconstructions.grad is not None and reconstructions.grad.isfinite().all()


def test_terms_are_named_and_weighted() -> None:
    images, disturbed = pair(32)
    config = loss_config(l1=2.0, l2=3.0, perceptual={"kind": "multiscale", "weight": 0.5})
    terms = reconstruction_loss(config, disturbed, images, distance=perceptual_distance(config))
    assert list(terms) == ["l1", "l2", "multiscale"]
    difference = disturbed - images
    assert float(terms["l1"]) == pytest.approx(2 * float(difference.abs().mean()))
    assert float(terms["l2"]) == pytest.approx(3 * float(difference.square().mean()))
    assert float(terms["multiscale"]) == pytest.approx(0.5 * float(multiscale(disturbed, images)))
    with pytest.raises(ValueError, match="no distance was given"):
        reconstruction_loss(config, disturbed, images)


def test_a_loss_of_nothing_is_refused() -> None:
    from brics_cli.config.base import validate

    with pytest.raises(UsageError, match="nothing would be minimised"):
        validate(LossConfig, {"l1": 0.0, "perceptual": {"kind": "lpips", "weight": 0.0}}, source="recipe")


@pytest.mark.parametrize("kind", ["lpips", "vgg16"])
def test_missing_weights_are_named_with_the_way_to_get_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ArtefactError, match=rf"kind={kind} .*needs vgg16-397923af.pth .* brics weights import"):
        perceptual_weights(loss_config(perceptual={"kind": kind}))


def test_lpips_and_vgg_features_through_the_real_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from brics_cli.workspace import sha256_of_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    features = nn.Module()
    for number in range(1, 6):
        for name, layer in getattr(theirs.net, f"slice{number}").named_children():
            features.add_module(name, layer)
    path = standin_weights.save_backbone(tmp_path / registry.WEIGHTS["vgg16"].file, features)
    published = replace(registry.WEIGHTS["vgg16"], sha256=sha256_of_file(path))
    monkeypatch.setitem(registry.WEIGHTS, "vgg16", published)
    monkeypatch.setenv("BRICS_WEIGHTS", str(tmp_path))
    images, disturbed = pair(32)
    disturbed = disturbed.requires_grad_(True)
    for kind in ("lpips", "vgg16"):
        config = loss_config(l1=0.0, perceptual={"kind": kind})
        (loss,) = reconstruction_loss(config, disturbed, images, distance=perceptual_distance(config)).values()
        if kind == "lpips":
            assert loss.item() == pytest.approx(theirs(disturbed, images).mean().item(), rel=1e-5)
        else:
            stages = [theirs.net(theirs.scaling_layer(each)) for each in (disturbed, images)]
            expected = sum((a - b).abs().mean().item() for a, b in zip(*stages, strict=True)) / 5
            assert loss.item() == pytest.approx(expected, rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, disturbed)
        assert gradient.isfinite().all() and gradient.abs().max() > 0
