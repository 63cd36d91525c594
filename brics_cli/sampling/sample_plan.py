"""A sampling run before its first image: models, seeds, settings, output. All that can be wrong is found here, before
any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.codes import StoreHeader, StoreShard
from brics_cli.diffusion.classes import Balance
from brics_cli.diffusion.samplers import SamplerSettings
from brics_cli.images import TRANSFORM_VERSIONS, sinks
from brics_cli.images.sinks import PNG, is_one_file, pieces
from brics_cli.images.sinks.pieces import file_of_pieces, piece_encoding, pieces_directory
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.sample_models import SampleModels, load_sample_models
from brics_cli.sampling.sample_tasks import CodeOutput, ImageOutput, SampleOutput, SampleTask, cut, key_of
from brics_cli.sampling.samples import SampleStream
from brics_cli.workspace import Artefact, Parent, Workspace
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import form_of_output

Format = Literal["wds", "png", "zip", "npz", "h5"]
FORMS: dict[Format, tuple[str, ...]] = {
    **cast(dict[Format, tuple[str, ...]], sinks.FORMS),
    "h5": (".h5",),
}
"""Format -> what its --out ends in."""

PNG_TASK = 250
"""Seeds that a process takes at once of a folder of PNG files, about: they are whole one by one."""
SHEET_IMAGES = 64


@dataclass(frozen=True)
class SamplePlan:
    """What would be sampled, with what, on which devices, and where to. `seeds` is a range with step 1.

    On one device the models are there; for several they are on the CPU, and every process loads its own.
    """

    models: SampleModels
    seeds: range
    out: Path
    format: Format
    shard_size: int
    devices: tuple[torch.device, ...]

    @property
    def stream(self) -> SampleStream:
        return self.models.stream

    @property
    def autoencoder(self) -> Autoencoder:
        return self.models.autoencoder

    @property
    def parents(self) -> tuple[Parent, ...]:
        return self.models.parents

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs that write to one output must have in common, beside their parents."""
        return {
            **self.models.settings,
            "seeds": f"{self.seeds.start}-{self.seeds.stop - 1}",
            "format": self.format,
            "shard_size": self.shard_size,
        }

    @property
    def artefact(self) -> Artefact:
        return Artefact("samples", self.out, now(), False, self.parents, {"settings": self.settings})

    @property
    def is_file(self) -> bool:
        """Whether the output is one file: a zip, an npz, a tar, a store."""
        return is_one_file(self.out)

    @property
    def folder(self) -> Path:
        """Where tasks are written: the output, or what the file is made of in the end."""
        if self.format == "h5":
            return self.out.with_name(self.out.name + ".parts")
        return pieces_directory(self.out) if self.is_file else self.out

    @property
    def sheet(self) -> Path:
        """The contact sheet: out of the way of whoever reads the images."""
        if self.format == "wds" and not self.is_file:
            return self.out / "images" / "sheet.png"
        return self.out.with_name(self.out.name + ".sheet.png")

    @property
    def sheet_seeds(self) -> range:
        """The seeds that are on it."""
        return self.seeds[:SHEET_IMAGES]

    @property
    def tasks(self) -> list[SampleTask]:
        """All seeds, cut as they are written."""
        if self.format == "png":
            size = self.stream.batch_size  # whole batches, so that none is computed twice
            return cut(self.seeds, max(1, round(PNG_TASK / size)) * size)
        return cut(self.seeds, pieces.PIECE_SIZE if self.is_file and self.format != "h5" else self.shard_size)

    @property
    def output(self) -> SampleOutput:
        if self.format == "h5":
            return CodeOutput(self.folder, *store_layout(self))
        return ImageOutput(
            self.folder, "png" if self.format == "png" else "wds", piece_encoding(self.out) if self.is_file else PNG
        )

    def pending(self) -> list[SampleTask]:
        """The tasks whose images are not all there, each from its first missing one to its last. (Not of a store: its
        writer says which parts are whole.)"""
        left = []
        for task in self.tasks:
            if self.format == "png":
                missing = [seed for seed in task.seeds if not (self.folder / f"{key_of(seed)}.png").is_file()]
                if missing:
                    left.append(SampleTask(task.number, range(missing[0], missing[-1] + 1)))
            elif not (self.folder / f"{task.number:05d}.tar").is_file():
                left.append(task)
        return left


def plan_sampling(
    model: Path,
    *,
    seeds: range,
    settings: SamplerSettings,
    batch_size: int,
    workspace: Workspace,
    device: torch.device | Sequence[torch.device],
    out: Path | None = None,
    format: Format | None = None,
    class_: int | str | None = None,
    balance: Balance | None = None,
    shard_size: int = 1000,
    ema: float | None = None,
    guide: Path | None = None,
    ae_path: Path | None = None,
    reporter: Reporter,
) -> SamplePlan:
    """Load the models, and fix every setting; `device` is one, or several, a process each.

    `out` None is an unfinished output of the same samples in the workspace, else a new run. Raises what
    `load_sample_models` raises, and UsageError when `out` and `format` disagree.
    """
    format = sampled_format(out, asked=format)
    devices = (device,) if isinstance(device, torch.device) else tuple(device)
    models = load_sample_models(
        model,
        settings=settings,
        batch_size=batch_size,
        workspace=workspace,
        device=devices[0] if len(devices) == 1 else torch.device("cpu"),
        class_=class_,
        balance=balance,
        ema=ema,
        guide=guide,
        ae_path=ae_path,
    )
    classes = models.stream.denoiser.classes
    if models.stream.balance is not None:
        how = "as often as in training" if models.stream.balance == "proportional" else "each as often as any other"
        reporter.message(f"classes are drawn {how}: {classes.listed()} (--class-balance, --class)")
    named = SamplePlan(models, seeds, out or Path(), format, shard_size, devices)
    return named if out is not None else _placed(named, workspace=workspace, reporter=reporter)


def sampled_format(out: Path | None, *, asked: str | None) -> Format:
    """The format that was asked for, or that `out` says; wds for a folder. Raises UsageError as `form_of_output`."""
    if out is None:
        return cast(Format, asked or "wds")
    return form_of_output(out, FORMS, asked=asked, default="wds")


def _placed(plan: SamplePlan, *, workspace: Workspace, reporter: Reporter) -> SamplePlan:
    """`plan` with an output: an interrupted folder of the same samples, or a new run."""
    suffix = FORMS[plan.format][0]
    out = workspace.new_run_path("samples", plan.models.recipe)
    for artefact in workspace.artefacts():
        same = artefact.kind == "samples" and artefact.details.get("settings") == plan.settings
        if same and not artefact.complete and artefact.parents == plan.parents:
            begun = file_of_pieces(artefact.path)
            reporter.message(f"--out not given: going on with the unfinished {begun}")
            return replace(plan, out=begun)
    if plan.format == "h5":  # a store that is not whole has parts, and no provenance yet
        identity = store_layout(plan)[0].identity()
        for folder in sorted(out.parent.glob("*.h5.parts"), reverse=True):
            with suppress(OSError, ValueError):
                if parse_json(read_bytes(folder / "identity.json")) == identity:
                    begun = folder.with_suffix("")
                    reporter.message(f"--out not given: going on with the unfinished {begun}")
                    return replace(plan, out=begun)
    return replace(plan, out=out.with_name(out.name + suffix))


def store_layout(plan: SamplePlan) -> tuple[StoreHeader, list[StoreShard]]:
    """The header and the shards of a key-code store of the plan's samples; they stand for model and settings."""
    identity = {"settings": plan.settings, "model": plan.stream.denoiser.weights_sha256}
    if plan.stream.guide is not None:
        identity["guide"] = plan.stream.guide.weights_sha256
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    config = plan.autoencoder.config
    header = StoreHeader(
        code_shape=config.code_shape,
        image_size=config.image_size,
        transform=f"{plan.autoencoder.transform}/{TRANSFORM_VERSIONS[plan.autoencoder.transform]}",
        quantisation="uint8" if config.code_kind == "bounded" else "float16",
        autoencoder={"sha256": plan.autoencoder.weights_sha256, "config": config.model_dump(mode="json")},
        source=str(plan.stream.denoiser.path.resolve()),
        source_sha256=fingerprint,
        num_images=len(plan.seeds),
        code_kind=config.code_kind,
        class_names=plan.stream.denoiser.class_names,
    )
    return header, [
        StoreShard(f"{task.number:05d}", len(task.seeds), 0, f"{fingerprint}/{task.number}") for task in plan.tasks
    ]
