"""A folder of PNG files.

Flat, as pytorch-fid and torch-fidelity take one: they look for images in the folder itself and at nothing below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from brics_cli.images.sinks.base import Encoded, ImageSink
from brics_cli.workspace.naming import FOLDER, flat_name


class PngSink(ImageSink):
    """One file per image, `flat_name(key).png`; `nested`, in folders where a key has slashes."""

    format, ending, labels, by_image = "png", FOLDER, "none", True

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "names": "nested" if self.nested else "flat"}

    def file(self, key: str) -> Path:
        """Where the image `key` goes."""
        *folders, name = key.split("/") if self.nested else [key]
        return self.path.joinpath(*map(flat_name, folders), f"{flat_name(name)}.png")

    def resume_point(self, keys: Sequence[str]) -> int:
        return sum(1 for _ in takewhile(lambda key: self.file(key).is_file(), keys))

    def missing(self, number: int, keys: Iterable[str]) -> range:
        places = [place for place, key in enumerate(keys) if not self.file(key).is_file()]
        return range(places[0], places[-1] + 1) if places else range(0)

    @contextmanager
    def part(self, number: int) -> Iterator[Callable[[Encoded], None]]:
        yield self._put

    def _put(self, encoded: Encoded) -> None:
        if encoded.data is None:
            return
        final = self.file(encoded.image.key)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.tmp")  # no fsync as in `atomic_path`: it costs more than this
        try:
            temporary.write_bytes(encoded.data)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
