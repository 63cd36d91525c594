"""Which image of one collection is which of another, by key.

Rule: two keys are partners when they are equal, or when one is the other with directories put in front
(`train-00000/cat` and `00000/train-00000/cat`: a store's key inside the shard that `brics decode` wrote) and neither
could be partner of a third. The name of a file in a flat folder stands for its key (`train-00000%2Fcat`). What is left
has no partner; order, number and position never decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from brics_cli.workspace.naming import flat_name, key_of_name


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
    partner |= {
        key: flat_name(key) for key in real_positions if key not in partner and flat_name(key) in fake_positions
    }
    taken = set(partner.values())
    named = {flat_name(key): key for key in fake_positions if key not in taken}
    partner |= {key: named[key] for key in real_positions if key not in partner and key in named}
    taken = set(partner.values())
    left_real = _by_key(key for key in real_positions if key not in partner)
    left_fake = _by_key(key for key in fake_positions if key not in taken)
    candidates = {(left_real[key], left_fake[key]) for key in left_real if key in left_fake}
    candidates |= {(left_real[key], left_fake[tail]) for key in left_real for tail in _tails(key) if tail in left_fake}
    candidates |= {(left_real[tail], left_fake[key]) for key in left_fake for tail in _tails(key) if tail in left_real}
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


def _by_key(names: Iterable[str]) -> dict[str, str]:
    """Key -> the name that stands for it, of names that may be of files; without the keys of more than one."""
    named = list(names)
    keys = [key_of_name(name) for name in named]
    number = Counter(keys)
    return {key: name for key, name in zip(keys, named, strict=True) if number[key] == 1}


def _tails(key: str) -> Iterator[str]:
    """`a/b/c` -> `b/c`, `c`."""
    while "/" in key:
        key = key.split("/", 1)[1]
        yield key
