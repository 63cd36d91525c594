"""A zip in the layout of EDM's and StyleGAN's dataset_tool."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brics_cli.images.sinks.base import ImageSink, Item
from brics_cli.workspace import MARK, atomic_path
from brics_cli.workspace.files import remove_leftovers


class EdmZip:
    """EDM's layout: `00000/img00000000.png`, and `dataset.json` with `labels` (or null) and, beyond EDM, `keys` and
    `class_names`."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._zip.comment = MARK.encode()
        self._rows: list[tuple[str, str, int | None]] = []

    def add(self, key: str, encoded: bytes, label: int | None) -> None:
        """Write one image."""
        number = len(self._rows)
        name = f"{number // 1000:05d}/img{number:08d}.png"
        self._zip.writestr(zipfile.ZipInfo(name), encoded)  # ZipInfo: dated 1980, so that bytes repeat
        self._rows.append((name, key, label))

    def finish(self, class_names: Sequence[str] = ()) -> None:
        """Write `dataset.json`: labels when every image has one."""
        labels = None
        if self._rows and all(label is not None for _, _, label in self._rows):
            labels = [[name, label] for name, _, label in self._rows]
        listing: dict[str, Any] = {"labels": labels, "keys": [[name, key] for name, key, _ in self._rows]}
        if labels is not None and class_names:
            listing["class_names"] = list(class_names)
        self._zip.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(listing, ensure_ascii=False))

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


class ZipSink(ImageSink):
    """A zip written in one go: nothing of it stays when that is interrupted."""

    def _open(self) -> None:
        remove_leftovers(self.path.parent, self.path.name)
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._zip = EdmZip(temporary)
        self._stack.callback(self._zip.close)

    def _put(self, item: Item, encoded: bytes | None) -> None:
        if encoded is not None:
            self._zip.add(item.key, encoded, item.label)

    def _finish(self) -> None:
        self._zip.finish(self.class_names)
