"""`brics merge`: key-code stores of one autoencoder and transform -> one store (DESIGN section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brics_cli.codes import Join, KeyCodeStore, plan_join, verify_store_in_child, write_join
from brics_cli.errors import UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import check_writable
from brics_cli.workspace.naming import STORE, form_of_output


@dataclass(frozen=True)
class MergeResult:
    """A joined store. `broken` are invariants that it breaks; None: not verified."""

    path: Path
    num_images: int
    num_failed: int
    num_shards: int
    num_stores: int
    already_complete: bool
    broken: list[str] | None


def plan_merge(paths: Sequence[Path], *, out: Path) -> Join:
    """Open the stores and see whether they can be joined. Raises UsageError and ArtefactError as `plan_join`.

    UsageError too when `out` is named like something else, or is one of `paths`.
    """
    form_of_output(out, STORE)
    if out.resolve() in {path.resolve() for path in paths}:
        raise UsageError(f"--out {out} is one of the stores to merge", next="Give another file.")
    return plan_join([KeyCodeStore(path) for path in paths])


def merge(join: Join, *, out: Path, overwrite: bool = False, verify: bool = False, reporter: Reporter) -> MergeResult:
    """Write the joined store, reading every row once and checking it against its shard's sha256.

    Raises ArtefactError for rows that are not those that were encoded, and what `write_join` raises.
    """
    check_writable(out)
    sources = sorted({store.source for store in join.stores})
    if len(sources) > 1 and " + " not in join.header.source:
        reporter.message(f"taken for parts of one collection, by its names and sizes: {', '.join(sources)}")
    artefact = write_join(join, out, overwrite=overwrite, reporter=reporter)
    store = KeyCodeStore(out)
    return MergeResult(
        path=out,
        num_images=len(store),
        num_failed=len(store.failures),
        num_shards=len(store.shards),
        num_stores=len(join.stores),
        already_complete=artefact is None,
        broken=verify_store_in_child(out, reporter=reporter) if verify else None,
    )
