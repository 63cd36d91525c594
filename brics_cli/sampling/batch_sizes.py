"""In batches of how many images seeds were computed: remembered, since out of memory halves them.

Pixels of one seed may differ by 1 of 255 between batch sizes. So an unfinished output says in which batches its seeds
were computed, a run that goes on computes each seed as before, and the provenance says it in the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brics_cli.parsing import as_json, parse_json, read_bytes
from brics_cli.workspace import write_json_atomically

RECORD_NAME = "batch-sizes.json"


class BatchSizes:
    """In batches of how many images seeds are computed: `asked`, and fewer where memory ran out.

    `runs` are (first seed, last seed, batch size) of what was computed, rising and disjoint. `limit` is what this
    process has seen to be possible; it is not part of the record.
    """

    def __init__(self, asked: int, runs: list[tuple[int, int, int]] | None = None) -> None:
        self.asked = asked
        self.limit = asked
        self.runs = list(runs or [])

    @property
    def shrunk(self) -> bool:
        """Whether anything was computed in other batches than those asked for."""
        return any(size != self.asked for _, _, size in self.runs)

    def at(self, seed: int) -> int:
        """The batch size for `seed`: as recorded, elsewhere the smallest that was recorded."""
        recorded = next((size for first, last, size in self.runs if first <= seed <= last), None)
        return min(recorded or min((size for _, _, size in self.runs), default=self.asked), self.limit)

    def record(self, seeds: range, size: int) -> None:
        """`seeds` (a range with step 1, not empty) are computed in batches of `size`, whatever was said before."""
        first, last = seeds.start, seeds.stop - 1
        kept = [(first, last, size)]
        kept += [(begin, min(end, first - 1), other) for begin, end, other in self.runs if begin < first]
        kept += [(max(begin, last + 1), end, other) for begin, end, other in self.runs if end > last]
        self.runs = []
        for begin, end, each in sorted(kept):
            if self.runs and self.runs[-1][1:] == (begin - 1, each):
                begin = self.runs.pop()[0]
            self.runs.append((begin, end, each))

    def write(self, directory: Path, *, identity: Mapping[str, Any]) -> None:
        """Keep the record in `directory`, for the run of this `identity` to go on with."""
        write_json_atomically(directory / RECORD_NAME, {"identity": identity, "batch_sizes": self.runs})

    @classmethod
    def read(cls, directory: Path, asked: int, *, identity: Mapping[str, Any]) -> BatchSizes:
        """The record in `directory`; an empty one when there is none, or one of another run."""
        try:
            kept = parse_json(read_bytes(directory / RECORD_NAME))
            if kept["identity"] == as_json(identity):
                return cls(asked, [(int(first), int(last), int(size)) for first, last, size in kept["batch_sizes"]])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it says how, not what: without it pixels may differ by 1
        return cls(asked)

    @staticmethod
    def discard(directory: Path) -> None:
        """Remove the record: the provenance has it."""
        (directory / RECORD_NAME).unlink(missing_ok=True)
