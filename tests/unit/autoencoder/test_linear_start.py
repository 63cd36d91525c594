"""`bottleneck.init: dct`: before its first step the autoencoder keeps what its leading DCT coefficients keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from brics_cli.autoencoder.autoencoder import Autoencoder, to_tensor
from brics_cli.autoencoder.build import build_autoencoder
from brics_cli.autoencoder.linear_start import basis, leading_coefficients
from brics_cli.config import AutoencoderConfig, validate
from brics_cli.errors import UsageError

SMALL = {
    "image_size": 64,
    "encoder": {"patch": 8, "widths": [32], "num_blocks": [1], "norm": "place"},
    "bottleneck": {"kind": "grid", "init": "dct"},
    "features": {"hidden_dim": 48},
    "decoder": {"widths": [32, 16], "num_blocks": [1, 0], "unpatch": 4, "norm": "place"},
}


def built(**changes: object) -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(AutoencoderConfig.model_validate({**SMALL, **changes})).eval()


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (images - others.clamp(-1, 1)).square().mean()))


@pytest.mark.parametrize("key_dim", [1, 2])
def test_a_fresh_autoencoder_is_nearly_as_good_as_its_coefficients(key_dim: int) -> None:
    model = built(bottleneck={"kind": "grid", "init": "dct", "key_dim": key_dim})
    images = to_tensor(data.chelsea()[None, :256, 100:356])
    rows = basis(leading_coefficients(16, block=8), block=8)
    blocks = F.pixel_unshuffle(images, 8)  # (1, 192, 32, 32)
    linear = F.pixel_shuffle(torch.einsum("kc,kd,bdyx->bcyx", rows, rows, blocks), 8)
    with torch.no_grad():
        ours = model.decode(model.encode(images))
    assert psnr(images, linear) - psnr(images, ours) < 0.5
    assert psnr(images, ours) > 29


def test_the_basis_is_orthonormal_and_begins_with_the_means_of_the_colours() -> None:
    coefficients = leading_coefficients(16, block=8)
    rows = basis(coefficients, block=8)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16))
    constant = torch.full((3, 8, 8), 0.5).flatten()
    assert abs(float(rows[coefficients.index(max(coefficients, key=lambda each: each.std))] @ constant)) == (
        pytest.approx(0.5 * np.sqrt(192))
    )


def test_what_a_place_becomes_depends_on_what_is_around_it_alone() -> None:
    model = built()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # heads that are not zero: everything takes part
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    image = torch.rand(1, 3, 128, 256, generator=generator) * 2 - 1
    other = image.clone()
    other[..., 160:] = -1.0
    with torch.no_grad():
        ours, theirs = (model.decode(model.encode(each)) for each in (image, other))
    assert (ours[..., 192:] != theirs[..., 192:]).any()
    torch.testing.assert_close(ours[..., :64], theirs[..., :64], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": {"hidden_dim": 16}}, "init 'dct' needs features"),
        ({"encoder": {**SMALL["encoder"], "shortcut": False}}, "init 'dct' needs features"),
        ({"bottleneck": {"kind": "grid", "init": "dct", "positions": "image"}}, "without positions"),
        ({"encoder": {**SMALL["encoder"], "num_blocks": [1, 2]}}, "2 numbers for 1 stages"),
    ],
)
def test_what_cannot_start_so_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        validate(AutoencoderConfig, {**SMALL, **changes}, source="config")
