"""Images of one side through its networks: resized ahead of the batch in the network, gathered as the features come.

B images per batch, D features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from brics_cli.errors import MachineError, UsageError
from brics_cli.evaluation.family import Context, Family, Needs, Side
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.rows import SpooledRows
from brics_cli.evaluation.statistics import SavedStatistics
from brics_cli.images.loader import ImageStream
from brics_cli.networks.features import FeatureNetwork, Image, Prepared

Input = ImageStream | SavedStatistics

# Batches that are resized ahead of the one in the network: enough to keep the pool busy, few enough to hold.
NUM_AHEAD = 2


class Gathering:
    """The features of one side in one network, as they come in."""

    def __init__(
        self,
        network: FeatureNetwork,
        side: Side,
        keys: Sequence[str],
        *,
        needs: Sequence[Needs],
        hearers: Sequence[Family] = (),
    ) -> None:
        """`needs`: of all families; `hearers`: those that are handed every batch."""
        self.network, self.side, self.hearers = network, side, hearers
        self._keys = keys
        num_groups = max(each.num_groups for each in needs)
        kept = any(not each.batches for each in needs)
        self.moments = FeatureMoments(network.num_features, num_groups=num_groups) if kept else None
        self.rows = SpooledRows(network.num_features) if any(each.rows for each in needs) else None
        self.refused: UsageError | None = None
        """Why these images cannot go through this network; set when the pass is not strict."""

    def add(self, prepared: Sequence[Prepared], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Run one batch of prepared images through the network. Raises MachineError for features not finite."""
        features = self.network.of_prepared(prepared)  # (B, D)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise MachineError(
                f"{self.network.name} gave features that are not finite for {len(bad):,} of {len(features):,} images, "
                f"first {self.side} {self._keys[positions[bad[0]]]}",
                next="Check its weights: brics weights verify",
            )
        self.take(features, positions, images)

    def take(self, features: NDArray[np.float32], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Take the features (B, D) of one batch."""
        if self.moments is not None:
            self.moments.update(features)
        if self.rows is not None:
            self.rows.append(features, list(positions))
        for family in self.hearers:
            family.add(self.side, features, positions, images)


class Extraction:
    """Images of either side go in batch by batch; the gatherings of that side get their features, two batches later."""

    def __init__(self, gatherings: Sequence[Gathering], context: Context, *, strict: bool) -> None:
        """`strict`: images that a network cannot take raise UsageError; else that network is left alone from then."""
        self.gatherings, self._pool, self._strict = gatherings, context.pool, strict
        self._waiting: deque[list[tuple[Gathering, list[Future[Prepared]], list[int], list[Image]]]] = deque()

    def wants(self, side: Side) -> bool:
        """Whether any network still needs the images of `side`."""
        return any(gathering.side == side for gathering in self.gatherings)

    def add(self, side: Side, images: Sequence[Image | None], positions: Sequence[int]) -> None:
        """Take the images (None: could not be read) of `side` that stand at `positions` of their source."""
        places = [position for image, position in zip(images, positions, strict=True) if image is not None]
        pixels = [image for image in images if image is not None]
        if pixels:
            self._waiting.append(
                [
                    (gathering, gathering.network.submit(pixels, self._pool), places, pixels)
                    for gathering in self.gatherings
                    if gathering.side == side and gathering.refused is None
                ]
            )
        self.drain(NUM_AHEAD)

    def drain(self, num_left: int = 0) -> None:
        """Run what was handed in, but for the newest `num_left` batches."""
        while len(self._waiting) > num_left:
            for gathering, futures, places, pixels in self._waiting.popleft():
                if gathering.refused is not None:
                    continue
                try:
                    gathering.add([future.result() for future in futures], places, pixels)
                except UsageError as error:
                    if self._strict:
                        raise
                    gathering.refused = error


def batches_of(source: Input, order: Sequence[int]) -> Iterator[tuple[list[Image | None], Sequence[int]]]:
    """The images at `order` and where they stand, batch by batch."""
    start = 0
    for batch in source.read(order) if order else ():
        yield batch, order[start : start + len(batch)]
        start += len(batch)
