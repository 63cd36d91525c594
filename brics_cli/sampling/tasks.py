"""Which seeds are sampled, in which form, and how they are cut into tasks: what is known before any model is loaded.

Importing this module needs no torch: the command line takes its defaults and choices from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from brics_cli.errors import UsageError
from brics_cli.workspace.naming import IMAGE_FORMATS, IMAGE_TITLES, STORE_ENDING, ImageFormat

DEFAULT_NUM, DEFAULT_BATCH_SIZE, DEFAULT_SHARD_SIZE, DEFAULT_FRAMES = 64, 32, 1000, 12
DEFAULT_NUM_DRAWN = 1000
"""Images that `brics eval` draws on the fly."""
MAX_SEED = 2**62
MAX_NUM = 10**9
"""Images of one run: its list of tasks is kept in memory."""


SampleFormat = Literal[ImageFormat, "h5"]
FORMATS: dict[SampleFormat, tuple[str, ...]] = {
    **cast(dict[SampleFormat, tuple[str, ...]], IMAGE_FORMATS),
    "h5": (STORE_ENDING,),
}
"""What --out ends in, by format."""
TITLES: dict[SampleFormat, str] = {**cast(dict[SampleFormat, str], IMAGE_TITLES), "h5": "a key-code store"}


@dataclass(frozen=True)
class Task:
    """`seeds` (a range with step 1) to be written to shard `number`; None: they are only shown on the sheet."""

    number: int | None
    seeds: range


def cut(seeds: range, size: int) -> list[Task]:
    """Tasks of `size` seeds each, the last perhaps of fewer."""
    starts = range(seeds.start, seeds.stop, size)
    return [Task(number, range(start, min(start + size, seeds.stop))) for number, start in enumerate(starts)]


def key_of(seed: int) -> str:
    """The key of the image of a seed."""
    return f"{seed:08d}"


def seed_range(*, num: int | None = None, seeds: str | range | None = None, seed: int | None = None) -> range:
    """The seeds that --n, --seeds (`A-B`, both included, or a range) and --seed ask for.

    Raises UsageError when they contradict each other, or are too large or too many.
    """
    check_at_least_1(num, option="--n")
    if seeds is None:
        first = seed or 0
        wanted = range(first, first + (num or DEFAULT_NUM))
    else:
        if seed is not None:
            raise UsageError("--seed and --seeds were both given", next="Give --seeds A-B, or --seed A with --n.")
        wanted = seeds if isinstance(seeds, range) else _read_range(seeds)
        how_many = wanted.stop - wanted.start  # len() fails above 2^63
        if wanted.step != 1:
            raise UsageError(f"--seeds {seeds} is not a range of step 1")
        if how_many < 1:
            raise UsageError(f"--seeds {seeds} is empty: {wanted.start} is above {wanted.stop - 1}")
        if num is not None and num != how_many:
            raise UsageError(f"--n {num} and --seeds {seeds} ({how_many} images) disagree", next="Give one of them.")
    for end in (wanted.start, wanted.stop - 1):
        check_seed(end, option=f"--seed {seed or 0}" if seeds is None else f"--seeds {seeds}")
    if len(wanted) > MAX_NUM:
        raise UsageError(
            f"{len(wanted):,} images are too many for one run: it takes {MAX_NUM:,} at most",
            next="Cut them into runs with --seeds A-B.",
        )
    return wanted


def _read_range(text: str) -> range:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise UsageError(f"--seeds {text!r} is not a range", next="Example: --seeds 0-49999")
    return range(int(first), int(last if dash else first) + 1)


def check_at_least_1(value: int | None, *, option: str) -> None:
    """Raise UsageError for a count below 1; None is a count that was not given."""
    if value is not None and value < 1:
        raise UsageError(f"{option} {value} is not at least 1")


def check_seed(seed: int, *, option: str) -> None:
    """Raise UsageError for a seed that no generator takes."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"{option}: seed {seed} is not from 0 to 2^62")
