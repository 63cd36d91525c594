"""Words of messages: numbers of things."""

from __future__ import annotations


def count(num: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `1,000 images`, `2 classes`; `plural` where the noun has one of its own (`entries`)."""
    if plural is None:
        plural = noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")
    return f"{num:,} {noun if num == 1 else plural}"
