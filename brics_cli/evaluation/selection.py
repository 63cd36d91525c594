"""Which metrics are measured: those asked for, or all whose weights are there. Settled before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from brics_cli.errors import ArtefactError
from brics_cli.evaluation.registry import (
    ALL,
    GROUPS,
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

    `asked`: whether every one was asked for by its own name, so that one that cannot be measured is an error.
    """

    metrics: list[Chosen]
    left_out: dict[str, str]
    settings: Settings
    asked: bool


def choose_metrics(
    names: Sequence[str] | None, *, allow_unverified: bool = False, settings: Settings | None = None
) -> Choice:
    """The metrics and groups `names`; with None the default metrics, with `all` every one that is in no group, as far
    as their weights are there.

    Where the settings leave open what nearest images are looked for in, the first network whose weights are there is
    taken. Raises UsageError for an unknown name, ArtefactError for one asked for whose weights are missing.
    """
    settings = settings or Settings()
    meant = [m for m in REGISTRY.values() if m.default] if names is None else chain(*map(_meant_by, names))
    wanted = {known.name: known for known in meant}
    named = [name for name in names or () if name in REGISTRY]
    asked = names is not None and len(named) == len(names)
    if any(network_of(known, settings) is None for known in wanted.values() if known.network is not None):
        there = (key for key in NEIGHBOUR_NETWORKS if _find(NETWORKS[key].weights, allow_unverified) is not None)
        settings = replace(settings, neighbours_by=next(there, NEIGHBOUR_NETWORKS[0]))
    chosen, left_out = [], {}
    for known in wanted.values():
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


def _meant_by(name: str) -> list[Metric]:
    """What `all`, the name of a group, or that of a metric stands for. Raises UsageError for any other."""
    if name == ALL:
        return [known for known in REGISTRY.values() if not known.group]
    if name in GROUPS:
        return [REGISTRY[each] for each in GROUPS[name]]
    return [metric(name)]


def _find(weights_id: str | None, allow_unverified: bool) -> FoundWeights | None:
    return None if weights_id is None else find(weights_id, allow_unverified=allow_unverified)
