"""`dit`: a diffusion transformer (Peebles & Xie, arXiv 2212.09748) with the parts that have since replaced its own.

RMSNorm (arXiv 1910.07467), RMSNorm on queries and keys (arXiv 2302.05442), 2D rotary positions (arXiv 2104.09864, one
half of each head for rows, one for columns) beside the fixed sine table, SwiGLU (arXiv 2002.05202), adaLN-zero.

Shapes: B batch, C code channels, h x w code positions, p patch, N = (h/p)(w/p) tokens, D dim, H heads, d = D/H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brics_cli.config import DiTConfig
from brics_cli.diffusion.denoisers.parts import Network, noise_frequencies, noise_mlp, run_block
from brics_cli.errors import UsageError


class DiT(Network):
    """Noisy codes and their noise level -> whatever the objective predicts, same shape."""

    def __init__(self, config: DiTConfig, *, code_shape: tuple[int, int, int], num_classes: int = 0) -> None:
        super().__init__()
        channels, height, width = code_shape
        if height % config.patch or width % config.patch:
            raise UsageError(
                f"denoiser.patch {config.patch} does not divide the codes' {height} x {width} positions",
                next="Set denoiser.patch to a divisor, e.g. --set denoiser.patch=1",
            )
        self.patch = config.patch
        self.grid = (height // config.patch, width // config.patch)
        self.embed = nn.Linear(channels * config.patch**2, config.dim)
        self.noise_mlp = noise_mlp(config.dim)
        self.class_embed = nn.Embedding(num_classes + 1, config.dim) if num_classes else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(config.dim, 2 * config.dim)
        self.head = nn.Linear(config.dim, channels * config.patch**2)

        self.positions: Tensor
        self.rotation: Tensor
        self.register_buffer("frequencies", noise_frequencies(), persistent=False)
        self.register_buffer("positions", sine_positions(self.grid, dim=config.dim), persistent=False)
        rotation = rotary_angles(self.grid, head_dim=config.dim // config.num_heads)
        self.register_buffer("rotation", torch.stack([rotation.cos(), rotation.sin()]), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # adaLN-zero: every block starts as the identity, and F as zero.
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.head.weight)
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), c_noise (B,) about -log_snr / 8, labels (B,) int64 or None -> (B, C, h, w)."""
        condition = self.condition(c_noise, labels, dtype=x.dtype)  # (B, D)
        p, (rows, columns) = self.patch, self.grid
        tokens = F.pixel_unshuffle(x, p).flatten(2).transpose(1, 2)  # (B, N, C p p)
        tokens = self.embed(tokens) + self.positions.to(x.dtype)  # (B, N, D)
        for block in self.blocks:
            tokens = run_block(block, tokens, condition, self.rotation, recompute=self.gradient_checkpointing)
        shift, scale = self.final_modulation(condition)[:, None].chunk(2, dim=-1)  # (B, 1, D) each
        out = self.head(self.norm(tokens) * (1 + scale) + shift)  # (B, N, C p p)
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (rows, columns)), p)  # (B, C, h, w)


class Block(nn.Module):
    """Attention and SwiGLU, each modulated, gated and residual."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.dim, config.num_heads
        hidden = max(8, round(config.mlp_ratio * dim * 2 / 3 / 8) * 8)  # the cost of a plain MLP of that ratio
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm1 = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_q = nn.RMSNorm(dim // self.num_heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(dim // self.num_heads, eps=1e-6)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.gate_up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, condition: Tensor, rotation: Tensor) -> Tensor:
        """x (B, N, D), condition (B, D), rotation (2, N, d/2) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self._attend(self.norm1(x) * (1 + scale1) + shift1, rotation)
        gate, up = self.gate_up(self.norm2(x) * (1 + scale2) + shift2).chunk(2, dim=-1)  # (B, N, hidden) each
        out: Tensor = x + gate2 * self.down(F.silu(gate) * up)
        return out

    def _attend(self, x: Tensor, rotation: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, d) each
        # Under autocast the norms' weights are float32 and q is not: norm and turn in float32.
        q, k = (
            rotate(norm(part.to(norm.weight.dtype)), rotation).to(v.dtype)
            for norm, part in ((self.norm_q, q), (self.norm_k, k))
        )
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(h.transpose(1, 2).flatten(2))  # (B, N, D)
        return out


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (B, H, N, d), each pair (x_i, x_{i + d/2}) turned by its token's angle; rotation (2, N, d/2) is cos and sin."""
    cos, sin = rotation.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotary_angles(grid: tuple[int, int], *, head_dim: int) -> Tensor:
    """(N, d/2): row times frequency for the first d/4 pairs, column times frequency for the rest."""
    frequencies = 100.0 ** (-torch.arange(head_dim // 4) / (head_dim // 4))  # base 100: code grids are short
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([y.reshape(-1, 1) * frequencies, x.reshape(-1, 1) * frequencies], dim=1)


def sine_positions(grid: tuple[int, int], *, dim: int) -> Tensor:
    """(N, D): DiT's fixed table. Rotary positions alone know only differences; aligned collections need where."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.cat([y.reshape(-1, 1) * frequencies, x.reshape(-1, 1) * frequencies], dim=1)  # (N, D/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
