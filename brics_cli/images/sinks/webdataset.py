"""WebDataset shards. The bytes are those of webdataset's own `TarWriter`, whose package loads torch."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from brics_cli.images.packs import write_companions
from brics_cli.images.sinks.base import Encoded, ImageSink, OutputImage
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import atomic_path
from brics_cli.workspace.naming import FOLDER, ImageFormat, webdataset_stem


class WebDatasetSink(ImageSink):
    """`<path>/00000.tar`, ... of `shard_size` places each.

    The bytes depend on keys, pixels, labels and metadata alone. Place i is in shard i // shard_size even when some
    images were skipped, so that whole shards say where to go on.
    """

    format: ClassVar[ImageFormat] = "wds"
    ending, keeps_metas = FOLDER, True

    @property
    def settings(self) -> dict[str, Any]:
        codec = {} if self.encoding.name == "png" else {"codec": self.encoding.name}
        return {"format": self.format, "shard_size": self.shard_size, **codec}

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{number:05d}.tar"

    @property
    def sheet(self) -> Path:
        return super().sheet if self.is_file else self.path / "images" / "sheet.png"

    def missing(self, number: int, keys: Iterable[str]) -> range:
        return range(0) if self.shard(number).is_file() else range(sum(1 for _ in keys))

    def resume_point(self, keys: Sequence[str]) -> int:
        num_whole = next(number for number in count() if not self.shard(number).is_file())
        return min(num_whole * self.shard_size, len(keys))

    @contextmanager
    def part(self, number: int) -> Iterator[Callable[[Encoded], None]]:
        with atomic_path(self.shard(number)) as temporary, temporary.open("wb") as file:
            # PAX: names beyond 100 bytes
            tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed below

            def put(encoded: Encoded) -> None:
                if encoded.data is not None:
                    members = {**_members(encoded.image), self.encoding.extension: encoded.data}
                    stem = webdataset_stem(encoded.image.key)
                    for extension, data in sorted(members.items()):
                        tar.addfile(_member(f"{stem}.{extension}", len(data)), BytesIO(data))

            try:
                yield put
            except BaseException:
                with suppress(OSError, ValueError):  # of a disk that is still full: the first error counts
                    tar.close()
                raise
            tar.close()

    def finish(self, reporter: Reporter) -> None:
        """Write the index and the card that others' tools go by."""
        extension = self.encoding.extension
        write_companions(self.path, extension=extension, class_names=self.class_names, reporter=reporter)


def _member(name: str, num_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uname, member.gname = num_bytes, 0o444, "bigdata", "bigdata"
    return member


def _members(image: OutputImage) -> dict[str, bytes]:
    """What there is of an image beside its pixels, by extension."""
    meta, members = image.meta, dict[str, bytes]()
    if webdataset_stem(image.key) != image.key:
        meta = {**(meta or {}), "original_key": image.key}
    if image.label is not None:
        members["cls"] = str(image.label).encode()
    if meta is not None:
        members["json"] = json.dumps(meta, ensure_ascii=False, sort_keys=True).encode()
    return members
