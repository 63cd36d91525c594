"""Which image of one collection is which of another, by key.

Rule: two keys are partners when they are equal, or when one is the other with directories put in front
(`train-00000/cat` and `00000/train-00000/cat`: a store's key inside the shard that `brics decode` wrote) and neither
could be partner of a third. What is left has no partner; order, number and position never decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairing:
    """`real[i]` and `fake[i]` are positions of partners, in the order of the real keys; the rest is unmatched."""

    real: list[int]
    fake: list[int]
    unmatched_real: list[int]
    unmatched_fake: list[int]

    def __len__(self) -> int:
        return len(self.real)


def match_keys(real: Sequence[str], fake: Sequence[str]) -> Pairing:
    """Pair the keys of two collections by the rule above. Keys that occur twice on a side have no partner."""
    real_positions, fake_positions = _positions(real), _positions(fake)
    partner = {key: key for key in real_positions if key in fake_positions}
    left_real = {key for key in real_positions if key not in partner}
    left_fake = {key for key in fake_positions if key not in partner}
    candidates = {(long, short) for long in left_real for short in _tails(long) if short in left_fake}
    candidates |= {(short, long) for long in left_fake for short in _tails(long) if short in left_real}
    of_real: dict[str, list[str]] = {}
    of_fake: dict[str, list[str]] = {}
    for real_key, fake_key in candidates:
        of_real.setdefault(real_key, []).append(fake_key)
        of_fake.setdefault(fake_key, []).append(real_key)
    for real_key, fake_keys in of_real.items():
        if len(fake_keys) == 1 and len(of_fake[fake_keys[0]]) == 1:
            partner[real_key] = fake_keys[0]
    paired = sorted((real_positions[real_key], fake_positions[fake_key]) for real_key, fake_key in partner.items())
    paired_real, paired_fake = {r for r, _ in paired}, {f for _, f in paired}
    return Pairing(
        real=[r for r, _ in paired],
        fake=[f for _, f in paired],
        unmatched_real=[index for index in range(len(real)) if index not in paired_real],
        unmatched_fake=[index for index in range(len(fake)) if index not in paired_fake],
    )


def _positions(keys: Sequence[str]) -> dict[str, int]:
    """Key -> position, without the keys that occur more than once."""
    positions: dict[str, int] = {}
    twice = set()
    for position, key in enumerate(keys):
        if key in positions:
            twice.add(key)
        positions[key] = position
    return {key: position for key, position in positions.items() if key not in twice}


def _tails(key: str) -> Iterator[str]:
    """`a/b/c` -> `b/c`, `c`."""
    while "/" in key:
        key = key.split("/", 1)[1]
        yield key
