"""A step of the autoencoder's training, the same for the job, its estimate and the benchmarks: a batch on the device,
its micro-batches, their losses, and the means of what is logged. B images of S px, codes (C, h, w)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from brics_cli.autoencoder.autoencoder import of_uint8
from brics_cli.autoencoder.bottlenecks.base import BottleneckOutput
from brics_cli.autoencoder.losses import Distance, reconstruction_loss
from brics_cli.autoencoder.terms.noise_schedule import noise_factor
from brics_cli.config import AutoencoderRecipe
from brics_cli.kernels.functional import missing_for_triton
from brics_cli.runtime.distributed import World
from brics_cli.runtime.precision import computing, training_precision
from brics_cli.runtime.randomness import (
    Stream,
    draws_by_step,
    keyed_coins,
    keyed_normal,
    step_coins,
    step_generator,
)
from brics_cli.training.adversary import Adversary
from brics_cli.training.codes import one_ahead, pinned
from brics_cli.training.images import Batch
from brics_cli.training.terms import CodeTerms

logger = logging.getLogger(__name__)

Forward = Callable[..., tuple[Tensor, BottleneckOutput]]
"""The autoencoder's training pass, as it is, compiled or in DDP."""
VIEWS: dict[Stream, Callable[[Tensor], Tensor]] = {
    Stream.FLIP: lambda images: images.flip(-1),
    Stream.UPSIDE_DOWN: lambda images: images.flip(-2),
    Stream.TRANSPOSE: lambda images: images.mT,
}
"""Of square images (B, 3, S, S): the first is `data.flip`, the others `data.turn`; together the eight of a square."""


def compiled(model: nn.Module, *, enabled: bool, adversary: Adversary | None = None) -> nn.Module:
    """`model`, compiled where the recipe asks for it, and Triton can build kernels.

    Its parameters keep their names: EMA and checkpoints take them from the model that went in. The last layer, at which
    an adaptive `adversary` measures gradients, is left as it is, and the graph ends before it: one compiled graph has
    one backward pass, and the measurement would run all of it, twice.
    """
    if not enabled:
        return model
    if next(model.parameters()).is_cuda and (missing := missing_for_triton()):
        logger.warning("warning: training.compile is left out: Triton needs %s", missing)
        return model
    if adversary is not None and adversary.config.adaptive:
        for module in model.modules():
            if any(parameter is adversary.last_layer for parameter in module.parameters(recurse=False)):
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    # The adaptive GAN weight goes through the graph of the losses twice, which donated buffers would not survive.
    torch._functorch.config.donated_buffer = False
    return torch.compile(model)  # type: ignore[return-value]


class OnHost(NamedTuple):
    """A process's share of a batch before it is on the device; coins and noise where each sample has its own."""

    images: Tensor
    """(B, S, S, 3) uint8."""
    coins: dict[Stream, Tensor]
    """(B,) bool, by VIEWS that the recipe asks for: whether an image is seen that way."""
    noise: Tensor | None
    """(B, C, h, w) standard normal; None: the device draws it."""


def read_batch(batch: Batch, recipe: AutoencoderRecipe, *, step: int, world: World) -> OnHost:
    """What of `step` the host prepares, which may be done ahead and in another thread."""
    seed, by_step, noise = recipe.training.seed, draws_by_step(world.device), None
    coins: dict[Stream, Tensor] = {}
    for stream in VIEWS:
        if not (recipe.data.flip if stream is Stream.FLIP else recipe.data.turn):
            continue
        if by_step:
            of_all = step_coins(seed, step=step, num=recipe.training.batch_size, stream=stream)
            coins[stream] = world.mine(of_all)
        else:
            coins[stream] = keyed_coins(seed, step=step, indices=batch.indices, stream=stream)
    if not by_step:
        shape = recipe.model.code_shape
        noise = keyed_normal(seed, step=step, indices=batch.indices, shape=shape, stream=Stream.CODE_NOISE)
    images, pin = torch.from_numpy(np.ascontiguousarray(batch.images)), world.device.type == "cuda"
    return OnHost(pinned(images, on=pin), {stream: pinned(each, on=pin) for stream, each in coins.items()}, noise)


def put_batch(read: OnHost, recipe: AutoencoderRecipe, *, step: int, world: World) -> tuple[Tensor, Tensor]:
    """images (B, 3, S, S) in [-1, 1], mirrored and turned by coins, and the codes' noise (B, C, h, w); nothing waits.

    Noise has a standard deviation of 1, or what the recipe's schedule of it says for `step`.
    """
    device, schedule = world.device, recipe.training
    images = of_uint8(read.images.to(device, non_blocking=True))
    for stream, coins in read.coins.items():
        chosen = coins.to(device, non_blocking=True)[:, None, None, None]
        images = torch.where(chosen, VIEWS[stream](images), images)
    if read.noise is None:
        generator = step_generator(schedule.seed, step=step, stream=Stream.CODE_NOISE, device=device)
        of_all = torch.randn(schedule.batch_size, *recipe.model.code_shape, generator=generator, device=device)
        noise = world.mine(of_all)
    else:
        noise = read.noise.to(device)
    factor = noise_factor(recipe.terms.noise, step=step, num_steps=schedule.steps)
    return images.contiguous(memory_format=torch.channels_last), factor * noise


def batches_on_device(
    batches: Iterator[Batch], recipe: AutoencoderRecipe, *, first_step: int, world: World, ahead: bool | None = None
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The images and noise of every step from `first_step` on, of this process's `batches`; close it when done.

    `ahead` prepares one while the device computes on the one before; None: on CUDA.
    """

    def read(step: int) -> OnHost:
        return read_batch(next(batches), recipe, step=step, world=world)

    threaded = world.device.type == "cuda" if ahead is None else ahead
    with closing(one_ahead(read, first_step=first_step, threaded=threaded)) as found:
        for step, one in enumerate(found, start=first_step):
            yield put_batch(one, recipe, step=step, world=world)


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
    with computing(training_precision(recipe.training, images.device), images.device):
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

    def mean(self, name: str, world: World) -> Tensor:
        """The mean of one of them, 0-dim, the same in every process; nothing waits for the device."""
        return world.average(torch.stack(self._values[name]).mean())

    def result(self, world: World) -> dict[str, float]:
        """The mean of each, the same in every process."""
        means = torch.stack([torch.stack(values).mean() for values in self._values.values()])
        return dict(zip(self._values, world.average(means).tolist(), strict=True))
