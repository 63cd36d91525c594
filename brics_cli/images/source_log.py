"""`.sources.jsonl` in an output folder that is being written: the digest of what each finished shard was made from.

A line is written before its shard is given its name, so that every shard that is there has one. When the output is
complete the digests are in its manifest, and the file is removed.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from brics_cli.parsing import read_json_lines
from brics_cli.workspace import write_text_atomically


class SourceLog:
    """The digests of the shards 0, 1, ... of `folder`, by shard."""

    NAME = ".sources.jsonl"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        self.digests: dict[int, str] = {}
        if self.path.exists():
            for row in read_json_lines(self.path):
                with suppress(ValueError, KeyError, TypeError):
                    self.digests[int(row["shard"])] = str(row["digest"])

    def keep(self, num_shards: int) -> None:
        """Forget all but the first shards: the others are made again."""
        self.digests = {shard: digest for shard, digest in self.digests.items() if shard < num_shards}
        write_text_atomically(self.path, "".join(_line(*row) for row in self.digests.items()))

    def add(self, shard: int, digest: str) -> None:
        """Record one more."""
        self.digests[shard] = digest
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(shard, digest))

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _line(shard: int, digest: str) -> str:
    return json.dumps({"shard": shard, "digest": digest}) + "\n"
