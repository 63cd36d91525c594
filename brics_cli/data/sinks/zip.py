"""A zip in the layout of EDM's and StyleGAN's dataset_tool."""

from __future__ import annotations

import json
import zipfile

from brics_cli.data.sinks.base import ImageSink, Item, remove_leftovers
from brics_cli.workspace import atomic_path


class ZipSink(ImageSink):
    """EDM's layout: `00000/img00000000.png`, and `dataset.json` with `labels` (or null) and, beyond EDM, `keys`."""

    def _open(self) -> None:
        remove_leftovers(self.path.parent, self.path.name)
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._zip = self._stack.enter_context(zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED))
        self._rows: list[tuple[str, str, int | None]] = []

    def _put(self, item: Item, png: bytes | None) -> None:
        if png is None:
            return
        number = len(self._rows)
        name = f"{number // 1000:05d}/img{number:08d}.png"
        self._zip.writestr(zipfile.ZipInfo(name), png)  # ZipInfo: dated 1980, so that bytes repeat
        self._rows.append((name, item.key, item.label))

    def _finish(self) -> None:
        labels = None
        if self._rows and all(label is not None for _, _, label in self._rows):
            labels = [[name, label] for name, _, label in self._rows]
        listing = {"labels": labels, "keys": [[name, key] for name, key, _ in self._rows]}
        self._zip.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(listing, ensure_ascii=False))
