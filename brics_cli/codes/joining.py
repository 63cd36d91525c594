"""Join whole stores into one: the parts `i/n` of one collection, or a collection and what it has grown by.

The stores must be of one autoencoder, transform and storage; their images must all be different ones. All `n` parts of
one source give the store that one run over it would have given, shard order included; other stores follow one another
as they are named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.codes.format import StoreHeader, StoreShard, store_sha256
from brics_cli.codes.merging import write_merged
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.codes.rows import StoreRows
from brics_cli.codes.writer import check_store_output, put_in_place
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Parent, hold_lock, open_hdf5
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.differences import differences
from brics_cli.workspace.fingerprints import fingerprint_of_shards

_MAY_DIFFER = ("source", "num_images", "selection", "part")


@dataclass(frozen=True)
class Join:
    """What the joined store will be: `order` names the store and the shard in it behind each of `shards`."""

    stores: list[KeyCodeStore]
    header: StoreHeader
    shards: list[StoreShard]
    order: list[tuple[int, int]]
    parents: tuple[Parent, ...]
    details: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    """Of all rows."""

    @property
    def num_rows(self) -> int:
        """Rows of the joined store."""
        return sum(len(store) for store in self.stores)


def plan_join(stores: Sequence[KeyCodeStore]) -> Join:
    """Look whether `stores` can be joined, and how.

    Raises UsageError for fewer than two, ArtefactError when they differ in what must be the same (saying in what),
    when one image is in two of them, or when a part of a collection is missing.
    """
    if len(stores) < 2:
        raise UsageError("joining takes at least two stores", next="Example: brics merge a.h5 b.h5 --out codes.h5")
    first = stores[0]
    for store in stores[1:]:
        differing = differences(_must_agree(first), _must_agree(store))
        if differing:
            raise ArtefactError(
                f"{store.path} cannot be joined to {first.path}: {'; '.join(differing)}",
                next="Join stores that were encoded alike.",
            )
    _check_keys_differ(stores)
    class_names = _class_names(stores)
    whole = _parts_of_one_source(stores)
    ordered = list(stores) if whole is None else whole
    order = _interleaved(ordered) if whole is not None else _one_after_another(ordered)
    rows = [ordered[store].shards[number] for store, number in order]
    names = _unique_names([row["name"] for row in rows])
    shards = [
        StoreShard(name, row["n_in"], row["size"], row["fingerprint"]) for name, row in zip(names, rows, strict=True)
    ]
    header = replace(
        _header(ordered, num_images=sum(row["n_in"] for row in rows), is_whole=whole is not None),
        class_names=class_names,
    )
    parents = _parents(ordered, is_whole=whole is not None)
    digests = [row.get("digest", "") for row in rows]
    if whole is not None and all(digests):
        parents = _of_whole(parents, shards, digests)
    sha256 = store_sha256(row["sha256"] for row in rows)
    return Join(ordered, header, shards, order, parents, _details(ordered[0]), sha256)


def write_join(join: Join, path: Path, *, overwrite: bool = False, reporter: Reporter) -> Artefact | None:
    """Write the joined store; None when `path` is that store already.

    Raises ArtefactError or WouldOverwriteError when something else is there, MachineError while another process
    writes it, ArtefactError when rows are not those that were once written.
    """
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(path.with_name(f".{path.name}.lock"), what=str(path)):
        inputs = [store.path for store in join.stores]
        if check_store_output(path, join.header, shards=join.shards, overwrite=overwrite, inputs=inputs):
            if KeyCodeStore(path).sha256 != join.sha256:  # parts of one collection have its name, whatever was in it
                raise ArtefactError(
                    f"{path} was joined from other codes of the same collection",
                    next="Give another --out, or --overwrite to join these.",
                )
            return None
        artefact = Artefact(join.stores[0].artefact.kind, path, now(), False, join.parents, dict(join.details))
        try:
            with reporter.task("merge", total=join.num_rows, unit="img") as task:
                artefact = write_merged(
                    temporary, join.header, join.shards, partial(_open_shard, join), artefact=artefact, task=task
                )
            put_in_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return artefact


def _must_agree(store: KeyCodeStore) -> dict[str, Any]:
    kept = {name: value for name, value in store.identity.items() if name not in _MAY_DIFFER}
    return {**kept, "code_kind": store.code_kind, "kind": store.artefact.kind}


def _check_keys_differ(stores: Sequence[KeyCodeStore]) -> None:
    """Sorted bytes, not a set of texts: a store may have tens of millions of keys."""
    keys = np.concatenate([store.key_bytes() for store in stores])
    owner = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
    order = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    if len(twice):
        one, other = order[twice[0]], order[twice[0] + 1]
        raise ArtefactError(
            f"the image {keys[one].decode()!r} is in {stores[owner[one]].path} and in {stores[owner[other]].path}",
            next="An image can be in a store once: leave one store out, or pack one collection under other names.",
        )


def _class_names(stores: Sequence[KeyCodeStore]) -> tuple[str, ...]:
    """The names of classes that hold in all stores: those without labels, or whose labels have no names, have none.

    Raises ArtefactError when a label stands for two classes.
    """
    longest = max(stores, key=lambda store: len(store.class_names))
    for store in stores:
        for number, (one, other) in enumerate(zip(longest.class_names, store.class_names, strict=False)):
            if one != other:
                raise ArtefactError(
                    f"class {number} is {one!r} in {longest.path} and {other!r} in {store.path}",
                    next="Encode them from collections that number their classes alike.",
                )
        largest = int(store.labels.max(initial=-1))
        if longest.class_names and (largest >= len(longest.class_names) or (largest >= 0 and not store.class_names)):
            raise ArtefactError(
                f"the classes of {longest.path} have names, and those of {store.path} are numbers up to {largest}",
                next="Encode both again from collections that name their classes alike.",
            )
    return longest.class_names


def _parts_of_one_source(stores: Sequence[KeyCodeStore]) -> list[KeyCodeStore] | None:
    """The stores in order of their parts when they are all those of one source; None when they are no such parts."""
    by_source: dict[tuple[Any, ...], list[KeyCodeStore]] = {}
    for store in stores:
        if part := store.identity.get("part"):
            source = (store.identity["source"], store.identity.get("selection"), part.partition("/")[2])
            by_source.setdefault(source, []).append(store)
    for (_, _, num_parts), parts in by_source.items():
        there = {int(store.identity["part"].partition("/")[0]) for store in parts}
        missing = sorted(set(range(1, int(num_parts) + 1)) - there)
        if missing:
            listed = ", ".join(f"{number}/{num_parts}" for number in missing[:5])
            raise ArtefactError(
                f"of the parts of {parts[0].source} these are missing: {listed}",
                next=f"Encode them: brics encode-dataset {parts[0].source} --part {missing[0]}/{num_parts}",
            )
    if len(by_source) != 1 or sum(map(len, by_source.values())) != len(stores):
        return None
    return sorted(stores, key=lambda store: int(store.identity["part"].partition("/")[0]))


def _one_after_another(stores: Sequence[KeyCodeStore]) -> list[tuple[int, int]]:
    return [(index, number) for index, store in enumerate(stores) for number in range(len(store.shards))]


def _interleaved(stores: Sequence[KeyCodeStore]) -> list[tuple[int, int]]:
    """Shard 0 of every part, then shard 1 of every part: the order of the source."""
    longest = max(len(store.shards) for store in stores)
    return [
        (index, number) for number in range(longest) for index, store in enumerate(stores) if number < len(store.shards)
    ]


def _unique_names(names: Sequence[str]) -> list[str]:
    """Shard names, a second `00000` as `00000~2`."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}~{number}", number + 1
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _header(stores: Sequence[KeyCodeStore], *, num_images: int, is_whole: bool) -> StoreHeader:
    header = replace(stores[0].header, num_images=num_images, part="")
    if is_whole:  # the same identity as that of one run over the source
        return header
    sources = list(dict.fromkeys(store.source for store in stores))
    hashes = list(dict.fromkeys(store.source_sha256 for store in stores))
    joined = json.dumps([store.sha256 for store in stores])
    return replace(
        header,
        source=" + ".join(sources),
        source_sha256=hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        selection=hashlib.sha256(joined.encode()).hexdigest(),
    )


def _parents(stores: Sequence[KeyCodeStore], *, is_whole: bool) -> tuple[Parent, ...]:
    """The autoencoder, then every collection once, then, unless they were parts of one, the stores."""
    parents: dict[tuple[str, str], Parent] = {}
    for store in stores:
        for parent in store.artefact.parents:
            if parent.kind != "store":
                parents.setdefault((parent.kind, parent.sha256), parent)
    ordered = sorted(parents.values(), key=lambda parent: parent.kind != "autoencoder")
    joined = [] if is_whole else [Parent("store", str(store.path.resolve()), store.sha256) for store in stores]
    return (*ordered, *joined)


def _of_whole(parents: Sequence[Parent], shards: Sequence[StoreShard], digests: Sequence[str]) -> tuple[Parent, ...]:
    """`parents` with one collection, the whole, in place of those that each part has read of it."""
    named = zip(shards, digests, strict=True)
    fingerprint = fingerprint_of_shards((shard.name, digest, shard.num_images) for shard, digest in named)
    first = next((parent for parent in parents if parent.kind == "collection"), None)
    others = [parent for parent in parents if parent.kind != "collection"]
    return (*others, *([] if first is None else [replace(first, sha256=fingerprint)]))


def _details(store: KeyCodeStore) -> dict[str, Any]:
    counted = ("sha256", "num_images", "num_failed", "summary", "sealed")
    return {name: value for name, value in store.artefact.details.items() if name not in counted}


@contextmanager
def _open_shard(join: Join, shard_index: int) -> Iterator[StoreRows]:
    store_index, number = join.order[shard_index]
    store = join.stores[store_index]
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_hdf5(store.path))
            rows = StoreRows(store, file, number)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtefactError(
                f"{store.path} cannot be read ({error})", next=f"See: brics info {store.path} --verify"
            ) from None
        yield rows
