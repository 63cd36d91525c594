"""`brics decode`: key-code store -> retrieval -> decoder -> images, keys kept (DESIGN section 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from brics_cli.autoencoder.autoencoder import Autoencoder, load_autoencoder, read_autoencoder, to_uint8
from brics_cli.autoencoder.sizes import images_per_batch
from brics_cli.codes import KeyCodeStore
from brics_cli.codes.lineage import load_store_autoencoder
from brics_cli.config.names import Precision
from brics_cli.config.suggestions import check_known
from brics_cli.errors import ArtefactError, InterruptedRunError, UsageError
from brics_cli.images import open_sink
from brics_cli.images.sinks import SINKS, ImageSink, OutputImage, PngSink, begun_at, check_key, discard_pieces
from brics_cli.runtime.device import resolve_device
from brics_cli.runtime.executors import TaskFailed, check_none_failed, settled
from brics_cli.runtime.on_ray import RayExecutor
from brics_cli.runtime.precision import computing, precision_on
from brics_cli.runtime.reporting import Reporter, Task, TimeSplit
from brics_cli.wording import count
from brics_cli.workspace import Artefact, Parent, Workspace, write_provenance
from brics_cli.workspace.artefacts import finished, now
from brics_cli.workspace.files import remove_leftovers
from brics_cli.workspace.naming import FOLDER, IMAGE_FORMATS, Codec, ImageFormat
from brics_cli.workspace.outputs import check_alike, check_claim, output_lock
from brics_cli.workspace.places import reference

Part = tuple[int, range]
"""The number of a part of the output, and the rows of the store that go there."""
ROWS_AT_ONCE = 250
"""That a worker takes of a folder of PNG files, about: they are whole one by one."""


@dataclass(frozen=True)
class DecodePlan:
    """What would be decoded, with what, and where to."""

    store: KeyCodeStore
    autoencoder: Autoencoder
    sink: ImageSink
    device: torch.device
    precision: Precision
    executor: RayExecutor | None = None

    def pending(self, batch_size: int) -> list[Part]:
        """The parts of the output whose images are not all there, each from its first missing row to its last."""
        sink, num, left = self.sink, len(self.store), []
        size = max(1, round(ROWS_AT_ONCE / batch_size)) * batch_size if sink.by_image else sink.shard_size
        for number, start in enumerate(range(0, num, size)):
            missing = sink.missing(number, self.store.keys[start : start + size])
            if missing:
                left.append((number, range(start + missing.start, start + missing.stop)))
        return left

    @property
    def left_out(self) -> list[str]:
        """What of the store the format has no place for, in words."""
        num_labels, num, format = int((self.store.labels >= 0).sum()), len(self.store), self.sink.format
        left_out = []
        if self.sink.labels == "none" and num_labels:
            left_out.append(f"{num_labels:,} labels ({_formats(lambda sink: sink.labels != 'none')} keep them)")
        elif self.sink.labels == "all or none" and 0 < num_labels < num:
            left_out.append(f"labels, which {num_labels:,} of {num:,} images have ({format} takes all or none)")
        if not self.sink.keeps_metas and (num_metas := self.store.num_metas):
            left_out.append(
                f"the metadata of {num_metas:,} images ({_formats(lambda sink: sink.keeps_metas)} keeps it)"
            )
        return left_out

    @property
    def artefact(self) -> Artefact:
        parents = [
            Parent("store", reference(self.store.path), self.store.sha256),
            Parent("autoencoder", self.autoencoder.reference, self.autoencoder.weights_sha256),
        ]
        if (collection := self.store.artefact.parent("collection")) is not None:
            parents.append(collection)
        details = {"settings": _settings(self.sink, self.precision)}
        return Artefact("reconstructions", self.sink.path, now(), False, tuple(parents), details)


@dataclass(frozen=True)
class DecodeResult:
    """What was decoded: `num_images` are at `path`, `num_now` of them from this run, at `img_per_s`.

    `seconds` says where this run's time went: decode, and write, which is waiting for images to be encoded and written.
    """

    path: Path
    format: ImageFormat
    num_images: int
    num_now: int
    img_per_s: float | None
    already_complete: bool
    seconds: dict[str, float] = field(default_factory=dict)


def plan_decoding(
    codes: Path | str | None = None,
    *,
    autoencoder: Path | str | None = None,
    out: Path | str | None = None,
    format: ImageFormat | None = None,
    codec: Codec | None = None,
    nested: bool = False,
    precision: Precision | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    executor: RayExecutor | None = None,
    overwrite: bool = False,
    workspace: Workspace,
    reporter: Reporter,
) -> DecodePlan:
    """Settle what `api.decode` was not given, and load the models; see there for the arguments.

    Raises ArtefactError when the autoencoder's codes have another shape; UsageError when `out`, `format` and `nested`
    disagree, or when a key of the store would be written outside of `out`.
    """
    check_known(format, IMAGE_FORMATS, option="--format", what="format")
    if out is None:
        out = workspace.root / f"reconstructions{IMAGE_FORMATS[format][0] if format else FOLDER}"
    sink = open_sink(Path(out), format, default="png", codec=codec, nested=nested, num_workers=num_workers)
    if nested and not isinstance(sink, PngSink):
        raise UsageError(f"--nested goes with --format png, and {out} is to be {sink.format}")
    if format is None and sink.is_file:
        reporter.message(f"--format not given: {sink.format}, by the ending of {out}")
    on = resolve_device(device) if executor is None else executor.connect(device, reporter=reporter)[0]
    precision = precision_on(on if executor is None else torch.device(executor.device), precision)
    begun = sink.path if overwrite else begun_at(sink.path)
    check_claim(begun, kind="reconstructions", overwrite=overwrite)
    store = KeyCodeStore(workspace.resolve("store", codes, argument="CODES", reporter=reporter))
    for key in store.keys:
        check_key(key)
    sink.class_names = store.class_names
    if not overwrite:
        decoder = store.autoencoder["sha256"] if autoencoder is None else read_autoencoder(autoencoder).weights_sha256
        made_from = {"store": store.sha256, "autoencoder": decoder}
        check_alike(begun, kind="reconstructions", known=_settings(sink, precision) | made_from)
    model = load_store_autoencoder(store, workspace=workspace, reporter=reporter, ae_path=autoencoder, device=on)
    if not model.config.takes_codes(store.code_shape):
        raise ArtefactError(
            f"{store.path} holds codes {store.code_shape}, {model.path} takes {model.config.code_shape}"
        )
    return DecodePlan(store, model, sink, on, precision, executor)


def _settings(sink: ImageSink, precision: Precision) -> dict[str, Any]:
    return sink.settings | ({} if precision == "fp32" else {"precision": precision})


def decode(
    plan: DecodePlan, *, batch_size: int | None = None, overwrite: bool = False, reporter: Reporter
) -> DecodeResult:
    """Decode every row, going on where an interrupted run stopped.

    Batches always begin at a multiple of `batch_size`, so an interrupted run gives the same pixels. Raises
    ArtefactError or WouldOverwriteError when something else is at the output, InterruptedRunError on Ctrl-C.
    """
    store, sink, num_images = plan.store, plan.sink, len(plan.store)
    batch_size = batch_size or images_per_batch(store.image_size)
    with output_lock(sink.path):
        if sink.claim(plan.artefact, overwrite=overwrite) == "complete":
            return DecodeResult(sink.path, sink.format, num_images, 0, None, True)
        for what in plan.left_out:
            reporter.warning(f"not written as {sink.format}: {what}")
        start, split, pending = time.perf_counter(), TimeSplit(), []
        if plan.executor is None:
            done = sink.resume_point(store.keys)
        else:
            pending = plan.pending(batch_size)
            done = num_images - sum(len(rows) for _, rows in pending)
        if done:
            reporter.message(f"going on after {done:,} images that are decoded")
        try:
            with reporter.task("decode", total=num_images, unit="img", initial=done) as task:
                if plan.executor is not None:
                    _decode_on(plan.executor, plan, pending, batch_size=batch_size, task=task, split=split)
                else:
                    decoder = Decoder(
                        store, plan.autoencoder, plan.device, plan.precision, sink.keeps_metas, batch_size
                    )
                    rows = range(done, num_images)
                    sink.write(decoder.images(rows, split=split, on_batch=task.advance), start=done)
            sink.finish(reporter)
        except KeyboardInterrupt:
            raise InterruptedRunError(f"interrupted; what is whole in {sink.folder} is kept") from None
        seconds = time.perf_counter() - start
        img_per_s = (num_images - done) / max(seconds, 1e-9)
        if plan.executor is None:
            split.seconds["write"] = seconds - sum(split.seconds.values())
        summary = f"{num_images:,} images, {sink.format}, {store.image_size} px"
        details = {"summary": summary, "num_images": num_images, "image_size": store.image_size,
                   "transform": store.transform, "class_names": list(store.class_names)}  # fmt: skip
        write_provenance(finished(plan.artefact, **details))
        discard_pieces(sink.path)
    return DecodeResult(sink.path, sink.format, num_images, num_images - done, img_per_s, False, split.seconds)


@dataclass(frozen=True)
class Decoder:
    """Rows of `store` through `autoencoder`, which is on `device`."""

    store: KeyCodeStore
    autoencoder: Autoencoder
    device: torch.device
    precision: Precision
    with_metas: bool
    batch_size: int

    def images(self, rows: range, *, split: TimeSplit, on_batch: Callable[[int], None]) -> Iterator[OutputImage]:
        """The images of `rows`, in batches that begin at a multiple of their size; `on_batch` hears how many."""
        store, size = self.store, self.batch_size
        for first in range(rows.start // size * size, rows.stop, size):
            stop = min(first + size, len(store))
            with split.phase("decode"):
                codes = torch.from_numpy(store.batch(slice(first, stop))).to(self.device)  # (B, C, h, w)
                with torch.inference_mode(), computing(self.precision, self.device):
                    images = to_uint8(self.autoencoder.decode(codes))  # (B, H, W, 3)
                metas = store.metas(first, stop) if self.with_metas else [None] * len(images)
            wanted = range(max(first, rows.start), min(stop, rows.stop))
            for row in wanted:
                label, place = int(store.labels[row]), row - first
                yield OutputImage(store.keys[row], images[place], None if label < 0 else label, metas[place])
            on_batch(len(wanted))


@dataclass(frozen=True)
class Decoded:
    """The event of a part: its images, and the seconds that went into them by phase."""

    num_images: int
    seconds: dict[str, float]
    num_tasks: int = 1


@dataclass(frozen=True)
class DecodeWork:
    """Parts of `sink` to be decoded from `store` by `autoencoder`, by what a worker loads it by."""

    store: KeyCodeStore
    autoencoder: str
    sink: ImageSink
    precision: Precision
    batch_size: int

    def __call__(self, device: str) -> Callable[[Iterator[Part]], Iterator[Decoded]]:
        autoencoder = load_autoencoder(self.autoencoder, device=device)
        keeps_metas, on = self.sink.keeps_metas, torch.device(device)
        decoder = Decoder(self.store, autoencoder, on, self.precision, keeps_metas, self.batch_size)

        def run(parts: Iterator[Part]) -> Iterator[Decoded]:
            for number, rows in parts:
                start, split = time.perf_counter(), TimeSplit()
                images = decoder.images(rows, split=split, on_batch=lambda num: None)
                with self.sink.part(number) as put, self.sink.encoded(images) as ahead:
                    for image in ahead:
                        put(image)
                split.add({"write": time.perf_counter() - start - sum(split.seconds.values())})
                yield Decoded(len(rows), split.seconds)

        return run


def _decode_on(
    executor: RayExecutor, plan: DecodePlan, pending: list[Part], *, batch_size: int, task: Task, split: TimeSplit
) -> None:
    """Decode the parts on the cluster. Raises TooManyFailuresError where some were given up."""
    sink, failed = plan.sink, list[TaskFailed[Part]]()
    sink.num_workers = sink.num_workers or executor.cpus_per_worker
    work = DecodeWork(plan.store, plan.autoencoder.reference, sink, plan.precision, batch_size)
    try:
        with closing(settled(executor.run(work, pending, folder=sink.folder), failed.append)) as running:
            for event in running:
                split.add(event.seconds)
                task.advance(event.num_images, note=executor.status)
    finally:
        remove_leftovers(sink.folder, "*")  # of workers that were ended while they wrote
    check_none_failed(failed, what=f"{count(len(pending), 'part')} of {sink.path}")


def _formats(keep: Callable[[type[ImageSink]], bool]) -> str:
    *first, last = dict.fromkeys(sink.format for sink in SINKS if keep(sink))
    return f"{', '.join(first)} and {last}" if first else last
