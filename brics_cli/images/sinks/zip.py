"""A zip in the layout of EDM's and StyleGAN's dataset_tool."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brics_cli.images.sinks.pieces import PiecewiseSink, samples
from brics_cli.workspace import MARK


class ZipSink(PiecewiseSink):
    """`00000/img00000000.png`, and `dataset.json` with `labels` (or null unless every image has one) and, beyond EDM,
    `keys` and `class_names`. Members are dated 1980, so that bytes repeat."""

    format, ending, labels, keeps_metas = "zip", ".zip", "all or none", False

    def _join(self, pieces: Sequence[Path], path: Path) -> None:
        rows: list[tuple[str, str, int | None]] = []  # name, key, label
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as joined:
            joined.comment = MARK.encode()
            for number, sample in enumerate(samples(pieces, {"png", "cls", "json"})):
                name = f"{number // 1000:05d}/img{number:08d}.png"
                joined.writestr(zipfile.ZipInfo(name), sample.files["png"])
                rows.append((name, sample.key, sample.label))
            listing: dict[str, Any] = {"labels": None, "keys": [[name, key] for name, key, _ in rows]}
            if rows and all(label is not None for _, _, label in rows):
                listing["labels"] = [[name, label] for name, _, label in rows]
                if self.class_names:
                    listing["class_names"] = list(self.class_names)
            joined.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(listing, ensure_ascii=False))
