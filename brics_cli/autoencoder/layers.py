"""The few layers that encoder, decoder and bottlenecks are made of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# GroupNorm with 32 groups, fewer when there are fewer channels per group than 4 (taming-transformers uses 32).
MAX_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest number of groups up to 32 that divides `channels` and leaves 4 in each."""
    groups = max(g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _start_at_zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Pre-activation residual block: norm, SiLU, 3x3 conv, twice. Starts as the identity (last conv is zero)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _start_at_zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class SelfAttention(nn.Module):
    """Single-head self-attention over positions, residual, zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _start_at_zero(self.out)

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

    def __init__(self, channels: int, *, num_blocks: int, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ResidualBlock(channels) for _ in range(num_blocks)])
        self.attention = SelfAttention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.blocks(x))


def upsample_nearest(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), each position four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast for what is inside. (Meta tensors, on which arithmetic is counted, know none.)"""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def reflect_into_unit(x: Tensor) -> Tensor:
    """Values outside [0, 1] reflected at the walls as often as it takes; clipping would kill their gradient."""
    return 1 - (x.remainder(2) - 1).abs()
