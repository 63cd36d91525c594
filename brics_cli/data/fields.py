"""How a file's name splits into a sample's key and a field, and which field is the image.

WebDataset's rule: the key ends at the first dot of the base name, the rest is the field (`000.image.png`, `000.cls`).
Names such as `v1.0.png` and `my.photo.2.jpg` hold no field, and keep all but their last extension. Which is meant is
seen in the collection as a whole: a field begins with a letter, comes back in sample after sample, and has siblings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from brics_cli.data.collection import printable, split_extension
from brics_cli.errors import UsageError

ALL = "all"
"""`--image-field all`: every image is a sample of its own."""
_FIELD = re.compile(r"[a-z_][\w-]*(\.[a-z_][\w-]*)*", re.ASCII)
_LEAST_SHARE = 0.02
"""Of the samples that have a field: names that repeat in fewer are a coincidence."""
_MOST_IN_FOLDER = 8
"""Names of images in folders that are one sample each: `0001/left.png`, `0001/right.png`."""


class Fields(NamedTuple):
    """`dotted`: the image fields of several parts, before which a key ends at the first dot; `image`: the one to take,
    None for whatever is an image; `by_folder`: a folder is a sample, and a field a whole name."""

    dotted: frozenset[str] = frozenset()
    image: str | None = None
    by_folder: bool = False

    def split(self, name: str) -> tuple[str, str] | None:
        """(key, field) of the image `name`; None for a file that is no image."""
        plain = split_extension(name)
        if plain is None or not (self.dotted or self.by_folder):
            return plain
        folder, slash, base = name.rpartition("/")
        if self.by_folder:
            return folder, base.lower()
        first, _, field = base.partition(".")
        return (folder + slash + first, field.lower()) if field.lower() in self.dotted else plain


class FieldSurvey:
    """Counts the fields of a collection, shard by shard; `fields` then says what they mean."""

    def __init__(self) -> None:
        self._num_images = 0
        self._num_keys = 0
        self._num: Counter[str] = Counter()  # images by field
        self._with_siblings: Counter[str] = Counter()
        self._groups: Counter[tuple[str, ...]] = Counter()  # samples by the fields of their images
        self._in_folders: Counter[str] | None = Counter()
        self._folders: set[str] = set()

    def add(self, names: Sequence[str]) -> None:
        """Count one shard: samples do not cross shards."""
        images: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        dotted = False
        num_images = 0
        for name in names:
            start = name.rfind("/") + 1
            key = name[: name.find(".", start)] if "." in name[start:] else name
            if split_extension(name) is None:
                others.setdefault(key, []).append(name.rpartition(".")[0])
                continue
            num_images += 1
            field = name[len(key) + 1 :].lower()
            dotted = dotted or "." in field
            images.setdefault(key, []).append(field)
            self._see_in_folder(name[: max(start - 1, 0)], name[start:].lower())
        self._num_images += num_images
        self._num_keys += len(images)
        if not dotted and num_images == len(images):
            return
        for key, found in images.items():
            named = sorted({field for field in found if _FIELD.fullmatch(field)})
            self._groups[tuple(named)] += 1
            for field in named:
                self._num[field] += 1
                stem = f"{key}.{field}".rpartition(".")[0]
                beside = any(other.lower() != stem.lower() for other in others.get(key, ()))
                self._with_siblings[field] += beside or len(named) > 1

    def _see_in_folder(self, folder: str, base: str) -> None:
        if self._in_folders is None:
            return
        self._in_folders[base] += 1
        self._folders.add(folder)
        if not folder or len(self._in_folders) > _MOST_IN_FOLDER or any(character.isdigit() for character in base):
            self._in_folders = None
            self._folders.clear()

    def fields(self, wanted: str | None, *, where: str, is_tar: bool = False) -> Fields:
        """What the names mean, the image being the field `wanted` (None: the only one there is).

        Raises UsageError, listing what there is, where samples have several images and nobody said which is meant,
        and for a field that is not there.
        """
        if wanted == ALL:
            return Fields()
        if wanted is not None:
            wanted = wanted.lower().lstrip(".")
        by_folder = self._is_by_folder()
        names: Counter[str] = Counter(self._in_folders or {})
        if by_folder and (wanted is None or wanted in names):
            return Fields(image=self._chosen(wanted, set(names), names, where=where), by_folder=True)
        dotted = {field for field in self._num if "." in field and self._is_meant(field, is_tar=is_tar)}
        if wanted is not None and "." in wanted and self._num[wanted]:
            dotted.add(wanted)
        several: set[str] = set()
        num_pairs = 0
        for group, num in self._groups.items():
            kept = [field for field in group if "." not in field or field in dotted]
            if len(kept) > 1:
                if not dotted.isdisjoint(kept):
                    several |= set(kept)
                else:
                    num_pairs += num
        if num_pairs > 1 and 2 * num_pairs >= self._num_keys:  # 0001.jpg and its mask 0001.png
            several |= {field for group in self._groups if len(group) > 1 for field in group if "." not in field}
        if wanted is None and not several:
            return Fields(frozenset(dotted))
        return Fields(frozenset(dotted), self._chosen(wanted, several, self._num, where=where))

    def _is_by_folder(self) -> bool:
        names: Counter[str] = self._in_folders or Counter()
        enough = len(self._folders) > 1 and len(names) > 1
        return enough and all(2 * num >= len(self._folders) for num in names.values())

    def _is_meant(self, field: str, *, is_tar: bool) -> bool:
        num = self._num[field]
        if num < _LEAST_SHARE * self._num_keys or (num == 1 and self._num_keys > 1):
            return False
        return 2 * self._with_siblings[field] >= num or (is_tar and num == self._num_images > 1)

    def _chosen(self, wanted: str | None, several: set[str], num: Counter[str], *, where: str) -> str:
        if wanted is not None and (num[wanted] or not self._num):
            return wanted
        there = sorted(several or num, key=lambda field: (-num[field], field))
        listed = ", ".join(f"{printable(field)} ({num[field]:,})" for field in there[:10])
        more = f" and {len(there) - 10:,} more" if len(there) > 10 else ""
        if wanted is not None:
            raise UsageError(
                f"{where} has no images {wanted!r}; there are: {listed}{more}", next=f"--image-field {there[0]}"
            )
        raise UsageError(
            f"{where} holds samples of several images each: {listed}{more}",
            next=f"Give the one that is meant: --image-field {there[0]}; or --image-field {ALL}: each by itself.",
        )


def survey(shards: Iterable[Sequence[str]]) -> FieldSurvey:
    """The fields of a collection whose shards hold these names."""
    counted = FieldSurvey()
    for names in shards:
        counted.add(names)
    return counted
