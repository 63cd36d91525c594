"""What `brics sample` makes of options that contradict each other, or that need to be read."""

from __future__ import annotations

import re
from enum import StrEnum

from brics_cli.errors import UsageError

DEFAULT_NUM = 64
MAX_GRID_SIDE = 256
MAX_SEED = 2**62
MAX_NUM = 10**9
"""Images of one run: its list of tasks is kept in memory."""


class SampleFormat(StrEnum):
    """How samples are stored."""

    wds = "wds"
    png = "png"
    zip = "zip"
    npz = "npz"
    h5 = "h5"


class ClassBalance(StrEnum):
    """How often each class is drawn."""

    proportional = "proportional"
    even = "even"


def seed_range(*, num: int | None, seeds: str | None, seed: int | None) -> range:
    """The seeds that --n, --seeds and --seed ask for. Raises UsageError when they contradict each other, or are too
    large or too many."""
    wanted = _seeds_asked_for(num=num, seeds=seeds, seed=seed)
    _check_seed(wanted.stop - 1, option=f"--seed {seed or 0}" if seeds is None else f"--seeds {seeds}")
    if len(wanted) > MAX_NUM:
        raise UsageError(
            f"{len(wanted):,} images are too many for one run: it takes {MAX_NUM:,} at most",
            next="Cut them into runs with --seeds A-B.",
        )
    return wanted


def _check_seed(seed: int, *, option: str) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"{option}: seed {seed} is not from 0 to 2^62")


def _seeds_asked_for(*, num: int | None, seeds: str | None, seed: int | None) -> range:
    if seeds is None:
        first = seed or 0
        return range(first, first + (num or DEFAULT_NUM))
    if seed is not None:
        raise UsageError("--seed and --seeds were both given", next="Give --seeds A-B, or --seed A with --n.")
    first_text, dash, last_text = seeds.partition("-")
    if not first_text.isdecimal() or (dash and not last_text.isdecimal()):
        raise UsageError(f"--seeds {seeds!r} is not a range", next="Example: --seeds 0-49999")
    wanted = range(int(first_text), int(last_text if dash else first_text) + 1)
    if not wanted:
        raise UsageError(f"--seeds {seeds} is empty: {wanted.start} is above {wanted.stop - 1}")
    how_many = wanted.stop - wanted.start  # len() fails above 2^63
    if num is not None and num != how_many:
        raise UsageError(f"--n {num} and --seeds {seeds} ({how_many} images) disagree", next="Give one of them.")
    return wanted


def grid_sides(text: str) -> tuple[int, int]:
    """`4x8` -> (4, 8). Raises UsageError."""
    match = re.fullmatch(r"([0-9]+)[xX]([0-9]+)", text)
    num_rows, num_columns = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (1 <= num_rows <= MAX_GRID_SIDE and 1 <= num_columns <= MAX_GRID_SIDE):
        raise UsageError(f"--grid {text} is not ROWSxCOLS, each from 1 to {MAX_GRID_SIDE}", next="Example: --grid 4x8")
    return num_rows, num_columns


def chosen_format(format: SampleFormat | None, *, codes: bool) -> SampleFormat | None:
    """The format that --format and --codes ask for; None: by --out. Raises UsageError when they disagree."""
    if codes and format not in (None, SampleFormat.h5):
        raise UsageError(f"--codes and --format {format} disagree", next="A key-code store is --codes or --format h5.")
    return SampleFormat.h5 if codes else format


def check_picture(
    *, grid: str | None, interpolate: tuple[int, int] | None, frames: int | None, **others: object
) -> None:
    """Raise UsageError when a picture was asked for together with options of whole runs; `others` by their names."""
    if grid is not None and interpolate is not None:
        raise UsageError("--grid and --interpolate were both given", next="They are two pictures: run it twice.")
    if frames is not None and interpolate is None:
        raise UsageError("--frames goes with --interpolate", next="Example: --interpolate 3 7 --frames 12")
    if grid is None and interpolate is None:
        return
    picture, hint = "--grid", "It shows ROWS x COLS seeds, from --seed A on."
    if interpolate is not None:
        picture, hint = "--interpolate", "It goes from seed A to seed B in --frames images."
        for seed in interpolate:
            _check_seed(seed, option=f"--interpolate {interpolate[0]} {interpolate[1]}")
    for name, value in others.items():
        if value not in (None, False):
            raise UsageError(f"{picture} takes no --{name.replace('_', '-')}", next=hint)
