"""Write a key-code store so that a `kill -9` at any moment loses at most one shard and repeats nothing.

One part per shard (`parts`), then a merge: everything is checked and copied to `codes.h5.tmp`, fsynced, renamed, and
the parts are removed. In a store that is a folder they stay as they are, and an index is written. A run that finds
parts goes on with the missing ones; parts of anything else are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Self

from brics_cli.codes.finishing import write_index, write_merged
from brics_cli.codes.format import StoreHeader, StoreShard
from brics_cli.codes.parts import PartWriter, ShardRows, open_part, part_mismatch, part_path, write_part
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.errors import ArtefactError, UsageError, WouldOverwriteError
from brics_cli.parsing import parse_json
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.workspace import Artefact, Kind, Parent, check_output, hold_lock, open_hdf5, write_json_atomically
from brics_cli.workspace.artefacts import differences
from brics_cli.workspace.files import fsync, read_json, remove_leftovers
from brics_cli.workspace.hdf5 import MOST_AT_ONCE, look_ahead
from brics_cli.workspace.naming import FOLDER, IDENTITY_NAME, INDEX_NAME, PARTS_FOLDER, ending_of, store_file
from brics_cli.workspace.outputs import holds_nothing_but, output_lock


@dataclass
class StoreWriter:
    """Write the store `path` inside a `with` block, holding its lock: a file `*.h5`, or a folder that keeps the parts.

    `complete` says that it is there already, made from the same inputs: nothing to do. Otherwise `pending` are the
    shards without a part; write each with `part(i)`, then call `merge`. `overwrite` replaces another store (at the
    merge: until then the old one stays; a folder is emptied first) and throws away parts of another one.

    Raises on entry: WouldOverwriteError (`path` is no store), ArtefactError (a store or parts of other inputs, with
    what differs), MachineError (another process is writing it), UsageError (a file is to go where a folder is).

    `kind` is that of the artefact: `store`, or `samples` for codes that were sampled and not encoded.
    """

    path: Path
    header: StoreHeader
    shards: Sequence[StoreShard]
    _: KW_ONLY
    overwrite: bool = False
    kind: Kind = "store"
    complete: bool = field(default=False, init=False)
    redone: list[str] = field(default_factory=list, init=False)
    """Parts that were damaged and will be written again, each with the reason."""
    _stack: ExitStack = field(default_factory=ExitStack, init=False)
    _attributes: dict[int, dict[str, Any]] = field(default_factory=dict, init=False)

    @property
    def keeps_parts(self) -> bool:
        """Whether the store is a folder of its parts, rather than one file."""
        return keeps_parts(self.path)

    @property
    def parts_directory(self) -> Path:
        """Where parts are written, by other processes too while this one holds the lock."""
        return self.path / PARTS_FOLDER if self.keeps_parts else self.path.with_name(self.path.name + ".parts")

    def __enter__(self) -> Self:
        if self.path.is_dir() and not self.keeps_parts:
            raise UsageError(f"--out {self.path} is a folder", next="Give a file, e.g. codes.h5.")
        self.complete = self._is_complete()
        if self.complete and (self.keeps_parts or not self.parts_directory.exists()):
            return self
        with ExitStack() as stack:
            stack.enter_context(self._lock())
            # again, now that nobody else is writing: who held the lock until now may have finished the store
            self.complete = self._is_complete()
            if not self.complete:
                self._claim_parts()
            elif not self.keeps_parts:  # killed between the last rename and the removal of the parts
                shutil.rmtree(self.parts_directory)
            self._stack = stack.pop_all()
        return self

    def _lock(self) -> AbstractContextManager[None]:
        if self.keeps_parts:
            return output_lock(self.path)
        return hold_lock(self.parts_directory / ".lock", what=str(self.path))

    def __exit__(self, *error: object) -> None:
        self._remove_leftovers()
        self._stack.close()

    def _is_complete(self) -> bool:
        inputs = [self.header.source]
        return check_store_output(self.path, self.header, self.shards, overwrite=self.overwrite, inputs=inputs)

    def _remove_leftovers(self) -> None:
        """Remove the beginnings of parts whose writer was killed."""
        for leftover in self.parts_directory.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if self.keeps_parts:
            remove_leftovers(self.path, INDEX_NAME)

    def _claim_parts(self) -> None:
        """Make sure that the parts directory belongs to this store, and throw away parts that are damaged."""
        record = self.parts_directory / IDENTITY_NAME
        self.parts_directory.mkdir(parents=True, exist_ok=True)
        there = sorted(self.parts_directory.glob("*.h5"))
        theirs = sorted(path.name for path in self.parts_directory.iterdir() if not _is_of_parts(path))
        if theirs or (there and not record.exists()):
            raise WouldOverwriteError(
                f"{self.parts_directory} is where parts go, and holds files that brics did not put there"
                + (f" ({', '.join(theirs[:3])})" if theirs else ""),
                next="Move them away, or give another --out.",
            )
        if record.exists():
            differing = differences(read_json(record, what="unfinished store"), self.header.identity())
            if differing and not self.overwrite:
                was = {}
                for path in there:
                    with suppress(OSError, RuntimeError, KeyError), open_hdf5(path) as file:
                        was[str(file.attrs["shard"])] = int(file.attrs["n_in"]), str(file.attrs["fingerprint"])
                raise ArtefactError(
                    f"{self.parts_directory} holds the beginning of another store: "
                    + "; ".join([*differing, *moved_shards(was, self.shards)]),
                    next="Give another --out, or --overwrite to begin again.",
                )
            index = self.path / INDEX_NAME
            is_replaced = self.keeps_parts and index.exists()  # --overwrite: as of a file, all of it is made again
            if is_replaced:
                index.unlink()  # first: with it, the store would be taken for whole
                fsync(self.path)
            if differing or is_replaced:
                for old in there:
                    old.unlink()
        write_json_atomically(record, self.header.identity())
        self._remove_leftovers()
        for number, path in self._opened(self._parts()):
            reason = part_mismatch(self.parts_directory, self.header, self.shards[number])
            if reason is not None:
                self.redone.append(f"{path} ({reason})")
                path.unlink()

    def _parts(self) -> dict[int, Path]:
        """The parts that are there, by shard."""
        paths = {index: part_path(self.parts_directory, shard) for index, shard in enumerate(self.shards)}
        return {index: path for index, path in paths.items() if path.exists()}

    def _opened(self, parts: Mapping[int, Path]) -> Iterator[tuple[int, Path]]:
        """Those parts one by one, to be opened: a process has looked at several at a time."""
        opened = list(parts.items())
        for start in range(0, len(opened), MOST_AT_ONCE):
            some = opened[start : start + MOST_AT_ONCE]
            look_ahead([path for _, path in some])
            yield from some

    def _part_attributes(self) -> dict[int, dict[str, Any]]:
        """What each part says of itself, by shard."""
        new = {index: path for index, path in self._parts().items() if index not in self._attributes}
        for index, path in self._opened(new):
            with open_hdf5(path) as file:
                self._attributes[index] = file.attrs
        return self._attributes

    def digests(self) -> dict[int, str]:
        """The digests of the shards that are there, or have a part: of the content they were made from, by shard.

        Empty for a shard that was encoded when there were no digests.
        """
        if self.complete:
            return {index: row.get("digest", "") for index, row in enumerate(KeyCodeStore(self.path).shards)}
        return {index: str(attributes.get("digest", "")) for index, attributes in self._part_attributes().items()}

    def num_failed(self) -> int:
        """Images that failed in the parts written so far."""
        return sum(found["n_in"] - found.get("n_ok", 0) for found in self._part_attributes().values())

    def discard(self, shard_index: int) -> None:
        """Remove the part of a shard, which is then pending again."""
        part_path(self.parts_directory, self.shards[shard_index]).unlink()
        self._attributes.pop(shard_index, None)

    @property
    def pending(self) -> list[int]:
        """The shards that have no part yet, in order."""
        return [index for index, shard in enumerate(self.shards) if not part_path(self.parts_directory, shard).exists()]

    def part(self, shard_index: int) -> AbstractContextManager[PartWriter]:
        """A writer for the part of one shard. Other processes may make their own for `parts_directory`."""
        return write_part(self.parts_directory, self.header, self.shards[shard_index])

    def _open_part(self, shard_index: int) -> AbstractContextManager[ShardRows]:
        if shard_index % MOST_AT_ONCE == 0:  # they are opened in order
            some = self.shards[shard_index : shard_index + MOST_AT_ONCE]
            look_ahead([part_path(self.parts_directory, shard) for shard in some])
        shard = self.shards[shard_index]
        return open_part(part_path(self.parts_directory, shard), self.header, shard.num_images)

    def merge(
        self, *, parents: Sequence[Parent], details: Mapping[str, Any] | None = None, reporter: Reporter | None = None
    ) -> Artefact:
        """Make the store of the parts: join and remove them, or index them; returns its provenance (in it, too).

        Checks that each shard's images are all there once, encoded or failed. Raises ArtefactError for a damaged
        part, TooManyFailuresError when not one image could be encoded.
        """
        if self.pending:
            raise AssertionError(f"{len(self.pending)} shards have no part yet")
        artefact = (write_index if self.keeps_parts else write_merged)(
            self.path, self.header, self.shards, self._open_part,
            kind=self.kind, parents=parents, details=details or {}, reporter=reporter or SilentReporter(),
        )  # fmt: skip
        if not self.keeps_parts:
            shutil.rmtree(self.parts_directory)
        return artefact


def keeps_parts(path: Path) -> bool:
    """Whether a store at `path` is to be a folder: it is named like one."""
    return ending_of(path) == FOLDER


def _is_of_parts(path: Path) -> bool:
    """Whether the writer, or one that was killed, put it into the folder of parts."""
    return path.suffix in {".h5", ".json"} or path.name == ".lock" or (path.name[:1] + path.suffix) == "..tmp"


def check_store_output(
    path: Path,
    header: StoreHeader,
    shards: Sequence[StoreShard] = (),
    *,
    overwrite: bool,
    inputs: Sequence[str | Path] = (),
    remove: bool = True,
) -> bool:
    """Whether `path` is already the store that `header` describes, so that there is nothing to do.

    Raises ArtefactError for a store of other inputs, naming what differs, of its `shards` too; WouldOverwriteError for
    anything else that is there. With `overwrite`, a store of ours may be replaced that is not one of `inputs`.
    `remove` is that of `check_output`.
    """
    is_there = store_file(path).is_file() if keeps_parts(path) else path.is_file()
    if overwrite or path.is_symlink() or not is_there:
        if overwrite or not (keeps_parts(path) and holds_nothing_but(path, "store")):  # the beginning of one
            remove = remove and not keeps_parts(path)  # the writer does, when it holds the lock
            check_output(path, overwrite=overwrite, what="the store", kind="store", inputs=inputs, remove=remove)
        return False
    try:
        with open_hdf5(store_file(path)) as file:
            identity = parse_json(file.attrs["identity"])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        identity = None
    if not isinstance(identity, dict):
        raise WouldOverwriteError(
            f"{path} is already there, and it is not a key-code store", next="Give another --out, or --overwrite."
        )
    differing = differences(identity, header.identity())
    if differing:
        with suppress(ArtefactError):
            was = {row["name"]: (row["n_in"], row["fingerprint"]) for row in KeyCodeStore(path).shards}
            differing += moved_shards(was, shards)
        raise ArtefactError(
            f"{path} is a store of other inputs: {'; '.join(differing)}",
            next="Give another --out, or --overwrite to replace it.",
        )
    return True


def moved_shards(was: Mapping[str, tuple[int, str]], shards: Sequence[StoreShard]) -> list[str]:
    """What of the shards that `was`, (number of images, fingerprint) by name, is another one now; one line at most."""
    now = {shard.name: (shard.num_images, shard.fingerprint) for shard in shards}
    moved = [name for name in was if was[name] != now.get(name)] if now else []
    if not moved:
        return []
    more = f" and {len(moved) - 1:,} more" if len(moved) > 1 else ""
    if moved[0] not in now:
        return [f"shard {moved[0]}{more}: not in the source any more"]
    (num_was, _), (num_now, _) = was[moved[0]], now[moved[0]]
    counts = f" ({num_was:,} images, now {num_now:,})" if num_was != num_now else ""
    return [f"shard {moved[0]}{more}: other images, or other names or sizes of them, than before{counts}"]
