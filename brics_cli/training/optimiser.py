"""AdamW with feature grids in a group of their own, and the learning-rate schedule."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from brics_cli.config import OptimiserConfig
from brics_cli.errors import ArtefactError, machine_error

# Instant-NGP, arXiv 2201.05989, section 4: eps 1e-15 keeps rarely touched entries learning, and no weight decay.
GRID_EPS = 1e-15
COSINE_FLOOR = 0.01
MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `model`: feature grids, weights with decay, the one-dimensional rest without."""
    grids, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if name.endswith(".tables"):
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


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's learning rate to `factor` times its base, and return the first group's."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimiser.param_groups[0]["lr"])


def write_optimiser(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Write the optimiser's state. Raises OSError when the disk is full."""
    buffer = BytesIO()  # torch.save to a path turns a full disk into a RuntimeError without a cause
    torch.save(optimiser.state_dict(), buffer)
    path.write_bytes(buffer.getbuffer())


def read_optimiser(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Restore what `write_optimiser` wrote; rates and betas stay those of the recipe.

    Raises ArtefactError when the file is missing, damaged, or of another model.
    """
    kept = ("base_lr", "betas", "weight_decay", "eps")
    settings = [{name: group[name] for name in kept} for group in optimiser.param_groups]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        optimiser.load_state_dict(state)  # moves the moments to their parameters' device
    except (OSError, RuntimeError, MemoryError, ValueError, EOFError) as error:
        if (said := machine_error(error, where=path)) is not None:
            raise said from None
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtefactError(f"{path} cannot be read ({first_line})") from None
    except Exception as error:  # unpickling a damaged file can raise anything
        raise ArtefactError(f"{path} is damaged ({type(error).__name__})") from None
    for group, setting in zip(optimiser.param_groups, settings, strict=True):
        group.update(setting)
        for parameter in group["params"]:
            moments = optimiser.state.get(parameter)  # none yet, where no gradient has come
            if moments and any(name not in moments or moments[name].shape != parameter.shape for name in MOMENTS):
                raise ArtefactError(f"{path} does not fit this model: it is the optimiser's state of another one")
