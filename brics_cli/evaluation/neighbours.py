"""The nearest real images of some fake ones: are samples copies of training images? (arXiv 2305.18601, section 5)

The fake images' features are held, the real ones pass by once, batch by batch: nothing of the real side is stored but
the few images that are nearest so far. Q queries, k neighbours, B images per batch, E features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lpips
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.errors import UsageError
from brics_cli.networks.features import FeatureNetwork
from brics_cli.networks.perceptual import LPIPS_MIN_SIDE

Image = NDArray[np.uint8]

OTHER_FEATURES = (
    "Make them the same size with brics pack, or look in features that resize: --neighbours-by inception-clean."
)


@dataclass(frozen=True)
class Neighbours:
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
            self.query_images += list(images[:wanted])

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
        if images is not None:
            self.images.update(zip(positions, images, strict=True))
        kept = set(self._positions.flatten().tolist())
        self.images = {position: image for position, image in self.images.items() if position in kept}

    def results(self) -> list[Neighbours]:
        """One entry per query. Raises UsageError when either side had no image."""
        if not self._query_positions or not self.num_real:
            raise UsageError("nearest neighbours need at least 1 image on each side")
        distances = self._distances if self.squared else self._distances.sqrt()
        return [
            Neighbours(query, self._positions[row].tolist(), distances[row].tolist())
            for row, query in enumerate(self._query_positions)
        ]


def _squared(queries: Tensor, rows: Tensor) -> Tensor:
    """(Q, E), (B, E) float32 -> squared distances (Q, B) float64, by differences: copies come out as exactly zero."""
    return torch.stack([(rows - query).square().sum(dim=1, dtype=torch.float64) for query in queries])


class LpipsFeatures(FeatureNetwork):
    """LPIPS as features: the squared distance of two rows is the LPIPS of the two images.

    LPIPS is a sum over layers of the mean over positions of w_c (a_c - b_c)², with a and b of unit length over
    channels and w >= 0: the rows are sqrt(w_c / positions) a_c. E depends on the size of the images.
    """

    resize = "none: images in [-1, 1] as they are"

    def __init__(self, model: lpips.LPIPS, *, device: torch.device | str, num_remembered: int = 0) -> None:
        """`num_remembered`: rows kept for images that come again at once, in a metric of pairs."""
        super().__init__(device)
        self.model = model
        self._num_remembered = num_remembered
        self._remembered: dict[bytes, NDArray[np.float32]] = {}
        self.name = f"lpips-{model.pnet_type}"
        self.num_features = 0

    def prepare(self, image: Image) -> Image:
        smallest = LPIPS_MIN_SIDE[self.model.pnet_type]
        if min(image.shape[:2]) < smallest:
            raise UsageError(
                f"LPIPS ({self.model.pnet_type}) needs images of at least {smallest} px, "
                f"these are {image.shape[1]} x {image.shape[0]}"
            )
        return image

    def of_prepared(self, prepared: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        shapes = {each.shape for each in prepared}
        if len(shapes) > 1:
            raise UsageError(
                "nearest neighbours: images of one side differ in size, and LPIPS compares pixel by pixel",
                next=OTHER_FEATURES,
            )
        if not self._num_remembered:
            return self._run(np.stack(list(prepared)))
        names = [hashlib.blake2b(each.tobytes(), digest_size=16).digest() for each in prepared]
        new = {name: each for name, each in zip(names, prepared, strict=True) if name not in self._remembered}
        if new:
            self._remembered.update(zip(new, self._run(np.stack(list(new.values()))), strict=True))
        rows = np.stack([self._remembered[name] for name in names])
        while len(self._remembered) > self._num_remembered:
            del self._remembered[next(iter(self._remembered))]
        return rows

    def distance(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
        """LPIPS (N,) of pairs (N, H, W, 3)."""
        of_a, of_b = self.features(list(a)), self.features(list(b))
        return np.asarray(np.square(of_a - of_b).sum(axis=1, dtype=np.float64))

    def forward(self, batch: Tensor) -> Tensor:
        layers = self.model.net(self.model.scaling_layer(batch / 127.5 - 1))
        parts = []
        for layer, head in zip(layers, self.model.lins, strict=True):
            weight = head.model[-1].weight.clamp(min=0)  # (1, C, 1, 1)
            positions = layer.shape[2] * layer.shape[3]
            parts.append((lpips.normalize_tensor(layer) * (weight / positions).sqrt()).flatten(1))
        return torch.cat(parts, dim=1)  # (B, E)
