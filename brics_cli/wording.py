"""Words of messages: numbers of things, of bytes, of seconds."""

from __future__ import annotations

DAY_S = 86_400.0


def count(num: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `1,000 images`, `2 classes`; `plural` where the noun has one of its own (`entries`)."""
    if plural is None:
        plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{num:,} {noun if num == 1 else plural}"


def human_bytes(num_bytes: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def duration(seconds: float) -> str:
    """`8.3 s`, `2 min 19 s`, `3 h 05 min`, `18 days`."""
    if seconds >= 2 * DAY_S:
        return f"{seconds / DAY_S:,.0f} days"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
