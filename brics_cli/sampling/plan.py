"""A sampling run before its first image: models, seeds, settings, output. All that can be wrong is found here, before
any work."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from brics_cli.autoencoder.model_files import read_model_config
from brics_cli.codes import StoreHeader, StoreShard
from brics_cli.config.names import DEFAULT_QUANTISATIONS, Precision
from brics_cli.config.suggestions import check_known
from brics_cli.diffusion.samplers import SamplerSettings
from brics_cli.images import open_sink, versioned
from brics_cli.images.sinks import ImageSink, begun_at, check_codec, file_of_pieces
from brics_cli.parsing import parse_json, read_bytes
from brics_cli.runtime.device import resolve_devices
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.precision import precision_on
from brics_cli.runtime.reporting import Reporter
from brics_cli.sampling.models import Models, load_models
from brics_cli.sampling.tasks import (
    DEFAULT_BATCH_SIZE,
    DEFAULT_SHARD_SIZE,
    FORMATS,
    SampleFormat,
    Task,
    check_at_least_1,
    cut,
    key_of,
    seed_range,
)
from brics_cli.workspace import Artefact, Workspace, sha256_of_file
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.naming import FOLDER, WEIGHTS_NAME, Codec, ending_of, form_of_output
from brics_cli.workspace.outputs import check_alike, check_claim
from brics_cli.workspace.places import reference

PNG_TASK = 250
"""Seeds that a process takes at once of a folder of PNG files, about: they are whole one by one."""
SHEET_IMAGES = 64


@dataclass(frozen=True)
class Plan:
    """What is sampled, with what, on which devices, and where to. `seeds` is a range with step 1.

    On one device the models are there; for several, or a cluster, they are on the CPU. Picklable: another process
    loads the models again from their files.
    """

    models: Models
    seeds: range
    batch_size: int
    out: Path
    format: SampleFormat
    shard_size: int
    devices: tuple[torch.device, ...]
    num_workers: int | None = None
    codec: Codec | None = None
    executor: RayExecutor | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs that write to one output must have in common, besides their parents."""
        return {
            **self.models.record(batch_size=self.batch_size),
            **_of_output(self.seeds, self.format, shard_size=self.shard_size, codec=self.codec),
        }

    @property
    def num_workers_at_once(self) -> int:
        return len(self.devices) if self.executor is None else max(1, self.executor.num_places())

    @property
    def artefact(self) -> Artefact:
        return Artefact("samples", self.out, now(), False, self.models.parents, {"settings": self.settings})

    @property
    def sink(self) -> ImageSink:
        """What writes the images, where they are kept."""
        names = self.models.denoiser.class_names
        return open_sink(
            self.out,
            self.format,
            codec=self.codec,
            shard_size=self.shard_size,
            class_names=names,
            num_workers=self.num_workers,
        )

    @property
    def folder(self) -> Path:
        """Where tasks are written: the output, or what the file is made of in the end."""
        return self.out.with_name(self.out.name + ".parts") if self.format == "h5" else self.sink.folder

    @property
    def sheet(self) -> Path:
        """The contact sheet: out of the way of whoever reads the images."""
        return self.out.with_name(self.out.name + ".sheet.png") if self.format == "h5" else self.sink.sheet

    @property
    def sheet_seeds(self) -> range:
        return self.seeds[:SHEET_IMAGES]

    @cached_property
    def tasks(self) -> list[Task]:
        """All seeds, cut as they are written: a file each, or some PNG files."""
        if self.format == "h5":
            return cut(self.seeds, self.shard_size)
        if self.sink.by_image:  # whole batches, so that none is computed twice
            return cut(self.seeds, max(1, round(PNG_TASK / self.batch_size)) * self.batch_size)
        return cut(self.seeds, self.sink.shard_size)

    def pending(self) -> list[Task]:
        """The tasks whose images are not all there, each from its first missing one to its last. (Not of a store: its
        writer says which parts are whole.)"""
        left, sink = [], self.sink
        for task in self.tasks:
            assert task.number is not None
            missing = sink.missing(task.number, map(key_of, task.seeds))
            if missing:
                left.append(Task(task.number, task.seeds[missing.start : missing.stop]))
        return left

    @cached_property
    def store(self) -> tuple[StoreHeader, list[StoreShard]]:
        """The header and the shards of a key-code store of the samples; its fingerprints are of model and settings."""
        denoiser, autoencoder = self.models.denoiser, self.models.autoencoder
        identity = {"settings": self.settings, "model": denoiser.weights_sha256}
        if self.models.guide is not None:
            identity["guide"] = self.models.guide.weights_sha256
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        config = autoencoder.config
        header = StoreHeader(
            code_shape=denoiser.code_shape,
            image_size=self.models.image_size,
            transform=versioned(autoencoder.transform),
            quantisation=DEFAULT_QUANTISATIONS[config.code_kind],
            autoencoder={"sha256": autoencoder.weights_sha256, "config": config.model_dump(mode="json")},
            source=reference(denoiser.path),
            source_sha256=fingerprint,
            num_images=len(self.seeds),
            code_kind=config.code_kind,
            class_names=denoiser.class_names,
        )
        shards = [(f"{task.number:05d}", len(task.seeds), f"{fingerprint}/{task.number}") for task in self.tasks]
        return header, [StoreShard(name, num, 0, each) for name, num, each in shards]


def plan_sampling(
    model: Path | None = None,
    *,
    num: int | None = None,
    seeds: str | range | None = None,
    seed: int | None = None,
    out: Path | None = None,
    format: SampleFormat | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    shard_size: int | None = None,
    num_workers: int | None = None,
    codec: Codec | None = None,
    device: str = "auto",
    executor: RayExecutor | None = None,
    precision: Precision | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
    **how: Any,
) -> Plan:
    """Check and resolve what was asked for (see `brics_cli.api.sample`), and load the models (`load_models`).

    `how` are the settings that `load_models` takes. `out` None is an unfinished output of the same samples in the
    workspace, else a new run. Raises UsageError for what cannot go together, and what `load_models` raises.
    """
    wanted = seed_range(num=num, seeds=seeds, seed=seed)
    check_at_least_1(batch_size, option="--batch-size")
    check_at_least_1(shard_size, option="--shard-size")
    devices = tuple(resolve_devices(device) if executor is None else executor.connect(device, reporter=reporter))
    computing_on = devices[0] if executor is None else torch.device(executor.device)
    how["precision"] = precision_on(computing_on, precision)
    form = _form(out, asked=format, reporter=reporter)
    check_codec(codec, format=form, path=out)
    shard_size = shard_size or DEFAULT_SHARD_SIZE
    if out is not None:
        begun = out if overwrite else begun_at(out)
        check_claim(begun, kind="samples", overwrite=overwrite)
        if begun.exists() and not overwrite:
            model = workspace.resolve("diffusion", model, argument="--model", reporter=reporter)
            given = {each.name: how[each.name] for each in fields(SamplerSettings) if each.name in how}
            known = SamplerSettings(**given).record | _of_output(wanted, form, shard_size=shard_size, codec=codec)
            weights = read_model_config(model, kind="diffusion")[1] / WEIGHTS_NAME
            known |= {"batch_size": batch_size, "diffusion": sha256_of_file(weights)}
            check_alike(begun, kind="samples", known=known)
    on = devices[0] if len(devices) == 1 and executor is None else torch.device("cpu")
    models = load_models(model, **how, workspace=workspace, device=on, reporter=reporter)
    if models.balance is not None:
        often = "as often as in training" if models.balance == "proportional" else "each as often as any other"
        reporter.message(f"classes are drawn {often}: {models.denoiser.classes.listed()} (--class-balance, --class)")
    plan = Plan(models, wanted, batch_size, out or Path(), form, shard_size, devices, num_workers, codec, executor)
    return plan if out is not None else _placed(plan, workspace=workspace, reporter=reporter)


def _of_output(seeds: range, form: SampleFormat, *, shard_size: int, codec: Codec | None) -> dict[str, Any]:
    """What an output is said to hold, whatever the models."""
    named = {"seeds": f"{seeds.start}-{seeds.stop - 1}", "format": form, "shard_size": shard_size}
    return named | ({} if codec in (None, "png") else {"codec": codec})


def _form(out: Path | None, *, asked: SampleFormat | None, reporter: Reporter) -> SampleFormat:
    """The format that was asked for, or that `out` says; wds for a folder."""
    check_known(asked, FORMATS, option="--format", what="format")
    if out is None:
        return asked or "wds"
    form = form_of_output(out, FORMATS, asked=asked, default="wds")
    if asked is None and ending_of(out) != FOLDER:
        reporter.message(f"--format not given: {form}, by the ending of {out}")
    return form


def _placed(plan: Plan, *, workspace: Workspace, reporter: Reporter) -> Plan:
    """`plan` with an output: an interrupted one of the same samples, or a new run."""
    new = workspace.new_run_path("samples", plan.models.name)
    unfinished = [
        file_of_pieces(artefact.path)
        for artefact in workspace.artefacts()
        if artefact.kind == "samples" and not artefact.complete
        if artefact.details.get("settings") == plan.settings
        if [parent.sha256 for parent in artefact.parents] == [parent.sha256 for parent in plan.models.parents]
    ]
    if plan.format == "h5":  # a store that is not whole has parts, and no provenance yet
        for folder in sorted(new.parent.glob("*.h5.parts"), reverse=True):
            with suppress(OSError, ValueError):
                if parse_json(read_bytes(folder / "identity.json")) == plan.store[0].identity():
                    unfinished.append(folder.with_suffix(""))
    if unfinished:
        reporter.message(f"--out not given: going on with the unfinished {unfinished[0]}")
        return replace(plan, out=unfinished[0])
    return replace(plan, out=new.with_name(new.name + FORMATS[plan.format][0]))
