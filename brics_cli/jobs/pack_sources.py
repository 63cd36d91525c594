"""Whether what an unfinished or finished pack was made from is still what stands in its source."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from brics_cli.errors import ArtefactError
from brics_cli.images import Collection, claim_output
from brics_cli.images.fingerprints import shards_to_redo
from brics_cli.images.packs import SourceLog, source_digests
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, read_provenance, write_provenance
from brics_cli.workspace.outputs import Claim

if TYPE_CHECKING:
    from brics_cli.jobs.pack import PackPlan


def claim_pack(plan: PackPlan, sources: Collection, *, overwrite: bool, reporter: Reporter) -> Claim:
    """Claim the output as `claim_output` does; where it is complete, every image is held against its manifest.

    Raises ArtefactError too when images have changed since, and when an older brics, which knew them by names and
    sizes alone, has begun it; of what it has finished the reporter hears that nobody can tell.
    """
    artefact, made = plan.artefact, read_provenance(plan.out) if plan.out.exists() else None
    is_old = False
    if made is not None and made.kind == artefact.kind and (parent := made.parent("collection")) is not None:
        artefact = replace(artefact, parents=(plan.parent(parent.sha256),))  # its images are looked at below
        is_old = "names_and_sizes" not in made.details.get("settings", {})
        if is_old and parent.sha256 == plan.collection.layout:
            artefact.details["settings"].pop("names_and_sizes")
        if not overwrite and not is_old and _differs_in_layout_alone(made, artefact):
            raise ArtefactError(
                f"{plan.collection.path} has changed since {plan.out} was made from it: it holds other images, or "
                "other names or sizes of them",
                next="Give another --out, or --overwrite to pack what is there now.",
            )
    claim = claim_output(artefact, overwrite=overwrite)
    if claim == "new" or (claim == "resume" and is_old and overwrite):
        write_provenance(plan.artefact)
    elif is_old or claim == "complete":
        recorded = dict.fromkeys(range(len(sources.shards)), "") if is_old else source_digests(plan.out)
        shards_to_redo(
            sources, recorded, output=plan.out, complete=claim == "complete", overwrite=False, reporter=reporter
        )
    return claim


def _differs_in_layout_alone(made: Artefact, artefact: Artefact) -> bool:
    was, now = made.details["settings"], artefact.details["settings"]
    return {**was, "names_and_sizes": now["names_and_sizes"]} == now and was != now


def checked_sources(plan: PackPlan, sources: Collection, *, overwrite: bool, reporter: Reporter) -> SourceLog:
    """What the shards that are there were made from, which is what the collection still holds.

    Shards of which nobody knows that are removed; with `overwrite` all from the first one of changed images on, too.
    Raises ArtefactError, saying which, when images have changed.
    """
    made_from, tars = SourceLog(plan.out), sorted(plan.out.glob("*.tar"))
    num_known = next(number for number in count() if number not in made_from.digests)
    recorded = {number: made_from.digests[number] for number in range(min(num_known, len(tars)))}
    redone = shards_to_redo(sources, recorded, output=plan.out, complete=False, overwrite=overwrite, reporter=reporter)
    num_kept = min(redone, default=len(recorded))
    for tar in tars[num_kept:]:
        tar.unlink()
    made_from.keep(num_kept)
    return made_from
