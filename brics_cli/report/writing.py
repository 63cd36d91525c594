"""The page itself: chapters in the order of the pipeline, rendered at the finest detail that fits, written whole."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import brics_cli
from brics_cli.errors import UsageError
from brics_cli.report import autoencoder, codes, collection, diffusion, making, scores
from brics_cli.report.blocks import Chapter, Section
from brics_cli.report.context import Context
from brics_cli.report.gathering import STAGES, Gathered, Node, gather
from brics_cli.report.lineage import diagram
from brics_cli.report.pictures import DETAILS, Detail
from brics_cli.runtime.reporting import Reporter, printable
from brics_cli.wording import count
from brics_cli.workspace import MARK, Artefact, Parent, Workspace, atomic_path, check_output, write_provenance
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import PAGE, form_of_output
from brics_cli.workspace.outputs import absent_unless_done, output_lock

OUT = "report.html"
MAX_MB = 8.0
TEMPLATES = Path(__file__).with_name("templates")
_STAGE_NAMES = {
    "collection": ("collection", None), "autoencoder": ("autoencoder", None), "diffusion": ("diffusion model", None),
    "codes": ("store of codes", "stores of codes"), "samples": ("set of samples", "sets of samples"),
    "reconstructions": ("set of reconstructions", "sets of reconstructions"), "scores": ("evaluation", None),
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The page at `path`, of `num_bytes`; `sections` are the titles in it, `left_out` (what, why) is not in it.

    `picture_side` is the longest side of a picture in it, px, where larger ones were made smaller for --max-mb.
    """

    path: Path
    num_bytes: int
    sections: list[str]
    left_out: list[tuple[str, str]]
    picture_side: int
    seconds: float


def write_report(
    inputs: Sequence[Path] | None = None,
    *,
    out: Path | None = None,
    max_mb: float | None = None,
    watts: float | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
) -> Report:
    """Write the page of `inputs` (`brics_cli.api.report` says what the arguments are)."""
    start, inputs, limit = time.perf_counter(), list(inputs or ()), max_mb or MAX_MB
    out = out or workspace.root / OUT
    form_of_output(out, PAGE)
    check_output(out, overwrite=overwrite, what="the report", inputs=inputs)
    gathered = gather(inputs, workspace)
    context = Context(gathered, workspace, reporter, watts)
    for path, reason in gathered.passed_over.items():
        context.leave_out(path, reason)
    made = _chapters(context, reporter)
    title = inputs[0].name or str(inputs[0]) if len(inputs) == 1 else workspace.root.resolve().name or "workspace"
    html, detail = _fitting(gathered, made, context.left_out, title=title, limit=limit)
    parents = tuple(
        Parent(node.artefact.kind, str(node.path.resolve()), str(node.details.get("sha256", "")))
        for node in gathered.nodes
        if inputs and node.artefact is not None
    )
    data = html.encode("utf-8", "backslashreplace")
    summary = f"{count(sum(len(chapter.sections) for chapter in made), 'section')}, {len(data) / 1e6:.1f} MB"
    with output_lock(out):
        check_output(out, overwrite=overwrite, what="the report", inputs=inputs)  # of who held the lock until now
        with absent_unless_done([out]), atomic_path(out) as temporary:
            temporary.write_bytes(data)
        write_provenance(Artefact("page", out, now(), True, parents, {"summary": summary}))
    sections = [text for chapter in made for text in (chapter.title, *(section.title for section in chapter.sections))]
    return Report(out, len(data), sections, context.left_out, detail.side, time.perf_counter() - start)


def _chapters(context: Context, reporter: Reporter) -> list[Chapter]:
    images = Chapter("images", "The images")
    for node in context.gathered.of("collection"):
        children = [child for child in context.gathered.nodes if node in child.parents]
        if node.artefact is None and all(child.stage == "collection" for child in children):
            continue  # what shards were packed from: they have the same images
        images.sections += context.attempt(str(node.path), [], _collection, node, context)
    makers = (
        autoencoder.chapter,
        codes.chapter,
        diffusion.chapter,
        diffusion.samples_chapter,
        scores.chapter,
        making.chapter,
    )
    made = [images]
    with reporter.task("report", total=len(makers), unit="chapter") as task:
        for maker in makers:
            made.append(maker(context))
            task.advance()
    return [chapter for chapter in made if chapter]


def _collection(node: Node, context: Context) -> list[Section]:
    return [collection.section(node, context.looked(node))]


def _fitting(
    gathered: Gathered, chapters: Sequence[Chapter], left_out: Sequence[tuple[str, str]], *, title: str, limit: float
) -> tuple[str, Detail]:
    """The page at the finest detail that is not above `limit` MB. Raises UsageError where the coarsest is."""
    for detail in DETAILS:
        html = render(gathered, chapters, left_out, title=title, detail=detail)
        size = len(html.encode("utf-8", "backslashreplace"))
        if size <= limit * 1e6:
            return html, detail
    raise UsageError(
        f"the report takes {size / 1e6:.1f} MB with its pictures at {detail.side} px, and --max-mb is {limit:g}",
        next="Give a larger --max-mb, or name fewer runs.",
    )


def render(
    gathered: Gathered,
    chapters: Sequence[Chapter],
    left_out: Sequence[tuple[str, str]],
    *,
    title: str,
    detail: Detail,
) -> str:
    """The page as HTML. Every text is escaped; what is `ours` (style, script, plots) is not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if isinstance(value, Markup):
            return value
        return printable(value if isinstance(value, str) else str(value), keep="\n")

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=shown,
        trim_blocks=False, lstrip_blocks=False,
    )  # fmt: skip
    environment.filters["ours"] = Markup
    css, script = ((TEMPLATES / name).read_text(encoding="utf-8").strip() for name in ("page.css", "page.js"))
    policy = "; ".join(
        [
            "default-src 'none'", "img-src data:", f"style-src '{_sha256(css)}'", f"script-src '{_sha256(script)}'",
            "base-uri 'none'", "form-action 'none'",
        ]
    )  # fmt: skip
    anchors = {section.id for chapter in chapters for section in chapter.sections}
    counts = {stage: sum(node.stage == stage for node in gathered.nodes) for stage in dict.fromkeys(STAGES.values())}
    said = [count(num, *_STAGE_NAMES[stage]) for stage, num in counts.items() if num]
    date = f"{datetime.now(UTC):%-d %B %Y}"
    return environment.get_template("page.html.j2").render(
        title=title,
        summary=", ".join(said) + ".",
        chapters=chapters,
        left_out=left_out,
        diagram=diagram(gathered.nodes, anchors) if len(gathered.nodes) > 1 else None,
        detail=detail,
        uri=lambda picture: picture.uri(detail),
        css=css,
        script=script,
        policy=policy,
        mark=MARK,
        version=brics_cli.__version__,
        footer=f"Written by brics {brics_cli.__version__} on {date}. This file needs no other, and no network.",
    )


def _sha256(text: str) -> str:
    """As a policy names a style or a script that may be used."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
