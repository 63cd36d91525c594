"""How the training pass is computed."""

from __future__ import annotations

import torch
from torch import nn

from brics_cli.config import ScheduleConfig


def autocast(schedule: ScheduleConfig, device: torch.device) -> torch.autocast:
    """bf16 autocast where the recipe asks for it and the device is CUDA; float32 elsewhere.

    Weights, codes, interpolation and losses stay in float32 all the same.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bf16" and device.type == "cuda")


def compiled(model: nn.Module, schedule: ScheduleConfig) -> nn.Module:
    """`model`, compiled where the recipe asks for it.

    Its parameters keep their names: EMA and checkpoints take them from the model that went in.
    """
    if not schedule.compile:
        return model
    # The adaptive GAN weight goes through the graph of the losses twice, which donated buffers would not survive.
    torch._functorch.config.donated_buffer = False
    return torch.compile(model)  # type: ignore[return-value]
