"""One pass: every image goes once through every network that some metric needs, resizing ahead of the networks.

Moments are gathered as the features come; rows wait on disk only where a metric needs them. B images per batch, D
features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brics_cli.errors import MachineError, UsageError
from brics_cli.evaluation.frechet import Gaussian
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.rows import RowSource, SpooledRows
from brics_cli.networks.features import FeatureNetwork, Prepared

Image = NDArray[np.uint8]
Side = Literal["real", "fake"]
Listener = Callable[[NDArray[np.float32], Sequence[int], Sequence[Image]], None]

# Batches that are resized ahead of the one in the network: enough to keep the pool busy, few enough to hold.
NUM_AHEAD = 2


@dataclass(frozen=True)
class SetFeatures:
    """What is known of one side in one network. `rows` is None where no metric needs them, or nobody has them."""

    gaussian: Gaussian
    rows: RowSource | None
    num: int | None
    from_cache: bool = False


class Gathering:
    """The features of one side in one network, as they come in."""

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        name_of: Callable[[int], str],
        keep_moments: bool = True,
        keep_rows: bool = False,
        num_groups: int = 1,
        listener: Listener | None = None,
    ) -> None:
        """`name_of`: what the image at a position is called in an error. `num_groups`: of the moments, for an error
        bar."""
        self.network = network
        self.listener = listener
        self.moments = FeatureMoments(network.num_features if keep_moments else 0, num_groups=num_groups)
        self.rows = SpooledRows(network.num_features) if keep_rows else None
        self.refused: UsageError | None = None
        """Why these images cannot go through this network; set when the extraction is not strict."""
        self._name_of, self._keep_moments = name_of, keep_moments

    def add(self, prepared: Sequence[Prepared], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Run one batch of prepared images through the network. Raises MachineError for features not finite."""
        features = self.network.of_prepared(prepared)  # (B, D)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise MachineError(
                f"{self.network.name} gave features that are not finite for {len(bad):,} of {len(features):,} images, "
                f"first {self._name_of(positions[bad[0]])}",
                next="Check its weights: brics weights verify",
            )
        if self._keep_moments:
            self.moments.update(features)
        if self.rows is not None:
            self.rows.append(features, list(positions))
        if self.listener is not None:
            self.listener(features, positions, images)

    def result(self) -> SetFeatures:
        return SetFeatures(self.moments, self.rows, self.moments.num)

    def close(self) -> None:
        """Remove what waits on disk."""
        if self.rows is not None:
            self.rows.close()


@dataclass(frozen=True)
class _Pending:
    gathering: Gathering
    prepared: list[Future[Prepared]]
    positions: list[int]
    images: list[Image]


class Extraction:
    """The gatherings of both sides; images are handed in batch by batch, in any order of sides."""

    def __init__(
        self, gatherings: dict[tuple[str, Side], Gathering], pool: ThreadPoolExecutor, *, strict: bool = True
    ) -> None:
        """`strict`: images that a network cannot take raise UsageError; else that network is left alone from then."""
        self.gatherings = gatherings
        self._strict = strict
        self._pool = pool
        self._waiting: deque[list[_Pending]] = deque()

    def wants(self, side: Side) -> bool:
        """Whether any network still needs the images of `side`."""
        return any(of == side for _, of in self.gatherings)

    def add(self, side: Side, images: Sequence[Image | None], positions: Sequence[int]) -> None:
        """Take the images (None: could not be read) of `side` that stand at `positions` of their stream."""
        kept = [(image, position) for image, position in zip(images, positions, strict=True) if image is not None]
        if not kept:
            return
        pixels, places = [image for image, _ in kept], [position for _, position in kept]
        self._waiting.append(
            [
                _Pending(gathering, gathering.network.submit(pixels, self._pool), places, pixels)
                for (_, of), gathering in self.gatherings.items()
                if of == side and gathering.refused is None
            ]
        )
        while len(self._waiting) > NUM_AHEAD:
            self._run_oldest()

    def drain(self) -> None:
        """Run everything that was handed in."""
        while self._waiting:
            self._run_oldest()

    def _run_oldest(self) -> None:
        for pending in self._waiting.popleft():
            if pending.gathering.refused is not None:
                continue
            try:
                prepared = [future.result() for future in pending.prepared]
                pending.gathering.add(prepared, pending.positions, pending.images)
            except UsageError as error:
                if self._strict:
                    raise
                pending.gathering.refused = error
