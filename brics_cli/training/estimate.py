"""What a training run will cost, before it is started: one real step is timed, the rest is arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.autoencoder import AutoencoderOutput
from brics_cli.autoencoder.losses import perceptual_distance, reconstruction_loss
from brics_cli.config import AutoencoderRecipe, ScheduleConfig
from brics_cli.training.adversary import Adversary
from brics_cli.training.precision import autocast

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


def loss_on_random_images(
    recipe: AutoencoderRecipe,
    model: Callable[..., AutoencoderOutput],
    *,
    num_images: int,
    device: torch.device,
    adversary: Adversary | None = None,
) -> Callable[[], Tensor]:
    """The forward pass of a training step, as a function without arguments: the loss of random images, always the same.

    `model` is the recipe's autoencoder, compiled or not. With an `adversary` the discriminator's own forward and
    backward pass is part of each call.
    """
    size = recipe.model.image_size
    images = torch.rand(num_images, 3, size, size, device=device) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    distance = perceptual_distance(recipe.loss, device=device)
    noise = torch.randn(num_images, *recipe.model.code_shape, device=device)

    def loss() -> Tensor:
        with autocast(recipe.training, device):
            out = model(images, noise=noise)
        losses = reconstruction_loss(recipe.loss, out.reconstructions, images, distance=distance)
        if adversary is not None:
            losses["gan"] = adversary.judge(out.reconstructions, losses, step=1)  # most steps have no penalty
            adversary.learn(images, out.reconstructions, step=1)
        return sum(losses.values(), out.aux_loss)

    return loss


def estimate(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    schedule: ScheduleConfig,
    adversary: Adversary | None = None,
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
    model.zero_grad(set_to_none=True)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_bytes = (COPIES_PER_CHECKPOINT + num_averages) * _num_bytes(model)
    if adversary is not None:
        num_bytes += COPIES_OF_DISCRIMINATOR * _num_bytes(adversary.discriminator)
    per_step = seconds * schedule.accumulate
    return Estimate(num_parameters, num_bytes, per_step, per_step * schedule.steps)


def _num_bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
