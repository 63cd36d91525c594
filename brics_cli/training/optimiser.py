"""AdamW with feature grids in a group of their own, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from brics_cli.config import OptimiserConfig

# Instant-NGP, arXiv 2201.05989, section 4: eps 1e-15 keeps rarely touched entries learning, and no weight decay.
GRID_EPS = 1e-15
COSINE_FLOOR = 0.01


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `model`: feature grids, weights with decay, the one-dimensional rest without."""
    grids, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith("bottleneck.tables"):
            grids.append(parameter)
        elif parameter.dim() >= 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [
        {"params": decayed, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": plain, "lr": config.lr, "weight_decay": 0.0},
        {"params": grids, "lr": config.grid_lr, "weight_decay": 0.0, "eps": GRID_EPS},
    ]
    groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=config.betas)


def lr_factor(config: OptimiserConfig, *, step: int, num_steps: int) -> float:
    """What every learning rate is multiplied by at `step` (from 0): a linear warm-up, then nothing or a cosine."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "none":
        return warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))
    return warmup * (COSINE_FLOOR + (1 - COSINE_FLOOR) * cosine)
