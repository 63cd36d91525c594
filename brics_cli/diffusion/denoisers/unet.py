"""`unet`: the U-Net of ADM (Dhariwal & Nichol, arXiv 2105.05233), sized for key codes.

Residual blocks whose second GroupNorm is scaled and shifted by the noise level and the class; halving and doubling
inside residual blocks; self-attention on chosen levels and in the middle; what each block on the way down leaves is
concatenated on the way up; the last layer of every block, of every attention and of the network starts at zero.
Beside ADM, the last norm is scaled and shifted too, and no SiLU follows it (as in DiT): what little noise there is at a
high signal-to-noise ratio is a linear function of the codes whose gain depends on the noise level.

Level l has ceil(h / 2^l) x ceil(w / 2^l) positions, so codes of any shape fit: where a side is odd, the last row or
column is averaged alone on the way down and cropped on the way up, and a side of 1 stays 1.

Shapes: B batch, C code channels, h x w code positions, c block channels, D = 4 dim, N = hw tokens, H heads, d head_dim.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.autoencoder.layers import group_norm, upsample_nearest
from brics_cli.config import UNetConfig
from brics_cli.diffusion.denoisers.parts import Network, keyed_dropout, noise_frequencies, noise_mlp, run_block

Resample = Literal["none", "down", "up"]


class UNet(Network):
    """Noisy codes and their noise level -> whatever the objective predicts, same shape."""

    def __init__(self, config: UNetConfig, *, code_shape: tuple[int, int, int], num_classes: int = 0) -> None:
        super().__init__()
        channels, condition_dim = code_shape[0], 4 * config.dim
        block = partial(Block, condition_dim=condition_dim, dropout=config.dropout)
        self.dropout = config.dropout
        head_dims = dict.fromkeys(config.attention_levels, config.head_dim)

        self.noise_mlp = noise_mlp(condition_dim)
        self.class_embed = nn.Embedding(num_classes + 1, condition_dim) if num_classes else None
        width = config.widths[0]
        self.embed = nn.Conv2d(channels, width, 3, padding=1)

        self.down, skips = nn.ModuleList(), [width]
        for level, wanted in enumerate(config.widths):
            if level > 0:
                self.down.append(block(width, width, resample="down"))
                skips.append(width)
            for _ in range(config.num_blocks):
                self.down.append(block(width, wanted, head_dim=head_dims.get(level)))
                skips.append(wanted)
                width = wanted
        self.middle = nn.ModuleList([block(width, width, head_dim=config.head_dim), block(width, width)])
        self.up = nn.ModuleList()
        for level, wanted in reversed(list(enumerate(config.widths))):
            for _ in range(config.num_blocks + 1):
                self.up.append(block(width + skips.pop(), wanted, head_dim=head_dims.get(level)))
                width = wanted
            if level > 0:
                self.up.append(block(width, width, resample="up"))
        self.norm = group_norm(width)
        self.final_modulation = nn.Linear(condition_dim, 2 * width)
        self.head = nn.Conv2d(width, channels, 3, padding=1)

        for number, module in enumerate([*self.down, *self.middle, *self.up]):
            module.layer = number
        self.register_buffer("frequencies", noise_frequencies(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        last: list[nn.Module] = [module.conv2 for module in self.modules() if isinstance(module, Block)]
        last += [module.out for module in self.modules() if isinstance(module, Attention)]
        for parameter in nn.ModuleList([*last, self.final_modulation, self.head]).parameters():
            nn.init.zeros_(parameter)
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, dropout_keys: Tensor | None = None
    ) -> Tensor:
        """x (B, C, h, w), c_noise (B,) about -log_snr / 8, labels (B,) int64 or None -> (B, C, h, w).

        `dropout_keys` (B,) int32: the samples' own (`parts.dropout_keys`); without them nothing is dropped.
        """
        condition = self.condition(c_noise, labels, dtype=x.dtype)  # (B, D)
        run = partial(run_block, recompute=self.gradient_checkpointing)

        x = self.embed(x)  # (B, c, h, w)
        skips = [x]
        for block in self.down:
            x = run(block, x, condition, dropout_keys)
            skips.append(x)
        for block in self.middle:
            x = run(block, x, condition, dropout_keys)
        for block in self.up:
            skip = skips[-1] if block.resample == "up" else skips.pop()
            x = run(block, x, condition, dropout_keys, skip)
        out: Tensor = self.head(modulate(self.norm(x), self.final_modulation(condition)))  # (B, C, h, w)
        return out


class Block(nn.Module):
    """Norm, SiLU, convolution, twice, residual; then attention, where `head_dim` is given."""

    layer: int

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        condition_dim: int,
        dropout: float,
        resample: Resample = "none",
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.dropout, self.resample = dropout, resample
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.modulation = nn.Linear(condition_dim, 2 * channels)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        self.attention = Attention(channels, head_dim=head_dim) if head_dim is not None else nn.Identity()

    def forward(
        self, x: Tensor, condition: Tensor, dropout_keys: Tensor | None = None, skip: Tensor | None = None
    ) -> Tensor:
        """x (B, c_in, h, w), condition (B, D) -> (B, c, h, w), or (B, c, h', w') after resampling.

        `skip` is what the way down left: concatenated with x, or, by a block that doubles, taken as the size to reach.
        """
        if skip is not None and self.resample == "none":
            x = torch.cat([x, skip], dim=1)
        h = F.silu(self.norm1(x))
        if self.resample == "down":
            x, h = halve(x), halve(h)
        elif self.resample == "up":
            assert skip is not None
            rows, columns = skip.shape[-2:]
            x, h = (upsample_nearest(part)[..., :rows, :columns] for part in (x, h))
        h = self.conv1(h)  # (B, c, h, w)
        h = F.silu(modulate(self.norm2(h), self.modulation(condition)))
        if self.dropout and dropout_keys is not None:
            h = keyed_dropout(h, dropout_keys, chance=self.dropout, layer=self.layer)
        out: Tensor = self.attention(self.shortcut(x) + self.conv2(h))
        return out


class Attention(nn.Module):
    """Self-attention over positions, residual."""

    def __init__(self, channels: int, *, head_dim: int) -> None:
        super().__init__()
        self.num_heads = channels // head_dim
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, c, h, w) -> same
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, c)
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, d) each
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.out(h.transpose(1, 2).flatten(2))  # (B, N, c)
        return x + h.transpose(1, 2).unflatten(2, x.shape[-2:])


def modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """x (B, c, h, w) scaled and shifted, channel by channel, by modulation (B, 2c)."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)  # (B, c, 1, 1) each
    return x * (1 + scale) + shift


def halve(x: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, c, ceil(h/2), ceil(w/2)): means of 2 x 2 blocks, of what is there at an odd end."""
    return F.avg_pool2d(x, 2, ceil_mode=True)
