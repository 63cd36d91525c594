"""What is compressed has no offsets, and is unpacked to a temporary file without a name: no more than a share of the
space that is free, since a few megabytes can stand for petabytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

from brics_cli.errors import MachineError
from brics_cli.wording import count

SHARE = 0.5
"""Of the free space of the folder for temporary files, for each: the next one has half of the rest, so that however
many are open, some is left for everything else."""
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tzst")


def allowance() -> int:
    """The bytes that what is unpacked now may take."""
    return int(shutil.disk_usage(tempfile.gettempdir()).free * SHARE)


def copy_unpacked(source: IO[bytes], target: IO[bytes], *, where: Path) -> None:
    """Copy `source`, of the file `where`, to `target`. Raises MachineError when it takes more than its allowance."""
    most = left = allowance()
    while block := source.read(2**20):
        left -= len(block)
        if left < 0:
            raise MachineError(
                f"{where} ({where.stat().st_size / 1e9:.2f} GB) unpacks to more than {most / 1e9:.2f} GB, its share of "
                f"{tempfile.gettempdir()} ({SHARE:.0%} of what is free)",
                next="Set TMPDIR to a folder on a larger disk, or unpack it yourself if you trust it.",
            )
        target.write(block)


def said_before(path: str) -> str | None:
    """What is to be said before the collection at `path` is opened: that it is unpacked, and where; None: it is not."""
    names = [path]
    if Path(path).is_dir():
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries]
    num = sum(name.lower().endswith(COMPRESSED_SUFFIXES) for name in names)
    if not num:
        return None
    place = f"{tempfile.gettempdir()}, where each may take {SHARE:.0%} of the {allowance() / SHARE / 1e9:.1f} GB free"
    return f"{path}: {count(num, 'compressed tar')}, unpacked in {place}"
