"""`brics runs`: the training runs of a workspace as a table, what some of them differ in, and removing one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brics_cli.config import load_yaml
from brics_cli.config.changes import Changed, differences_said, flatten, read_changed, run_name
from brics_cli.config.suggestions import check_known, did_you_mean
from brics_cli.errors import ArtefactError, UsageError, WouldOverwriteError
from brics_cli.jobs.plot import read_curves
from brics_cli.workspace import Artefact, Workspace, check_output, provenance_at
from brics_cli.workspace.artefacts import TRAINED, provenance_path
from brics_cli.workspace.outputs import output_lock

SCORES: dict[str, Callable[[Any], Any]] = {"val/psnr": max, "val/fd-random": min, "val/loss": min}
"""What the best of a run is looked for in: the first of these that it has, and which of two values is better."""


@dataclass(frozen=True)
class RunRow:
    """One run: `step` of `steps` (None: not known), its best score, `seconds` of training, all its files' bytes.

    `changed` is what differs from the recipe, by dotted key, as [the recipe's value, the run's].
    """

    path: Path
    kind: str
    recipe: str
    changed: Changed
    complete: bool
    step: int
    steps: int | None
    score: str | None
    best: float | None
    seconds: float | None
    num_bytes: int
    created: str

    @property
    def said(self) -> str:
        """The recipe and what differs from it."""
        return f"{self.recipe} {differences_said(self.changed)}".rstrip()

    @property
    def short_name(self) -> str:
        """Its kind and name without what `said` says: `find_run` knows it."""
        name = self.path.name.removesuffix(f"-{run_name({'recipe': self.recipe, 'changed': self.changed})}")
        return f"{self.path.parent.name}/{name}" if self.path.parent.name == self.kind else str(self.path)


SORTS: dict[str, Callable[[RunRow], Any]] = {
    "created": lambda row: row.created,
    "recipe": lambda row: (row.kind, row.said),
    "steps": lambda row: -row.step,
    "score": lambda row: (
        row.score or "~",
        0 if row.best is None else -row.best if SCORES[row.score or ""] is max else row.best,
    ),
    "time": lambda row: -(row.seconds or 0),
    "size": lambda row: -row.num_bytes,
}
"""By which the table can be sorted: the oldest, the longest, the best and the largest first."""


def list_runs(workspace: Workspace, *, sort: str = "created") -> list[RunRow]:
    """The training runs of the workspace. Raises UsageError for a `sort` that is not one of `SORTS`."""
    check_known(sort, SORTS, option="--sort", what="column")
    return sorted((_row(run) for run in workspace.artefacts() if run.kind in TRAINED), key=SORTS[sort])


def _row(run: Artefact) -> RunRow:
    details, curves = run.details, dict[str, Any]()
    with suppress(ArtefactError):  # nothing is logged yet, or it is damaged, which `brics plot` says
        curves = read_curves(run.path)
    score = next((name for name in SCORES if name in curves), None)
    laps = curves.get("time/lap_s")
    return RunRow(
        path=run.path,
        kind=run.kind,
        recipe=str(details.get("recipe", "?")),
        changed=read_changed(details),
        complete=run.complete,
        step=max([_count(details, "step") or 0, *(int(steps[-1]) for steps, _ in curves.values())]),
        steps=_count(details, "steps"),
        score=score,
        best=None if score is None else float(SCORES[score](curves[score][1])),
        seconds=None if laps is None else float(laps[1].sum()),
        num_bytes=_num_bytes(run.path),
        created=run.created,
    )


def _count(details: dict[str, Any], name: str) -> int | None:
    return details[name] if isinstance(details.get(name), int) else None


def _num_bytes(path: Path) -> int:
    return sum(each.lstat().st_size for each in [path, *path.rglob("*")] if each.is_file())


def find_run(text: str, workspace: Workspace) -> Artefact:
    """The run at the path `text`, or the one in the workspace whose name holds it.

    Raises UsageError for none or many.
    """
    there = provenance_at(text)
    if there is not None and there.kind in TRAINED:
        return there
    runs = [run for run in workspace.artefacts() if run.kind in TRAINED]
    found = [run for run in runs if text == run.path.name] or [run for run in runs if text in str(run.path)]
    if len(found) != 1:
        names = dict.fromkeys(run.path.name for run in runs)
        several = f": {', '.join(str(run.path) for run in found)}"
        raise UsageError(
            f"{text} names {len(found)} runs{several}" if found else f"no run {text}{did_you_mean(text, names)}",
            next="`brics runs` lists them.",
        )
    return found[0]


@dataclass(frozen=True)
class RunDiff:
    """Runs side by side: of each row its key, and the value in each run (None: it has no such setting)."""

    runs: list[Path]
    rows: dict[str, list[Any]]
    num_same: int


def diff_runs(runs: Sequence[str], *, show_all: bool = False, workspace: Workspace) -> RunDiff:
    """The settings, the data and the results in which `runs` differ; with `show_all` every setting.

    Raises UsageError for fewer than two, ArtefactError for a run without its config.
    """
    if len(runs) < 2:
        raise UsageError("a difference takes at least two runs", next="Example: brics runs diff RUN OTHER")
    found = [find_run(text, workspace) for text in runs]
    settings = [flatten(load_yaml(run.path / "config.yaml")) for run in found]
    keys = dict.fromkeys(key for each in settings for key in each if key != "about")
    table = {key: [each.get(key) for each in settings] for key in keys}
    for kind in dict.fromkeys(parent.kind for run in found for parent in run.parents):
        parents = [run.parent(kind) for run in found]
        if len({parent and parent.sha256 for parent in parents}) > 1 or show_all:
            table[f"made from {kind}"] = [parent and f"{parent.path} ({parent.sha256[:8]})" for parent in parents]
    num_same = sum(_is_same(values) for values in table.values())
    if not show_all:
        table = {key: values for key, values in table.items() if not _is_same(values)}
    rows = [_row(run) for run in found]
    table["step"] = [row.step for row in rows]
    for score in SCORES:
        if any(row.score == score for row in rows):
            table[f"best {score}"] = [row.best if row.score == score else None for row in rows]
    return RunDiff([run.path for run in found], table, num_same)


def _is_same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)


@dataclass(frozen=True)
class Removal:
    """What is removed, children before what they were made from, and its bytes."""

    artefacts: list[Artefact]
    num_bytes: int


def plan_removal(runs: Sequence[str], *, with_children: bool = False, workspace: Workspace) -> Removal:
    """The `runs`, and what was made from them, to remove.

    Raises UsageError as `find_run`, ArtefactError when something was made from one and not `with_children`.
    """
    wanted = {run.path.resolve(): run for run in (find_run(text, workspace) for text in runs)}
    everything = workspace.artefacts()
    doomed = dict(wanted)
    while new := {
        each.path.resolve(): each
        for each in everything
        if each.path.resolve() not in doomed and any(_is_parent(parent, each) for parent in doomed.values())
    }:
        doomed |= new
    children = [each for path, each in doomed.items() if path not in wanted]
    if children and not with_children:
        named = ", ".join(f"{each.kind} {each.path}" for each in children[:3])
        more = f" and {len(children) - 3:,} more" if len(children) > 3 else ""
        raise ArtefactError(
            f"{named}{more} {'was' if len(children) == 1 else 'were'} made from {', '.join(runs)}",
            next="--with-children removes what was made from it, too.",
        )
    order = sorted(doomed.values(), key=lambda each: each.created, reverse=True)
    return Removal(order, sum(_num_bytes(each.path) for each in order))


def _is_parent(parent: Artefact, child: Artefact) -> bool:
    """Whether `child` was made from `parent`: by its path, or by its weights, where no other copy of them stays."""
    sha256 = parent.details.get("sha256")
    return any(
        Path(each.path).resolve() == parent.path.resolve()
        or (sha256 is not None and each.sha256 == sha256 and not Path(each.path).exists())
        for each in child.parents
    )


def remove(removal: Removal) -> None:
    """Remove what was planned: whole, and only what brics made.

    Raises MachineError for a run that is being trained, WouldOverwriteError for one that holds files of the user's;
    what was removed before it stays removed.
    """
    for artefact in removal.artefacts:
        path = artefact.path
        with output_lock(path):
            beside = provenance_path(path)
            try:
                check_output(path, overwrite=True, what=f"the {artefact.kind}", kind=artefact.kind)  # empties a folder
            except WouldOverwriteError as error:
                what = error.what.replace("--overwrite", "brics runs rm")
                raise WouldOverwriteError(what, next="Move what is yours away, or remove it yourself.") from None
            if path.is_file():
                path.unlink()
                beside.unlink(missing_ok=True)
