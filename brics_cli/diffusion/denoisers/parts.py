"""What both networks are made of: features of the noise level, blocks whose activations may be recomputed, and dropout
whose mask is a function of the sample.

Shapes: B batch, C channels, h x w positions, D dim.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NUM_FREQUENCIES = 64
"""Sines of the noise level; their periods run from 8 to 1/4 in units of c_noise, whose range is about [-2, 2]."""


def noise_frequencies() -> Tensor:
    """(NUM_FREQUENCIES,) angular frequencies, geometric."""
    return 2 * math.pi * torch.logspace(math.log2(1 / 8), math.log2(4), NUM_FREQUENCIES, base=2)


def noise_features(c_noise: Tensor, frequencies: Tensor) -> Tensor:
    """c_noise (B,) -> (B, 2 NUM_FREQUENCIES), cosines and sines."""
    angles = c_noise[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def noise_mlp(dim: int) -> nn.Sequential:
    """From the features of the noise level to D dimensions."""
    return nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))


class Network(nn.Module):
    """A network F: forward(x (B, C, h, w), c_noise (B,) about -log_snr / 8, labels (B,) int64 or None) -> like x.

    It is built as `NETWORK(config, code_shape=..., num_classes=...)`. One with `dropout` also takes `dropout_keys` (B,)
    int32, the samples' own; without them nothing is dropped.
    """

    gradient_checkpointing = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    dropout = 0.0
    noise_mlp: nn.Module
    class_embed: nn.Embedding | None
    """Its last row is the null class: a label that was dropped or is not there. None: no classes."""
    frequencies: Tensor

    def condition(self, c_noise: Tensor, labels: Tensor | None, *, dtype: torch.dtype) -> Tensor:
        """(B, D): the noise level and the class."""
        condition = self.noise_mlp(noise_features(c_noise, self.frequencies).to(dtype))
        if self.class_embed is not None and labels is not None:
            condition = condition + self.class_embed(labels)
        return F.silu(condition)


def run_block(block: nn.Module, *inputs: Tensor | None, recompute: bool) -> Tensor:
    """`block(*inputs)`. With `recompute` its activations are computed again in the backward pass, not kept (gradient
    checkpointing, arXiv 1604.06174)."""
    if recompute and torch.is_grad_enabled():
        # Blocks draw nothing at random (see keyed_dropout), so there is no state of a generator to go back to.
        out = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        out = block(*inputs)
    assert isinstance(out, Tensor)
    return out


def dropout_keys(noise: Tensor) -> Tensor:
    """noise (B, C, h, w), drawn for each sample alone -> (B,) int32, the sample's own keys for `keyed_dropout`.

    They are made of the bits of the draws, not of anything computed: the last bit of what is computed may depend on
    the batch.
    """
    values = noise.flatten(1).float()
    first, last = (values[:, end].contiguous().view(torch.int32) for end in (0, -1))  # (B,) each
    return _mix(first) ^ last


def keyed_dropout(x: Tensor, keys: Tensor, *, chance: float, layer: int) -> Tensor:
    """x (B, C, h, w) with each value set to 0 by this chance, and the others scaled so that the mean stays.

    The mask of sample i is a function of (keys[i], layer), so that, unlike `F.dropout`'s, it depends neither on the
    batch, nor on the number of processes, nor on where a run was resumed.
    """
    places = torch.arange(math.prod(x.shape[1:]), dtype=torch.int32, device=x.device)
    places = _mix(_mix(places) ^ layer)  # (C h w,)
    uniform = _mix(places ^ keys[:, None])  # (B, C h w), in [-2^31, 2^31)
    kept = uniform >= min(round(chance * 2**32) - 2**31, 2**31 - 1)
    return x * kept.view(x.shape).to(x.dtype) / (1 - chance)


def _mix(x: Tensor) -> Tensor:
    """A hash of 32 bits, element by element: `lowbias32` of Wellons' hash-prospector; int32 products wrap around."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)
