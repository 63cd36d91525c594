"""What networks compute in, decided here alone: bf16 autocast on CUDA, float32 elsewhere (DESIGN section 9).

Weights, codes, interpolation, losses, samplers' state and the networks of metrics stay in float32 all the same.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from brics_cli.config import ScheduleConfig
from brics_cli.config.names import Precision
from brics_cli.runtime.reporting import Reporter


def default_precision(device: torch.device) -> Precision:
    """What networks compute in on `device` unless a user says otherwise."""
    return "bf16" if device.type == "cuda" else "fp32"


def training_precision(schedule: ScheduleConfig, device: torch.device) -> Precision:
    """What a recipe trains in on `device`."""
    return {"cuda": schedule.precision, "cpu": schedule.cpu_precision}.get(device.type, "fp32")


def say_training_precision(asked: Precision | None, device: torch.device, reporter: Reporter) -> None:
    """Say that what was asked for by name is not what `training_precision` makes of it."""
    if asked is not None and asked != "fp32" and device.type != "cuda":
        instead = f"--set training.cpu_precision={asked}" if device.type == "cpu" else "fp32 alone"
        reporter.warning(f"--dtype {asked} is not used on {device}, where it is mostly slower; there it is {instead}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The forward passes inside compute in `precision`, fp32 or bf16."""
    if device.type == "meta":
        return full_precision(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside. (Meta tensors, on which arithmetic is counted, have none.)"""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
