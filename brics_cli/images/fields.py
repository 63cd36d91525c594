"""How a file's name splits into a sample's key and a field, and which field is the image.

WebDataset's rule: the key ends at the first dot of the base name, the rest is the field (`000.image.png`, `000.cls`).
Names such as `v1.0.png` and `my.photo.2.jpg` hold no field, and keep all but their last extension. Which is meant is
seen in the collection as a whole: a field begins with a letter, comes back in sample after sample, and has siblings.
One sample is enough where the sibling is an image (`002.jpg` beside `002.mask.png`), unless that is one of more than
fifty and the field's name is no mask's (`007.edited.png`). `v1.0.png` beside `v1.png` are two images: `0` is no letter.
Fields that differ in a number alone (`mask.0.png`, `mask.1.png`) are one, `mask.#.png`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from brics_cli.errors import UsageError
from brics_cli.images.collection import printable, split_extension
from brics_cli.images.splits import IMAGES, NOT_IMAGES

ALL = "all"
"""`--image-field all`: every image is a sample of its own."""
_FIELD = re.compile(r"[a-z_][\w-]*(\.[\w-]+)*", re.ASCII)
_BEFORE_FIELD = re.compile(r"(?<!^)\.(?=[a-z_])", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"(?<=\.)[0-9][\w-]*(?=\.)", re.ASCII)
_MASK = "|".join(sorted(NOT_IMAGES))
_LIKE_MASK = re.compile(rf"[_-](?:{_MASK})[_-]?[0-9]*$|(?:^|(?<=/))(?:{_MASK})[_-](?=[^/]+$)", re.IGNORECASE)
"""How the base names of masks end, or begin: `0_mask.png`, `mask_0.png` beside `0.jpg`, `0_rgb.jpg` or `img_0.jpg`."""
_LIKE_IMAGE = [("", ""), *((word + sign, "") for sign in "_-" for word in sorted(IMAGES)),
               *(("", sign + word) for sign in "_-" for word in sorted(IMAGES))]  # fmt: skip
_LEAST_SHARE = 0.02
"""Of the samples that have a field: names that repeat in fewer are a coincidence."""
_MOST_IN_FOLDER = 8
"""Names of images in folders that are one sample each: `0001/left.png`, `0001/right.png`."""


class Fields(NamedTuple):
    """`dotted`: the image fields of several parts, before which a key ends at the first dot; `images`: those to take,
    None for whatever is an image; `by_folder`: a folder is a sample, and a field a whole name; `remark`: what a user
    must know of it."""

    dotted: frozenset[str] = frozenset()
    images: frozenset[str] | None = None
    by_folder: bool = False
    remark: str = ""

    def split(self, name: str) -> tuple[str, str] | None:
        """(key, field) of the image `name`; None for a file that is no image."""
        plain = split_extension(name)
        if plain is None or not (self.dotted or self.images):
            return plain
        if self.by_folder:
            folder, _, base = name.rpartition("/")
            return folder, base.lower()
        key, field = split_field(name)
        if not _FIELD.fullmatch(field):
            return plain
        kind = _NUMBER.sub("#", field)
        if self.images is not None:
            return key, field if field in self.images else kind
        return (key, field) if kind in self.dotted else plain


def split_field(name: str) -> tuple[str, str]:
    """`a/v1.0.Left.png` -> (`a/v1.0`, `left.png`): at the first dot before a letter."""
    if name.count(".") == 1:
        key, _, field = name.partition(".")
        if "/" not in field:
            return key, field.lower()
    start = name.rfind("/") + 1
    found = _BEFORE_FIELD.search(name[start:])
    if found is None:
        return name, ""
    return name[: start + found.start()], name[start + found.end() :].lower()


class FieldSurvey:
    """Counts the fields of a collection, shard by shard; `fields` then says what they mean."""

    def __init__(self) -> None:
        self._num_images = 0
        self._num_keys = 0
        self._num: Counter[str] = Counter()  # samples by field
        self._exact: Counter[str] = Counter()  # images by field with its number
        self._with_siblings: Counter[str] = Counter()
        self._beside_images: dict[str, str] = {}  # fields beside a plain one: "0.mask.png beside 0.jpg"
        self._groups: Counter[tuple[str, ...]] = Counter()  # samples by the fields of their images
        self._masks: Counter[tuple[str, str]] = Counter()  # those beside their image, by the fields of the two
        self._first_mask: dict[tuple[str, str], str] = {}
        self._num_like_masks = 0
        self._in_folders: Counter[str] | None = Counter()
        self._folders: set[str] = set()

    def add(self, names: Sequence[str]) -> None:
        """Count one shard: samples do not cross shards."""
        images: dict[str, list[str]] = {}
        others: dict[str, list[str]] = {}
        dotted = False
        num_images = 0
        for name in names:
            key, field = split_field(name)
            if split_extension(name) is None:
                others.setdefault(key, []).append(name.rpartition(".")[0])
                continue
            num_images += 1
            dotted = dotted or "." in field
            images.setdefault(key, []).append(field)
            folder, _, base = name.rpartition("/")
            self._see_in_folder(folder, base.lower())
        for key in filter(_LIKE_MASK.search, images):
            self._see_mask(key, images)
        self._num_images += num_images
        self._num_keys += len(images)
        if not dotted and num_images == len(images):
            for field, num in Counter(field for (field,) in images.values()).items():
                self._groups[(field,)] += num
                self._num[field] += num
            return
        for key, found in images.items():
            fields = [field for field in found if _FIELD.fullmatch(field)]
            kinds = sorted({_NUMBER.sub("#", field) for field in fields})
            self._groups[tuple(kinds)] += 1
            self._exact.update(field for field in fields if _NUMBER.search(field))
            plain = next((kind for kind in kinds if "." not in kind), None)
            if plain is not None and len(kinds) > 1:
                for kind in kinds:
                    self._beside_images.setdefault(kind, f"{key}.{kind} beside {key}.{plain}")
            for kind in kinds:
                self._num[kind] += 1
                self._with_siblings[kind] += self._has_sibling(key, kind, kinds, others.get(key, ()))

    @staticmethod
    def _has_sibling(key: str, kind: str, kinds: Sequence[str], others: Sequence[str]) -> bool:
        """Whether something of sample `key` beside its images `kind` shows that it is one; a number needs more."""
        if "#" in kind:
            return key in others or any("." not in other for other in kinds)
        own = f"{key}.{kind}".rpartition(".")[0].lower()
        return len(kinds) > 1 or any(other.lower() != own for other in others)

    def _see_mask(self, key: str, images: Mapping[str, Sequence[str]]) -> None:
        self._num_like_masks += 1
        folder, slash, stem = _LIKE_MASK.sub("", key).rpartition("/")
        others = (f"{folder}{slash}{first}{stem}{last}" for first, last in _LIKE_IMAGE)
        of = next((other for other in others if other in images), None)
        if of is not None:
            mask, image = images[key][0], images[of][0]
            self._masks[mask, image] += 1
            self._first_mask.setdefault((mask, image), f"{key}.{mask} beside {of}.{image}")

    def _remark(self, fields: Fields) -> str:
        return "; ".join(filter(None, (self._remark_on_fields(fields), self._remark_on_masks(fields.images))))

    def _remark_on_fields(self, fields: Fields) -> str:
        """What is said of the few names that may hold a field and are read as images: `007.edited.png`."""
        few = sorted(field for field in self._beside_images.keys() - fields.dotted if "." in field)
        if fields.images is not None or not few:
            return ""
        plain = ",".join(sorted(field for field in self._num if "." not in field))
        return (
            f"{sum(self._num[field] for field in few):,} of {self._num_images:,} images are named like a second image "
            f"of a sample ({printable(self._beside_images[few[0]])}) and are read as images: "
            f"--image-field {plain} leaves them out"
        )

    def _remark_on_masks(self, images: frozenset[str] | None) -> str:
        """What is said where most images that are named like masks stand beside what they are masks of."""
        read = {fields: num for fields, num in self._masks.items() if images is None or set(fields) <= images}
        if 2 * self._masks.total() < self._num_like_masks or not read:
            return ""
        num_images = self._num_images if images is None else sum(self._num[field] for field in images)
        masks, others = {mask for mask, _ in read}, {image for _, image in read}
        way = "" if masks & others else f"--image-field {','.join(sorted(others))} leaves them out; otherwise "
        return (
            f"{sum(read.values()):,} of {num_images:,} images are named like masks of others "
            f"({printable(self._first_mask[min(read)])}) and are read as images: "
            f"{way}move them to a folder of their own"
        )

    def _see_in_folder(self, folder: str, base: str) -> None:
        if self._in_folders is None:
            return
        self._in_folders[base] += 1
        self._folders.add(folder)
        if not folder or len(self._in_folders) > _MOST_IN_FOLDER or any(character.isdigit() for character in base):
            self._in_folders = None
            self._folders.clear()

    def fields(self, wanted: str | None, *, where: str, is_tar: bool = False) -> Fields:
        """What the names mean, the image being the field `wanted`, or one of `jpg,png` (None: the only one there is).

        Raises UsageError, listing what there is, where samples have several images and nobody said which is meant,
        and for a field that is not there.
        """
        fields = Fields() if wanted == ALL else self._meant(wanted, where=where, is_tar=is_tar)
        return fields if fields.by_folder or wanted == ALL else fields._replace(remark=self._remark(fields))

    def _meant(self, wanted: str | None, *, where: str, is_tar: bool) -> Fields:
        asked = set() if wanted is None else {field.strip().lstrip(".") for field in wanted.lower().split(",")}
        names: Counter[str] = Counter(self._in_folders or {})
        if self._is_by_folder() and asked <= names.keys():
            return Fields(images=self._chosen(asked, set(names), names, where=where), by_folder=True)
        by_stem: dict[str, list[str]] = {}
        for field in self._num:
            by_stem.setdefault(field.rpartition(".")[0], []).append(field)
        dotted = {
            field
            for stem, same in by_stem.items()
            for field in same
            if stem and self._is_meant(field, same, is_tar=is_tar)
        }
        several: set[str] = set()
        num_pairs = 0
        for group, num in self._groups.items():
            kept = [field for field in group if "." not in field or field in dotted]
            if len(kept) > 1:
                if not dotted.isdisjoint(kept):
                    several |= set(kept)
                else:
                    num_pairs += num
        if several:  # photographs without a mask are meant too, whatever their extension
            several |= {field for field in self._num if "." not in field}
        if num_pairs > 1 and 2 * num_pairs >= self._num_keys:  # 0001.jpg and its mask 0001.png
            several |= {field for group in self._groups if len(group) > 1 for field in group if "." not in field}
        if not asked and not several:
            return Fields(frozenset(dotted))
        return Fields(frozenset(dotted), self._chosen(asked, several, self._num, also=self._exact, where=where))

    def _is_by_folder(self) -> bool:
        names = self._in_folders or Counter[str]()
        enough = len(self._folders) > 1 and 2 * names.total() > 3 * len(self._folders)
        return enough and all(num > 1 and 2 * num >= len(self._folders) for num in names.values())

    def _is_meant(self, field: str, same: Sequence[str], *, is_tar: bool) -> bool:
        """Whether it is a field; the `same` of all extensions (`image.jpg`, `image.png`) count together."""
        num = sum(self._num[other] for other in same)
        beside_image = not self._beside_images.keys().isdisjoint(same)
        of_mask = beside_image and any(word in NOT_IMAGES for word in re.split(r"[._-]", field))
        if num < _LEAST_SHARE * self._num_keys and not of_mask:
            return False
        if num == 1 and self._num_keys > 1 and not beside_image:
            return False
        with_siblings = sum(self._with_siblings[other] for other in same)
        return 2 * with_siblings >= num or (is_tar and "#" not in field and num == self._num_images > 1)

    def _chosen(
        self, asked: set[str], several: set[str], num: Counter[str], *, where: str, also: Counter[str] | None = None
    ) -> frozenset[str]:
        missing = sorted(field for field in asked if not (num[field] or (also and also[field])))
        if asked and not (missing and self._num):
            return frozenset(asked)
        there = sorted(several or num, key=lambda field: (-num[field], field))
        listed = ", ".join(f"{printable(field)} ({num[field]:,})" for field in there[:10])
        more = f" and {len(there) - 10:,} more" if len(there) > 10 else ""
        if missing:
            raise UsageError(
                f"{where} has no images {missing[0]!r}; there are: {listed}{more}", next=f"--image-field {there[0]}"
            )
        first = min(there, key=lambda field: field.count("."))  # the photograph rather than its mask
        meant = [field for field in there if ("." in field) == ("." in first) and self._apart(field, first)]
        raise UsageError(
            f"{where} holds samples of several images each: {listed}{more}",
            next=f"Give the one that is meant: --image-field {','.join([first, *meant])}; "
            f"or --image-field {ALL}, for each by itself.",
        )

    def _apart(self, field: str, other: str) -> bool:
        """Whether no sample has both: where photographs are `jpg` or `png`, and masks `mask.png`."""
        return field != other and not any(field in group and other in group for group in self._groups)


def survey(shards: Iterable[Sequence[str]]) -> FieldSurvey:
    """The fields of a collection whose shards hold these names."""
    counted = FieldSurvey()
    for names in shards:
        counted.add(names)
    return counted
