"""The pass over one pair of sides: every image is decoded once and goes through every network once.

Moments are gathered as the features come; rows wait on disk only where a metric needs them. Features of the real side
that an earlier run has cached are not computed again; what is left of that side is read only for what still needs it.
Images are resized ahead of the batch in the network (`Extraction`), and gathered as their features come (`Gathering`).
B images per batch, D features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brics_cli.errors import MachineError, UsageError
from brics_cli.evaluation import cache
from brics_cli.evaluation.family import SIDES, Context, Family, Needs, SetFeatures, Side, family_of
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.evaluation.pairing import Pairing
from brics_cli.evaluation.rows import RowSource, SpooledRows
from brics_cli.evaluation.selection import Chosen
from brics_cli.evaluation.statistics import SavedStatistics
from brics_cli.images import versioned
from brics_cli.images.fingerprints import fingerprint, known_fingerprint
from brics_cli.images.loader import CollectionStream, ImageStream, say_multi_frame
from brics_cli.images.selection import select_positions
from brics_cli.networks.features import FeatureNetwork, Image, Prepared
from brics_cli.runtime.reporting import Reporter

Input = ImageStream | SavedStatistics

# Batches that are resized ahead of the one in the network: enough to keep the pool busy, few enough to hold.
NUM_AHEAD = 2


class Gathering:
    """The features of one side in one network, as they come in."""

    def __init__(
        self,
        network: FeatureNetwork,
        side: Side,
        keys: Sequence[str],
        *,
        needs: Sequence[Needs],
        hearers: Sequence[Family] = (),
    ) -> None:
        """`needs`: of all families; `hearers`: those that are handed every batch."""
        self.network, self.side, self.hearers = network, side, hearers
        self._keys = keys
        num_groups = max(each.num_groups for each in needs)
        kept = any(not each.batches for each in needs)
        self.moments = FeatureMoments(network.num_features, num_groups=num_groups) if kept else None
        self.rows = SpooledRows(network.num_features) if any(each.rows for each in needs) else None
        self.refused: UsageError | None = None
        """Why these images cannot go through this network; set when the pass is not strict."""

    def add(self, prepared: Sequence[Prepared], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Run one batch of prepared images through the network. Raises MachineError for features not finite."""
        features = self.network.of_prepared(prepared)  # (B, D)
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise MachineError(
                f"{self.network.name} gave features that are not finite for {len(bad):,} of {len(features):,} images, "
                f"first {self.side} {self._keys[positions[bad[0]]]}",
                next="Check its weights: brics weights verify",
            )
        self.take(features, positions, images)

    def take(self, features: NDArray[np.float32], positions: Sequence[int], images: Sequence[Image]) -> None:
        """Take the features (B, D) of one batch."""
        if self.moments is not None:
            self.moments.update(features)
        if self.rows is not None:
            self.rows.append(features, list(positions))
        for family in self.hearers:
            family.add(self.side, features, positions, images)


class Extraction:
    """Images of either side go in batch by batch; the gatherings of that side get their features, two batches later."""

    def __init__(self, gatherings: Sequence[Gathering], context: Context, *, strict: bool) -> None:
        """`strict`: images that a network cannot take raise UsageError; else that network is left alone from then."""
        self.gatherings, self._pool, self._strict = gatherings, context.pool, strict
        self._waiting: deque[list[tuple[Gathering, list[Future[Prepared]], list[int], list[Image]]]] = deque()

    def wants(self, side: Side) -> bool:
        """Whether any network still needs the images of `side`."""
        return any(gathering.side == side for gathering in self.gatherings)

    def add(self, side: Side, images: Sequence[Image | None], positions: Sequence[int]) -> None:
        """Take the images (None: could not be read) of `side` that stand at `positions` of their source."""
        places = [position for image, position in zip(images, positions, strict=True) if image is not None]
        pixels = [image for image in images if image is not None]
        if pixels:
            self._waiting.append(
                [
                    (gathering, gathering.network.submit(pixels, self._pool), places, pixels)
                    for gathering in self.gatherings
                    if gathering.side == side and gathering.refused is None
                ]
            )
        self.drain(NUM_AHEAD)

    def drain(self, num_left: int = 0) -> None:
        """Run what was handed in, but for the newest `num_left` batches."""
        while len(self._waiting) > num_left:
            for gathering, futures, places, pixels in self._waiting.popleft():
                if gathering.refused is not None:
                    continue
                try:
                    gathering.add([future.result() for future in futures], places, pixels)
                except UsageError as error:
                    if self._strict:
                        raise
                    gathering.refused = error


def batches_of(source: Input, order: Sequence[int]) -> Iterator[tuple[list[Image | None], Sequence[int]]]:
    """The images at `order` and where they stand, batch by batch."""
    start = 0
    for batch in source.read(order) if order else ():
        yield batch, order[start : start + len(batch)]
        start += len(batch)


class _Reference:
    """The cached features of the images at `positions` of a collection, in any network."""

    def __init__(self, stream: CollectionStream, positions: Sequence[int], *, reporter: Reporter) -> None:
        self.stream = stream
        self.images = select_positions(stream.collection, positions)
        # Features are worth more than a pass over the files, but where there are none the pass would be for nothing:
        # then the fingerprint comes with the features.
        self.fingerprint = known_fingerprint(self.images)
        if self.fingerprint is None and cache.holds_layout(self.images.layout):
            self.fingerprint = fingerprint(self.images, reporter=reporter)

    def load(self, network: FeatureNetwork, *, need_rows: bool) -> cache.CachedFeatures | None:
        """The features in `network`; None when they are not there."""
        return None if self.fingerprint is None else cache.load(self._identity(network), need_rows=need_rows)

    def save(
        self, network: FeatureNetwork, moments: FeatureMoments, rows: RowSource | None, failures: list[tuple[str, str]]
    ) -> None:
        """Keep features, unless what they are of is not known. Raises OSError when the cache cannot be written."""
        if self.fingerprint is not None:
            description = f"{self.stream.path}: {self.stream.describe()}"
            identity, layout = self._identity(network), self.images.layout
            cache.save(identity, layout=layout, description=description, moments=moments, rows=rows, failures=failures)

    def _identity(self, network: FeatureNetwork) -> dict[str, Any]:
        transform = self.stream.transform
        return {
            "fingerprint": self.fingerprint,
            "transform": None if transform is None else versioned(transform),
            "size": self.stream.size,
            "network": network.key,
            "weights": network.weights_sha256,
            "resize": network.resize,
        }


class Measurement:
    """The families that measure `chosen` on `sides`, and what one pass over these hands them.

    `networks` are loaded, by their names. `strict`: a metric that cannot be measured on these images raises
    UsageError; otherwise it is refused, and the others go on. `close` it in any case (contextlib.closing).
    """

    def __init__(
        self,
        sides: Mapping[Side, Input],
        pairing: Pairing,
        chosen: Sequence[Chosen],
        networks: Mapping[str, FeatureNetwork],
        context: Context,
        *,
        strict: bool = True,
    ) -> None:
        self.sides, self.chosen, self.networks, self.context = sides, chosen, networks, context
        self.strict = strict
        self.families: dict[tuple[str, str | None], Family] = {}
        for each in chosen:
            key = each.metric.family, each.network
            if key not in self.families:
                family = family_of(each.metric)
                self.families[key] = family(context, networks.get(each.network or ""), sides)
        self.measured_pairs: list[int] = []
        """Where the fake images of all pairs stand in their source, in the order of the values of a PairFamily."""
        self.refused: dict[str, UsageError] = {}
        """Metric -> why it has no figure."""
        self.failures: dict[Side, list[tuple[str, str]]] = {}
        """Key and reason of every image that could not be read."""
        self.fingerprints: dict[Side, str] = {}
        """Of the images that were measured of a side, where these are a collection's."""
        self.from_cache: list[str] = []
        """The networks whose features of the real side were cached."""

        # Partners come first, side by side, then everything without a partner.
        limit = context.limit
        self._paired = {"real": pairing.real[:limit], "fake": pairing.fake[:limit]}
        self._order: dict[Side, list[int]] = {
            "real": (pairing.real + pairing.unmatched_real)[:limit],
            "fake": (pairing.fake + pairing.unmatched_fake)[:limit],
        }
        real = sides["real"]
        self._reference: _Reference | None = None
        if context.use_cache and isinstance(real, CollectionStream) and self._order["real"]:
            self._reference = _Reference(real, self._order["real"], reporter=context.reporter)
        self._features: dict[tuple[str, Side], SetFeatures] = {}
        self._gatherings: dict[tuple[str, Side], Gathering] = {}

    def family(self, chosen: Chosen) -> Family:
        """What measures `chosen`. Raises UsageError when it was refused."""
        if chosen.name in self.refused:
            raise self.refused[chosen.name]
        return self.families[chosen.metric.family, chosen.network]

    def run(self) -> None:
        """Read what must be read, and hand every family what it needs."""
        for network in self.networks:
            for side in SIDES:
                self._prepare(network, side)
        self._read_on_cluster()
        self._read()
        self._note_failures()
        self._know_fingerprints()
        for (network, side), gathering in self._gatherings.items():
            if gathering.refused is not None:
                users = (each for each in self.chosen if each.network == network and each.metric.compares == "sets")
                self.refused.update({each.name: gathering.refused for each in users})
            elif gathering.moments is not None:
                self._features[network, side] = SetFeatures(gathering.moments, gathering.rows)
                if side == "real":
                    self._remember(gathering)
        for (_, of), family in self.families.items():
            for side in SIDES:
                features, needs = self._features.get((of or "", side)), family.needs(side)
                if features is not None and needs is not None and not needs.batches:
                    family.add(side, features)

    def close(self) -> None:
        """Remove the feature rows that wait on disk."""
        for gathering in self._gatherings.values():
            if gathering.rows is not None:
                gathering.rows.close()

    def _prepare(self, network: str, side: Side) -> None:
        """Take one side's features in one network from a file or the cache, or have them gathered in the pass."""
        source = self.sides[side]
        wants = [(family, family.needs(side)) for (_, of), family in self.families.items() if of == network]
        needs = [need for _, need in wants if need is not None]
        hearers = [family for family, need in wants if need is not None and need.batches]
        if not needs:
            return
        if isinstance(source, SavedStatistics):
            self._features[network, side] = SetFeatures(source.gaussian)
            return
        if side == "real" and self._reference is not None and not hearers:
            cached = self._reference.load(self.networks[network], need_rows=any(need.rows for need in needs))
            if cached is not None:
                self._features[network, side] = SetFeatures(cached.moments, cached.rows)
                self.failures[side] = cached.failures
                self.from_cache.append(network)
                return
        self._gatherings[network, side] = Gathering(
            self.networks[network], side, source.keys, needs=needs, hearers=hearers
        )

    def _read_on_cluster(self) -> None:
        """Have the workers of the cluster compute the features that no family wants to see as they pass."""
        if self.context.executor is None:
            return
        elsewhere = [each for each in self._gatherings.values() if not each.hearers]
        for name in {each.network.name for each in self._gatherings.values() if each.hearers}:
            self.context.reporter.message(f"{name} runs here: nearest neighbours are looked up as its features pass")
        if elsewhere:
            files = dict.fromkeys(self.networks)
            files |= {each.network: each.weights.path for each in self.chosen if each.network and each.weights}
            streams = {side: source for side, source in self.sides.items() if not isinstance(source, SavedStatistics)}
            from brics_cli.evaluation.on_cluster import extract_on_cluster

            extract_on_cluster(elsewhere, streams, self._order, files, self.context, strict=self.strict)

    def _read(self) -> None:
        """Read both sides batch by batch."""
        batch_size = self.context.batch_size
        here = [each for each in self._gatherings.values() if self.context.executor is None or each.hearers]
        extraction = Extraction(here, self.context, strict=self.strict)
        pairs: dict[Family, list[Chosen]] = {}
        for each in self.chosen:
            if each.metric.compares == "pairs":
                pairs.setdefault(self.families[each.metric.family, each.network], []).append(each)
        orders = {
            side: self._order[side] if extraction.wants(side) else self._paired[side] if pairs else [] for side in SIDES
        }
        codes_alone = not extraction.wants("fake") and all(family.of_codes for family in pairs)
        if codes_alone:  # nobody looks at what they are decoded to
            orders["fake"] = []
        total = sum(map(len, orders.values()))
        if not total:
            return
        # A network of pairs that hears of batches, too, runs at once, so that pairs find what it has computed.
        of_pairs = {each.network for chosen in pairs.values() for each in chosen}
        shared = of_pairs & {network for network, _ in self._gatherings}
        for network in shared:
            self.networks[network or ""].num_remembered = 2 * batch_size
        with self.context.reporter.task("measure", total=total, unit="img") as task:
            real, fake = (batches_of(self.sides[side], orders[side]) for side in SIDES)
            ahead = []
            while self._lacks_fake() and (batch := next(fake, None)) is not None:
                extraction.add("fake", *batch)
                extraction.drain()
                ahead.append(batch)
            left = len(self._paired["real"]) if pairs else 0
            for number, (of_real, of_fake) in enumerate(zip_longest(real, chain(ahead, fake))):
                if left > 0 and of_real is not None and (codes_alone or of_fake is not None):
                    made = of_real[0] if of_fake is None else of_fake[0]
                    positions = self._paired["fake"][number * batch_size :]
                    self._add_pairs(of_real[0][:left], made[:left], positions, pairs)
                    left -= batch_size
                if of_real is not None:
                    extraction.add("real", *of_real)
                if of_fake is not None and number >= len(ahead):
                    extraction.add("fake", *of_fake)
                if shared:
                    extraction.drain()
                task.advance(sum(len(batch[0]) for batch in (of_real, of_fake) if batch is not None))
            extraction.drain()

    def _note_failures(self) -> None:
        """Of what was read, what could not be, and what was read in part."""
        for side, source in self.sides.items():
            failed = [(failure.key, failure.reason) for failure in source.failures]
            self.failures[side] = list(dict.fromkeys([*self.failures.get(side, []), *failed]))
            if isinstance(source, CollectionStream):
                say_multi_frame(self.context.reporter, len(source.multi_frame), source.num_read)

    def _lacks_fake(self) -> bool:
        gathered = (gathering for gathering in self._gatherings.values() if gathering.refused is None)
        return any(family.wants_fake_first for gathering in gathered for family in gathering.hearers)

    def _add_pairs(
        self,
        real: Sequence[Image | None],
        fake: Sequence[Image | None],
        places: Sequence[int],
        pairs: dict[Family, list[Chosen]],
    ) -> None:
        for *partners, rows in stacked_partners(real, fake):
            positions = [places[row] for row in rows]
            self.measured_pairs += positions
            for family, chosen in list(pairs.items()):
                try:
                    if family.of_codes:
                        family.add(partners[0], positions)
                    else:
                        family.add(*partners)
                except UsageError as error:  # images that are too small for it
                    if self.strict:
                        raise
                    self.refused.update({each.name: error for each in chosen})
                    del pairs[family]

    def _know_fingerprints(self) -> None:
        """What was read is known by its content, and so is what the cache was asked for."""
        for side, source in self.sides.items():
            if isinstance(source, CollectionStream) and (read := source.fingerprint_of_read()) is not None:
                self.fingerprints[side] = read
        if self._reference is not None:
            if self.from_cache:
                assert self._reference.fingerprint is not None
                self.fingerprints["real"] = self._reference.fingerprint
            elif self._reference.stream.num_read == len(self._order["real"]):
                self._reference.fingerprint = self.fingerprints.get("real")

    def _remember(self, gathering: Gathering) -> None:
        """Cache the features of the real side for the next run; a cache that cannot be written is only said."""
        if self._reference is None or gathering.moments is None or not gathering.moments.num:
            return
        try:
            failures = self.failures.get("real", [])
            self._reference.save(gathering.network, gathering.moments, gathering.rows, failures)
        except OSError as error:
            self.context.reporter.message(f"the features of {self.sides['real'].path} were not cached: {error}")


def stacked_partners(
    real: Sequence[Image | None], fake: Sequence[Image | None]
) -> Iterator[tuple[Image, Image, list[int]]]:
    """Partners that could both be read, stacked to (N, H, W, 3), and their rows (N), for each size of image.

    Raises UsageError when partners differ in size.
    """
    by_shape: dict[tuple[int, ...], list[tuple[Image, Image, int]]] = {}
    for row, (first, second) in enumerate(zip(real, fake, strict=True)):
        if first is None or second is None:
            continue
        if first.shape != second.shape:
            raise UsageError(
                f"the images differ in size: real {first.shape[1]} x {first.shape[0]}, "
                f"fake {second.shape[1]} x {second.shape[0]}",
                next=f"Make the originals squares of the same size: brics pack REAL --out DIR --size {second.shape[0]}",
            )
        by_shape.setdefault(first.shape, []).append((first, second, row))
    for members in by_shape.values():
        of_real, of_fake, rows = zip(*members, strict=True)
        yield np.stack(of_real), np.stack(of_fake), list(rows)
