"""Which metrics are measured: those asked for, or all whose weights are there. Settled before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from brics_cli.errors import ArtefactError
from brics_cli.evaluation.registry import (
    NEIGHBOUR_NETWORKS,
    REGISTRY,
    Metric,
    Settings,
    metric,
    need_no_weights,
    network_of,
    weights_of,
)
from brics_cli.networks.registry import NETWORKS
from brics_cli.networks.weights import FoundWeights, find, missing_line, require

ALL = "all"


@dataclass(frozen=True)
class Chosen:
    """A metric to measure, the network that its features are of, and its weights (None: none)."""

    metric: Metric
    network: str | None
    weights: FoundWeights | None

    @property
    def name(self) -> str:
        return self.metric.name


@dataclass(frozen=True)
class Choice:
    """The metrics to measure under `settings`, and of those left out why.

    `asked`: whether every one was asked for by name, so that one that cannot be measured is an error.
    """

    metrics: list[Chosen]
    left_out: dict[str, str]
    settings: Settings
    asked: bool


def choose_metrics(
    names: Sequence[str] | None, *, allow_unverified: bool = False, settings: Settings | None = None
) -> Choice:
    """The metrics `names`; with None the default ones, with `all` every one, as far as their weights are there.

    Where the settings leave open what nearest images are looked for in, the first network whose weights are there is
    taken. Raises UsageError for an unknown name, ArtefactError for one asked for whose weights are missing.
    """
    settings = settings or Settings()
    asked = names is not None and ALL not in names
    named = {metric(name).name: metric(name) for name in names or () if name != ALL}
    wanted = list(named.values()) if asked else [m for m in REGISTRY.values() if names is not None or m.default]
    if any(network_of(known, settings) is None for known in wanted if known.network is not None):
        there = (key for key in NEIGHBOUR_NETWORKS if _find(NETWORKS[key].weights, allow_unverified) is not None)
        settings = replace(settings, neighbours_by=next(there, NEIGHBOUR_NETWORKS[0]))
    chosen, left_out = [], {}
    for known in wanted:
        key, weights_id = network_of(known, settings), weights_of(known, settings)
        found = _find(weights_id, allow_unverified)
        if weights_id is not None and found is None:
            if known.name in named:
                try:
                    require(weights_id, known.title, allow_unverified=allow_unverified, instead=need_no_weights())
                except ArtefactError as error:
                    if key == network_of(known, replace(settings, preset=Settings.preset)):
                        raise
                    instead = f"Or --preset {Settings.preset}, which takes Inception's features."
                    raise ArtefactError(str(error), next=instead) from None
            left_out[known.name] = missing_line(weights_id)
            continue
        chosen.append(Chosen(known, key, found))
    return Choice(chosen, left_out, settings, asked)


def metric_of_samples() -> str:
    """What samples can be measured by on this machine: `fid`, or `fd-random`, which needs no weights."""
    return "fid" if _find(weights_of(metric("fid"), Settings()), False) is not None else "fd-random"


def _find(weights_id: str | None, allow_unverified: bool) -> FoundWeights | None:
    return None if weights_id is None else find(weights_id, allow_unverified=allow_unverified)
