"""`brics export`: key-code store -> the latents that LightningDiT trains on (arXiv 2501.01423): safetensors shards.

N rows per shard, float32: `latents` (N, C, h, w), `latents_flip` the same of the mirrored images, of which its loader
draws every second one, and `labels` (N,) int64. Beside them the statistics that its loader looks for.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.codes import KeyCodeStore
from brics_cli.codes.format import Array
from brics_cli.errors import ArtefactError, InterruptedRunError, UsageError
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Parent, Workspace, atomic_path, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.naming import FOLDER, form_of_output
from brics_cli.workspace.outputs import claim, output_lock
from brics_cli.workspace.places import reference

ROWS_PER_SHARD = 10_000
STATISTICS = "latents_stats.pt"
_ROWS_PER_BLOCK = 256


@dataclass(frozen=True)
class ExportPlan:
    """What would be exported. `flips`: `latents_flip` are of the mirrored images; `labels`: they are the store's.

    `num_classes` are those up to the largest label; 1 without labels, which are then all 0. `settings` are what
    LightningDiT's own config needs to say of these latents.
    """

    store: KeyCodeStore
    out: Path
    flips: bool
    labels: bool
    rows_per_shard: int
    num_shards: int
    num_bytes: int
    num_classes: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class ExportResult:
    """What was exported: `num_images` in `num_shards` files at `path`; `settings` are for the other's config."""

    path: Path
    num_images: int
    num_shards: int
    num_bytes: int
    num_classes: int
    settings: dict[str, Any]
    already_complete: bool


def plan_export(
    codes: Path | None = None,
    *,
    out: Path | None = None,
    flips: bool = True,
    labels: bool = True,
    rows_per_shard: int = ROWS_PER_SHARD,
    workspace: Workspace,
    reporter: Reporter,
) -> ExportPlan:
    """Fix every setting: `codes` None is the newest store in the workspace, `out` None `latents` there. Of a store
    without any label none are taken, and `reporter` hears it.

    Raises ArtefactError when flips or some of the labels are not in the store, UsageError for a file as `out`.
    """
    store = KeyCodeStore(workspace.resolve("store", codes, argument="CODES", wanted="training", reporter=reporter))
    out = out or workspace.root / "latents"
    form_of_output(out, {"LightningDiT's latents": (FOLDER,)})
    if not len(store):
        raise ArtefactError(f"{store.path} holds no codes")
    if flips and not store.has_flipped:
        raise ArtefactError(
            f"{store.path} holds no flipped codes, and LightningDiT's loader takes them for every second image",
            next="Encode again with --flips, or give --no-flips: latents_flip then repeats latents.",
        )
    num_labels = int((store.labels >= 0).sum())
    if labels and 0 < num_labels < len(store):
        raise ArtefactError(
            f"{num_labels:,} of the {len(store):,} images in {store.path} have labels, and LightningDiT needs all or "
            "none",
            next="Encode those that have (--keys), or give --no-labels: all are of class 0.",
        )
    if out.is_file():
        raise UsageError(f"--out {out} is a file", next="Shards go to a folder: --out latents")
    if labels and not num_labels:
        reporter.message(f"{store.path} has no labels: all are written as 0, one class")
    labels = labels and num_labels > 0
    num_classes = int(store.labels.max()) + 1 if labels else 1
    settings = {
        "data.data_path": str(out.resolve()),
        "data.image_size": store.image_size,
        "data.num_classes": num_classes,
        "data.latent_norm": True,
        "data.latent_multiplier": 1.0,
        "vae.downsample_ratio": store.image_size // store.code_shape[1],
        "model.in_chans": store.code_shape[0],
    }
    num_shards, num_bytes = math.ceil(len(store) / rows_per_shard), len(store) * (8 * math.prod(store.code_shape) + 8)
    return ExportPlan(store, out, flips, labels, rows_per_shard, num_shards, num_bytes, num_classes, settings)


def export(plan: ExportPlan, *, overwrite: bool = False, reporter: Reporter) -> ExportResult:
    """Write the shards that are not there yet, then the statistics.

    Raises ArtefactError or WouldOverwriteError when something else is at `out`, InterruptedRunError on Ctrl-C.
    """
    store, num_images = plan.store, len(plan.store)
    made_by = store.artefact.parent("autoencoder")
    parents = (
        Parent("store", reference(store.path), store.sha256),
        Parent("autoencoder", made_by.path if made_by is not None else "", store.autoencoder["sha256"]),
    )
    asked = {"to": "lightningdit", "flips": plan.flips, "labels": plan.labels, "rows_per_shard": plan.rows_per_shard}
    artefact = Artefact("latents", plan.out, now(), False, parents, {"settings": asked})
    with output_lock(plan.out):
        complete = claim(artefact, overwrite=overwrite) == "complete"
        if not complete:
            labels = store.labels if plan.labels else np.zeros(num_images, np.int64)
            with reporter.task("export", total=num_images, unit="img") as task:
                try:
                    for number in range(plan.num_shards):
                        first = number * plan.rows_per_shard
                        rows = range(first, min(first + plan.rows_per_shard, num_images))
                        path = plan.out / shard_name(number, num_shards=plan.num_shards)
                        if not path.is_file():
                            write_latents(path, store, rows, labels=labels, flips=plan.flips)
                        task.advance(len(rows))
                except KeyboardInterrupt:
                    raise InterruptedRunError(f"interrupted; whole shards in {plan.out} are kept") from None
            _write_statistics(plan, reporter)
            summary = f"{num_images:,} latents for LightningDiT, {'x'.join(map(str, store.code_shape))}"
            details = {"summary": summary, "num_images": num_images, "num_classes": plan.num_classes}
            write_provenance(finished(artefact, **details, config=plan.settings))
    return ExportResult(
        plan.out, num_images, plan.num_shards, plan.num_bytes, plan.num_classes, plan.settings, complete
    )


def shard_name(number: int, *, num_shards: int) -> str:
    """`latents_rank00_shard000.safetensors`: the loader takes them in the order of their names."""
    return f"latents_rank00_shard{number:0{max(3, len(str(num_shards - 1)))}d}.safetensors"


def write_latents(path: Path, store: KeyCodeStore, rows: range, *, labels: Array, flips: bool) -> None:
    """Write `rows` (step 1) of `store`, whole or not at all, in blocks: memory does not grow with the file.

    Without `flips` `latents_flip` are the latents again.
    """
    shape = [len(rows), *store.code_shape]
    size = 4 * math.prod(shape)
    tensors = {"labels": ("I64", [len(rows)], 8 * len(rows)), "latents": ("F32", shape, size),
               "latents_flip": ("F32", shape, size)}  # fmt: skip
    header, end = {}, 0
    for name, (dtype, sides, num_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": sides, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants its data aligned
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.ascontiguousarray(labels[rows.start : rows.stop], "<i8").data)
        for flipped in (False, flips):
            for first in range(rows.start, rows.stop, _ROWS_PER_BLOCK):
                block = slice(first, min(first + _ROWS_PER_BLOCK, rows.stop))
                file.write(np.ascontiguousarray(store.batch(block, flipped=flipped), "<f4").data)


def _write_statistics(plan: ExportPlan, reporter: Reporter) -> None:
    """`mean` and `std` per channel, (1, C, 1, 1): the loader would otherwise take them from 10,000 random images."""
    import torch

    std = plan.store.std.copy()
    constant = np.flatnonzero(std == 0)
    if len(constant):
        reporter.warning(
            f"{len(constant)} channels never change (first: {constant[0]}): their std is written as 1, not 0"
        )
        std[constant] = 1
    statistics = {
        name: torch.from_numpy(values.copy()).reshape(1, -1, 1, 1)
        for name, values in (("mean", plan.store.mean), ("std", std))
    }
    buffer = BytesIO()  # saved to a file, its bytes would depend on the file's name
    torch.save(statistics, buffer)
    with atomic_path(plan.out / STATISTICS) as temporary:
        temporary.write_bytes(buffer.getvalue())
