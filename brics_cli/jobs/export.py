"""`brics export`: key-code store -> the files that another trainer reads (LightningDiT's safetensors shards)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.codes import KeyCodeStore
from brics_cli.codes.latents import ROWS_PER_SHARD, shard_name, write_latents
from brics_cli.errors import ArtefactError, InterruptedRunError, UsageError
from brics_cli.images import claim_output
from brics_cli.images.outputs import output_lock
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Parent, atomic_path, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.naming import FOLDER, form_of_output

STATISTICS = "latents_stats.pt"


@dataclass(frozen=True)
class ExportPlan:
    """What would be exported. `flips`: `latents_flip` are of the mirrored images; `labels`: they are the store's."""

    store: KeyCodeStore
    out: Path
    flips: bool
    labels: bool
    rows_per_shard: int

    @property
    def num_shards(self) -> int:
        return math.ceil(len(self.store) / self.rows_per_shard)

    @property
    def num_bytes(self) -> int:
        return len(self.store) * (2 * 4 * math.prod(self.store.code_shape) + 8)

    @property
    def num_classes(self) -> int:
        """Classes 0, 1, ... up to the largest label; 1 without labels, which are then all 0."""
        return int(self.store.labels.max()) + 1 if self.labels else 1

    @property
    def settings(self) -> dict[str, Any]:
        """What LightningDiT's own config needs to say of these latents."""
        _, height, _ = self.store.code_shape
        return {
            "data.data_path": str(self.out.resolve()),
            "data.image_size": self.store.image_size,
            "data.num_classes": self.num_classes,
            "data.latent_norm": True,
            "data.latent_multiplier": 1.0,
            "vae.downsample_ratio": self.store.image_size // height,
            "model.in_chans": self.store.code_shape[0],
        }

    @property
    def artefact(self) -> Artefact:
        settings = {
            "to": "lightningdit",
            "flips": self.flips,
            "labels": self.labels,
            "rows_per_shard": self.rows_per_shard,
        }
        parents = (
            Parent("store", str(self.store.path.resolve()), self.store.sha256),
            Parent("autoencoder", self._autoencoder_path, self.store.autoencoder["sha256"]),
        )
        return Artefact("latents", self.out, now(), False, parents, {"settings": settings})

    @property
    def _autoencoder_path(self) -> str:
        parent = self.store.artefact.parent("autoencoder")
        return parent.path if parent is not None else ""


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
    store: KeyCodeStore, *, out: Path, flips: bool = True, labels: bool = True, rows_per_shard: int = ROWS_PER_SHARD
) -> ExportPlan:
    """Fix every setting. Of a store without any label none are taken.

    Raises ArtefactError when flips or some of the labels are not in the store, UsageError for a file as `out`.
    """
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
    return ExportPlan(store, out, flips, labels and num_labels > 0, rows_per_shard)


def export(plan: ExportPlan, *, overwrite: bool = False, reporter: Reporter) -> ExportResult:
    """Write the shards that are not there yet, then the statistics.

    Raises ArtefactError or WouldOverwriteError when something else is at `out`, InterruptedRunError on Ctrl-C.
    """
    store, num_images = plan.store, len(plan.store)
    with output_lock(plan.out):
        complete = claim_output(plan.artefact, overwrite=overwrite) == "complete"
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
            write_provenance(finished(plan.artefact, **details, config=plan.settings))
    return ExportResult(
        plan.out, num_images, plan.num_shards, plan.num_bytes, plan.num_classes, plan.settings, complete
    )


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
