"""What a workspace holds: artefacts, each with its provenance, found by looking, never by a register.

An artefact's provenance is the JSON of `Artefact`: the file `brics.json` inside a directory, the attribute
`provenance` of a key-code store (of the index of one that is a folder), or `<file>.brics.json` beside any other file.
It names every parent by path and sha256, so that one path leads to everything it was made from (DESIGN section 7). A
parent in the same workspace is also named by its path in there, which comes first: a workspace that is moved or copied
keeps to what is in it.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from brics_cli.errors import ArtefactError, MachineError, UsageError
from brics_cli.parsing import parse_json
from brics_cli.workspace.embedded import EmbeddedModel, embedded_at, embedded_default, embedded_with
from brics_cli.workspace.files import PROVENANCE_FILE, read_json, write_json_atomically
from brics_cli.workspace.hdf5 import look_ahead, open_hdf5
from brics_cli.workspace.hub import AUTOENCODER_FOLDER
from brics_cli.workspace.naming import CONFIG_NAME, WEIGHTS_NAME, is_store, model_directory, store_file
from brics_cli.workspace.places import at_hand, locate, reference
from brics_cli.workspace.remote import is_remote

if TYPE_CHECKING:
    from brics_cli.runtime.reporting import Reporter

Kind = Literal[
    "shards",
    "autoencoder",
    "store",
    "latents",
    "reconstructions",
    "diffusion",
    "samples",
    "pictures",
    "report",
    "page",
    "demo",
]

TRAINED: frozenset[str] = frozenset({"autoencoder", "diffusion"})
COLLECTIONS: frozenset[str] = frozenset({"collection", "validation", "shards"})
"""Kinds of parents that are images: of packed shards, and of what brics did not make."""
STORE_ATTRIBUTE = "provenance"

_HOW_TO_MAKE: dict[str, tuple[str, str]] = {
    "shards": ("packed shards", "brics pack IMAGES --out shards"),
    "autoencoder": ("trained autoencoder", "brics train-ae IMAGES"),
    "store": ("key-code store", "brics encode-dataset IMAGES --out codes.h5"),
    "latents": ("exported latents", "brics export codes.h5 --out latents"),
    "reconstructions": ("decoded images", "brics decode codes.h5 --out reconstructions"),
    "diffusion": ("trained diffusion model", "brics train-diffusion codes.h5"),
    "samples": ("samples", "brics sample --n 1000"),
    "pictures": ("pictures of samples", "brics sample --grid 4x8"),
    "demo": ("demo workspace", "brics demo"),
    "report": ("evaluation report", "brics eval --metric psnr"),
    "page": ("report page", "brics report"),
}

Split = Literal["training", "held-out", "other"]
"""How an autoencoder knows a collection: it was trained on it, it was validated on it, or neither."""


@dataclass(frozen=True)
class Parent:
    """One thing an artefact was made from. `sha256` is of its weights, its shard list or its bytes."""

    kind: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Artefact:
    """One artefact on disk and its provenance.

    `created` is ISO 8601 UTC; `complete` is False while the command that makes it has not finished; `details` is
    what the kind needs to say of itself (recipe, counts, settings).
    """

    kind: Kind
    path: Path
    created: str
    complete: bool = True
    parents: tuple[Parent, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the next command can take it: a finished artefact, a run that has written a model, or a model
        that has no run (an embedded one, one of the Hub)."""
        if self.kind in TRAINED:
            return (model_directory(self.path) / WEIGHTS_NAME).exists()
        return self.complete

    @property
    def shortcoming(self) -> str:
        """Why a command takes it only when it is named: it is unfinished, or of some images alone; empty otherwise."""
        return str(self.details.get("part", "")) if self.complete else "unfinished"

    def parent(self, kind: str) -> Parent | None:
        """The first parent of `kind`, or None."""
        return next((parent for parent in self.parents if parent.kind == kind), None)

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        del record["path"]
        root = f"{_root_of(self.path)}{os.sep}"
        inside = [each.path.removeprefix(root) if each.path.startswith(root) else "" for each in self.parents]
        return {"brics_artefact": 1, **record, "in_workspace": inside}


def now() -> str:
    """The time of an artefact's making: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def provenance_path(path: Path) -> Path:
    """Where the provenance of the artefact `path` is (not for stores: theirs is an attribute)."""
    return path / PROVENANCE_FILE if path.is_dir() else path.with_name(path.name + "." + PROVENANCE_FILE)


def _root_of(path: Path) -> Path:
    """The workspace that the artefact at `path` stands in: see `Workspace._candidates`."""
    path = path.resolve()
    return path.parents[2] if len(path.parents) > 2 and path.parents[1].name == "runs" else path.parent


def _parent_at(root: Path, parent: Parent, in_workspace: str) -> Parent:
    """A parent as its child in the workspace `root` names it; its path is the one in there, where it is."""
    if not in_workspace:
        return parent
    here = root / in_workspace
    there = here.exists()
    if not there and parent.kind in COLLECTIONS and here.parent != root:  # a pattern of files, a split of a zip
        there = here.parent.exists()
    return replace(parent, path=str(here)) if there else parent


def write_provenance(artefact: Artefact) -> None:
    """Write `artefact`'s provenance beside or inside it."""
    write_json_atomically(provenance_path(artefact.path), artefact.to_json())


def read_provenance(path: Path) -> Artefact | None:
    """The artefact at `path`, of the embedded model of that name, or of what the cache has of the Hub at `hf://...`;
    None when it carries no provenance of ours.

    Raises ArtefactError when its provenance is damaged or was written by a newer brics, MachineError when a store
    cannot be read now (locked, a failing mount).
    """
    record: Any = None
    path = at_hand(path)
    if (model := embedded_at(path)) is not None:
        return of_embedded(model)
    if is_store(path) and store_file(path).is_file():
        with suppress(OSError, RuntimeError, KeyError, ValueError, TypeError), open_hdf5(store_file(path)) as file:
            record = parse_json(file.attrs[STORE_ATTRIBUTE])
        if not isinstance(record, dict) or "brics_artefact" not in record:
            return None  # an HDF5 file of something else may have an attribute of that name
    elif (beside := provenance_path(path)).is_file():
        record = read_json(beside, what="artefact")
    else:
        return None
    if not isinstance(record, dict) or record.get("brics_artefact") is None:
        raise ArtefactError(f"the provenance of {path} is not one that brics wrote")
    if record["brics_artefact"] != 1:
        raise ArtefactError(f"{path} was made by a newer brics", next="Upgrade: pip install -U brics-cli")
    try:
        if record["kind"] not in get_args(Kind):
            raise KeyError("kind")
        root, parents = _root_of(path), [Parent(**parent) for parent in record["parents"]]
        inside = [str(each) for each in record.get("in_workspace", [""] * len(parents))]
        return Artefact(
            kind=cast(Kind, record["kind"]),
            path=path,
            created=str(record["created"]),
            complete=bool(record["complete"]),
            parents=tuple(_here(_parent_at(root, *each), path) for each in zip(parents, inside, strict=True)),
            details=dict(record["details"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"the provenance of {path} is damaged ({error!r})") from None


def _here(parent: Parent, child: Path) -> Parent:
    """The autoencoder of codes that were published with it is beside them, where it is not at its recorded path."""
    published = (child if child.is_dir() else child.parent) / AUTOENCODER_FOLDER
    if parent.kind != "autoencoder" or not (published / CONFIG_NAME).is_file() or at_hand(parent.path).exists():
        return parent
    return replace(parent, path=reference(published))


def of_embedded(model: EmbeddedModel) -> Artefact:
    """The artefact that an embedded model stands for."""
    details = {"sha256": model.sha256, "summary": "embedded in brics"}
    return Artefact(model.kind, model.directory, created="", details=details)


def provenance_at(path: str | Path) -> Artefact | None:
    """`read_provenance` of what is at `path`; None also when nothing is there, whatever is said beside it."""
    path = at_hand(path)
    return read_provenance(path) if path.exists() else None


def sha256_of_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Workspace:
    """A directory that commands write to and look things up in: the current one unless told otherwise."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise UsageError(f"the workspace {root} is not a directory")
        self.root = root
        self.passed_over: dict[Path, str] = {}
        """What the last look at the workspace could not read, with the reason."""

    def artefacts(self) -> list[Artefact]:
        """Every artefact in the workspace, newest first. `passed_over` are those that cannot be read."""
        found = []
        self.passed_over = {}
        paths = list(dict.fromkeys(self._candidates()))  # a file is met twice: as itself and as its sidecar
        look_ahead([file for path in paths if is_store(path) and (file := store_file(path)).is_file()], keep=True)
        for path in paths:
            try:
                artefact = read_provenance(path)
            except (ArtefactError, MachineError) as error:
                self.passed_over[path] = error.what
                continue
            if artefact is not None:
                found.append(artefact)
        return sorted(found, key=lambda artefact: (artefact.created, str(artefact.path)), reverse=True)

    def newest(self, kind: Kind, *, wanted: Split | None = None, among: Sequence[Artefact] | None = None) -> Artefact:
        """The newest usable artefact of `kind` that is finished and whole; another one where there is none.

        `wanted`: of key-code stores and shards those of "training" images, or of "held-out" ones, where there are any.
        `among`: what the last look found. Raises ArtefactError with the command that would make one.
        """
        return self._ranked(kind, wanted, self.artefacts() if among is None else among)[0]

    def resolve(
        self,
        kind: Kind,
        given: str | Path | None = None,
        *,
        argument: str,
        wanted: Split | None = None,
        reporter: Reporter,
    ) -> Path:
        """The path of what an `argument` is `given` as (`places.locate`); where it was left out, of the `newest`
        artefact, or, where there is none, of the embedded model of that kind. `reporter` hears which it is, and why
        not a newer one.

        Raises ArtefactError with the command that would make one.
        """
        if given is not None:
            return locate(given, reporter=reporter)
        found = self.artefacts()
        try:
            artefact, *others = self._ranked(kind, wanted, found)
        except ArtefactError:
            if (model := embedded_default(kind)) is None:
                raise
            reporter.message(
                f"{argument} not given, and no {_HOW_TO_MAKE[kind][0]} in the workspace: using {model.name}, which is "
                f"embedded in brics (sha256 {model.sha256[:12]})"
            )
            return model.directory
        finally:
            for path, reason in self.passed_over.items():
                reporter.warning(f"{path} is passed over: {reason}")
        said = f"{argument} not given: using {artefact.path}"
        if artefact.shortcoming:
            summary = f" ({artefact.details['summary']})" if "summary" in artefact.details else ""
            reporter.warning(f"{said}, {artefact.shortcoming}{summary}, as there is nothing else")
            return artefact.path
        newer = [
            f"{other.path} is newer, and {other.shortcoming or f'of {self.split_of(other, among=found)} images'}"
            for other in others
            if other.created > artefact.created
        ]
        more = f" and {len(newer) - 3:,} more" if len(newer) > 3 else ""
        reporter.message(said + (f" ({'; '.join(newer[:3])}{more})" if newer else ""))
        return artefact.path

    def _ranked(self, kind: Kind, wanted: Split | None, artefacts: Sequence[Artefact]) -> list[Artefact]:
        """The usable artefacts of `kind`, the best choice first: whole ones, of the `wanted` images, newest first."""
        unwanted = {"training": "held-out", "held-out": "training"}.get(wanted or "")
        usable = [artefact for artefact in artefacts if artefact.kind == kind and artefact.usable]
        if not usable:
            name, command = _HOW_TO_MAKE[kind]
            raise ArtefactError(f"no {name} in the workspace {self.root.resolve()}", next=f"Make one: {command}")

        def rank(artefact: Artefact) -> tuple[bool, bool]:
            is_unwanted = unwanted is not None and self.split_of(artefact, among=artefacts) == unwanted
            return bool(artefact.shortcoming), is_unwanted

        return sorted(usable, key=rank)

    def split_of(self, artefact: Artefact, *, among: Sequence[Artefact] | None = None) -> Split | None:
        """What the images of `artefact`, or behind its codes, were to the autoencoder behind it; None: not known.

        Of packed shards: to any autoencoder in the workspace (`among` what the last look found).
        """
        if artefact.kind == "shards":
            images = Parent("shards", str(artefact.path.resolve()), str(artefact.details.get("sha256", "")))
            runs = [each for each in (self.artefacts() if among is None else among) if each.kind == "autoencoder"]
            splits = {split(images, each) for each in runs}
            known: tuple[Split, ...] = ("training", "held-out", "other")
            return next((each for each in known if each in splits), None)
        made_by, collection = self.ancestor(artefact, "autoencoder"), artefact.parent("collection")
        return None if made_by is None or collection is None else split(collection, made_by)

    def with_sha256(self, kind: Kind, sha256: str) -> Artefact | None:
        """The artefact of `kind` whose weights or bytes have this sha256, should it have moved, be it an embedded
        model; else None."""
        for artefact in self.artefacts():
            if artefact.kind == kind and artefact.usable and artefact.details.get("sha256") == sha256:
                return artefact
        model = embedded_with(sha256)
        return of_embedded(model) if model is not None and model.kind == kind else None

    def ancestor(self, artefact: Artefact, kind: Kind) -> Artefact | None:
        """The nearest artefact of `kind` among `artefact` and what it was made from, breadth first; None: none found.

        A parent is looked for where its child says it was and, should it have moved, in the workspace by its sha256.
        """
        waiting = deque([artefact])
        while waiting:
            candidate = waiting.popleft()
            if candidate.kind == kind:
                return candidate
            waiting.extend(found for parent in candidate.parents if (found := self.located(parent)) is not None)
        return None

    def located(self, parent: Parent) -> Artefact | None:
        """The artefact that `parent` is: where its child says, or, should it have moved, in here by its sha256."""
        with suppress(ArtefactError):
            there = read_provenance(Path(parent.path))
            if there is not None and there.details.get("sha256", parent.sha256) == parent.sha256:
                return there
        if parent.kind in COLLECTIONS:
            return None
        wanted, model = (parent.kind, parent.sha256), embedded_with(parent.sha256)
        found = [*self.artefacts(), *([of_embedded(model)] if model is not None else [])]
        return next((each for each in found if (each.kind, each.details.get("sha256")) == wanted), None)

    def collection_path(self, parent: Parent) -> str:
        """Where the collection `parent` is: as recorded, or, if it is gone from there, shards of that sha256."""
        if not is_remote(parent.path) and not Path(parent.path).exists():
            moved = self.with_sha256("shards", parent.sha256)
            if moved is not None:
                return str(moved.path.resolve())
        return parent.path

    def unused(self, name: str) -> Path:
        """`codes.h5` in the workspace, else `codes-2.h5` and so on: the first that is not there."""
        path, number = self.root / name, 2
        while path.exists():
            path = self.root / f"{Path(name).stem}-{number}{Path(name).suffix}"
            number += 1
        return path

    def new_run_path(self, kind: str, name: str) -> Path:
        """A path for a new run: `runs/<kind>/<yyyymmdd-hhmmss>-<name>`, not there yet."""
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
        path = self.root / "runs" / kind / stem
        number = 2
        while path.exists():
            path = path.with_name(f"{stem}-{number}")
            number += 1
        return path

    def _candidates(self) -> Iterator[Path]:
        """The places an artefact may stand: the root and its children, and two levels below `runs`."""
        if not self.root.is_dir():
            return
        yield self.root
        for child in sorted(self.root.iterdir()):
            if child.name == "runs" and child.is_dir():
                for kind in sorted(child.iterdir()):
                    if kind.is_dir():
                        yield from (_artefact_path(entry) for entry in sorted(kind.iterdir()))
            elif not child.name.startswith("."):
                yield _artefact_path(child)


def split(images: Parent, autoencoder: Artefact) -> Split | None:
    """What `images` were to `autoencoder`, by sha256 or path; None: it does not say what it was trained on."""
    for kind, name in (("collection", "training"), ("validation", "held-out")):
        known = autoencoder.parent(kind)
        if known is not None and ({images.sha256} - {""} == {known.sha256} or images.path == known.path):
            return cast(Split, name)
    return None if autoencoder.parent("collection") is None else "other"


def _artefact_path(entry: Path) -> Path:
    """The artefact an entry stands for: a sidecar `x.zip.brics.json` stands for `x.zip`."""
    if entry.name.endswith("." + PROVENANCE_FILE):
        return entry.with_name(entry.name.removesuffix("." + PROVENANCE_FILE))
    return entry


def finished(artefact: Artefact, **details: Any) -> Artefact:
    """The same artefact, complete, with `details` added."""
    return replace(artefact, complete=True, details={**artefact.details, **details})


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: was X, now Y` for every entry that is not the same in both; sha256s are shortened."""
    return [
        f"{name}: was {_short(was.get(name))}, now {_short(now.get(name))}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text
