"""The discriminator in training: its loss, its optimiser, its weight in the autoencoder's loss, its state.

It learns from step 0, on every image, while its weight in the autoencoder's loss ramps up from 0: a discriminator that
starts late is strong at once and breaks what it meets (CompVis/taming-transformers #44, #93).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.discriminator import GAN_LOSSES, Discriminator, r1_penalty
from brics_cli.autoencoder.model_files import write_tensors
from brics_cli.config import AutoencoderRecipe, OptimiserConfig, ScheduleConfig
from brics_cli.config.runs import GanConfig
from brics_cli.runtime.device import widest_float
from brics_cli.runtime.distributed import World
from brics_cli.runtime.precision import computing, training_precision
from brics_cli.training.state import (
    load_network,
    lr_factor,
    read_optimiser,
    set_lr,
    step_where,
    wants_fused,
    write_optimiser,
)

ADAPT_EVERY = 3
"""Steps between two measurements of the adaptive factor, each of which costs another backward pass of the losses. Odd:
the two networks answer each other, and the ratio swings from one step to the next; an even interval sees one side."""
ADAPT_HALF_LIFE = 8
"""Steps after which a measurement counts half: one alone is off by a factor of 1.7 (tiny, batch 16; 1.2 with this)."""
SMALLEST_FACTOR = 1e-4
WEIGHTS, OPTIMISER = "discriminator.safetensors", "discriminator-optimiser.pt"


class Adversary:
    """A discriminator that follows an autoencoder whose decoder ends in the parameter `last_layer`.

    The adaptive factor of a step is a geometric moving average of ratios measured at earlier steps, each over its whole
    step: all micro-batches and all processes. So it is the same number however a batch is split, and a resumed run
    finds it in the checkpoint.
    """

    def __init__(
        self,
        config: GanConfig,
        *,
        optimiser: OptimiserConfig,
        schedule: ScheduleConfig,
        last_layer: nn.Parameter,
        world: World,
    ) -> None:
        self.config, self.optimiser_config, self.schedule = config, optimiser, schedule
        self.last_layer, self.world = last_layer, world
        self.precision = training_precision(schedule, world.device)
        self.discriminator = Discriminator(config).to(world.device).to(memory_format=torch.channels_last)
        groups = [{"params": list(self.discriminator.parameters()), "lr": config.lr, "base_lr": config.lr}]
        fused = wants_fused(self.discriminator)
        self.optimiser = torch.optim.AdamW(groups, betas=config.betas, weight_decay=0.0, fused=fused)
        self._factor = self._on_device(0.0 if config.adaptive else 1.0)
        self._num_skipped = self._on_device(0.0)
        self._gradients: list[Tensor] = []

    def _on_device(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=widest_float(self.world.device), device=self.world.device)

    @property
    def factor(self) -> float:
        """The adaptive factor of the steps to come; asking waits for the device, as it does for `num_skipped`."""
        return float(self._factor)

    @property
    def num_skipped(self) -> int:
        """The updates that were passed over."""
        return int(self._num_skipped)

    def weight(self, step: int) -> Tensor:
        """The adversarial loss' weight at `step`, 0-dim: recipe, ramp and adaptive factor."""
        ramp = min(1.0, step / self.config.ramp_steps) if self.config.ramp_steps else 1.0
        return self.config.weight * ramp * self._factor

    def judge(self, reconstructions: Tensor, losses: Mapping[str, Tensor], *, step: int) -> Tensor:
        """The weighted adversarial loss of a micro-batch (B, 3, H, W), a scalar to add to its reconstruction `losses`.

        Gradients reach the reconstructions and not the discriminator.
        """
        self.discriminator.requires_grad_(False)
        with computing(self.precision, self.world.device):
            logits = self.discriminator(reconstructions)
        self.discriminator.requires_grad_(True)
        loss = GAN_LOSSES[self.config.loss].autoencoder(logits)
        if self.config.adaptive and step % ADAPT_EVERY == 0:
            gradients = [
                torch.autograd.grad(each, self.last_layer, retain_graph=True)[0].float()
                for each in (torch.stack(list(losses.values())).sum(), loss)
            ]
            self._gradients.append(torch.stack(gradients))  # (2, *last_layer)
        return self.weight(step).to(loss.dtype) * loss

    def learn(self, images: Tensor, reconstructions: Tensor, *, step: int) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch's discriminator loss to the discriminator; what is worth logging."""
        with computing(self.precision, self.world.device):
            real, fake = self.discriminator(images), self.discriminator(reconstructions.detach())
        loss = GAN_LOSSES[self.config.loss].discriminator(real, fake)
        logged = {"d_loss": loss, "d_real": real.mean(), "d_fake": fake.mean()}
        if self.config.r1_gamma and step % self.config.r1_every == 0:
            penalty = r1_penalty(self.discriminator, images)
            loss = loss + self.config.r1_gamma * self.config.r1_every * penalty
        (loss / self.schedule.accumulate).backward()
        return {name: value.detach() for name, value in logged.items()}

    def update(self, *, step: int) -> dict[str, Tensor]:
        """Step the discriminator with the gradients of `step`, and set the adaptive factor of the steps to come.

        A gradient that is not finite is passed over: the autoencoder's guard decides whether the run goes on. Returns
        what is worth logging of `step`: the weight it was computed with, and the updates passed over so far. Nothing
        waits for the device, but where the optimiser is not a fused one.
        """
        weight = self.weight(step)
        set_lr(self.optimiser, lr_factor(self.optimiser_config, step=step, num_steps=self.schedule.steps))
        self.world.average_gradients(self.discriminator)
        norm = nn.utils.get_total_norm([p.grad for p in self.discriminator.parameters() if p.grad is not None])
        step_where(self.optimiser, norm.isfinite())
        self._num_skipped = self._num_skipped + (~norm.isfinite()).to(self._num_skipped.dtype)
        self.optimiser.zero_grad(set_to_none=True)
        if self._gradients:
            mean = self.world.average(torch.stack(self._gradients).mean(dim=0))
            reconstruction, adversarial = (part.norm().to(self._factor.dtype) for part in mean)
            ratio = reconstruction / (adversarial + 1e-8)
            measured = ratio.clamp(SMALLEST_FACTOR, self.config.adaptive_max)
            # the first one is taken as it is
            keep = (self._factor > 0).to(self._factor.dtype) * 0.5 ** (ADAPT_EVERY / ADAPT_HALF_LIFE)
            average = self._factor**keep * measured ** (1 - keep)
            self._factor = torch.where(ratio.isfinite(), average, self._factor)
            self._gradients = []
        return {"gan_weight": weight, "d_skipped": self._num_skipped}

    def is_sound(self) -> bool:
        """Whether every weight is finite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.discriminator.parameters())

    def save(self, directory: Path) -> dict[str, Any]:
        """Write weights and optimiser into `directory`; what is returned belongs into its state.json."""
        write_tensors(directory / WEIGHTS, self.discriminator.state_dict())
        write_optimiser(directory / OPTIMISER, self.optimiser)
        return {"factor": self.factor, "num_skipped": self.num_skipped}

    def load(self, directory: Path, *, factor: float, num_skipped: int) -> None:
        """Restore what `save` wrote and returned. Raises ArtefactError for a missing, damaged or other one."""
        load_network(self.discriminator, directory / WEIGHTS)
        read_optimiser(directory / OPTIMISER, self.optimiser)
        self._factor, self._num_skipped = self._on_device(factor), self._on_device(num_skipped)


def build_adversary(recipe: AutoencoderRecipe, model: Autoencoder, *, world: World) -> Adversary | None:
    """The discriminator that the recipe asks for, on the world's device; None for a weight of 0."""
    if not recipe.gan.weight:
        return None
    return Adversary(
        recipe.gan,
        optimiser=recipe.optimiser,
        schedule=recipe.training,
        last_layer=last_layer(model.decoder),
        world=world,
    )


def last_layer(decoder: nn.Module) -> nn.Parameter:
    """The weights that make the image: the decoder's `head`, or its last matrix where it has none of that name."""
    matrices = {name: parameter for name, parameter in decoder.named_parameters() if parameter.dim() >= 2}
    return matrices.get("head.weight", list(matrices.values())[-1])
