"""The loss by noise level, summed where it is computed: nothing waits for the device before a log line is due."""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.diffusion.diffusion import LEVEL_NAMES, loss_by_level
from brics_cli.runtime.distributed import World


def sum_dtype(device: torch.device) -> torch.dtype:
    """What sums of losses are kept in: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class LevelMeans:
    """The mean loss of each range of noise levels since the last log line, over batches and processes."""

    def __init__(self, device: torch.device) -> None:
        self._totals = torch.zeros(2, len(LEVEL_NAMES), dtype=sum_dtype(device), device=device)

    def add(self, loss: Tensor, log_snr: Tensor) -> None:
        """Add the samples of a micro-batch: loss (B,) at log_snr (B,)."""
        self._totals += loss_by_level(loss.detach().to(self._totals.dtype), log_snr.detach())

    def result(self, world: World) -> dict[str, float]:
        """By name; a range that no sample fell into is left out. The sums start again."""
        world.add_up([self._totals])
        totals, counts = self._totals.tolist()
        self._totals.zero_()
        found = zip(LEVEL_NAMES, totals, counts, strict=True)
        return {f"loss/{name}": total / count for name, total, count in found if count}
