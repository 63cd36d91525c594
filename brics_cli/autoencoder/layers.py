"""The few layers that encoder, decoders and bottlenecks are made of.

The modulated ones are StyleGAN2's (Karras et al., arXiv 1912.04958, section 2.2), in groups. Their weights are N(0, 1)
and scaled by 1 / sqrt(fan-in) at run time (equalised learning rate, arXiv 1710.10196, section 4.1), as the paper's
learning rate of 2e-3 takes for granted. Letters: G groups, S style channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.runtime.precision import full_precision

# GroupNorm with 32 groups, fewer when there are fewer channels per group than 4 (taming-transformers uses 32).
MAX_GROUPS = 32
SLOPE = 0.2
# Leaky ReLU of that slope halves the second moment, nearly: the gain of StyleGAN2.
GAIN = math.sqrt(2)
# The style MLP learns a hundred times slower (arXiv 1812.04948, appendix C).
STYLE_LR_FACTOR = 0.01


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups up to 32 that divides `channels` and leaves 4 in each."""
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class PlaceNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position (B, C, H, W), so that none depends on the rest of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": group_norm, "place": PlaceNorm}
"""By a config's `norm`: a layer for so many channels."""


def blocks_per_stage(num_blocks: int | Sequence[int], num_stages: int) -> Sequence[int]:
    """The residual blocks of each stage, where one number may stand for all."""
    return [num_blocks] * num_stages if isinstance(num_blocks, int) else num_blocks


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ResidualBlock(nn.Module):
    """Pre-activation residual block: norm, SiLU, 3x3 conv, twice. Starts as the identity (last conv is zero)."""

    def __init__(self, channels: int, *, norm: str = "group") -> None:
        super().__init__()
        self.norm1 = NORMS[norm](channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = NORMS[norm](channels)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class SelfAttention(nn.Module):
    """Single-head self-attention over positions, residual, zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        h = F.scaled_dot_product_attention(*self.queries_keys_values(x))[:, 0]  # (B, HW, C)
        return x + self.out(h.transpose(1, 2).unflatten(2, x.shape[2:]))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, HW, C) each, C contiguous: in any other form no fused kernel takes them, and the HW x HW weights are
        stored."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous()[:, None]  # (B, 1, HW, 3C)
        q, k, v = qkv.chunk(3, dim=-1)
        return q, k, v


class Stage(nn.Module):
    """Residual blocks at one resolution, attention after them if asked."""

    def __init__(self, channels: int, *, num_blocks: int, norm: str = "group", attention: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ResidualBlock(channels, norm=norm) for _ in range(num_blocks)])
        self.attention = SelfAttention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.blocks(x))


def upsample_nearest(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), each position four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def reflect_into_unit(x: Tensor) -> Tensor:
    """Values outside [0, 1] reflected at the walls as often as it takes; clipping would kill their gradient."""
    return 1 - (x.remainder(2) - 1).abs()


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(x, SLOPE) * GAIN


class EqualisedLinear(nn.Module):
    """x (B, in) -> (B, out), its learning rate multiplied by `lr_factor`."""

    def __init__(self, in_features: int, out_features: int, *, lr_factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_factor)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.weight_gain, self.bias_gain = lr_factor / math.sqrt(in_features), lr_factor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class StyleMlp(nn.Module):
    """Pooled features (B, in) -> style (B, S)."""

    def __init__(self, in_features: int, *, style_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_features, *[style_dim] * num_layers]
        self.layers = nn.ModuleList(EqualisedLinear(a, b, lr_factor=STYLE_LR_FACTOR) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = activate(layer(x))
        return x


class ModulatedConv(nn.Module):
    """x (B, in, H, W), style (B, S) -> (B, out, H, W): each input channel scaled by an affine map of the style, and
    each output channel divided by the norm its weights then have (`demodulate`).

    In G groups, style channels are split among groups as those of x are. Activations are scaled in place of weights,
    which is the same sum: one convolution serves the whole batch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        style_dim: int,
        num_groups: int = 1,
        demodulate: bool = True,
    ) -> None:
        super().__init__()
        self.num_groups, self.demodulate = num_groups, demodulate
        per_group = in_channels // num_groups
        self.weight = nn.Parameter(torch.randn(out_channels, per_group, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gain = 1 / math.sqrt(per_group * kernel**2)
        self.affine_weight = nn.Parameter(torch.randn(in_channels, style_dim // num_groups))
        self.affine_bias = nn.Parameter(torch.ones(in_channels))  # modulation starts around 1
        self.affine_gain = 1 / math.sqrt(style_dim // num_groups)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.weight * self.gain
        with full_precision(x.device):  # squares and their sums stay in float32
            scale = self._scale(style.float())  # (B, in)
            if self.demodulate:
                factor = self._demodulation(weight, scale)  # (B, out)
        x = F.conv2d(
            x * scale[:, :, None, None].to(x.dtype), weight, padding=weight.shape[-1] // 2, groups=self.num_groups
        )
        if self.demodulate:
            x = x * factor[:, :, None, None].to(x.dtype)
        return x + self.bias[:, None, None].to(x.dtype)

    def _scale(self, style: Tensor) -> Tensor:
        by_group = style.unflatten(1, (self.num_groups, -1)).transpose(0, 1)  # (G, B, S / G)
        affine = (self.affine_weight * self.affine_gain).unflatten(0, (self.num_groups, -1))  # (G, in / G, S / G)
        return (by_group @ affine.transpose(1, 2)).transpose(0, 1).flatten(1) + self.affine_bias

    def _demodulation(self, weight: Tensor, scale: Tensor) -> Tensor:
        squares = weight.float().square().sum((2, 3)).unflatten(0, (self.num_groups, -1))  # (G, out / G, in / G)
        by_group = scale.square().unflatten(1, (self.num_groups, -1)).transpose(0, 1)  # (G, B, in / G)
        return torch.rsqrt((by_group @ squares.transpose(1, 2)).transpose(0, 1).flatten(1) + 1e-8)
