"""A folder of PNG files, `<key>.png`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from brics_cli.data.sinks.base import ImageSink, Item


class PngSink(ImageSink):
    """`<path>/<key>.png`, one file per image."""

    def resume_point(self, keys: Sequence[str]) -> int:
        for number, key in enumerate(keys):
            if not (self.path / f"{key}.png").is_file():
                return number
        return len(keys)

    def _put(self, item: Item, encoded: bytes | None) -> None:
        if encoded is None:
            return
        final = self.path / f"{item.key}.png"
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
