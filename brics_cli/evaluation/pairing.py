"""Which image of one collection is which of another, by key.

Rule: two keys are partners when they are equal, or when one is the other with directories put in front
(`train-00000/cat` and `00000/train-00000/cat`: a store's key inside the shard that `brics decode` wrote) and neither
could be partner of a third. The name of a file in a flat folder stands for its key (`train-00000%2Fcat`). What is left
has no partner; order, number and position never decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    def of_real(self, positions: Iterable[int]) -> Pairing:
        """Only the pairs whose real image is at one of `positions`, and nothing unmatched."""
        wanted = set(positions)
        kept = [(real, fake) for real, fake in zip(self.real, self.fake, strict=True) if real in wanted]
        return Pairing([real for real, _ in kept], [fake for _, fake in kept], [], [])


def match_keys(real: Sequence[str], fake: Sequence[str]) -> Pairing:
    """Pair the keys of two collections by the rule above. Keys that occur twice on a side have no partner."""
    once_real, once_fake = _once(real), _once(fake)
    left_real = {key: position for position, key in enumerate(real) if key in once_real}
    left_fake = {key: position for position, key in enumerate(fake) if key in once_fake}
    paired: list[tuple[int, int]] = []

    def pair(candidates: Iterable[tuple[str, str]]) -> None:
        for of_real, of_fake in candidates:
            if of_real in left_real and of_fake in left_fake:
                paired.append((left_real.pop(of_real), left_fake.pop(of_fake)))

    pair([(key, key) for key in left_real])
    pair([(key, flat_name(key)) for key in left_real])
    pair([(flat_name(key), key) for key in left_fake])
    named_real, named_fake = _by_key(left_real), _by_key(left_fake)
    candidates = {(named_real[key], named_fake[key]) for key in named_real.keys() & named_fake.keys()}
    candidates |= {(name, named_fake[tail]) for key, name in named_real.items() for tail in _tails(key, named_fake)}
    candidates |= {(named_real[tail], name) for key, name in named_fake.items() for tail in _tails(key, named_real)}
    of_one_real = _once(of_real for of_real, _ in candidates)
    of_one_fake = _once(of_fake for _, of_fake in candidates)
    pair([each for each in candidates if each[0] in of_one_real and each[1] in of_one_fake])
    paired.sort()
    paired_real, paired_fake = [r for r, _ in paired], [f for _, f in paired]
    return Pairing(
        paired_real,
        paired_fake,
        sorted(set(range(len(real))).difference(paired_real)),
        sorted(set(range(len(fake))).difference(paired_fake)),
    )


def _once(keys: Iterable[str]) -> set[str]:
    """Those that occur once."""
    return {key for key, number in Counter(keys).items() if number == 1}


def _by_key(names: Iterable[str]) -> dict[str, str]:
    """Key -> the name that stands for it, of names that may be of files; without the keys of more than one."""
    named = [(key_of_name(name), name) for name in names]
    once = _once(key for key, _ in named)
    return {key: name for key, name in named if key in once}


def _tails(key: str, known: Mapping[str, str]) -> Iterator[str]:
    """`a/b/c` -> `b/c`, `c`, as far as they are known."""
    while "/" in key:
        key = key.split("/", 1)[1]
        if key in known:
            yield key
