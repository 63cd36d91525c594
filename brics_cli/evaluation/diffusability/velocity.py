"""The velocity's irreducible variance, VIV (Zhong et al., arXiv 2606.03578): what no denoiser can know.

Flow matching takes x_t = (1 - t) x + t eps to the velocity v = eps - x. Where paths cross, x_t does not tell v:
VIV(t) = E tr Var(v | x_t) / D. Given x_t, v = (x_t - x) / t, so that Var(v | x_t) = Var(x | x_t) / t². For codes
N(0, s²) it is s² / ((1 - t)² s² + t²). The definition is the paper's; the estimators are these:

`empirical` is exact for the store as a distribution of N points: the posterior over them is a softmax. In many
dimensions that denoiser knows its points by heart: a lower bound for the distribution that they were drawn from.
`linear` is the error of the best linear denoiser, fitted on one half of the points and measured on the other: an upper
bound, and the variance itself for Gaussian codes. `empirical` of single positions (D = C) is for a denoiser that sees
no more: of few dimensions there are enough codes for it to be near the distribution's, unless t is small.

x (N, D) normalised codes, M queries x_t = (1 - t) x_j + t eps, T times.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from brics_cli.evaluation.moments import Array

TIMES = tuple(round(float(t), 3) for t in np.linspace(0.05, 0.95, 13))
NUM_QUERIES = 256
SEED = 2606_03578


class Viv(NamedTuple):
    """VIV (T,) at each time and its standard error (T,); their mean over the times, and its own."""

    by_time: Array
    errors: Array
    mean: float
    error: float

    @classmethod
    def of(cls, values: Array) -> Viv:
        """From the values (T, M) of M queries."""
        scale = np.sqrt(max(values.shape[1], 1))
        errors = values.std(axis=1, ddof=1) / scale
        means = values.mean(axis=0)  # a query's noise is the same at all times
        return cls(values.mean(axis=1), errors, float(means.mean()), float(means.std(ddof=1) / scale))


def empirical(x: Array, *, num_queries: int = NUM_QUERIES, times: tuple[float, ...] = TIMES, seed: int = SEED) -> Viv:
    """VIV of the empirical distribution of x (N, D), each row alike: exact but for the draw of the queries."""
    x = x - x.mean(axis=0)
    generator = np.random.default_rng(seed)
    queries = np.arange(num_queries) % len(x) if num_queries >= len(x) else generator.permutation(len(x))[:num_queries]
    eps = generator.standard_normal((len(queries), x.shape[1]))
    # |x_t - a x_i|² = a² |x_j - x_i|² + 2 a t eps.(x_j - x_i) + t² |eps|², whose last term is the same for all i
    norms, toward = np.square(x).sum(axis=1), x[queries] @ x.T  # (N,), (M, N)
    squared = norms[queries, None] + norms - 2 * toward
    along = eps @ x.T  # (M, N)
    along = along[np.arange(len(queries)), queries][:, None] - along
    values = []
    for t in times:
        a = 1 - t
        weights = softmax(-(a * a * squared + 2 * a * t * along) / (2 * t * t), axis=1)  # (M, N)
        variance = weights @ norms - np.square(weights @ x).sum(axis=1)  # tr Var(x | x_t)
        values.append(variance.clip(min=0) / (x.shape[1] * t * t))
    return Viv.of(np.stack(values))


def linear(x: Array, *, times: tuple[float, ...] = TIMES, seed: int = SEED) -> Viv:
    """The error in velocity of the best linear denoiser of one half of x (N, D) on the other half, and vice versa."""
    order = np.random.default_rng(seed).permutation(len(x))
    halves = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    values = []
    for fitted, measured in (halves, halves[::-1]):
        mean = fitted.mean(axis=0)
        variances, axes = np.linalg.eigh(np.cov(fitted, rowvar=False, bias=True).reshape(x.shape[1], -1))
        energies = np.square((measured - mean) @ axes)  # (N / 2, D)
        of_half = []
        for t in times:
            a = 1 - t
            gain = a * variances / (a * a * variances + t * t)  # the estimate of x is gain x_t, axis by axis
            of_half.append((energies @ np.square(1 - a * gain) + t * t * np.square(gain).sum()) / (x.shape[1] * t * t))
        values.append(np.stack(of_half))
    return Viv.of(np.concatenate(values, axis=1))
