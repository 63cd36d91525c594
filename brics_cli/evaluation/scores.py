"""From the features of two sets to the figures: value, error bar, and what a reader must know besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from brics_cli.errors import UsageError
from brics_cli.evaluation.extraction import SetFeatures
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.inception_score import inception_score
from brics_cli.evaluation.jackknife import frechet_standard_error
from brics_cli.evaluation.kernel import kernel_distance
from brics_cli.evaluation.manifold import ManifoldScores, manifold_scores
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.registry import PRESETS, Metric, Settings, caveat_of
from brics_cli.evaluation.rows import RowSource, in_blocks
from brics_cli.networks.features import FeatureNetwork

SUBSET_SEED = 2020


@dataclass(frozen=True)
class Score:
    """One figure. `error_kind` says in words what `error` is; `details` is what `--json` adds."""

    value: float
    error: float | None
    error_kind: str | None
    note: str | None
    num_real: int | None
    num_fake: int | None
    details: dict[str, Any] | None = None


class _ClassScores(Protocol):
    def class_scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]: ...


class SetScorer:
    """The figures of two sets in the features of one network; what several metrics need is computed once."""

    def __init__(
        self, real: SetFeatures, fake: SetFeatures, network: FeatureNetwork, *, settings: Settings, device: torch.device
    ) -> None:
        self.real, self.fake, self.network = real, fake, network
        self.settings, self.device = settings, device
        self._manifold: tuple[ManifoldScores, list[str]] | None = None

    def score(self, metric: Metric) -> Score:
        """The figure of `metric`. Raises UsageError when there are too few images for it to have one."""
        if metric.family == "frechet":
            return self._frechet()
        if metric.family == "kernel":
            return self._kernel()
        if metric.family == "inception-score":
            return self._inception_score()
        if metric.family == "manifold":
            return self._manifold_score(metric)
        raise ValueError(f"{metric.name} is no metric of two sets of features")

    def _frechet(self) -> Score:
        value = frechet_distance(self.real.gaussian, self.fake.gaussian)
        error, kind, fake = None, None, self.fake.gaussian
        if isinstance(fake, FeatureMoments):
            error = frechet_standard_error(self.real.gaussian, fake)
            kind = None if error is None else f"jackknife over {fake.num_groups} groups of fake images"
        return Score(value, error, kind, self._frechet_note(), self.real.num, self.fake.num)

    def _frechet_note(self) -> str | None:
        known = [num for num in (self.real.num, self.fake.num) if num is not None]
        num_features = self.network.num_features
        notes = []
        if known and min(known) <= num_features:
            notes.append(f"{min(known):,} images are fewer than the {num_features:,} features: compare at equal N only")
        for side, features in (("real", self.real), ("fake", self.fake)):
            if features.num is not None and not np.any(np.diag(features.gaussian.covariance) > 0):
                notes.append(f"all {side} images have the same features: their covariance is zero")
        return "; ".join(notes) or None

    def _kernel(self) -> Score:
        real, fake = _rows(self.real, "KID", "real"), _rows(self.fake, "KID", "fake")
        result = kernel_distance(real, fake, seed=SUBSET_SEED, device=self.device)
        note = None
        if result.num_subsets == 1:
            note = f"both sets are one subset of {result.subset_size:,}, so there is no deviation over subsets"
        elif result.subset_size < 1000:
            note = f"subsets of {result.subset_size:,} images, as many as the smaller set has: compare at equal N only"
        if result.value < 0:
            below = "below zero, as an unbiased estimate of zero may be"
            note = f"{note}; {below}" if note else below
        kind = None
        if result.deviation is not None:
            kind = f"standard deviation over {result.num_subsets} subsets of {result.subset_size:,}"
        return Score(result.value, result.deviation, kind, note, len(real), len(fake))

    def _inception_score(self) -> Score:
        rows = _rows(self.fake, "IS", "fake")
        network: _ClassScores = self.network  # type: ignore[assignment]
        logits = [network.class_scores(rows.take(block)) for block in in_blocks(rows)]
        result = inception_score(np.concatenate(logits) if logits else np.empty((0, 1)))
        kind = None
        if result.deviation is not None:
            kind = f"standard deviation over {result.num_splits} splits"
        note = None
        if len(rows) < 5000:
            note = f"{len(rows):,} images in {result.num_splits} splits: IS grows with N, compare at equal N only"
        return Score(result.value, result.deviation, kind, note, None, len(rows))

    def _manifold_score(self, metric: Metric) -> Score:
        if self._manifold is None:
            preset = PRESETS[self.settings.preset]
            real = _subset(_rows(self.real, metric.title, "real"), preset.max_real)
            fake = _subset(_rows(self.fake, metric.title, "fake"), preset.max_fake)
            scores = manifold_scores(real, fake, k=preset.k, closed=preset.closed, device=self.device)
            taken = [
                f"{len(taken):,} of {whole:,} {side} images drawn with seed {SUBSET_SEED}"
                for side, taken, whole in (("real", real, self.real.num), ("fake", fake, self.fake.num))
                if whole is not None and len(taken) < whole
            ]
            self._manifold = scores, taken
        scores, taken = self._manifold
        note = "; ".join(filter(None, (*taken, caveat_of(metric, self.settings)))) or None
        values = scores.of(metric.name)
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        side = "fake" if metric.name in {"precision", "density"} else "real"
        kind = f"standard error over {side} images, the other side held fixed"
        return Score(
            float(values.mean()), error, kind, note, num_real=len(scores.recall), num_fake=len(scores.precision)
        )


class _SubsetRows:
    """Some rows of another source."""

    def __init__(self, rows: RowSource, indices: NDArray[np.int64]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_features(self) -> int:
        return self._rows.num_features

    def take(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        return self._rows.take(self._indices[indices])


def _subset(rows: RowSource, limit: int | None) -> RowSource:
    """At most `limit` of the rows, drawn once and for all."""
    if limit is None or len(rows) <= limit:
        return rows
    return _SubsetRows(rows, np.sort(np.random.RandomState(SUBSET_SEED).permutation(len(rows))[:limit]))


def _rows(features: SetFeatures, title: str, side: str) -> RowSource:
    if features.rows is None:
        raise UsageError(
            f"{title} needs the {side} images themselves, and saved statistics hold a mean and a covariance alone",
            next=f"Give images with --{side}, or measure fid, clip-fid or fd-dinov2.",
        )
    return features.rows
