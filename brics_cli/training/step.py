"""A step of the autoencoder's training, the same for the job, its estimate and the benchmarks: a batch on the device,
its micro-batches, their losses, and the means of what is logged. B images of S px, codes (C, h, w)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.autoencoder import to_tensor
from brics_cli.autoencoder.bottlenecks.base import BottleneckOutput
from brics_cli.autoencoder.losses import Distance, reconstruction_loss
from brics_cli.autoencoder.terms.noise_schedule import noise_factor
from brics_cli.config import AutoencoderRecipe
from brics_cli.runtime.distributed import World
from brics_cli.runtime.precision import autocast, training_precision
from brics_cli.runtime.randomness import Stream, keyed_coins, keyed_normal
from brics_cli.training.adversary import Adversary
from brics_cli.training.images import Batch
from brics_cli.training.terms import CodeTerms

Forward = Callable[..., tuple[Tensor, BottleneckOutput]]
"""The autoencoder's training pass, as it is, compiled or in DDP."""


def compiled(model: nn.Module, *, enabled: bool) -> nn.Module:
    """`model`, compiled where the recipe asks for it.

    Its parameters keep their names: EMA and checkpoints take them from the model that went in.
    """
    if not enabled:
        return model
    # The adaptive GAN weight goes through the graph of the losses twice, which donated buffers would not survive.
    torch._functorch.config.donated_buffer = False
    return torch.compile(model)  # type: ignore[return-value]


def prepare(batch: Batch, recipe: AutoencoderRecipe, *, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """images (B, 3, S, S) in [-1, 1], mirrored by a coin each, and the codes' noise (B, C, h, w); keyed by sample.

    Noise has a standard deviation of 1, or what the recipe's schedule of it says for `step`.
    """
    seed = recipe.training.seed
    images = to_tensor(batch.images, device)
    if recipe.data.flip:
        coins = keyed_coins(seed, step=step, indices=batch.indices, stream=Stream.FLIP).to(device)
        images = torch.where(coins[:, None, None, None], images.flip(-1), images)
    noise = keyed_normal(
        seed, step=step, indices=batch.indices, shape=recipe.model.code_shape, stream=Stream.CODE_NOISE
    )
    factor = noise_factor(recipe.terms.noise, step=step, num_steps=recipe.training.steps)
    return images.contiguous(memory_format=torch.channels_last), factor * noise.to(device)


def micro_batches(images: Tensor, noise: Tensor, *, num: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """`num` equal parts of a process's share of a batch, each with whether it is the last one."""
    for index, (some, their_noise) in enumerate(zip(images.chunk(num), noise.chunk(num), strict=True)):
        yield some, their_noise, index == num - 1


def autoencoder_loss(
    recipe: AutoencoderRecipe,
    forward: Forward,
    images: Tensor,
    noise: Tensor,
    *,
    distance: Distance | None,
    adversary: Adversary | None,
    step: int,
    code_terms: CodeTerms | None = None,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """What the autoencoder minimises on a micro-batch (B, 3, S, S): a scalar, its terms and statistics by name, and
    the reconstructions. `distance` is the recipe's perceptual one; `code_terms` have been prepared for `step`."""
    views = {} if code_terms is None else {"views": list(code_terms.views.values())}
    with autocast(training_precision(recipe.training, images.device), images.device):
        reconstructions, out = forward(images, noise=noise, **views)
    terms = reconstruction_loss(recipe.loss, reconstructions, images, distance=distance)
    loss = sum(terms.values(), out.aux_loss.float())
    if adversary is not None:
        terms["gan"] = adversary.judge(reconstructions, terms, step=step)
        loss = loss + terms["gan"]
    if code_terms is not None:
        of_codes = code_terms.losses(images, out, distance=distance)
        loss, terms = sum(of_codes.values(), loss), terms | of_codes
    return loss, terms | out.stats, reconstructions


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
