"""What may be where an output goes: nothing, or with --overwrite what brics made, and nothing else.

`check_output` says that of any path; `claim` says as well what of an output that was begun is gone on with, and
`output_lock` keeps others from writing it.

A file of ours carries a mark: `MARK` where its format has room for a remark, the provenance in a key-code store, the
name of the report in its JSON; a tar has its provenance beside it. A folder of ours has a provenance inside, one that
is a key-code store in its index.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brics_cli.errors import ArtefactError, MachineError, WouldOverwriteError
from brics_cli.parsing import as_json
from brics_cli.workspace.artefacts import Artefact, Kind, differences, provenance_at, write_provenance
from brics_cli.workspace.files import PROVENANCE_FILE, atomic_path, read_json, remove_leftovers
from brics_cli.workspace.locks import hold_lock
from brics_cli.workspace.naming import IDENTITY_NAME, INDEX_NAME, PARTS_FOLDER, is_store_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Claim = Literal["new", "resume", "complete"]

MARK = "brics-cli"
"""What a picture, page, zip or npz says of its maker: `Software` in a PNG, the comment of a zip, `Creator` in SVG and
PDF, `generator` in HTML."""
_PNG, _HDF5, _ZIP = b"\x89PNG\r\n\x1a\n", b"\x89HDF\r\n\x1a\n", b"PK"
_HEAD_BYTES, _STORE_BYTES = 64 << 10, 8 << 20

_TENSORS = r"((model|weights|ema|ema-[\d.]+|discriminator)\.safetensors|(optimiser|discriminator-optimiser)\.pt)"
_RUN = (
    r"config\.yaml|environment\.json|metrics\.jsonl|failures\.jsonl|events\.out\.tfevents\.[^/]*|images/[^/]*\.png|"
    r"wandb/.*|"
    rf"(model|best|checkpoints/step-\d{{8,}})/(config\.json|state\.json|{_TENSORS})"
)
_IMAGES = (
    r".*\.png|\d{5,}\.tar|README\.md|failures\.jsonl|manifest\.json|wids\.json|batch-sizes\.json|identity\.json|"
    r"\.sources\.jsonl"
)
_FILES: dict[str, re.Pattern[str]] = {
    kind: re.compile(names, re.DOTALL)
    for names, *kinds in (
        (_RUN, "autoencoder", "diffusion"),
        (_IMAGES, "shards", "reconstructions", "samples"),
        (r".*\.png", "pictures"),
        (r"latents_rank00_shard\d{3,}\.safetensors|latents_stats\.pt", "latents"),
        (rf"{INDEX_NAME}|{PARTS_FOLDER}/([^/]*\.h5|{IDENTITY_NAME})", "store"),
    )
    for kind in kinds
}
"""Of each kind of folder, what its files are called. A PNG has to carry the mark as well, a card the name of brics."""


def save_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a figure of matplotlib's, all of it or nothing: png, svg or pdf by the ending, marked as made by brics."""
    form = path.suffix.lower().removeprefix(".")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=form, dpi=dpi, metadata={"Software" if form == "png" else "Creator": MARK})


def check_output(
    path: Path,
    *,
    overwrite: bool,
    what: str,
    kind: str | None = None,
    inputs: Sequence[str | Path] = (),
    flag: str = "--out",
    remove: bool = True,
) -> None:
    """Raise WouldOverwriteError when something is at the output `path`, but for a folder that holds nothing, or no more
    than what a claim left that was killed.

    With `overwrite` a file that brics made is left for the writer to replace when the new one is whole. A folder is
    emptied when brics made it as an artefact of this `kind` and all of it: no other artefact is in it, and none of
    `inputs` (paths or patterns the command reads). Links, devices, mount points and whatever the user made are never
    replaced. `flag` is the option that names `path`. `remove` False leaves even what may be replaced.
    """
    if not os.path.lexists(path) or (path.is_dir() and all(_is_of_a_claim(each) for each in path.iterdir())):
        return
    other = f"Give another {flag}."
    special = _special(path)
    if special is not None:
        raise WouldOverwriteError(f"{what} {path} is {special}, and no output replaces one", next=other)
    if not overwrite:
        raise WouldOverwriteError(f"{what} {path} is already there", next=f"Give another {flag}, or --overwrite.")
    for text in map(str, inputs):
        source = Path(re.split(r"[{*?]", text)[0]).resolve()
        if any(_is_same(path, each) for each in (source, *source.parents)):
            raise WouldOverwriteError(f"--overwrite would delete {text}, which this command reads", next=other)
    if path.is_dir():
        if (reason := _why_kept(path, kind)) is not None:
            raise WouldOverwriteError(
                f"{path} {reason}", next="Remove it yourself, or move what is yours away, or give another --out."
            )
        if remove:
            shutil.rmtree(path)
    elif not made_by_brics(path):
        raise WouldOverwriteError(
            f"{what} {path} was not made by brics, so --overwrite will not replace it",
            next=f"Remove it yourself, or give another {flag}.",
        )


def _is_of_a_claim(path: Path) -> bool:
    """Whether `path` is what a claim writes before the provenance has its name."""
    return fnmatch.fnmatch(path.name, f".{PROVENANCE_FILE}.*.tmp")


def check_claim(
    path: Path, *, kind: Kind, overwrite: bool, what: str = "the output", inputs: Sequence[str | Path] = ()
) -> None:
    """Raise WouldOverwriteError when nothing of `kind` can go to `path`, whatever it is made from; nothing changes.

    For before any work: what is there of this kind may be the same, finished or to be gone on with, which is told when
    the inputs are known (`claim`).
    """
    with suppress(MachineError):
        existing = provenance_at(path)
        if existing is not None and existing.kind == kind:
            return
    if kind == "store" and not overwrite and holds_nothing_but(path, kind):
        return
    check_output(path, overwrite=overwrite, what=what, kind=kind, inputs=inputs, remove=False)


def check_alike(path: Path, *, kind: Kind, known: Mapping[str, Any]) -> None:
    """Raise what `claim` will raise, without `overwrite`, of an output of `kind` at `path` that differs in what is
    `known`: settings, and sha256s of parents by their kind. For before any model is loaded."""
    existing = provenance_at(path)
    if existing is not None and existing.kind == kind:
        was = _identity(existing)
        if differing := differences({name: was.get(name) for name in known}, as_json(known)):
            raise _of_other_inputs(existing, differing)


def _of_other_inputs(existing: Artefact, differing: Sequence[str]) -> ArtefactError | WouldOverwriteError:
    listed = "; ".join(differing)
    if existing.complete:
        said = f"the output {existing.path} is already there, made from other inputs: {listed}"
        return WouldOverwriteError(said, next="Give another --out, or --overwrite.")
    return ArtefactError(
        f"{existing.path} was begun with other inputs: {listed}",
        next="Give another --out, or --overwrite to begin again.",
    )


def made_by_brics(path: Path) -> bool:
    """Whether the regular file `path` carries a mark of ours. It is looked for as bytes: a damaged file has it too."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        num_bytes = _STORE_BYTES if start == _HDF5 else _HEAD_BYTES
        head = start + file.read(num_bytes)
        file.seek(max(0, size - num_bytes))
        both = head + file.read()
    mark = MARK.encode()
    if start == _HDF5:
        return b'"brics_artefact"' in both
    if start == _PNG:
        return b"tEXtSoftware\0" + mark in head
    if start.startswith(_ZIP):
        return both.endswith(mark)
    if start.startswith((b"<?xml", b"%PDF")):
        return mark in both
    if start.startswith(b"{"):
        return b'"brics_report"' in head
    if start == b"<!DOCTYP":
        return b'<meta name="generator" content="' + mark in head
    if start[7:] == b"\0":  # the length of a safetensors header
        return mark in head
    beside = path.with_name(f"{path.name}.{PROVENANCE_FILE}")
    return path.suffix == ".tar" and beside.is_file() and beside.stat().st_mtime_ns >= path.stat().st_mtime_ns


def _special(path: Path) -> str | None:
    """What `path` is, when it is neither a regular file nor a folder; None when it is."""
    letter = stat.filemode(path.lstat().st_mode)[0]
    if letter == "l":
        return f"a link to {path.readlink()}"
    if path.absolute().is_mount():
        return "a mount point"
    return {"c": "a device", "b": "a device", "p": "a pipe", "s": "a socket"}.get(letter)


def _is_same(path: Path, other: Path) -> bool:
    """By whatever name: a hard link, another case, a bind mount."""
    if path.resolve() == other:
        return True
    try:
        return path.samefile(other)
    except OSError:
        return False


def _why_kept(path: Path, kind: str | None) -> str | None:
    """Why --overwrite will not empty the folder `path` for an artefact of `kind`; None: it may."""
    for place, name in ((Path.cwd(), "the current directory"), (Path.home(), "the home directory")):
        if any(_is_same(path, each) for each in (place, *place.parents)):
            return f"is or holds {name}, so --overwrite will not empty it"
    if is_store_folder(path):
        found: Any = "store"
    elif not (path / PROVENANCE_FILE).is_file():
        return f"was not made by brics (it has no {PROVENANCE_FILE}), so --overwrite will not empty it"
    else:
        record = read_json(path / PROVENANCE_FILE, what="artefact")
        found = record.get("kind") if isinstance(record, dict) else None
    if found != kind or kind is None:
        return f"holds an artefact of kind {found!r}, and --overwrite replaces kind {kind!r} alone"
    if (path / "runs").exists() or any(other.parent != path for other in path.rglob(PROVENANCE_FILE)):
        return "holds other artefacts, so --overwrite will not empty it"
    theirs = [str(each.relative_to(path)) for each in islice(_not_ours(path, kind), 1000)]
    if theirs:
        more = f" and {len(theirs) - 3} more" if len(theirs) > 3 else ""
        listed = f"{', '.join(theirs[:3])}{more}"
        return f"holds files that brics did not make ({listed}), so --overwrite will not empty it"
    return None


def holds_nothing_but(path: Path, kind: str) -> bool:
    """Whether `path` is a folder with nothing in it but what an output of `kind` has, finished or begun."""
    return path.is_dir() and not path.is_symlink() and next(_not_ours(path, kind), None) is None


def _not_ours(folder: Path, kind: str) -> Iterator[Path]:
    """Files of a folder of ours that brics did not make, links and mount points included."""
    shards = _listed_shards(folder)
    for parent, folders, names in os.walk(folder):
        entries = [Path(parent, name) for name in [*folders, *names]]
        for path in sorted(entries):
            relative = str(path.relative_to(folder))
            if _special(path) is not None:
                yield path
            elif (
                path.is_dir()
                or relative == PROVENANCE_FILE
                or any(fnmatch.fnmatch(part, ".*.tmp") for part in Path(relative).parts)
            ):
                continue
            elif (
                (kind not in _FILES or not _FILES[kind].fullmatch(relative))
                or (path.suffix == ".png" and not made_by_brics(path))
                or (path.suffix == ".md" and b"brics" not in path.read_bytes())
                or (path.suffix == ".tar" and bool(shards) and path.name not in shards)
            ):
                yield path


def _listed_shards(folder: Path) -> set[str]:
    """The shards that a finished folder lists; none where it is unfinished or its lists are damaged."""
    listed: set[str] = set()
    for name, rows, key in (("manifest.json", "shards", "name"), ("wids.json", "shardlist", "url")):
        with suppress(ArtefactError, OSError, KeyError, TypeError):
            listed |= {str(row[key]) for row in read_json(folder / name, what="manifest")[rows]}
    return listed


def claim(artefact: Artefact, *, overwrite: bool, is_file: bool = False) -> Claim:
    """Claim `artefact.path` for `artefact` (incomplete): its directory is made and marked as ours, unfinished.

    `resume` when it holds an interrupted output of the same kind, parents and `details["settings"]`; `complete`
    when that one had finished. Raises ArtefactError when an interrupted output differs, saying in what;
    WouldOverwriteError when something else is there. `overwrite` makes all but an interrupted output of the same inputs
    `new`. Of an output that `is_file` nothing is written. To be called inside `output_lock`.
    """
    path = artefact.path
    if path.is_dir() and not (path / PROVENANCE_FILE).exists():
        remove_leftovers(path, PROVENANCE_FILE)  # of a claim that was killed
    existing = provenance_at(path)
    if existing is not None and existing.kind == artefact.kind:
        differing = differences(_identity(existing), _identity(artefact))
        if not differing and not existing.complete:
            if path.is_dir():
                remove_leftovers(path, "*")  # of whatever was being written when it was killed
            return "resume"
        if not differing and not overwrite:
            return "complete"
        if differing and not overwrite:
            raise _of_other_inputs(existing, differing)
    inputs = [parent.path for parent in artefact.parents]
    check_output(path, overwrite=overwrite, what="the output", kind=artefact.kind, inputs=inputs)
    if not is_file:
        path.mkdir(parents=True, exist_ok=True)
        write_provenance(artefact)
    return "new"


def _identity(artefact: Artefact) -> dict[str, Any]:
    return {
        **as_json(artefact.details.get("settings", {})),
        **{parent.kind: parent.sha256 for parent in artefact.parents},
    }


@contextmanager
def output_lock(path: Path) -> Iterator[None]:
    """Let one process write to `path` while the block runs. Raises MachineError when another one does."""
    resolved = path.resolve()  # `--out .` has no name
    with hold_lock(resolved.with_name(f".{resolved.name}.lock"), what=str(path)):
        remove_leftovers(resolved.parent, glob.escape(resolved.name))  # beside it: of a sheet, of its provenance
        yield


@contextmanager
def absent_unless_done(paths: Sequence[Path]) -> Iterator[None]:
    """Remove those files that were not there before, should the block fail: the same command can then be run again."""
    new = [path for path in paths if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
