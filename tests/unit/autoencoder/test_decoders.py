"""The paper's layers: modulated convolutions, feature MLPs per group, the style decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from brics_cli.autoencoder.bottlenecks.features import GroupedFeatureMlp
from brics_cli.autoencoder.decoders import StyleDecoder, upsample_bilinear
from brics_cli.autoencoder.layers import EqualisedLinear, ModulatedConv
from brics_cli.config import StyleDecoderConfig


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def modulated_weights(conv: ModulatedConv, style: Tensor) -> Tensor:
    """StyleGAN2's equations 1 and 3, written with the weights themselves, for one image and one group."""
    scale = F.linear(style, conv.affine_weight * conv.affine_gain, conv.affine_bias)  # (in,)
    weight = conv.weight * conv.gain * scale[None, :, None, None]
    norm = (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt() if conv.demodulate else 1.0
    return weight * norm


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_scaled_activations_are_modulated_weights(kernel: int, demodulate: bool) -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(6, 5, kernel, style_dim=4, demodulate=demodulate)
    conv.bias.data.normal_()
    x, style = normal(3, 6, 8, 8), normal(3, 4, seed=2)
    found = conv(x, style)
    for image, image_style, result in zip(x, style, found, strict=True):
        expected = F.conv2d(image[None], modulated_weights(conv, image_style), conv.bias, padding=kernel // 2)
        torch.testing.assert_close(result[None], expected, atol=1e-5, rtol=1e-4)


def test_groups_are_convolutions_side_by_side() -> None:
    torch.manual_seed(0)
    both = ModulatedConv(8, 6, 1, style_dim=4, num_groups=2)
    x, style = normal(2, 8, 5, 5), normal(2, 4, seed=2)
    parts = []
    for group in range(2):
        one = ModulatedConv(4, 3, 1, style_dim=2)
        one.weight.data, one.bias.data = both.weight.data[3 * group :][:3], both.bias.data[3 * group :][:3]
        one.affine_weight.data = both.affine_weight.data[4 * group :][:4]
        parts.append(one(x[:, 4 * group :][:, :4], style[:, 2 * group :][:, :2]))
    torch.testing.assert_close(both(x, style), torch.cat(parts, dim=1))


def test_demodulation_keeps_the_variance_whatever_the_style() -> None:
    torch.manual_seed(0)
    conv = ModulatedConv(64, 64, 3, style_dim=8)
    for strength in (0.1, 10.0):
        found = conv(normal(4, 64, 16, 16), strength * normal(4, 8, seed=3))
        assert 0.8 < float(found.detach().std()) < 1.2


def test_equalised_weights_start_at_unit_variance_and_act_at_fan_in() -> None:
    torch.manual_seed(0)
    linear = EqualisedLinear(400, 300, lr_factor=0.01)
    assert float(linear.weight.detach().std()) == pytest.approx(100, rel=0.05)
    assert float(linear(normal(64, 400)).detach().std()) == pytest.approx(1, rel=0.05)


def test_a_group_sees_its_own_features_alone() -> None:
    torch.manual_seed(0)
    mlp = GroupedFeatureMlp([8, 12, 12, 16], num_groups=4, shuffle=1)
    x = normal(2, 8, 4, 4)
    changed = x.clone()
    changed[:, 2:4] += 1  # group 1
    same = (mlp(x) == mlp(changed)).all(dim=3).all(dim=2).all(dim=0)
    assert same.tolist() == [True] * 4 + [False] * 4 + [True] * 8
    moved = x.clone()
    moved[:, 2:4, 0, 0] += 1  # one place: its pooled features change what the whole group does
    assert not torch.equal(mlp(x)[:, 4:8, 3, 3], mlp(moved)[:, 4:8, 3, 3])


def test_upsampling_is_the_filter_of_stylegan2() -> None:
    x = normal(1, 2, 6, 6)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = (taps[:, None] * taps / 16).expand(2, 1, 4, 4)
    spread = F.pad(x, (1, 1, 1, 1), mode="replicate")
    expected = F.conv_transpose2d(spread, kernel, stride=2, padding=1, groups=2)[..., 2:-2, 2:-2]
    torch.testing.assert_close(upsample_bilinear(x), expected)


def test_the_style_decoder_learns_and_every_weight_takes_part() -> None:
    torch.manual_seed(0)
    decoder = StyleDecoder(StyleDecoderConfig(widths=(16, 12, 8), style_dim=16, style_layers=2))
    features, target = normal(4, 16, 8, 8), torch.tanh(F.interpolate(normal(4, 3, 8, 8, seed=2), scale_factor=4.0))
    optimiser = torch.optim.Adam(decoder.parameters(), lr=1e-2, betas=(0.0, 0.99))
    losses = []
    for _ in range(40):
        loss = (decoder(features) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in decoder.parameters())
