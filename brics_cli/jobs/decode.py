"""`brics decode`: key-code store -> retrieval -> decoder -> images, keys kept (DESIGN section 2)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brics_cli.autoencoder.autoencoder import Autoencoder
from brics_cli.autoencoder.image_tensors import to_uint8
from brics_cli.codes import KeyCodeStore
from brics_cli.errors import ArtefactError, InterruptedRunError, UsageError
from brics_cli.images import claim_output, open_sink
from brics_cli.images.packs import write_companions
from brics_cli.images.sinks import Format, check_key, discard_pieces, format_of, is_one_file, pieces_directory
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Artefact, Parent, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.outputs import output_lock


@dataclass(frozen=True)
class DecodePlan:
    """What would be decoded, with what, and where to."""

    store: KeyCodeStore
    autoencoder: Autoencoder
    out: Path
    format: Format
    nested: bool
    shard_size: int
    device: torch.device

    @property
    def is_file(self) -> bool:
        """Whether the output is one zip, npz or tar."""
        return is_one_file(self.out)

    @property
    def left_out(self) -> list[str]:
        """What of the store the format has no place for, in words."""
        num_labels, num = int((self.store.labels >= 0).sum()), len(self.store)
        left_out = []
        if self.format == "png" and num_labels:
            left_out.append(f"{num_labels:,} labels (wds, zip and npz keep them)")
        elif self.format in ("zip", "npz") and 0 < num_labels < num:
            left_out.append(f"labels, which {num_labels:,} of {num:,} images have ({self.format} takes all or none)")
        if self.format != "wds" and (num_metas := self.store.num_metas):
            left_out.append(f"the metadata of {num_metas:,} images (wds keeps it)")
        return left_out

    @property
    def artefact(self) -> Artefact:
        parents = [
            Parent("store", str(self.store.path.resolve()), self.store.sha256),
            Parent("autoencoder", str(self.autoencoder.path.resolve()), self.autoencoder.weights_sha256),
        ]
        collection = self.store.artefact.parent("collection")
        if collection is not None:
            parents.append(collection)
        settings: dict[str, Any] = {"format": self.format}
        settings["shard_size"] = self.shard_size if self.format == "wds" else None
        if self.format == "png":
            settings["names"] = "nested" if self.nested else "flat"
        return Artefact("reconstructions", self.out, now(), False, tuple(parents), {"settings": settings})


@dataclass(frozen=True)
class DecodeResult:
    """What was decoded: `num_images` are at `path`, `num_now` of them from this run."""

    path: Path
    format: Format
    num_images: int
    num_now: int
    img_per_s: float | None
    already_complete: bool


def plan_decoding(
    store: KeyCodeStore,
    autoencoder: Autoencoder,
    *,
    out: Path,
    device: torch.device,
    format: Format | None = None,
    nested: bool = False,
    shard_size: int = 1000,
) -> DecodePlan:
    """Fix every setting: `.zip`, `.npz` and `.tar` say the format, a folder gets PNG files.

    Raises ArtefactError when the autoencoder's codes have another shape, UsageError when a key of the store would
    be written outside of `out`, or as `decoded_format`.
    """
    format = decoded_format(out, asked=format, nested=nested)
    if autoencoder.config.code_shape != store.code_shape:
        raise ArtefactError(
            f"{store.path} holds codes {store.code_shape}, {autoencoder.path} takes {autoencoder.config.code_shape}"
        )
    for key in store.keys:
        check_key(key)
    return DecodePlan(store, autoencoder, out, format, nested, shard_size, device)


def decoded_format(out: Path, *, asked: str | None, nested: bool = False) -> Format:
    """The format that goes to `out`. Raises UsageError when `out`, `asked` and `nested` disagree."""
    format = format_of(out, asked=asked, default="png")
    if nested and format != "png":
        raise UsageError(f"--nested goes with --format png, and {out} is to be {format}")
    return format


def decode(plan: DecodePlan, *, batch_size: int = 64, overwrite: bool = False, reporter: Reporter) -> DecodeResult:
    """Decode every row, going on where an interrupted run stopped.

    Batches always begin at a multiple of `batch_size`, so an interrupted run gives the same pixels. Raises
    ArtefactError or WouldOverwriteError when something else is at `out`, InterruptedRunError on Ctrl-C.
    """
    store, num_images = plan.store, len(plan.store)
    with output_lock(plan.out):
        if claim_output(plan.artefact, overwrite=overwrite, is_file=plan.is_file) == "complete":
            return DecodeResult(plan.out, plan.format, num_images, 0, None, True)
        for what in plan.left_out:
            reporter.warning(f"not written as {plan.format}: {what}")
        start = time.perf_counter()
        try:
            with open_sink(
                plan.out, plan.format, shard_size=plan.shard_size, nested=plan.nested, overwrite=True, resumable=True
            ) as sink:
                sink.class_names = store.class_names
                done = sink.resume_point(store.keys)
                if done:
                    reporter.message(f"going on after {done:,} images that are decoded")
                with reporter.task("decode", total=num_images, unit="img", initial=done) as task:
                    for first in range(done // batch_size * batch_size, num_images, batch_size):
                        stop = min(first + batch_size, num_images)
                        images = decode_rows(plan, first, stop)  # (B, H, W, 3)
                        metas = store.metas(first, stop) if plan.format == "wds" else [None] * (stop - first)
                        for row in range(max(first, done), stop):
                            label = int(store.labels[row])
                            sink.write(
                                store.keys[row],
                                images[row - first],
                                label=None if label < 0 else label,
                                meta=metas[row - first],
                            )
                        task.advance(stop - max(first, done))
        except KeyboardInterrupt:
            kept_in = pieces_directory(plan.out) if plan.is_file else plan.out
            raise InterruptedRunError(f"interrupted; what is whole in {kept_in} is kept") from None
        if plan.format == "wds" and not plan.is_file:
            write_companions(plan.out, extension="png", class_names=store.class_names, reporter=reporter)
        img_per_s = (num_images - done) / max(time.perf_counter() - start, 1e-9)
        summary = f"{num_images:,} images, {plan.format}, {store.image_size} px"
        details = {"summary": summary, "num_images": num_images, "image_size": store.image_size,
                   "transform": store.transform, "class_names": list(store.class_names)}  # fmt: skip
        write_provenance(finished(plan.artefact, **details))
        if plan.is_file:
            discard_pieces(plan.out)
    return DecodeResult(plan.out, plan.format, num_images, num_images - done, img_per_s, False)


@torch.inference_mode()
def decode_rows(plan: DecodePlan, start: int, stop: int) -> np.ndarray:
    """Rows start to stop - 1 of the store as uint8 images (B, H, W, 3)."""
    codes = torch.from_numpy(plan.store.batch(slice(start, stop))).to(plan.device)  # (B, C, h, w)
    return to_uint8(plan.autoencoder.decode(codes))
