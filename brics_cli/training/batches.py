"""A batch of images as the autoencoder trains on it: on the device, mirrored, with its codes' noise; its parts, and the
means of what comes out of them. B images of S px, codes (C, h, w)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from brics_cli.autoencoder.image_tensors import to_tensor
from brics_cli.config import AutoencoderRecipe
from brics_cli.runtime.distributed import World
from brics_cli.runtime.randomness import Stream, keyed_coins, keyed_normal
from brics_cli.training.images import Batch


def prepare(batch: Batch, recipe: AutoencoderRecipe, *, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """images (B, 3, S, S) in [-1, 1], mirrored by a coin each, and the codes' noise (B, C, h, w); keyed by sample."""
    seed = recipe.training.seed
    images = to_tensor(batch.images, device)
    if recipe.data.flip:
        coins = keyed_coins(seed, step=step, indices=batch.indices, stream=Stream.FLIP).to(device)
        images = torch.where(coins[:, None, None, None], images.flip(-1), images)
    noise = keyed_normal(
        seed, step=step, indices=batch.indices, shape=recipe.model.code_shape, stream=Stream.CODE_NOISE
    )
    return images.contiguous(memory_format=torch.channels_last), noise.to(device)


def micro_batches(images: Tensor, noise: Tensor, *, num: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """`num` equal parts of a process's share of a batch, each with whether it is the last one."""
    for index, (some, their_noise) in enumerate(zip(images.chunk(num), noise.chunk(num), strict=True)):
        yield some, their_noise, index == num - 1


class Means:
    """Means of scalars over the micro-batches of a step and over the processes.

    Nothing waits for the device before `result`.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of a micro-batch."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach().float())

    def result(self, world: World) -> dict[str, float]:
        """The mean of each, the same in every process."""
        means = torch.stack([torch.stack(values).mean() for values in self._values.values()])
        return dict(zip(self._values, world.average(means).tolist(), strict=True))
