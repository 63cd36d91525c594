"""Write a key-code store so that a `kill -9` at any moment loses at most one shard and repeats nothing.

One part per shard (`parts`), then a merge: everything is checked and copied to `codes.h5.tmp`, fsynced, renamed, and
the parts are removed. A run that finds parts goes on with the missing ones; parts of anything else are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from brics_cli.codes.format import StoreHeader, StoreShard
from brics_cli.codes.merging import write_merged
from brics_cli.codes.parts import Part, PartWriter, part_mismatch, part_path
from brics_cli.codes.reader import KeyCodeStore
from brics_cli.errors import ArtefactError, UsageError, WouldOverwriteError
from brics_cli.parsing import parse_json
from brics_cli.runtime.reporting import Reporter, SilentReporter
from brics_cli.workspace import Artefact, Kind, Parent, check_output, hold_lock, open_hdf5, write_json_atomically
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.differences import differences
from brics_cli.workspace.files import fsync, read_json
from brics_cli.workspace.hdf5 import remember_own


class StoreWriter:
    """Write the store `path` inside a `with` block, holding its lock.

    `complete` says that it is there already, made from the same inputs: nothing to do. Otherwise `pending` are the
    shards without a part; write each with `part(i)`, then call `merge`. `overwrite` replaces another store (at the
    merge: until then the old one stays) and throws away parts of another one.

    Raises on entry: WouldOverwriteError (`path` is no store), ArtefactError (a store or parts of other inputs, with
    what differs), MachineError (another process is writing it), UsageError (`path` is a folder).

    `kind` is that of the artefact: `store`, or `samples` for codes that were sampled and not encoded.
    """

    def __init__(
        self,
        path: Path | str,
        header: StoreHeader,
        shards: Sequence[StoreShard],
        *,
        overwrite: bool = False,
        kind: Kind = "store",
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self.header = header
        self.shards = list(shards)
        self.overwrite = overwrite
        self.complete = False
        self.redone: list[str] = []
        """Parts that were damaged and will be written again, each with the reason."""
        self.parts_directory = self.path.with_name(self.path.name + ".parts")
        """Where parts are written, by other processes too while this one holds the lock."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(f"--out {self.path} is a folder", next="Give a file, e.g. codes.h5.")
        self.complete = self._is_complete()
        if self.complete and not self.parts_directory.exists():
            return self
        self._stack.enter_context(hold_lock(self.parts_directory / ".lock", what=str(self.path)))
        # again, now that nobody else is writing: who held the lock until now may have finished the store
        self.complete = self._is_complete()
        if self.complete:  # killed between the last rename and the removal of the parts
            shutil.rmtree(self.parts_directory)
        else:
            try:
                self._claim_parts()
            except BaseException:
                self._stack.close()
                raise
        return self

    def _is_complete(self) -> bool:
        return check_store_output(
            self.path, self.header, shards=self.shards, overwrite=self.overwrite, inputs=[self.header.source]
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.parts_directory.exists():
            self._remove_leftovers()
        self._stack.close()

    def _remove_leftovers(self) -> None:
        """Remove the beginnings of parts whose writer was killed."""
        for leftover in self.parts_directory.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def _claim_parts(self) -> None:
        """Make sure that the parts directory belongs to this store, and throw away parts that are damaged."""
        record = self.parts_directory / "identity.json"
        theirs = sorted(path.name for path in self.parts_directory.iterdir() if not _is_of_parts(path))
        if theirs or (not record.exists() and any(self.parts_directory.glob("*.h5"))):
            raise WouldOverwriteError(
                f"{self.parts_directory} is where parts go, and holds files that brics did not put there"
                + (f" ({', '.join(theirs[:3])})" if theirs else ""),
                next="Move them away, or give another --out.",
            )
        if record.exists():
            differing = differences(read_json(record, what="unfinished store"), self.header.identity())
            if differing and not self.overwrite:
                differing += moved_shards(self._shards_of_parts(), self.shards)
                raise ArtefactError(
                    f"{self.parts_directory} holds the beginning of another store: {'; '.join(differing)}",
                    next="Give another --out, or --overwrite to begin again.",
                )
            if differing:
                for old in self.parts_directory.glob("*.h5"):
                    old.unlink()
        write_json_atomically(record, self.header.identity())
        self._remove_leftovers()
        for shard in self.shards:
            path = part_path(self.parts_directory, shard)
            if path.exists() and (reason := part_mismatch(self.parts_directory, self.header, shard)) is not None:
                self.redone.append(f"{path} ({reason})")
                path.unlink()

    def _shards_of_parts(self) -> dict[str, tuple[int, str]]:
        """(number of images, fingerprint) of the shards whose parts can be read."""
        found = {}
        for path in self.parts_directory.glob("*.h5"):
            with suppress(OSError, RuntimeError, KeyError), open_hdf5(path) as file:
                found[str(file.attrs["shard"])] = int(file.attrs["n_in"]), str(file.attrs["fingerprint"])
        return found

    def digests(self) -> dict[int, str]:
        """The digests of the shards that are there, or have a part: of the content they were made from, by shard.

        Empty for a shard that was encoded when there were no digests.
        """
        if self.complete:
            return {index: row.get("digest", "") for index, row in enumerate(KeyCodeStore(self.path).shards)}
        found = {}
        for index, shard in enumerate(self.shards):
            if part_path(self.parts_directory, shard).exists():
                with Part(self.parts_directory, self.header, shard) as part:
                    found[index] = part.digest
        return found

    def discard(self, shard_index: int) -> None:
        """Remove the part of a shard, which is then pending again."""
        part_path(self.parts_directory, self.shards[shard_index]).unlink()

    @property
    def pending(self) -> list[int]:
        """The shards that have no part yet, in order."""
        return [index for index, shard in enumerate(self.shards) if not part_path(self.parts_directory, shard).exists()]

    def num_failed(self) -> int:
        """Images that failed in the parts written so far."""
        total = 0
        for shard in self.shards:
            if part_path(self.parts_directory, shard).exists():
                with Part(self.parts_directory, self.header, shard) as part:
                    total += len(part.failures)
        return total

    def part(self, shard_index: int) -> PartWriter:
        """A writer for the part of one shard. Other processes may make their own for `parts_directory`."""
        return PartWriter(self.parts_directory, self.header, self.shards[shard_index])

    def merge(
        self, *, parents: Sequence[Parent], details: Mapping[str, Any] | None = None, reporter: Reporter | None = None
    ) -> Artefact:
        """Join the parts into the store and remove them; returns its provenance (which stands in it too).

        Checks that each shard's images are all there once, encoded or failed. Raises ArtefactError for a damaged
        part, TooManyFailuresError when not one image could be encoded.
        """
        if self.pending:
            raise AssertionError(f"{len(self.pending)} shards have no part yet")
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with (reporter or SilentReporter()).task("merge", total=self.header.num_images, unit="img") as task:
                artefact = Artefact(self.kind, self.path, now(), False, tuple(parents), dict(details or {}))
                artefact = write_merged(
                    temporary, self.header, self.shards, self._open_part, artefact=artefact, task=task
                )
            put_in_place(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self.parts_directory)
        return artefact

    def _open_part(self, shard_index: int) -> Part:
        return Part(self.parts_directory, self.header, self.shards[shard_index])


def _is_of_parts(path: Path) -> bool:
    """Whether the writer, or one that was killed, put it into the folder of parts."""
    return path.suffix in {".h5", ".json"} or path.name == ".lock" or (path.name[:1] + path.suffix) == "..tmp"


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a whole file its final name, safe from a power cut at any moment."""
    fsync(temporary)
    temporary.replace(final)
    fsync(final.parent)
    remember_own(final)


def check_store_output(
    path: Path,
    header: StoreHeader,
    *,
    shards: Sequence[StoreShard] = (),
    overwrite: bool,
    inputs: Sequence[str | Path] = (),
) -> bool:
    """Whether `path` is already the store that `header` describes, so that there is nothing to do.

    Raises ArtefactError for a store of other inputs, naming what differs, of its `shards` too; WouldOverwriteError for
    anything else that is there. With `overwrite`, a store of ours may be replaced that is not one of `inputs`.
    """
    if overwrite or path.is_symlink() or not path.is_file():
        check_output(path, overwrite=overwrite, what="the store", inputs=inputs)
        return False
    try:
        with open_hdf5(path) as file:
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
