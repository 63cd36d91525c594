"""Precision, recall, density and coverage: is each image inside the k-nearest-neighbour manifold of the other set?

Improved precision and recall: Kynkäänniemi et al., arXiv 1904.06991. Density and coverage: Naeem et al., arXiv
2002.09797. A ball stands around every image of a set; its radius is the distance to the k-th nearest other image of
that set. N real and M fake images, D features. Distances in float64, block by block: N x M is never held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import UsageError
from brics_cli.evaluation.family import SIDES, Needs, Score, SetFamily, Side, on_device
from brics_cli.evaluation.registry import PRESETS, Metric, Settings, caveat_of
from brics_cli.evaluation.rows import RowSource, SubsetRows, in_blocks

Array = NDArray[np.float64]

SUBSET_SEED = 2020


@dataclass(frozen=True)
class ManifoldScores:
    """One value per image; each score is the mean of its array. `precision`, `density` (M,); `recall`,
    `coverage` (N,)."""

    precision: Array
    recall: Array
    density: Array
    coverage: Array


def manifold_scores(
    real: RowSource,
    fake: RowSource,
    *,
    k: int,
    closed: bool,
    device: torch.device | str = "cpu",
    block: int = 4096,
) -> ManifoldScores:
    """The four scores of `fake` against `real`.

    `closed`: precision and recall count a distance equal to the radius (StyleGAN, ADM); density and coverage never
    do, by their definition. Raises UsageError when a set has no k-th neighbour, that is at most `k` images.
    """
    if min(len(real), len(fake)) <= k:
        raise UsageError(
            f"precision, recall, density and coverage with k = {k} need more than {k} images on each side, "
            f"there are {len(real)} and {len(fake)}"
        )
    real_radii = _radii(real, k=k, device=device, block=block)  # (N,) squared
    fake_radii = _radii(fake, k=k, device=device, block=block)  # (M,) squared
    num_within = torch.zeros(len(fake), dtype=torch.float64)
    precision = torch.zeros(len(fake), dtype=torch.bool)
    recall = torch.zeros(len(real), dtype=torch.bool)
    coverage = torch.zeros(len(real), dtype=torch.bool)
    for i in in_blocks(real, num_rows=block):
        x = on_device(real.take(i), device)
        for j in in_blocks(fake, num_rows=block):
            squared = squared_distances(x, on_device(fake.take(j), device))  # (n, m)
            of_real = real_radii[i].to(squared.device)[:, None]
            of_fake = fake_radii[j].to(squared.device)[None, :]
            within = squared < of_real
            reached = squared <= of_real if closed else within
            precision[j] |= reached.any(dim=0).cpu()
            recall[i] |= ((squared <= of_fake) if closed else (squared < of_fake)).any(dim=1).cpu()
            num_within[j] += within.sum(dim=0).cpu()
            coverage[i] |= within.any(dim=1).cpu()
    return ManifoldScores(
        precision=precision.double().numpy(),
        recall=recall.double().numpy(),
        density=(num_within / k).numpy(),
        coverage=coverage.double().numpy(),
    )


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, D), (m, D) float64 -> squared Euclidean distances (n, m).

    What rounding leaves of the distance between equal rows becomes exactly zero: a radius of zero (copies of one
    image) must reach them.
    """
    of_x, of_y = x.square().sum(dim=1)[:, None], y.square().sum(dim=1)[None, :]
    squared = of_x + of_y - 2 * x @ y.T
    return squared.masked_fill_(squared <= 1e-12 * (of_x + of_y), 0.0)


def _radii(rows: RowSource, *, k: int, device: torch.device | str, block: int) -> Tensor:
    """Squared distance of every row to its k-th nearest other row: (N,) on the CPU."""
    radii = []
    for i in in_blocks(rows, num_rows=block):
        x = on_device(rows.take(i), device)
        nearest = torch.empty(len(i), 0, dtype=torch.float64, device=x.device)
        for j in in_blocks(rows, num_rows=block):
            squared = squared_distances(x, on_device(rows.take(j), device))
            smallest = squared.topk(min(k + 1, len(j)), dim=1, largest=False).values
            nearest = torch.cat([nearest, smallest], dim=1)
            nearest = nearest.topk(min(k + 1, nearest.shape[1]), dim=1, largest=False).values
        radii.append(nearest.amax(dim=1).cpu())  # the nearest of all is the row itself, so this is the k-th other
    return torch.cat(radii)


class Manifold(SetFamily):
    """The four scores, by their names, computed at once."""

    _found: tuple[ManifoldScores, list[str]] | None = None

    @classmethod
    def min_images(cls, settings: Settings) -> int:
        return PRESETS[settings.preset].k + 1

    @classmethod
    def needs(cls, side: Side) -> Needs:
        return Needs(rows=True)

    def result(self, metric: Metric) -> Score:
        if self._found is None:
            preset = PRESETS[self.context.settings.preset]
            taken, notes = [], []
            for side, most in zip(SIDES, (preset.max_real, preset.max_fake), strict=True):
                rows = self.rows(side)
                if most is not None and len(rows) > most:
                    notes.append(f"{most:,} of {len(rows):,} {side} images drawn with seed {SUBSET_SEED}")
                    drawn = np.random.RandomState(SUBSET_SEED).permutation(len(rows))[:most]
                    rows = SubsetRows(rows, np.sort(drawn))
                taken.append(rows)
            real, fake = taken
            scores = manifold_scores(real, fake, k=preset.k, closed=preset.closed, device=self.context.device)
            self._found = scores, notes
        scores, notes = self._found
        values: Array = getattr(scores, metric.name)
        side = "fake" if values is scores.precision or values is scores.density else "real"
        return Score(
            float(values.mean()),
            float(values.std(ddof=1) / np.sqrt(len(values))),
            f"standard error over {side} images, the other side held fixed",
            "; ".join(filter(None, (*notes, caveat_of(metric, self.context.settings)))) or None,
            num_real=len(scores.recall),
            num_fake=len(scores.precision),
        )
