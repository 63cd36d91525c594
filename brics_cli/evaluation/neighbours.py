"""The nearest real images of some fake ones: are samples copies of training images? (arXiv 2305.18601, section 5)

The fake images' features are held, the real ones pass by once, batch by batch: nothing of the real side is stored but
the few images that are nearest so far. Q queries, k neighbours, B images per batch, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Neighbours(Family):
    """The median distance to the nearest real image, every neighbour found, and the sheet: a fake image per row, then
    its neighbours, the rows nearest to a copy first.

    Distances are Euclidean, in LPIPS' features squared, which is LPIPS.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.query_positions: list[int] = []
        self.query_images: list[Image] = []
        self.num_real = 0
        self.images: dict[int, Image] = {}
        """The real images that are among the nearest so far, by position."""
        self._queries = torch.empty(0, 0)  # (Q, E)
        self._squared = torch.empty(0, 0, dtype=torch.float64)  # (Q, k), of the nearest so far
        self._positions = torch.empty(0, 0, dtype=torch.int64)

    @classmethod
    def outputs(cls, settings: Settings) -> Sequence[Output]:
        return (Output(settings.sheet, "the sheet of nearest neighbours", "--sheet"),)

    @classmethod
    def needs(cls, side: Side) -> Needs:
        return Needs(batches=True)

    @property
    def wants_fake_first(self) -> bool:
        return len(self.query_positions) < self.context.settings.num_queries

    @property
    def num(self) -> int:
        return min(self.num_real, len(self.query_positions))

    def add(self, *what: Any) -> None:
        side, *batch = what
        (self._add_real if side == "real" else self._add_fake)(*batch)

    def _add_fake(self, features: NDArray[np.float32], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Take rows (B, E) as queries until there are enough."""
        wanted = self.context.settings.num_queries - len(self.query_positions)
        if wanted > 0:
            queries = torch.from_numpy(features[:wanted].copy())
            self._queries = torch.cat([self._queries, queries]) if self.query_positions else queries
            self.query_positions += list(positions[:wanted])
            self.query_images += [image.copy() for image in images[:wanted]]  # and not the memory of their batch

    def _add_real(self, features: NDArray[np.float32], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Compare rows (B, E) with every query. Raises UsageError when their E is another: images of another size."""
        if not self.query_positions:
            return
        if features.shape[1] != self._queries.shape[1]:
            raise UsageError(
                "nearest neighbours: the real and the fake images differ in size, and LPIPS compares pixel by pixel",
                next=OTHER_FEATURES,
            )
        squared = _squared(self._queries, torch.from_numpy(features))  # (Q, B)
        found = torch.tensor(list(positions)).expand(len(squared), -1)
        if not self.num_real:
            self._squared, self._positions = squared[:, :0], found[:, :0]
        self.num_real += len(features)
        squared, found = torch.cat([self._squared, squared], dim=1), torch.cat([self._positions, found], dim=1)
        nearest = squared.topk(min(self.context.settings.num_neighbours, squared.shape[1]), dim=1, largest=False)
        self._squared, self._positions = nearest.values, found.gather(1, nearest.indices)
        kept = set(self._positions.flatten().tolist())
        self.images = {position: image for position, image in self.images.items() if position in kept}
        self.images |= {at: image.copy() for at, image in zip(positions, images, strict=True) if at in kept}

    def found(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distances and positions (Q, k) of the nearest real images of every query, the nearest first."""
        squared = isinstance(self._network, LpipsFeatures)
        return (self._squared if squared else self._squared.sqrt()).numpy(), self._positions.numpy()

    def result(self, metric: Metric) -> Score:
        real, fake, sheet = self.sides["real"], self.sides["fake"], self.context.settings.sheet
        distances, positions = self.found()
        nearest = distances[:, 0]
        neighbours = [
            {"fake": fake.keys[query], "real": [real.keys[at] for at in of_query], "distances": apart.tolist()}
            for query, of_query, apart in zip(self.query_positions, positions, distances, strict=True)
        ]
        rows, labels = [], []
        for index in np.argsort(nearest, kind="stable")[:NUM_SHEET_ROWS]:
            rows.append(
                [
                    _tile(each)
                    for each in (self.query_images[index], *(self.images[at] for at in positions[index].tolist()))
                ]
            )
            named = zip(neighbours[index]["real"], distances[index], strict=True)
            labels.append(f"{neighbours[index]['fake']}: {', '.join(f'{key} {apart:.4f}' for key, apart in named)}")
        contact_sheet(rows, path=sheet, row_labels=labels, title="each fake image, then the real ones nearest to it")
        copies, note = int((nearest <= 1e-12).sum()), f"sheet: {sheet}"
        if copies:
            note = f"{copies:,} of {len(nearest):,} are copies of a real image; {note}"
        details = {"sheet": str(sheet), "neighbours": neighbours}
        median = float(np.median(nearest))
        return Score(median, note=note, num_real=self.num_real, num_fake=len(nearest), details=details)


def _squared(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, E), (B, E) float32 -> squared distances (Q, B) float64, by differences: copies come out as exactly zero."""
    return torch.stack([(rows - query).square().sum(dim=1, dtype=torch.float64) for query in queries])


def _tile(image: Image) -> Image:
    """At most SHEET_SIDE px, square: images of a sheet have one size."""
    if image.shape[:2] == (SHEET_SIDE, SHEET_SIDE):
        return image
    return np.array(PillowImage.fromarray(image).resize((SHEET_SIDE, SHEET_SIDE), PillowImage.Resampling.BICUBIC))
