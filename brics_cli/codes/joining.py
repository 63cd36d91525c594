"""Join whole stores into one: the parts `i/n` of one collection, or a collection and what it has grown by. Stores that
are folders are joined to a folder without a copy: it has links to their parts.

The stores must be of one autoencoder, transform and storage; their images must all be different ones. All `n` parts of
one source give the store that one run over it would have given, shard order included; other stores follow one another
as they are named.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.codes.finishing import write_merged
from brics_cli.codes.format import StoreHeader, StoreShard, store_sha256
from brics_cli.codes.parts import ShardRows, open_kept_part, part_path
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.codes.writer import StoreWriter, check_store_output, keeps_parts
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.fingerprints import fingerprint_of_shards
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Parent, open_hdf5
from brics_cli.workspace.artefacts import differences
from brics_cli.workspace.files import atomic_path
from brics_cli.workspace.outputs import output_lock
from brics_cli.workspace.places import reference

_MAY_DIFFER = ("source", "num_images", "selection", "part")
_COUNTED = {"sha256", "num_images", "num_failed", "summary", "sealed", "part"}
"""Details of a store that are counted anew. What was joined is whole."""


@dataclass(frozen=True)
class Join:
    """What the joined store will be: `order` names the store and the shard in it behind each of `shards`.

    `sha256` is of all rows.
    """

    stores: list[KeyCodeStore]
    header: StoreHeader
    shards: list[StoreShard]
    order: list[tuple[KeyCodeStore, int]]
    parents: tuple[Parent, ...]
    details: dict[str, Any]
    sha256: str

    @property
    def num_rows(self) -> int:
        """Rows of the joined store."""
        return sum(len(store) for store in self.stores)


def plan_join(stores: Sequence[KeyCodeStore]) -> Join:
    """Look whether `stores` can be joined, and how.

    One alone is taken when it is a folder, to make one file of it. Raises UsageError for fewer, ArtefactError when they
    differ in what must be the same (saying in what), when one image is in two of them, or when a part of a collection
    is missing.
    """
    if len(stores) < 2 and not any(store.is_folder for store in stores):
        raise UsageError(
            "joining takes at least two stores, or one that is a folder",
            next="Example: brics merge a.h5 b.h5 --out codes.h5",
        )
    for store in stores[1:]:
        differing = differences(_must_agree(stores[0]), _must_agree(store))
        if differing:
            raise ArtefactError(
                f"{store.path} cannot be joined to {stores[0].path}: {'; '.join(differing)}",
                next="Join stores that were encoded alike.",
            )
    _check_keys_differ(stores)
    class_names, is_alone = _class_names(stores), len(stores) == 1
    parts = list(stores) if is_alone else _parts_of_one_source(stores)
    stores = parts or stores
    order = [(store, number) for store in stores for number in range(len(store.shards))]
    if parts:  # shard 0 of every part, then shard 1 of every part: the order of the source
        order.sort(key=lambda shard: shard[1])

    rows = [store.shards[number] for store, number in order]
    names = _unique_names([row["name"] for row in rows])
    shards = [
        StoreShard(name, row["n_in"], row["size"], row["fingerprint"]) for name, row in zip(names, rows, strict=True)
    ]
    header, parents, counted = stores[0].header, stores[0].artefact.parents, _COUNTED
    if is_alone:
        counted = counted - {"part"}
    else:
        num_images = sum(row["n_in"] for row in rows)
        header = replace(header, num_images=num_images, part="", class_names=class_names)
        digests = [row.get("digest", "") for row in rows]
        parents = _parents(stores, shards, digests, is_whole=parts is not None)
    if not parts:  # those have the identity of one run over the source
        hashes = list(dict.fromkeys(store.source_sha256 for store in stores))
        header = replace(
            header,
            source=" + ".join(dict.fromkeys(store.source for store in stores)),
            source_sha256=hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
            selection=hashlib.sha256(json.dumps([store.sha256 for store in stores]).encode()).hexdigest(),
        )
    details = {name: value for name, value in stores[0].artefact.details.items() if name not in counted}
    sha256 = store_sha256(row["sha256"] for row in rows)
    return Join(list(stores), header, shards, order, parents, details, sha256)


def write_join(join: Join, path: Path, *, overwrite: bool = False, reporter: Reporter) -> Artefact | None:
    """Write the joined store, a file or a folder; None when `path` is that store already.

    Raises UsageError for a folder when some of the stores are files, ArtefactError or WouldOverwriteError when
    something else is there, MachineError while another process writes it, ArtefactError when rows are not those that
    were once written; those of a folder are not read.
    """
    kind = join.stores[0].artefact.kind
    if keeps_parts(path):
        if files := [store.path for store in join.stores if not store.is_folder]:
            raise UsageError(
                f"--out {path} is a folder of parts, and {files[0]} is one file",
                next="Give a file, e.g. --out codes.h5, or encode into a folder.",
            )
        with StoreWriter(path, join.header, join.shards, overwrite=overwrite, kind=kind) as writer:
            if writer.complete:
                _check_same(path, join)
                return None
            for number in writer.pending:
                store, of_store = join.order[number]
                _link(store.part_paths[of_store], part_path(writer.parts_directory, join.shards[number]))
            return writer.merge(parents=join.parents, details=join.details, reporter=reporter)
    with output_lock(path):
        inputs = [store.path for store in join.stores]
        if check_store_output(path, join.header, join.shards, overwrite=overwrite, inputs=inputs):
            _check_same(path, join)
            return None
        return write_merged(
            path, join.header, join.shards, partial(_open_shard, join),
            kind=kind, parents=join.parents, details=join.details, reporter=reporter,
        )  # fmt: skip


def _check_same(path: Path, join: Join) -> None:
    if KeyCodeStore(path).sha256 != join.sha256:  # parts of one collection have its name, whatever was in it
        raise ArtefactError(
            f"{path} was joined from other codes of the same collection",
            next="Give another --out, or --overwrite to join these.",
        )


def _link(part: Path, to: Path) -> None:
    """The same file under another name, or a copy where the file system has no such links, or is another."""
    with atomic_path(to) as temporary:
        try:
            temporary.hardlink_to(part)
        except OSError:
            shutil.copyfile(part, temporary)


@contextmanager
def _open_shard(join: Join, shard_index: int) -> Iterator[ShardRows]:
    """The rows of one shard of the stores. They are read, not mapped: a merge must not fill the page tables."""
    store, number = join.order[shard_index]
    if store.is_folder:
        with open_kept_part(store, number) as rows:
            yield rows
        return
    shard, advice = store.shards[number], f"See: brics info {store.path} --verify"
    failures = store.failures_by_shard.get(shard["name"], [])
    with ExitStack() as stack:
        try:
            file, what = stack.enter_context(open_hdf5(store.path)), f"shard {shard['name']} of {store.path}"
            start = store.shard_starts[number]
            rows = ShardRows(file, shard, what=what, advice=advice, failures=failures, start=start)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtefactError(f"{store.path} cannot be read ({error})", next=advice) from None
        yield rows


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
            f"the image {keys[one].decode()!r} is in {stores[owner[one]].path} and in {stores[owner[other]].path}"
            if owner[one] != owner[other]
            else f"the image {keys[one].decode()!r} is twice in {stores[owner[one]].path}",
            next="An image can be in a store once: leave one store out, or pack one collection under other names.",
        )


def _class_names(stores: Sequence[KeyCodeStore]) -> tuple[str, ...]:
    """The names of classes that hold in all stores: those without labels, or whose labels have no names, have none.

    Raises ArtefactError when a label means two classes.
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
    by_source: dict[tuple[Any, ...], dict[int, list[KeyCodeStore]]] = {}
    for store in stores:
        number, _, num_parts = str(store.identity.get("part", "")).partition("/")
        if number:
            source = (store.identity["source"], store.identity.get("selection"), int(num_parts))
            by_source.setdefault(source, {}).setdefault(int(number), []).append(store)
    for (_, _, num_parts), parts in by_source.items():
        missing = sorted({*range(1, num_parts + 1)} - {*parts})
        if missing:
            path = next(iter(parts.values()))[0].source
            raise ArtefactError(
                f"of the parts of {path} these are missing: "
                + ", ".join(f"{number}/{num_parts}" for number in missing[:5]),
                next=f"Encode them: brics encode-dataset {path} --part {missing[0]}/{num_parts}",
            )
    ordered = [store for parts in by_source.values() for number in sorted(parts) for store in parts[number]]
    return ordered if len(by_source) == 1 and len(ordered) == len(stores) else None


def _unique_names(names: Sequence[str]) -> list[str]:
    """Shard names, a second `00000` as `00000~2`."""
    unique: dict[str, None] = {}
    for name in names:
        candidate, number = name, 2
        while candidate in unique:
            candidate, number = f"{name}~{number}", number + 1
        unique[candidate] = None
    return list(unique)


def _parents(
    stores: Sequence[KeyCodeStore], shards: Sequence[StoreShard], digests: Sequence[str], *, is_whole: bool
) -> tuple[Parent, ...]:
    """The autoencoder, then every collection once, then, unless they were parts of one, the stores.

    Parts have each read some of their collection: where the digests of all shards are known, it is the whole.
    """
    found: dict[tuple[str, str], Parent] = {}
    for store in stores:
        for parent in store.artefact.parents:
            if parent.kind != "store":
                found.setdefault((parent.kind, parent.sha256), parent)
    parents = sorted(found.values(), key=lambda parent: parent.kind != "autoencoder")
    if not is_whole:
        return (*parents, *(Parent("store", reference(store.path), store.sha256) for store in stores))
    collections = [parent for parent in parents if parent.kind == "collection"]
    if all(digests) and collections:
        named = zip(shards, digests, strict=True)
        fingerprint = fingerprint_of_shards((shard.name, digest, shard.num_images) for shard, digest in named)
        others = [parent for parent in parents if parent.kind != "collection"]
        parents = [*others, replace(collections[0], sha256=fingerprint)]
    return tuple(parents)
