"""What a training run will cost, before it is started: one real micro-batch is timed, the rest is arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brics_cli.config import ScheduleConfig

# A checkpoint holds the weights, their plain average and AdamW's two moments; of a discriminator no average.
COPIES_PER_CHECKPOINT = 4
COPIES_OF_DISCRIMINATOR = 3


@dataclass(frozen=True)
class Estimate:
    """The cost of a run on the device at hand; validation, snapshots and waiting for data come on top."""

    num_parameters: int
    checkpoint_bytes: int
    seconds_per_step: float
    seconds: float


def estimate(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    schedule: ScheduleConfig,
    discriminator: nn.Module | None = None,
    num_averages: int = 0,
) -> Estimate:
    """Time the forward and backward pass of one micro-batch, whose loss `loss` computes, and scale it up.

    The pass is run twice and the second one counts. `num_averages`: those kept beside the plain one.
    """
    device = next(model.parameters()).device
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        loss().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    num_bytes = (COPIES_PER_CHECKPOINT + num_averages) * _num_bytes(model)
    if discriminator is not None:
        num_bytes += COPIES_OF_DISCRIMINATOR * _num_bytes(discriminator)
    per_step = seconds * schedule.accumulate
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Estimate(num_parameters, num_bytes, per_step, per_step * schedule.steps)


def _num_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
