"""How codes are distributed: marginals, dimensions, correlations, modes.

x (N, C, h, w) normalised codes, z the same as they are stored. Every figure comes as (value, standard error).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from brics_cli.evaluation.diffusability.spectrum import NUM_GROUPS
from brics_cli.evaluation.jackknife import error_of_mean, jackknife, standard_error
from brics_cli.evaluation.moments import Array

NUM_BINS = 32
"""Of a channel's range: few enough that the 256 values of uint8 codes do not show."""
LEVEL = 1 / 255
"""Codes within half of this of 0 or 1 are saturated: a uint8 store has them there."""
MODES_TRIED = (1, 2, 4, 8, 16, 32, 64, 128)
MODE_FOLDS = 4
MODE_AXES = 16
"""Principal axes that a mixture is fitted in."""
MODE_ROWS = 4000
"""Codes that mixtures are fitted to, at most: evenly spread."""
EM_STEPS = 50
LEAST_VARIANCE = 1e-4
SEED = 2502_03444

Figure = tuple[float, float]


def grouped(rows: NDArray[np.floating]) -> Array:
    """Sums (G, ...) of rows (N, ...), dealt to G groups in turn."""
    return np.stack([rows[group::NUM_GROUPS].sum(axis=0, dtype=np.float64) for group in range(NUM_GROUPS)])


def entropy(x: NDArray[np.floating]) -> tuple[Figure, Array]:
    """The differential entropy of a channel's codes divided by their standard deviation, bits, mean over channels: 2.05
    of a Gaussian, the most there is, 1.79 of uniform codes. And that of each channel (C,)."""
    by_channel = x.transpose(1, 0, 2, 3).reshape(x.shape[1], len(x), -1)  # (C, N, h w)
    counts, widths = [], []
    for channel in by_channel:
        scale = channel.std() or 1.0
        low, high = float(channel.min()) / scale, float(channel.max()) / scale
        high = max(high, low + 1e-6)
        bins = ((channel / scale - low) * (NUM_BINS / (high - low))).astype(np.int64).clip(0, NUM_BINS - 1)
        counts.append(
            np.stack([np.bincount(bins[g::NUM_GROUPS].ravel(), minlength=NUM_BINS) for g in range(NUM_GROUPS)])
        )
        widths.append((high - low) / NUM_BINS)

    def each(sums: Array) -> Array:
        shares = sums / sums.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = -np.where(shares > 0, shares * np.log2(shares), 0).sum(axis=1)
        return np.asarray(bits + np.log2(widths))

    sums = np.stack(counts, axis=1).astype(np.float64)  # (G, C, bins)
    return jackknife(sums, lambda total: float(each(total).mean())), each(sums.sum(axis=0))


def saturation(z: NDArray[np.floating]) -> tuple[Figure, Array]:
    """The share of codes at 0 or 1; and that of each channel (C,)."""
    walls = (z < LEVEL / 2) | (z > 1 - LEVEL / 2)
    by_image = walls.mean(axis=(2, 3))  # (N, C)
    per_image = by_image.mean(axis=1)
    return (float(per_image.mean()), error_of_mean(per_image)), by_image.mean(axis=0)


def kurtosis(x: NDArray[np.floating]) -> Figure:
    """E (x - mean)⁴ / Var², mean over channels: 3 for a Gaussian, 1.8 for uniform codes."""
    x = x.astype(np.float64)
    powers = np.stack([(x**power).mean(axis=(2, 3)) for power in range(5)], axis=1)  # (N, 5, C)

    def estimate(sums: Array) -> float:
        _, m1, m2, m3, m4 = sums / sums[0]
        variance = np.maximum(m2 - m1**2, 1e-12)
        return float(((m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2).mean())

    return jackknife(grouped(powers), estimate)


def effective_dimension(x: NDArray[np.floating], *, num_rows: int = 2000) -> Figure:
    """The participation ratio (tr S)² / tr S² of the covariance S of whole codes: D for white codes, 1 on a line.

    tr S² is estimated without the bias of N < D: by the products of different rows alone.
    """
    rows = x.reshape(len(x), -1)[:: max(1, len(x) // num_rows)].astype(np.float64)
    rows = rows - rows.mean(axis=0)
    gram = np.square(rows @ rows.T)
    norms = np.square(rows).sum(axis=1)
    np.fill_diagonal(gram, 0)
    groups = np.arange(len(rows)) % NUM_GROUPS

    def estimate(kept: NDArray[np.bool_]) -> float:
        num = int(kept.sum())
        trace = norms[kept].sum() / (num - 1)
        squares = gram[np.ix_(kept, kept)].sum() / (num * (num - 1))
        return float(trace**2 / max(squares, 1e-300))

    without = [estimate(groups != group) for group in range(NUM_GROUPS)]
    return estimate(groups >= 0), standard_error(without)


def channel_correlation(x: NDArray[np.floating]) -> Figure:
    """The mean absolute correlation of two channels at one position; 0 of one channel."""
    num_channels = x.shape[1]
    flat = x.reshape(len(x), num_channels, -1).astype(np.float64)
    products = flat @ flat.transpose(0, 2, 1) / flat.shape[2]  # (N, C, C)
    moments = np.concatenate([products, flat.mean(axis=2)[:, :, None], np.ones((len(x), num_channels, 1))], axis=2)

    def estimate(sums: Array) -> float:
        products, means = sums[:, :num_channels] / sums[0, -1], sums[:, num_channels] / sums[0, -1]
        covariance = products - np.outer(means, means)
        std = np.sqrt(np.diag(covariance).clip(min=1e-12))
        correlation = np.abs(covariance / np.outer(std, std))
        pairs = num_channels * (num_channels - 1)
        return float((correlation.sum() - np.trace(correlation)) / pairs) if pairs else 0.0

    return jackknife(grouped(moments), estimate)


def neighbour_correlation(x: NDArray[np.floating]) -> Figure:
    """The correlation of a channel's codes at neighbouring positions, mean over channels and the two directions."""
    x = x.astype(np.float64)
    pairs = [(x[:, :, 1:], x[:, :, :-1]), (x[:, :, :, 1:], x[:, :, :, :-1])]
    moments = np.stack(
        [
            np.stack([each.sum(axis=(2, 3)) for each in (a * b, a, b, a * a, b * b, np.ones_like(a))], axis=1)
            for a, b in pairs
            if a.size
        ],
        axis=1,
    )  # (N, directions, 6, C)

    def estimate(sums: Array) -> float:
        products, a, b, aa, bb, num = np.moveaxis(sums, 1, 0)  # (directions, C)
        variance = (aa / num - (a / num) ** 2) * (bb / num - (b / num) ** 2)
        return float(((products / num - a * b / num**2) / np.sqrt(variance.clip(min=1e-24))).mean())

    return jackknife(grouped(moments), estimate)


class Modes(NamedTuple):
    """How many components a mixture of Gaussians takes to fit codes that it has not seen, with its error over folds,
    and the gain of each number of components over one, nats per axis."""

    figure: Figure
    gains: dict[int, float]


def modes(x: NDArray[np.floating]) -> Modes:
    """By maximum likelihood on held-out quarters, among MODES_TRIED (after Chen et al., arXiv 2502.03444, who find that
    latents with fewer modes are easier to learn): diagonal components on the first principal axes of whole codes."""
    rows = x.reshape(len(x), -1)[:: -(-len(x) // MODE_ROWS)].astype(np.float64)
    rows = rows - rows.mean(axis=0)
    axes = np.linalg.svd(rows[:: max(1, len(rows) // 2000)], full_matrices=False)[2][:MODE_AXES]
    points = rows @ axes.T
    points /= max(float(points.std()), 1e-12)
    folds = np.random.default_rng(SEED).permutation(len(points)) % MODE_FOLDS
    tried = [num for num in MODES_TRIED if num <= len(points) // 16]
    scores = np.array(
        [[_held_out(points[folds != fold], points[folds == fold], num) for num in tried] for fold in range(MODE_FOLDS)]
    )  # (folds, tried), nats per axis
    best = np.array([math.log2(tried[index]) for index in scores.argmax(axis=1)])
    gains = dict(zip(tried, (scores - scores[:, :1]).mean(axis=0).tolist(), strict=True))
    value = 2.0 ** best.mean()
    return Modes((float(value), float(value * math.log(2) * best.std(ddof=1) / math.sqrt(MODE_FOLDS))), gains)


def _held_out(train: Array, test: Array, num: int) -> float:
    """The mean log-likelihood per axis of `test` under `num` diagonal Gaussians fitted to `train` by EM."""
    means = _spread(train, num)
    variances, weights = np.tile(train.var(axis=0), (num, 1)), np.full(num, 1 / num)
    for _ in range(EM_STEPS):
        shares = np.exp(_log_shares(train, means, variances, weights)[0])  # (N, num)
        total = shares.sum(axis=0) + 1e-9
        means = shares.T @ train / total[:, None]
        variances = (shares.T @ train**2 / total[:, None] - means**2).clip(min=LEAST_VARIANCE)
        weights = total / total.sum()
    return float(_log_shares(test, means, variances, weights)[1].mean() / train.shape[1])


def _spread(points: Array, num: int) -> Array:
    """`num` of the points (N, D), each drawn by its squared distance to those before (k-means++)."""
    generator = np.random.default_rng(SEED)
    chosen = [points[generator.integers(len(points))]]
    squared = np.full(len(points), np.inf)
    while len(chosen) < num:
        squared = np.minimum(squared, np.square(points - chosen[-1]).sum(axis=1))
        total = squared.sum()
        chances = squared / total if total > 0 else None
        chosen.append(points[generator.choice(len(points), p=chances)])
    return np.stack(chosen)


def _log_shares(points: Array, means: Array, variances: Array, weights: Array) -> tuple[Array, Array]:
    """The logarithms of each component's share (N, num) of points (N, D), and of their density (N,)."""
    inverse = 1 / variances
    squared = points**2 @ inverse.T - 2 * points @ (means * inverse).T + (means**2 * inverse).sum(axis=1)
    log_density = np.log(weights) - (squared + np.log(2 * np.pi * variances).sum(axis=1)) / 2
    peak = log_density.max(axis=1, keepdims=True)
    total = peak + np.log(np.exp(log_density - peak).sum(axis=1, keepdims=True))
    return log_density - total, total[:, 0]


def histograms(values: NDArray[np.floating], *, bounded: bool, most: int = 16) -> dict[str, Any]:
    """What the figure shows: the density of each of the first `most` channels of `values` (N, C, h, w), and of all.

    Bins of `bounded` ones are 4 levels of uint8 wide, so that none holds more levels than the next.
    """
    low, high = (float(limit) for limit in np.quantile(values, [0.0005, 0.9995]))
    edges = (np.arange(65) * 4 - 0.5) / 255 if bounded else np.linspace(low, max(high, low + 1e-6), 65)
    density = [np.histogram(values[:, channel], edges, density=True)[0] for channel in range(values.shape[1])]
    return {
        "edges": edges.tolist(),
        "channels": [each.tolist() for each in density[:most]],
        "mean": np.mean(density, axis=0).tolist(),
    }
