"""Terms of the autoencoder's training that make its codes easier to diffuse: one file each, put together here.

There are three kinds. A `View` is a transform of codes and images alike, and the loss is that of its reconstruction. A
penalty of each image (`spectrum`) is a mean over images, as every loss is. A `BatchPenalty` is a function of means over
the whole batch, and `gradient_term` makes of it one whose gradient is exact however the batch is split.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from brics_cli.autoencoder.terms import equivariance, marginals, scale_equivariance, spectrum, whitening
from brics_cli.config import AutoencoderRecipe
from brics_cli.runtime.randomness import Stream, keyed_generator


class View(NamedTuple):
    """`apply(maps, f)` transforms codes (B, C, h, w) with f = 1, and images (B, 3, f h, f w) in the same way."""

    weight: float
    apply: Callable[[Tensor, int], Tensor]


class BatchPenalty(NamedTuple):
    """A penalty on `statistics`, which are means over images of what clean codes (B, C, h, w) give."""

    weight: float
    statistics: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor]


def views_of(recipe: AutoencoderRecipe, *, step: int) -> dict[str, View]:
    """The transforms of training step `step`, by name: what they draw is keyed by (seed, step), the same everywhere."""
    terms, views = recipe.terms, dict[str, View]()

    def draw(number: int) -> Callable[[], float]:
        return keyed_generator(recipe.training.seed, number, step, stream=Stream.CODE_TERMS).random

    if weight := terms.scale_equivariance.weight:
        views["scale_equivariance"] = View(weight, scale_equivariance.transform(terms.scale_equivariance, draw(0)))
    if weight := terms.equivariance.weight:
        views["equivariance"] = View(weight, equivariance.transform(terms.equivariance, draw(1)))
    if weight := terms.spectrum.mask_weight:
        views["spectrum_mask"] = View(weight, spectrum.mask(terms.spectrum, draw(2)))
    return views


def penalties_of(recipe: AutoencoderRecipe) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """By name, functions of clean codes (B, C, h, w) and images (B, 3, H, W) that give a weighted scalar."""
    config = recipe.terms.spectrum
    return {"spectrum": partial(spectrum.matching, config)} if config.weight else {}


def batch_penalties_of(recipe: AutoencoderRecipe) -> dict[str, BatchPenalty]:
    """By name."""
    terms, found = recipe.terms, dict[str, BatchPenalty]()
    if weight := terms.marginals.weight:
        bounded = recipe.model.code_kind == "bounded"
        statistics = partial(marginals.moments, terms.marginals, bounded=bounded)
        found["marginals"] = BatchPenalty(weight, statistics, partial(marginals.distance, terms.marginals))
    if weight := terms.whitening.weight:
        found["whitening"] = BatchPenalty(weight, whitening.products, whitening.mean_squared_correlation)
    return found


def gradient_term(penalty: BatchPenalty, codes: Tensor, whole: Tensor) -> Tensor:
    """A scalar of some of a batch's codes (B, C, h, w): its value is the weighted penalty on `whole`, the statistics of
    all of them, and its gradients, averaged over the parts of the batch, are exactly that penalty's."""
    with torch.enable_grad():
        at = whole.detach().requires_grad_()
        value = penalty.weight * penalty.penalty(at)
        (slope,) = torch.autograd.grad(value, at)
    ours = penalty.statistics(codes)
    return value.detach() + (slope * (ours - ours.detach())).sum()
