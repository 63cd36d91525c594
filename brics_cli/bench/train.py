"""`brics bench train`: images per second of a recipe's training pass on the device at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from brics_cli.bench.timing import device_name, median_seconds
from brics_cli.config import AutoencoderRecipe
from brics_cli.core.build import build_autoencoder
from brics_cli.training.estimate import loss_on_random_images
from brics_cli.training.state import TrainingState


@dataclass(frozen=True)
class Throughput:
    """One phase of a training step on random images, cumulative: `forward`, `+ backward`, `+ update`."""

    phase: str
    ms_per_step: float
    img_per_s: float


def bench_train(
    recipe: AutoencoderRecipe, *, device: torch.device, repeats: int
) -> tuple[str, list[Throughput], float | None]:
    """The device's name, the phases of a step, and the peak device memory in GiB (None on a CPU)."""
    torch.manual_seed(0)
    schedule = recipe.training
    model = build_autoencoder(recipe.model).to(device).to(memory_format=torch.channels_last)
    state = TrainingState(model, optimiser=recipe.optimiser, schedule=schedule)
    compiled = torch.compile(model) if schedule.compile else model
    forward = loss_on_random_images(recipe, compiled, num_images=schedule.batch_size, device=device)

    def backward() -> None:
        forward().backward()

    def update() -> None:
        backward()
        state.update(0.0)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rows = []
    for phase, work in (("forward", forward), ("+ backward", backward), ("+ update", update)):
        seconds = median_seconds(work, device=device, repeats=repeats)
        model.zero_grad(set_to_none=True)
        rows.append(Throughput(phase, 1000 * seconds, schedule.batch_size / seconds))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return device_name(device), rows, peak
