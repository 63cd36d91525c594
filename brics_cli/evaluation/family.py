"""What a family of metrics has: what it `needs`, how it takes it in (`add`), and the figure (`result`).

There is one object per family, network and pair of sides, whatever number of metrics it serves. A metric of pairs is a
`PairFamily` with its function of two stacks of images; a metric of sets is a `SetFamily` that finds moments and rows of
features of both sides when `result` is called.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brics_cli.evaluation.moments import FeatureMoments, Gaussian
from brics_cli.evaluation.registry import Metric, Settings
from brics_cli.evaluation.rows import RowSource
from brics_cli.images.loader import ImageStream
from brics_cli.networks.features import FeatureNetwork
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace.naming import PICTURE

if TYPE_CHECKING:
    from brics_cli.evaluation.statistics import SavedStatistics

Side = Literal["real", "fake"]
SIDES: tuple[Side, Side] = ("real", "fake")


@dataclass(frozen=True)
class Context:
    """What metrics are measured with. `pool`: of threads, for what releases the interpreter's lock. `limit`: the first
    so many pairs, and images of each side. `executor`: where features are computed; None: here."""

    settings: Settings
    device: torch.device
    pool: ThreadPoolExecutor
    reporter: Reporter
    batch_size: int = 32
    limit: int | None = None
    use_cache: bool = True
    executor: RayExecutor | None = None


@dataclass(frozen=True)
class Score:
    """One figure. `error_kind` says what `standard_error` is, `note` what a reader must know besides; `num_real` and
    `num_fake` are None where they are unknown, or the side plays no part; `details` is what `--json` adds."""

    value: float
    standard_error: float | None = None
    error_kind: str | None = None
    note: str | None = None
    num_real: int | None = None
    num_fake: int | None = None
    details: dict[str, Any] | None = None


@dataclass(frozen=True)
class Needs:
    """What is wanted of the features of a side: moments, with `rows` each image's features as well; `num_groups` of
    moments, for a jackknife. Or, with `batches`, every batch as it passes, and nothing is kept."""

    rows: bool = False
    num_groups: int = 1
    batches: bool = False


@dataclass(frozen=True)
class SetFeatures:
    """What is known of one side in one network. `rows` is None where no metric needs them, or nobody has them."""

    gaussian: Gaussian | FeatureMoments
    rows: RowSource | None = None

    @property
    def num(self) -> int | None:
        """The number of images; None for saved statistics, which do not tell."""
        return self.gaussian.num


@dataclass(frozen=True)
class Output:
    """A file that a family writes beside its figure: where, in words, the option that says so, and what it may be."""

    path: Path
    what: str
    option: str
    forms: Mapping[str, Sequence[str]] = field(default_factory=lambda: PICTURE, hash=False)


class Family(ABC):
    """The metrics of one kind on one pair of `sides`, in the features of `network`.

    `add` is handed what `needs` asks for: a metric that compares `pairs` each batch of partners, stacked,
    `add(real, fake)`; one of `sets` once `add(side, features)`, a SetFeatures, or with `Needs.batches` every
    `add(side, features, positions, images)` of the pass: (B, D), where they stand in their source, and (H, W, 3) each.
    """

    of_codes = False
    """Whether the fake side must be a store, whose codes it looks at: of `pairs` it is handed `add(real, positions)`,
    where their codes stand in the store."""

    def __init__(
        self, context: Context, network: FeatureNetwork | None, sides: Mapping[Side, ImageStream | SavedStatistics]
    ) -> None:
        self.context, self.sides = context, sides
        self._network = network

    @property
    def network(self) -> FeatureNetwork:
        assert self._network is not None
        return self._network

    @classmethod
    def min_images(cls, settings: Settings) -> int:
        """How many images of a side there must be for a figure."""
        return 1

    @classmethod
    def outputs(cls, settings: Settings) -> Sequence[Output]:
        """The files that `result` writes."""
        return ()

    @classmethod
    def needs(cls, side: Side) -> Needs | None:
        """What is wanted of the features of `side`; None: nothing."""
        return None

    def add(self, *what: Any) -> None:
        """Take in a part of what `needs` asks for."""
        raise NotImplementedError(f"{type(self).__name__} asked for nothing")

    @property
    def wants_fake_first(self) -> bool:
        """Whether more batches of the fake side must come in before the first of the real side."""
        return False

    @property
    def num(self) -> int:
        """How many images, or pairs, have come in of the side with fewer: of none there is no figure."""
        return 1

    @abstractmethod
    def result(self, metric: Metric) -> Score:
        """The figure of one of the metrics. Raises UsageError when there are too few images for one."""


class PairFamily(Family):
    """A value for every image and its partner; the figure is their mean."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._values: list[NDArray[np.float64]] = []

    @abstractmethod
    def values(self, real: NDArray[np.uint8], fake: NDArray[np.uint8]) -> NDArray[np.float64]:
        """One value (N,) for each pair of (N, H, W, 3). Raises UsageError for images it cannot take."""

    def add(self, *what: Any) -> None:
        self._values.append(self.values(*what))

    @property
    def num(self) -> int:
        return sum(len(values) for values in self._values)

    def by_class(self, classes: Sequence[str | None]) -> dict[str, dict[str, float]]:
        """Class -> the `value` of its pairs and their `num`, where `classes` (N) are those of all pairs in order."""
        found: dict[str, list[float]] = {}
        for name, value in zip(classes, np.concatenate(self._values).tolist(), strict=True):
            if name is not None:
                found.setdefault(name, []).append(value)
        return {name: {"value": float(np.mean(found[name])), "num": len(found[name])} for name in sorted(found)}

    def result(self, metric: Metric) -> Score:
        """Infinite when a pair is identical and the metric has no finite value for that."""
        values = np.concatenate(self._values) if self._values else np.empty(0)
        error = None
        if len(values) > 1 and np.isfinite(values).all():
            error = float(values.std(ddof=1) / math.sqrt(len(values)))
        num_identical = int(np.isinf(values).sum())
        return Score(
            float(values.mean()),
            error,
            None if error is None else "standard error over pairs",
            f"{num_identical:,} pairs are identical, of infinite {metric.title}" if num_identical else None,
            num_real=len(values),
            num_fake=len(values),
        )


class SetFamily(Family):
    """A figure of two sets of features, those of both sides by default."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.features: dict[Side, SetFeatures] = {}

    @classmethod
    def needs(cls, side: Side) -> Needs | None:
        return Needs()

    def add(self, *what: Any) -> None:
        side, features = what
        self.features[side] = features

    @property
    def num(self) -> int:
        return min((features.num for features in self.features.values() if features.num is not None), default=1)

    def rows(self, side: Side) -> RowSource:
        """The features of each image of `side`; `needs` must have asked for them."""
        rows = self.features[side].rows
        assert rows is not None
        return rows


def family_of(metric: Metric) -> type[Family]:
    """The class that measures `metric`."""
    found: type[Family] = resolve_name(metric.family)
    return found


def on_device(rows: NDArray[np.generic], device: torch.device | str) -> Tensor:
    """The rows as float64, on the device or, where that has no float64, on the CPU."""
    device = torch.device(device)
    return torch.from_numpy(np.ascontiguousarray(rows)).to("cpu" if device.type == "mps" else device, torch.float64)
