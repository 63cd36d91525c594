"""Which metrics are measured: those asked for, or all whose weights are there. Settled before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.evaluation.registry import (
    DEFAULT,
    NEEDS_NO_WEIGHTS,
    NEIGHBOUR_NETWORKS,
    NETWORK_WEIGHTS,
    REGISTRY,
    Metric,
    Settings,
    metric,
    network_of,
    weights_for,
)
from brics_cli.networks.weights import FoundWeights, find, missing_line, require

ALL = "all"


@dataclass(frozen=True)
class Choice:
    """The metrics to measure; by name the weights of each and the network it takes its features from (None: none);
    and of those left out why.

    `asked`: whether every one was asked for by name, so that one that cannot be measured is an error.
    """

    metrics: list[Metric]
    weights: dict[str, list[FoundWeights]]
    left_out: dict[str, str]
    networks: dict[str, str | None] = field(default_factory=dict)
    asked: bool = False


def choose_metrics(
    names: Sequence[str] | None,
    *,
    allow_unverified: bool = False,
    settings: Settings | None = None,
    neighbours_by: str | None = None,
) -> Choice:
    """The metrics `names`; with None those of DEFAULT, with `all` every one, as far as their weights are there.

    `neighbours_by`: the network (of NEIGHBOUR_NETWORKS) that nearest images are looked for in; None: the first whose
    weights are there. Raises UsageError for an unknown name, ArtefactError for one asked for whose weights are
    missing.
    """
    settings = settings or Settings()
    if neighbours_by is not None and neighbours_by not in NEIGHBOUR_NETWORKS:
        near = did_you_mean(neighbours_by, NEIGHBOUR_NETWORKS)
        raise UsageError(f"--neighbours-by: no network {neighbours_by!r}{near}")
    if names is not None and ALL not in names:
        return _asked([metric(name) for name in dict.fromkeys(names)], allow_unverified, settings, neighbours_by)
    named = {metric(name).name for name in names or () if name != ALL}
    wanted = [known for name, known in REGISTRY.items() if names is not None or name in DEFAULT]
    chosen, weights, networks, left_out = [], {}, {}, {}
    for known in wanted:
        key = _network(known, settings, neighbours_by, allow_unverified=allow_unverified)
        needed = weights_for(key)
        found = {weights_id: find(weights_id, allow_unverified=allow_unverified) for weights_id in needed}
        missing = [weights_id for weights_id, at in found.items() if at is None]
        if missing and known.name in named:
            require(missing[0], known.title, allow_unverified=allow_unverified, instead=NEEDS_NO_WEIGHTS)
        if missing:
            left_out[known.name] = missing_line(missing[0])
            continue
        chosen.append(known)
        networks[known.name] = key
        weights[known.name] = [at for at in found.values() if at is not None]
    return Choice(chosen, weights, left_out, networks)


def _asked(wanted: list[Metric], allow_unverified: bool, settings: Settings, neighbours_by: str | None) -> Choice:
    weights, networks = {}, {}
    for chosen in wanted:
        key = _network(chosen, settings, neighbours_by, allow_unverified=allow_unverified)
        networks[chosen.name] = key
        needed = weights_for(key)
        try:
            weights[chosen.name] = [
                require(each, chosen.title, allow_unverified=allow_unverified, instead=NEEDS_NO_WEIGHTS)
                for each in needed
            ]
        except ArtefactError as error:
            if chosen.family == "manifold" and settings.preset != "adm":
                raise ArtefactError(str(error), next="Or --preset adm, which takes Inception's features.") from None
            raise
    return Choice(wanted, weights, {}, networks, asked=True)


def _network(known: Metric, settings: Settings, neighbours_by: str | None, *, allow_unverified: bool) -> str | None:
    """The network that `known` takes its features from, as the registry names it."""
    if known.family != "neighbours":
        return network_of(known, settings)
    if neighbours_by is not None:
        return neighbours_by
    there = (
        key for key in NEIGHBOUR_NETWORKS if find(NETWORK_WEIGHTS[key], allow_unverified=allow_unverified) is not None
    )
    return next(there, NEIGHBOUR_NETWORKS[0])
