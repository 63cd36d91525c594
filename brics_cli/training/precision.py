"""The arithmetic of the training pass."""

from __future__ import annotations

import torch

from brics_cli.config import ScheduleConfig


def autocast(schedule: ScheduleConfig, device: torch.device) -> torch.autocast:
    """bf16 autocast where the recipe asks for it and the device is CUDA; float32 elsewhere.

    Weights, codes, interpolation and losses stay in float32 all the same.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bf16" and device.type == "cuda")
