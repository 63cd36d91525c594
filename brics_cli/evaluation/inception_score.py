"""The Inception Score (Salimans et al., arXiv 1606.03498): exp of the mean KL of p(y|x) from p(y), over splits.

N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from brics_cli.errors import UsageError
from brics_cli.evaluation.family import Needs, Score, SetFamily, Side
from brics_cli.evaluation.registry import Metric
from brics_cli.evaluation.rows import in_blocks
from brics_cli.networks.inception import Inception

NUM_SPLITS = 10
SHUFFLE_SEED = 2020
NUM_COMPARABLE = 5000


@dataclass(frozen=True)
class SplitScore:
    """`value`: mean over the splits; `deviation`: their standard deviation (None for one split)."""

    value: float
    deviation: float | None
    num_splits: int


def inception_score(
    logits: NDArray[np.floating], *, num_splits: int = NUM_SPLITS, shuffle_seed: int | None = SHUFFLE_SEED
) -> SplitScore:
    """IS in [1, K] of class scores (N, K) before the softmax.

    Images are shuffled by `shuffle_seed` first, as torch-fidelity does (None: in the order they come, StyleGAN3's
    way); fewer images than splits make as many splits as images. Raises UsageError for no image at all.
    """
    num = len(logits)
    if num == 0:
        raise UsageError("IS needs at least 1 fake image, there is none")
    if shuffle_seed is not None:
        logits = logits[np.random.RandomState(shuffle_seed).permutation(num)]
    num_splits = min(num_splits, num)
    scores = []
    for split in range(num_splits):
        part = logits[split * num // num_splits : (split + 1) * num // num_splits].astype(np.float64)  # (n, K)
        log_p = log_softmax(part, axis=1)
        p = np.exp(log_p)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_marginal = np.log(p.mean(axis=0))  # (K,)
            divergence = np.where(p > 0, p * (log_p - log_marginal), 0.0).sum(axis=1)  # (n,), 0 log 0 = 0
        scores.append(np.exp(divergence.mean()))
    deviation = float(np.std(scores)) if num_splits > 1 else None
    return SplitScore(float(np.mean(scores)), deviation, num_splits)


class InceptionScore(SetFamily):
    """IS of the fake images."""

    @classmethod
    def needs(cls, side: Side) -> Needs | None:
        return Needs(rows=True) if side == "fake" else None

    def result(self, metric: Metric) -> Score:
        rows, network = self.rows("fake"), self.network
        assert isinstance(network, Inception)
        logits = [network.class_scores(rows.take(block)) for block in in_blocks(rows)]
        found = inception_score(np.concatenate(logits))
        kind = None if found.deviation is None else f"standard deviation over {found.num_splits} splits"
        note = None
        if len(rows) < NUM_COMPARABLE:
            note = f"{len(rows):,} images in {found.num_splits} splits: IS grows with N, compare at equal N only"
        return Score(found.value, found.deviation, kind, note, num_fake=len(rows))
