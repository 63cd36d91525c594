"""A sampling run before its first image: model, autoencoder, seeds, settings, output. All that can be wrong is found
here, before any work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from brics_cli.core.autoencoder import Autoencoder
from brics_cli.core.denoisers import load_denoiser
from brics_cli.core.samplers import SamplerSettings
from brics_cli.data import TRANSFORM_VERSIONS
from brics_cli.data.sinks.pieces import file_of_pieces
from brics_cli.errors import ArtefactError, UsageError
from brics_cli.reporting import Reporter
from brics_cli.store import StoreHeader, StoreShard
from brics_cli.streams.autoencoders import load_autoencoder_of
from brics_cli.streams.origins import ancestor
from brics_cli.streams.samples import SampleStream
from brics_cli.workspace import Artefact, Parent, Workspace, read_provenance
from brics_cli.workspace.artefacts import now
from brics_cli.workspace.files import PROVENANCE_FILE

Format = Literal["wds", "png", "zip", "h5"]
SUFFIXES: dict[str, Format] = {".zip": "zip", ".h5": "h5", ".tar": "wds"}


@dataclass(frozen=True)
class SamplePlan:
    """What would be sampled, with what, and where to. `seeds` is a range with step 1."""

    stream: SampleStream
    autoencoder: Autoencoder
    seeds: range
    out: Path
    format: Format
    shard_size: int
    parents: tuple[Parent, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs that write to one output must have in common, beside their parents."""
        sampler = self.stream.settings
        return {
            **asdict(sampler),
            "steps": sampler.num_steps,
            "class": self.stream.class_,
            "batch_size": self.stream.batch_size,
            "seeds": f"{self.seeds.start}-{self.seeds.stop - 1}",
            "format": self.format,
            "shard_size": self.shard_size,
        }

    @property
    def artefact(self) -> Artefact:
        return Artefact("samples", self.out, now(), False, self.parents, {"settings": self.settings})

    @property
    def is_file(self) -> bool:
        """Whether the output is one file: a zip, a tar, a store."""
        return self.out.suffix in SUFFIXES

    @property
    def sheet(self) -> Path:
        """The contact sheet: out of the way of whoever reads the images."""
        if self.format == "wds" and not self.is_file:
            return self.out / "images" / "sheet.png"
        return self.out.with_name(self.out.name + ".sheet.png")


def plan_sampling(
    model: Path,
    *,
    seeds: range,
    settings: SamplerSettings,
    batch_size: int,
    workspace: Workspace,
    device: torch.device,
    out: Path | None = None,
    format: Format | None = None,
    class_: int | None = None,
    shard_size: int = 1000,
    ae_path: Path | None = None,
    reporter: Reporter,
) -> SamplePlan:
    """Load the model and the autoencoder of its codes, and fix every setting.

    `out` None is an unfinished output of the same samples in the workspace, else a new run. Raises ArtefactError
    for a missing or damaged model or autoencoder, UsageError for classes or guidance that the model has not, or when
    `out` and `format` disagree.
    """
    if model.name == "model" and (model.parent / PROVENANCE_FILE).is_file():
        model = model.parent  # the run says more than the model inside it
    denoiser = load_denoiser(model, device=device)
    stream = SampleStream(denoiser, settings, batch_size=batch_size, class_=class_)
    lineage = denoiser.lineage
    run, store = read_provenance(model), read_provenance(Path(lineage["store_path"]))
    origin = run or store
    found = ancestor(origin, "autoencoder", workspace=workspace) if origin is not None else None
    autoencoder = load_autoencoder_of(
        model,
        made_by="model",
        sha256=lineage["autoencoder_sha256"],
        recorded=found.path if found is not None else None,
        workspace=workspace,
        ae_path=ae_path,
        device=device,
    )
    if autoencoder.config.code_shape != denoiser.code_shape:
        raise ArtefactError(
            f"{model} makes codes {denoiser.code_shape}, {autoencoder.path} takes {autoencoder.config.code_shape}"
        )
    by_suffix = SUFFIXES.get(out.suffix) if out is not None else None
    format = format or by_suffix or "wds"
    if out is not None and (by_suffix or "wds") != format and (by_suffix, format) != (None, "png"):
        raise UsageError(
            f"--out {out} does not go with --format {format}", next="zip: x.zip; h5: x.h5; wds: DIR or x.tar; png: DIR."
        )
    parents = (
        Parent("diffusion", str(model.resolve()), denoiser.weights_sha256),
        Parent("store", lineage["store_path"], lineage["store_sha256"]),
        Parent("autoencoder", str(autoencoder.path.resolve()), autoencoder.weights_sha256),
    )
    named = SamplePlan(stream, autoencoder, seeds, out or Path(), format, shard_size, parents)
    if out is not None:
        return named
    recipe = str(run.details.get("recipe", model.name)) if run is not None else model.name
    return _placed(named, workspace=workspace, recipe=recipe, reporter=reporter)


def _placed(plan: SamplePlan, *, workspace: Workspace, recipe: str, reporter: Reporter) -> SamplePlan:
    """`plan` with an output: an interrupted folder of the same samples, or a new run."""
    suffix = {"zip": ".zip", "h5": ".h5"}.get(plan.format, "")
    out = workspace.new_run_path("samples", recipe)
    for artefact in workspace.artefacts():
        same = artefact.kind == "samples" and artefact.details.get("settings") == plan.settings
        if same and not artefact.complete and artefact.parents == plan.parents:
            begun = file_of_pieces(artefact.path)
            reporter.message(f"--out not given: going on with the unfinished {begun}")
            return replace(plan, out=begun)
    return replace(plan, out=out.with_name(out.name + suffix))


def store_layout(plan: SamplePlan) -> tuple[StoreHeader, list[StoreShard]]:
    """The header and the shards of a key-code store of the plan's samples; they stand for model and settings."""
    identity = {"settings": plan.settings, "model": plan.stream.denoiser.weights_sha256}
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
    )
    starts = range(0, len(plan.seeds), plan.shard_size)
    return header, [
        StoreShard(f"{number:05d}", min(plan.shard_size, len(plan.seeds) - start), 0, f"{fingerprint}/{number}")
        for number, start in enumerate(starts)
    ]
