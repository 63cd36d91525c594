"""Which metrics are measured: those asked for, or all whose weights are there. Settled before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brics_cli.metrics.registry import NEEDS_NO_WEIGHTS, REGISTRY, Metric, metric
from brics_cli.weights import FoundWeights, find, require
from brics_cli.weights.finding import missing_line


@dataclass(frozen=True)
class Choice:
    """The metrics to measure, the weights of each by its name, and of those left out why."""

    metrics: list[Metric]
    weights: dict[str, list[FoundWeights]]
    left_out: dict[str, str]


def choose_metrics(names: Sequence[str] | None, *, allow_unverified: bool = False) -> Choice:
    """The metrics `names`, or with None every one whose weights are there.

    Raises UsageError for an unknown name, ArtefactError for one asked for whose weights are missing.
    """
    if names is not None:
        wanted = [metric(name) for name in dict.fromkeys(names)]
        weights = {
            chosen.name: require(
                chosen.weights, chosen.title, allow_unverified=allow_unverified, instead=NEEDS_NO_WEIGHTS
            )
            for chosen in wanted
        }
        return Choice(wanted, weights, {})
    weights, left_out = {}, {}
    for name, known in REGISTRY.items():
        found = {weights_id: find(weights_id, allow_unverified=allow_unverified) for weights_id in known.weights}
        missing = [weights_id for weights_id, at in found.items() if at is None]
        if missing:
            left_out[name] = missing_line(missing[0])
        else:
            weights[name] = [at for at in found.values() if at is not None]
    return Choice([REGISTRY[name] for name in weights], weights, left_out)
