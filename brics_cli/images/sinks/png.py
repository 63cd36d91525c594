"""A folder of PNG files.

Flat, as pytorch-fid and torch-fidelity take one: they look for images in the folder itself and at nothing below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from brics_cli.images.sinks.base import ImageSink, Item
from brics_cli.workspace.naming import flat_name


class PngSink(ImageSink):
    """One file per image, `flat_name(key).png`; `nested`, in folders where a key has slashes."""

    def __init__(self, path: Path, *, nested: bool = False) -> None:
        super().__init__(path)
        self._nested = nested

    def _file(self, key: str) -> Path:
        names = key.split("/") if self._nested else [key]
        return self.path.joinpath(*map(flat_name, names[:-1]), f"{flat_name(names[-1])}.png")

    def resume_point(self, keys: Sequence[str]) -> int:
        for number, key in enumerate(keys):
            if not self._file(key).is_file():
                return number
        return len(keys)

    def _put(self, item: Item, encoded: bytes | None) -> None:
        if encoded is None:
            return
        final = self._file(item.key)
        final.parent.mkdir(parents=True, exist_ok=True)
        with _renamed_when_whole(final) as temporary:
            temporary.write_bytes(encoded)


@contextmanager
def _renamed_when_whole(final: Path) -> Iterator[Path]:
    """As `atomic_path`, without its fsync (per small file it costs more than the image) and always the same name."""
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        yield temporary
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
