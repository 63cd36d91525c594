"""What an evaluation found, with everything needed to cite it: figures, sources, failures, provenance. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

OWN_WEIGHTS = "own weights"
UNKNOWN_STATISTICS = "statistics of an unknown network"
SPLITS = {
    "training": "training images: the autoencoder was trained on all of them, or all but a share held out by hash",
    "held-out": "held-out images: the autoencoder was validated on them, and never trained",
    "other": "images of a collection that the autoencoder was neither trained nor validated on",
}
"""What a figure is of, by `Source.split`."""


@dataclass(frozen=True)
class MetricResult:
    """One figure of `fake` against `real` (paths).

    `standard_error` is the error bar and `error_kind` says of what kind (None: there is none); `num_real` and
    `num_fake` are None where it is unknown (saved statistics) or the side plays no part; `resize` says how a network's
    input was made; `comparable`, with published figures, is False for a metric that nobody else has, and where
    `not_comparable` says what else is in the way; `note` is what a reader must know besides; `details` is what the
    metric found beside its value.
    """

    metric: str
    title: str
    real: str
    fake: str
    value: float
    standard_error: float | None
    num_real: int | None
    num_fake: int | None
    unit: str
    better: str
    definition: str
    resize: str | None
    comparable: bool
    note: str | None
    error_kind: str | None = None
    details: dict[str, Any] | None = None
    not_comparable: str | None = None


@dataclass
class Source:
    """One side of a comparison. `sha256` is a store's, a model's or a file's, or of a collection the
    fingerprint of the images that were measured; empty where none was read.

    `cached`: the networks whose features of it came from the cache. `model`: kind, path and step of the trained model
    it came from, where one is known. `image_size`: the median of the shorter sides, px (None: unknown).
    `transform`: what made a collection's images so (None: nothing). `split`: what the images were to the autoencoder
    behind them, one of `SPLITS` (None: not known, or not images of a collection).
    """

    side: str
    kind: str
    path: str
    description: str
    sha256: str
    cached: list[str] = field(default_factory=list)
    model: dict[str, Any] | None = None
    image_size: int | None = None
    transform: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be read, and why."""

    side: str
    key: str
    reason: str


@dataclass
class EvaluationReport:
    """What `brics eval` found: `results` in the order asked for, and where every figure comes from."""

    results: list[MetricResult] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    num_pairs: int | None = None
    """Pairs that were measured; None when no metric of pairs was."""
    unmatched_real: list[str] = field(default_factory=list)
    """Keys of the originals that have no partner."""
    unmatched_fake: list[str] = field(default_factory=list)
    failures: list[FailedImage] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Metric -> why it was not measured; filled only when not every metric was asked for by name."""
    provenance: dict[str, Any] = field(default_factory=dict)
    sheets: list[str] = field(default_factory=list)
    """Contact sheets and figures that were written."""
    planned: list[dict[str, Any]] = field(default_factory=list)
    """What would be measured of what: filled by a dry run alone."""

    def value(self, name: str) -> float:
        """The figure of the metric `name`. Raises KeyError when it was not measured."""
        for result in self.results:
            if result.metric == name:
                return result.value
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: an infinite PSNR is null, and its `note` says why."""
        record = asdict(self)
        for result in record["results"]:
            for name in ("value", "standard_error"):
                if result[name] is not None and not math.isfinite(result[name]):
                    result[name] = None
        return {"brics_report": 1, **record}
