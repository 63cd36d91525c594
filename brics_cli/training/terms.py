"""The terms for easier codes in training: what a step draws, what its whole batch has, and their losses.

Nothing is kept from step to step, so a resumed run needs nothing of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.bottlenecks.base import BottleneckOutput
from brics_cli.autoencoder.losses import Distance, reconstruction_loss
from brics_cli.autoencoder.terms import View, batch_penalties_of, gradient_term, penalties_of, views_of
from brics_cli.config import AutoencoderRecipe
from brics_cli.config.runs import SMALLEST_SIDE
from brics_cli.runtime.distributed import World
from brics_cli.runtime.precision import computing, training_precision


class CodeTerms:
    """The terms that `recipe` asks for. `prepare` comes before the micro-batches of every step."""

    def __init__(self, recipe: AutoencoderRecipe, model: Autoencoder, *, world: World) -> None:
        self.recipe, self.model, self.world = recipe, model, world
        self.views: dict[str, View] = {}
        """The transforms of this step: `Autoencoder.forward` decodes them."""
        self._penalties = penalties_of(recipe)
        self._batch_penalties = batch_penalties_of(recipe)
        self._whole: dict[str, Tensor] = {}

    def prepare(self, images: Tensor, *, step: int) -> None:
        """Draw the transforms of `step`, and take the statistics of this process's images (B, 3, S, S) and all others:
        one more pass of the encoder, where a term depends on the batch as a whole."""
        self.views = views_of(self.recipe, step=step)
        if not self._batch_penalties:
            return
        schedule = self.recipe.training
        sums: dict[str, list[Tensor]] = {name: [] for name in self._batch_penalties}
        precision = training_precision(schedule, images.device)
        with torch.no_grad(), computing(precision, images.device):
            for part in images.chunk(schedule.accumulate):
                codes = self.model.encode(part)
                for name, penalty in self._batch_penalties.items():
                    sums[name].append(penalty.statistics(codes))
        self._whole = {name: self.world.average(torch.stack(parts).mean(dim=0)) for name, parts in sums.items()}

    def losses(self, images: Tensor, out: BottleneckOutput, *, distance: Distance | None) -> dict[str, Tensor]:
        """The weighted terms of a micro-batch (B, 3, S, S), scalars; `out` is of a forward pass with `views`."""
        terms, clean = dict[str, Tensor](), out.codes if out.clean is None else out.clean
        for (name, view), made in zip(self.views.items(), out.viewed, strict=True):
            target = view.apply(images, self.model.config.downsampling)
            config = self.recipe.loss
            if min(target.shape[2:]) < SMALLEST_SIDE[config.perceptual.kind]:
                config = config.model_copy(update={"perceptual": config.perceptual.model_copy(update={"weight": 0.0})})
            found = reconstruction_loss(config, made, target, distance=distance)
            terms[name] = view.weight * torch.stack(list(found.values())).sum()
        terms |= {name: penalty(clean, images) for name, penalty in self._penalties.items()}
        for name, penalty in self._batch_penalties.items():
            terms[name] = gradient_term(penalty, clean, self._whole[name])
        return terms


def build_code_terms(recipe: AutoencoderRecipe, model: Autoencoder, *, world: World) -> CodeTerms | None:
    """None where every weight is 0."""
    terms = recipe.terms
    return CodeTerms(recipe, model, world=world) if terms.transform or terms.penalise else None
