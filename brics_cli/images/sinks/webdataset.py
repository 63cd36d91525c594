"""WebDataset shards, written with webdataset's own writer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from brics_cli.images.sinks.base import ImageSink, Item
from brics_cli.images.sinks.encodings import PNG, Encoding
from brics_cli.workspace import atomic_path
from brics_cli.workspace.files import remove_leftovers


class WebDatasetSink(ImageSink):
    """`<path>/00000.tar`, ... of `shard_size` places each; or one tar when `path` ends in `.tar`.

    The bytes depend on keys, pixels, labels and metadata alone. Place i is in shard i // shard_size even when some
    images were skipped, so that whole shards say where to go on.
    """

    def __init__(self, path: Path, shard_size: int, *, encoding: Encoding = PNG) -> None:
        super().__init__(path, encoding=encoding)
        self._shard_size = None if path.suffix == ".tar" else shard_size
        self._place = 0
        self._shard: ExitStack | None = None

    def resume_point(self, keys: Sequence[str]) -> int:
        if self._shard_size is None:
            return 0
        num_shards = 0
        while self._tar(num_shards).is_file():
            num_shards += 1
        self._place = min(num_shards * self._shard_size, len(keys))
        return self._place

    def _open(self) -> None:
        if self._shard_size is None:
            remove_leftovers(self.path.parent, self.path.name)
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path, "*.tar")

    def _tar(self, number: int) -> Path:
        return self.path if self._shard_size is None else self.path / f"{number:05d}.tar"

    def _put(self, item: Item, encoded: bytes | None) -> None:
        if self._shard is None:
            self._begin_shard()
        if encoded is not None:
            stem, meta = webdataset_stem(item.key), item.meta
            if stem != item.key:
                meta = {**(meta or {}), "original_key": item.key}
            sample: dict[str, Any] = {"__key__": stem, self.encoding.extension: encoded}
            if item.label is not None:
                sample["cls"] = str(item.label).encode()
            if meta is not None:
                sample["json"] = json.dumps(meta, ensure_ascii=False, sort_keys=True).encode()
            self._writer.write(sample)
        self._place += 1
        if self._shard_size is not None and self._place % self._shard_size == 0:
            self._finish()

    def _begin_shard(self) -> None:
        from webdataset.writer import TarWriter

        self._shard = ExitStack()
        number = 0 if self._shard_size is None else self._place // self._shard_size
        temporary = self._shard.enter_context(atomic_path(self._tar(number)))
        file = self._shard.enter_context(temporary.open("wb"))
        self._writer = self._shard.enter_context(
            TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT")  # PAX: names beyond 100 bytes
        )

    def _finish(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def _abandon(self, error: BaseException) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.__exit__(type(error), error, error.__traceback__)


def webdataset_stem(key: str) -> str:
    """The member stem of `key`: the dots of its last part are written %2E, since webdataset splits at the first dot;
    line ends %0A, since it passes over names with one."""
    folder, slash, name = key.rpartition("/")
    if "." in name:
        name = name.replace("%", "%25").replace(".", "%2E")
    return (folder + slash + name).replace("\n", "%0A")
