"""Training noise that changes with the step: none at first, say, and the paper's relaxed precision late."""

from __future__ import annotations

from brics_cli.config.terms import NoiseScheduleConfig


def noise_factor(config: NoiseScheduleConfig, *, step: int, num_steps: int) -> float:
    """What the training noise is multiplied by at `step` of `num_steps`: linear between `factors`, level outside."""
    if not config.factors:
        return 1.0
    share = step / num_steps
    before = [point for point in config.factors if point[0] <= share]
    after = [point for point in config.factors if point[0] > share]
    if not before or not after:
        return (before[-1:] or after[:1])[0][1]
    (left, low), (right, high) = before[-1], after[0]
    return low + (high - low) * (share - left) / (right - left)
