"""What a scan found and did not read: counted, so that nothing is left out of a collection in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

HIDDEN = "hidden files or folders"
OF_BRICS = frozenset({"brics.json", "manifest.json", "failures.jsonl", "wids.json"})
"""What brics itself writes beside images."""
_LONGEST_EXTENSION = 16
"""Characters. What is longer, or holds a space, is a name with a dot in it."""
_NUM_SHOWN = 12


class PassedOver:
    """Files that are not read by extension (`.heic`), and whatever else was left aside by its reason; see `describe`.

    `num_read` is of the files that are read, images and sidecars, where it is known.
    """

    def __init__(self, names: Iterable[str] = (), *, num_read: int = 0) -> None:
        self.files = Counter(extension_of(name) for name in names)
        self.reasons: Counter[str] = Counter()
        self.num_read = num_read

    def __bool__(self) -> bool:
        return bool(self.files or self.reasons)

    def __add__(self, other: PassedOver) -> PassedOver:
        both = PassedOver(num_read=self.num_read + other.num_read)
        both.files = self.files + other.files
        both.reasons = self.reasons + other.reasons
        return both

    def describe(self) -> str:
        """`not read: 65 of 75 files (30 .gif, 20 .heic, 15 without extension); 2 links to folders visited before`."""
        parts = []
        if num := self.files.total():
            listed = [f"{each:,} {extension}" for extension, each in self.files.most_common(_NUM_SHOWN)]
            if num_others := num - sum(each for _, each in self.files.most_common(_NUM_SHOWN)):
                listed.append(f"{num_others:,} others")
            parts.append(f"{num:,} of {num + self.num_read:,} files ({', '.join(listed)})")
        parts += [f"{num:,} {reason}" for reason, num in self.reasons.most_common()]
        return f"not read: {'; '.join(parts)}" if parts else ""

    def to_json(self) -> dict[str, int]:
        """Numbers by extension and by reason."""
        return {**dict(self.files.most_common()), **dict(self.reasons.most_common())}


def extension_of(name: str) -> str:
    """`.heic`, lower case; `without extension` for a name that has none."""
    stem, dot, extension = name.rpartition("/")[2].rpartition(".")
    is_one = dot and stem and 0 < len(extension) <= _LONGEST_EXTENSION
    if not is_one or " " in extension:
        return "without extension"
    return "." + extension.lower().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
