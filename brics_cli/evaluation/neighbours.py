"""The nearest real images of some fake ones: are samples copies of training images? (arXiv 2305.18601, section 5)

The fake images' features are held, the real ones pass by once, batch by batch: nothing of the real side is stored but
the few images that are nearest so far. Q queries, k neighbours, B images per batch, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from brics_cli.errors import UsageError
from brics_cli.evaluation.family import Family, Needs, Output, Score, Side
from brics_cli.evaluation.registry import Metric, Settings
from brics_cli.images.sheets import contact_sheet
from brics_cli.networks.features import Image
from brics_cli.networks.perceptual import OTHER_FEATURES, LpipsFeatures

NUM_SHEET_ROWS = 16
SHEET_SIDE = 128


@dataclass(frozen=True)
class Found:
    """The result for one query: its position in the fake stream, the nearest real positions and their distances."""

    query: int
    positions: list[int]
    distances: list[float]


class NeighbourSearch:
    """The `k` nearest of everything that `add_real` brings, for each of the first `num_queries` fake images.

    With `squared` the distances given out are squared Euclidean (LPIPS is), else Euclidean.
    """

    def __init__(self, *, num_queries: int, k: int, squared: bool) -> None:
        self.num_queries, self.k, self.squared = num_queries, k, squared
        self.query_images: list[Image] = []
        self.num_real = 0
        self.images: dict[int, Image] = {}
        """The real images that are among the nearest so far, by position."""
        self._queries: list[Tensor] = []
        self._query_positions: list[int] = []
        self._distances = torch.empty(0, 0, dtype=torch.float64)
        self._positions = torch.empty(0, 0, dtype=torch.int64)

    @property
    def is_full(self) -> bool:
        """Whether there are as many queries as wanted."""
        return len(self._query_positions) >= self.num_queries

    def add_fake(self, features: NDArray[np.float32], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Take rows (B, E) as queries until there are enough."""
        wanted = self.num_queries - len(self._query_positions)
        if wanted > 0:
            self._queries.append(torch.from_numpy(features[:wanted].copy()))
            self._query_positions += list(positions[:wanted])
            self.query_images += [image.copy() for image in images[:wanted]]  # and not the memory of their batch

    def add_real(
        self, features: NDArray[np.float32], positions: Sequence[int], images: Sequence[Image] | None = None
    ) -> None:
        """Compare rows (B, E) with every query. Raises UsageError when their E is another: images of another size."""
        if not self._query_positions:
            return
        if features.shape[1] != self._queries[0].shape[1]:
            raise UsageError(
                "nearest neighbours: the real and the fake images differ in size, and LPIPS compares pixel by pixel",
                next=OTHER_FEATURES,
            )
        queries, real = torch.cat(self._queries), torch.from_numpy(features)
        self._queries = [queries]
        squared = _squared(queries, real)  # (Q, B)
        found = torch.tensor(list(positions)).expand(len(queries), -1)
        if not self.num_real:
            self._distances, self._positions = squared[:, :0], found[:, :0]
        self.num_real += len(features)
        distances = torch.cat([self._distances, squared], dim=1)
        candidates = torch.cat([self._positions, found], dim=1)
        nearest = distances.topk(min(self.k, distances.shape[1]), dim=1, largest=False)
        self._distances, self._positions = nearest.values, candidates.gather(1, nearest.indices)
        kept = set(self._positions.flatten().tolist())
        self.images = {position: image for position, image in self.images.items() if position in kept}
        if images is not None:
            self.images |= {at: image.copy() for at, image in zip(positions, images, strict=True) if at in kept}

    def results(self) -> list[Found]:
        """One entry per query. Raises UsageError when either side had no image."""
        if not self._query_positions or not self.num_real:
            raise UsageError("nearest neighbours need at least 1 image on each side")
        distances = self._distances if self.squared else self._distances.sqrt()
        return [
            Found(query, self._positions[row].tolist(), distances[row].tolist())
            for row, query in enumerate(self._query_positions)
        ]


def _squared(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, E), (B, E) float32 -> squared distances (Q, B) float64, by differences: copies come out as exactly zero."""
    return torch.stack([(rows - query).square().sum(dim=1, dtype=torch.float64) for query in queries])


class Neighbours(Family):
    """The median distance to the nearest real image, every neighbour found, and the sheet: a fake image per row, then
    its neighbours, the rows nearest to a copy first."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        settings = self.context.settings
        self.search = NeighbourSearch(
            num_queries=settings.num_queries,
            k=settings.num_neighbours,
            squared=isinstance(self.network, LpipsFeatures),
        )

    @classmethod
    def outputs(cls, settings: Settings) -> Sequence[Output]:
        return (Output(settings.sheet, "the sheet of nearest neighbours", "--sheet"),)

    @classmethod
    def needs(cls, side: Side) -> Needs:
        return Needs(batches=True)

    def add(self, *what: Any) -> None:
        side, features, positions, images = what
        if side == "real":
            self.search.add_real(features, positions, images)
        else:
            self.search.add_fake(features, positions, images)

    @property
    def wants_fake_first(self) -> bool:
        return not self.search.is_full

    @property
    def num(self) -> int:
        return min(self.search.num_real, len(self.search.query_images))

    def result(self, metric: Metric) -> Score:
        real, fake, sheet = self.sides["real"], self.sides["fake"], self.context.settings.sheet
        results = self.search.results()
        nearest = np.array([found.distances[0] for found in results])
        rows, labels = [], []
        for index in np.argsort(nearest, kind="stable")[:NUM_SHEET_ROWS]:
            found = results[index]
            pictures = (self.search.query_images[index], *(self.search.images[at] for at in found.positions))
            rows.append([_tile(picture) for picture in pictures])
            named = zip(found.positions, found.distances, strict=True)
            shown = ", ".join(f"{real.keys[at]} {distance:.4f}" for at, distance in named)
            labels.append(f"{fake.keys[found.query]}: {shown}")
        contact_sheet(rows, path=sheet, row_labels=labels, title="each fake image, then the real ones nearest to it")
        copies, note = int((nearest <= 1e-12).sum()), f"sheet: {sheet}"
        if copies:
            note = f"{copies:,} of {len(results):,} are copies of a real image; {note}"
        neighbours = [
            {
                "fake": fake.keys[found.query],
                "real": [real.keys[at] for at in found.positions],
                "distances": found.distances,
            }
            for found in results
        ]
        return Score(
            float(np.median(nearest)),
            note=note,
            num_real=self.search.num_real,
            num_fake=len(results),
            details={"sheet": str(sheet), "neighbours": neighbours},
        )


def _tile(image: Image) -> Image:
    """At most SHEET_SIDE px, square: images of a sheet have one size."""
    if image.shape[:2] == (SHEET_SIDE, SHEET_SIDE):
        return image
    return np.array(PillowImage.fromarray(image).resize((SHEET_SIDE, SHEET_SIDE), PillowImage.Resampling.BICUBIC))
