"""One pass over one pair of inputs of `brics eval`: every image decoded once, through every network once.

Features of the real side that an earlier run has cached are not computed again; what is left of the real side is read
only for the metrics that still need its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from brics_cli.errors import UsageError
from brics_cli.evaluation import cache
from brics_cli.evaluation.extraction import Extraction, Gathering, SetFeatures, Side
from brics_cli.evaluation.jackknife import NUM_GROUPS
from brics_cli.evaluation.meters import Image, PairMeter, pair_meter, stacked_partners
from brics_cli.evaluation.neighbours import NeighbourSearch
from brics_cli.evaluation.pairing import Pairing
from brics_cli.evaluation.registry import Metric, Settings
from brics_cli.evaluation.selection import Choice
from brics_cli.evaluation.statistics import SavedStatistics
from brics_cli.images import TRANSFORM_VERSIONS, Collection
from brics_cli.images.fingerprints import fingerprint, known_fingerprint
from brics_cli.images.reading import CollectionStream, ImageStream
from brics_cli.images.selection import select_positions
from brics_cli.networks.features import FeatureNetwork, load_network
from brics_cli.networks.perceptual import LpipsFeatures
from brics_cli.runtime.reporting import Reporter

Input = ImageStream | SavedStatistics


@dataclass(frozen=True)
class Machinery:
    """What measuring runs on, and how."""

    device: torch.device
    batch_size: int
    num_workers: int
    pool: ThreadPoolExecutor
    reporter: Reporter
    settings: Settings
    use_cache: bool
    limit: int | None
    num_queries: int
    num_neighbours: int


@dataclass
class Measured:
    """What one pass found. `features` by network and side; `refused`: metric -> why it has no figure."""

    pairs: list[PairMeter] = field(default_factory=list)
    features: dict[tuple[str, Side], SetFeatures] = field(default_factory=dict)
    networks: dict[str, FeatureNetwork] = field(default_factory=dict)
    searches: dict[str, NeighbourSearch] = field(default_factory=dict)
    refused: dict[str, UsageError] = field(default_factory=dict)
    failures: dict[Side, list[tuple[str, str]]] = field(default_factory=dict)
    fingerprints: dict[Side, str] = field(default_factory=dict)
    """Of the images that were measured of a side, where these are a collection's."""
    gatherings: list[Gathering] = field(default_factory=list)

    def close(self) -> None:
        """Remove the feature rows that wait on disk."""
        for gathering in self.gatherings:
            gathering.close()


def measure(
    real: Input, fake: Input, pairing: Pairing, group: Sequence[Metric], choice: Choice, machinery: Machinery
) -> Measured:
    """Read `real` and `fake` once for all metrics of `group`; close what comes back when its rows are done with.

    Raises UsageError for a metric that was asked for and cannot be measured on these images; where metrics were not
    asked for by name it is refused, and the others go on.
    """
    found = Measured()
    plan = _Plan(real, fake, pairing, machinery)
    lpips: dict[str, LpipsFeatures] = {}
    gatherings: dict[tuple[str, Side], Gathering] = {}
    sets = [chosen for chosen in group if chosen.compares == "sets"]
    for key in dict.fromkeys(choice.networks[chosen.name] for chosen in sets):
        assert key is not None
        users = [chosen for chosen in sets if choice.networks[chosen.name] == key]
        network = _load(key, choice, users[0], machinery)
        if isinstance(network, LpipsFeatures):
            lpips[key] = network
        found.networks[key] = network
        search = None
        if any(chosen.family == "neighbours" for chosen in users):
            search = NeighbourSearch(
                num_queries=machinery.num_queries,
                k=machinery.num_neighbours,
                squared=isinstance(network, LpipsFeatures),
            )
            found.searches[key] = search
        for side, source in (("real", real), ("fake", fake)):
            _gather(side, source, network, users, search, plan, found, gatherings)  # type: ignore[arg-type]
    for chosen in group:
        if chosen.compares == "pairs":
            files = [at.path for at in choice.weights[chosen.name]]
            found.pairs.append(
                pair_meter(chosen, weights=files, device=machinery.device, pool=machinery.pool, shared=lpips)
            )
    found.gatherings = list(gatherings.values())
    try:
        extraction = Extraction(gatherings, machinery.pool, strict=choice.asked)
        _pass(plan, extraction, found, choice, machinery, drain=bool(lpips))
        plan.settle(found)
        for (key, side), gathering in gatherings.items():
            if gathering.refused is not None:
                names = [chosen.name for chosen in sets if choice.networks[chosen.name] == key]
                found.refused.update(dict.fromkeys(names, gathering.refused))
                continue
            found.features[key, side] = gathering.result()
            _remember(side, key, gathering, plan, found, machinery)
    except BaseException:
        found.close()
        raise
    return found


class _Plan:
    """Which positions of which stream are read, in which order: partners first, side by side."""

    def __init__(self, real: Input, fake: Input, pairing: Pairing, machinery: Machinery) -> None:
        self.real, self.fake = real, fake
        limit = machinery.limit
        self.num_pairs = len(pairing) if limit is None else min(len(pairing), limit)
        self.pairs = {"real": pairing.real[: self.num_pairs], "fake": pairing.fake[: self.num_pairs]}
        self.all = {
            "real": (pairing.real + pairing.unmatched_real)[:limit],
            "fake": (pairing.fake + pairing.unmatched_fake)[:limit],
        }

        self.cached: Collection | None = None
        """What the cache may hold features of: the real images that are measured."""
        self.fingerprint: str | None = None
        """Of these, as soon as it is known."""
        if machinery.use_cache and isinstance(real, CollectionStream) and self.all["real"]:
            self.cached = select_positions(real.collection, self.all["real"])
            # Features are worth more than a pass over the files, but where there are none the pass would be for
            # nothing: then the fingerprint comes with the features.
            self.fingerprint = known_fingerprint(self.cached)
            if self.fingerprint is None and cache.holds_layout(self.cached.layout):
                self.fingerprint = fingerprint(self.cached, reporter=machinery.reporter)

    def settle(self, found: Measured) -> None:
        """After the pass: what was read is known by its content, and so is what the cache was asked for."""
        sides: tuple[Side, Side] = ("real", "fake")
        for side, source in zip(sides, (self.real, self.fake), strict=True):
            if isinstance(source, CollectionStream) and (read := source.fingerprint_of_read()) is not None:
                found.fingerprints[side] = read
        if any(side == "real" and features.from_cache for (_, side), features in found.features.items()):
            assert self.fingerprint is not None
            found.fingerprints["real"] = self.fingerprint
        elif isinstance(self.real, CollectionStream) and self.real.num_read == len(self.all["real"]):
            self.fingerprint = found.fingerprints.get("real")

    def cache_identity(self, network: FeatureNetwork) -> dict[str, Any] | None:
        """What the real side's features in `network` depend on; None for what is not cached, or not known yet."""
        stream = self.real
        if self.cached is None or self.fingerprint is None or isinstance(network, LpipsFeatures):
            return None
        assert isinstance(stream, CollectionStream)
        name = stream.transform
        return {
            "fingerprint": self.fingerprint,
            "transform": None if name is None else f"{name}/{TRANSFORM_VERSIONS[name]}",
            "size": stream.size,
            "network": network.key,
            "weights": network.weights_sha256,
            "resize": network.resize,
        }


def _load(key: str, choice: Choice, user: Metric, machinery: Machinery) -> FeatureNetwork:
    found = next(iter(choice.weights[user.name]), None)
    path, sha256 = (None, None) if found is None else (found.path, found.sha256)
    network = load_network(key, path, sha256=sha256, device=machinery.device)
    if isinstance(network, LpipsFeatures):
        network.num_remembered = 2 * machinery.batch_size
    return network


def _gather(
    side: Side,
    source: Input,
    network: FeatureNetwork,
    users: Sequence[Metric],
    search: NeighbourSearch | None,
    plan: _Plan,
    found: Measured,
    gatherings: dict[tuple[str, Side], Gathering],
) -> None:
    """Take one side's features in one network from a file or the cache, or have them gathered in the pass."""
    key = network.key
    if isinstance(source, SavedStatistics):
        found.features[key, side] = SetFeatures(source.gaussian, None, source.gaussian.num)
        return
    families = {chosen.family for chosen in users}
    if side == "real" and families == {"inception-score"}:
        return  # it looks at the fake images alone
    of_sets = bool(families - {"neighbours"})
    need_rows = bool(families & {"kernel", "manifold"}) or (side == "fake" and "inception-score" in families)
    identity = plan.cache_identity(network) if side == "real" and search is None else None
    if identity is not None:
        cached = cache.load(identity, need_rows=need_rows)
        if cached is not None:
            found.features[key, side] = SetFeatures(cached.moments, cached.rows, cached.moments.num, from_cache=True)
            found.failures[side] = cached.failures
            return
    listener = None
    if search is not None:
        listener = search.add_fake if side == "fake" else search.add_real
    gatherings[key, side] = Gathering(
        network,
        name_of=lambda position: f"{side} {source.keys[position]}",
        keep_moments=of_sets,
        keep_rows=need_rows,
        num_groups=NUM_GROUPS if side == "fake" and "frechet" in families else 1,
        listener=listener,
    )


def _pass(
    plan: _Plan, extraction: Extraction, found: Measured, choice: Choice, machinery: Machinery, *, drain: bool
) -> None:
    """Read both sides batch by batch; `drain`: networks at once, so that pairs find what they have computed."""
    orders: dict[Side, list[int]] = {}
    sides: tuple[Side, Side] = ("real", "fake")
    for side in sides:
        orders[side] = plan.all[side] if extraction.wants(side) else plan.pairs[side] if found.pairs else []
    batch_size = machinery.batch_size
    if not any(orders.values()):
        return
    with machinery.reporter.task("measure", total=sum(map(len, orders.values())), unit="img") as task:
        real, fake = (
            _batches(source, orders[side]) for side, source in zip(sides, (plan.real, plan.fake), strict=True)
        )
        ahead = []  # the queries of a search must be known before the first real image passes by
        while _lacks_queries(found, extraction) and (batch := next(fake, None)) is not None:
            extraction.add("fake", *batch)
            extraction.drain()
            ahead.append(batch)
        num_ahead, fake = len(ahead), chain(ahead, fake)
        left = plan.num_pairs if found.pairs else 0
        number = 0
        while True:
            real_batch, fake_batch = next(real, None), next(fake, None)
            if real_batch is None and fake_batch is None:
                break
            if left > 0 and real_batch is not None and fake_batch is not None:
                _update_pairs(real_batch[0][:left], fake_batch[0][:left], found, choice)
                left = max(left - batch_size, 0)
            if real_batch is not None:
                extraction.add("real", *real_batch)
            if fake_batch is not None and number >= num_ahead:
                extraction.add("fake", *fake_batch)
            if drain:
                extraction.drain()
            number += 1
            task.advance(sum(len(batch[0]) for batch in (real_batch, fake_batch) if batch is not None))
        extraction.drain()
    for side, source in zip(sides, (plan.real, plan.fake), strict=True):
        if isinstance(source, ImageStream):
            failed = [(failure.key, failure.reason) for failure in source.failures]
            found.failures[side] = list(dict.fromkeys([*found.failures.get(side, []), *failed]))


def _lacks_queries(found: Measured, extraction: Extraction) -> bool:
    return any(
        not search.is_full and extraction.gatherings[key, "fake"].refused is None
        for key, search in found.searches.items()
    )


def _batches(source: Input, order: list[int]) -> Iterator[tuple[list[Image | None], list[int]]]:
    """The images at `order` and where they stand, batch by batch."""
    if isinstance(source, SavedStatistics) or not order:
        return
    start = 0
    for batch in source.read(order):
        yield batch, order[start : start + len(batch)]
        start += len(batch)


def _update_pairs(real: Sequence[Image | None], fake: Sequence[Image | None], found: Measured, choice: Choice) -> None:
    for first, second in stacked_partners(real, fake):
        for pair in list(found.pairs):
            try:
                pair.update(first, second)
            except UsageError as error:  # images that are too small for it
                if choice.asked:
                    raise
                found.refused[pair.metric.name] = error
                found.pairs.remove(pair)


def _remember(side: Side, key: str, gathering: Gathering, plan: _Plan, found: Measured, machinery: Machinery) -> None:
    """Cache the features of the real side for the next run; a cache that cannot be written is only said."""
    identity = plan.cache_identity(gathering.network) if side == "real" else None
    if identity is None or not gathering.moments.num or plan.cached is None:
        return
    try:
        cache.save(
            identity,
            layout=plan.cached.layout,
            description=f"{plan.real.path}: {plan.real.describe()}",
            moments=gathering.moments,
            rows=gathering.rows,
            failures=found.failures.get("real", []),
        )
    except OSError as error:
        machinery.reporter.message(f"the features of {plan.real.path} were not cached: {error}")
