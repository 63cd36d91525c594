"""Named files, whatever holds them (a folder, a zip, tars): which of them are images, in which split, and what belongs
to each image. What these forms have in common; each of them lists its files and reads one.

Files of one key (`0001.jpg`, `0001.cls`, `0001.json`) make one sample; `fields` says where a key ends.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from brics_cli.errors import ArtefactError, UsageError
from brics_cli.images.annotations import Annotations, FolderClasses
from brics_cli.images.collection import (
    OF_BRICS,
    Collection,
    PassedOver,
    RawImage,
    Strings,
    Wanted,
    is_image,
    printable,
)
from brics_cli.images.fields import Fields, survey
from brics_cli.images.labels import FIELDS
from brics_cli.images.listings import SIDECARS, Listing, Texts, is_listing, may_hold_label, read_listing
from brics_cli.images.pixels import ImageError
from brics_cli.images.sources.memory import Names
from brics_cli.images.splits import Scope, scope_of
from brics_cli.wording import count


class NoImagesError(UsageError):
    """There is no image, whatever else there is."""


class Members(NamedTuple):
    """The M files in one container: `columns` (M, K) are their sizes in bytes and what else it takes to find them."""

    names: Names
    columns: npt.NDArray[np.int64]

    def take(self, places: Sequence[int]) -> Members:
        """Those at `places`."""
        return Members(Names(self.names[place] for place in places), self.columns[np.array(places, np.int64)])


class MemberCollection(Collection):
    """Images that are named files in containers: one folder, one zip, or several tars.

    Sub-classes list their containers, call `_arrange`, and set `shards`. Labels and metadata come from listings
    (`dataset.json`) and from files beside an image; `labels="folder"` makes the top-level folders classes, numbered in
    sorted order. Where folders are splits, the training one is read, or `subset`; where samples have several images,
    `image_field`.
    """

    form: str = ""
    """What `describe` says of the container."""

    @abstractmethod
    def _bytes(self, container: int, member: int) -> bytes:
        """A file. Raises ImageError when this one cannot be read."""

    def _arrange(
        self,
        containers: Sequence[Members],
        wanted: Wanted,
        *,
        path: str,
        titles: Sequence[str],
        where: str = "",
        prefixes: Sequence[str] = ("",),
        listings: Sequence[Listing] = (),
        class_names: Sequence[str] = (),
        is_tar: bool = False,
        enter_splits: bool = False,
    ) -> None:
        """Choose the split and the image field, find the samples, and read their labels.

        `titles` name the containers in messages, `where` all of them; `prefixes` stand before the keys of each;
        `listings` are those outside the containers, `class_names` what their maker recorded. With `enter_splits` a
        split's folder is opened as if it had been given. Raises UsageError, ArtefactError.
        """
        where = where or titles[0]
        if not any(is_image(name) for each in containers for name in each.names):
            self.passed_over += PassedOver(name for each in containers for name in each.names)
            there = f"no images in {where}; {self.passed_over.describe()}" if self.passed_over else f"{where} is empty"
            raise NoImagesError(there, next="Give png, jpg, webp, bmp, tiff or ppm files.")
        scope = Scope()
        if wanted.subset is not None or any(each.names.any_holds("/") for each in containers):
            images = [name for each in containers for name in each.names if is_image(name)]
            scope = scope_of(images, wanted.subset, where=where)
        left_out: list[str] = []
        if scope.parts:
            left_out = [name for name in images if not scope.holds(name)]
            containers = [self._within(scope, each, images) for each in containers]
        depth, split = scope.depth, ""
        if enter_splits:
            split = scope.common_folder(name for name in containers[0].names if is_image(name))
            depth = 0 if split else depth
        self.path = wanted.of(f"{path}/{split}" if split else scope.of(path, wanted.subset))
        self.note, self.in_split = scope.note, bool(scope.parts)
        self._members = containers
        self._prefixes = prefixes

        shown = [
            Names(name.removeprefix(f"{split}/") for name in each.names) if split else each.names for each in containers
        ]
        fields = survey(shown).fields(wanted.image_field, where=where, is_tar=is_tar)
        self.image_fields, self.remark = fields.images, fields.remark
        self._samples = [Samples(names, fields, where=title) for names, title in zip(shown, titles, strict=True)]
        self._ends = list(accumulate(map(len, self._samples)))
        for samples in self._samples:
            self.passed_over += samples.passed_over()

        image_names = _ImageNames(self)
        self._classes: FolderClasses | None = None
        if wanted.labels == "folder":
            visible = [samples.name(image) for samples in self._samples for image in range(len(samples))]
            self._classes = FolderClasses(visible, depth=depth)
        self.listings = [*self._listings(titles), *listings]
        self._annotations = Annotations(
            image_names,
            where=where,
            listings=self.listings,
            sidecars=[
                end - len(samples) + image
                for end, samples in zip(self._ends, self._samples, strict=True)
                for image in samples.labelled
            ],
            texts=self._texts,
            class_names=class_names,
            labels=wanted.labels is None,
            left_out=left_out,
        )
        self.class_names = self._annotations.class_names if self._classes is None else self._classes.names

    def _within(self, scope: Scope, members: Members, images: Sequence[str]) -> Members:
        """What is read of one container; what is in no split at all is counted as passed over."""
        kept = []
        for place, name in enumerate(members.names):
            if scope.holds(name) or (is_listing(name) and scope.is_beside(name, images)):
                kept.append(place)
            elif scope.is_above(name) and not is_image(name) and name not in OF_BRICS:
                self.passed_over.add(name)
        return members.take(kept)

    def _listings(self, titles: Sequence[str]) -> Iterator[Listing]:
        for container, (title, prefix) in enumerate(zip(titles, self._prefixes, strict=True)):
            for member in self._samples[container].listings:
                full_name = self._members[container].names[member]
                try:
                    data = self._bytes(container, member)
                except ImageError as error:
                    raise ArtefactError(
                        f"{title}: its {printable(full_name)}: {error}",
                        next="Make it readable, or move it away.",
                    ) from None
                yield read_listing(prefix + full_name, data, where=title)

    def describe(self) -> str:
        said = self._classes.said if self._classes is not None else ""
        return f"{count(len(self), 'image')}, {self.kind}{self.form}{said}{self._annotations.said}{self.note}"

    def key(self, shard_index: int, index: int) -> str:
        container, image = self._place(self.starts[shard_index] + index)
        return self._prefixes[container] + self._samples[container].key(image)

    def read(self, shard_index: int, index: int) -> RawImage:
        position = self.starts[shard_index] + index
        container, image = self._place(position)
        samples = self._samples[container]
        data = self._bytes(container, samples.image(image))
        label, meta = self._annotations.of(position, self._texts(position))
        if self._classes is not None:
            label, meta = self._classes.of(samples.name(image), meta)
        return RawImage(self.key(shard_index, index), data, label, meta, shard_index, index)

    def _place(self, position: int) -> tuple[int, int]:
        """(container, image in it) of an image by its position in the whole collection."""
        container = bisect_right(self._ends, position)
        return container, position - (self._ends[container - 1] if container else 0)

    def _texts(self, position: int) -> Texts:
        container, image = self._place(position)
        texts = []
        for member, extension in self._samples[container].sidecars(image):
            try:
                texts.append((extension, self._bytes(container, member)))
            except ImageError:  # one that has gone says nothing
                texts.append((extension, b""))
        return texts


class _ImageNames(Strings):
    """The names of a collection's images, as listings call them."""

    def __init__(self, collection: MemberCollection) -> None:
        self._of = collection

    def __len__(self) -> int:
        return self._of._ends[-1]

    def _at(self, position: int) -> str:
        container, image = self._of._place(position)
        member = self._of._samples[container].image(image)
        return self._of._prefixes[container] + self._of._members[container].names[member]


class Samples:
    """The samples among the M files `names` of one container, in the order of their N images.

    A member is known by its place in `names`; `fields` says what is a sample's key and which of its images is taken.
    `labelled` are the images with sidecars that may hold a label.
    Raises ArtefactError for two images of one name.
    """

    def __init__(self, names: Names, fields: Fields, *, where: str) -> None:
        self._names, self._fields = names, fields
        self.listings: list[int] = []
        self._other_fields: Counter[str] = Counter()
        images: list[int] = []
        keys: list[str] = []
        beside: dict[str, list[int]] = {}  # sidecars by their name without extension
        labels: dict[str, list[int]] = {}  # `000.label.txt`, by `000`
        others: list[int] = []
        seen: set[str] = set()
        for member, name in enumerate(names):
            split = fields.split(name)
            if split is None:
                stem, _, extension = name.rpartition(".")
                head, _, word = stem.rpartition(".")
                if is_listing(name):
                    self.listings.append(member)
                elif extension.lower() in SIDECARS:
                    beside.setdefault(stem, []).append(member)
                    if head and word.lower() in FIELDS:
                        labels.setdefault(head, []).append(member)
                continue
            if fields.images is not None and split[1] not in fields.images:
                self._other_fields[split[1]] += 1
                others.append(member)
                continue
            shown = printable(name)
            if shown in seen:
                raise ArtefactError(f"{where} holds {shown!r} twice", next="Pack it again with unique names.")
            seen.add(shown)
            images.append(member)
            keys.append(split[0])
        self._images = np.array(images, np.int64)  # (N,) members
        num_of_key = Counter(map(printable, keys))
        self._with_extension = frozenset(place for place, key in enumerate(keys) if num_of_key[printable(key)] > 1)
        sidecars: list[int] = []
        ends = [0]
        self.labelled: list[int] = []
        for index, (key, image) in enumerate(zip(keys, images, strict=True)):
            stem = names[image].rpartition(".")[0]
            found = [*beside.get(key, ()), *(beside.get(stem, ()) if stem != key else ())]
            for member in labels.get(key, ()):
                if printable(names[member].rpartition(".")[0]) not in num_of_key and member not in found:
                    found.append(member)
            by_extension = sorted((self._extension(member, key, stem), member) for member in found)
            sidecars += [member for _, member in by_extension]
            ends.append(len(sidecars))
            if any(may_hold_label(extension) for extension, _ in by_extension):
                self.labelled.append(index)
        self._sidecars, self._sidecar_ends = np.array(sidecars, np.int64), np.array(ends, np.int64)  # (N + 1,)
        self._others = np.array(others, np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> int:
        """The member that is image `index`."""
        return int(self._images[index])

    def name(self, index: int) -> str:
        """Its name as it stands."""
        return self._names[self.image(index)]

    def key(self, index: int) -> str:
        """Its key: the name without extension, but with it where two differ in nothing else."""
        name = self.name(index)
        split = self._fields.split(name)
        return printable(name if index in self._with_extension or split is None else split[0])

    def passed_over(self) -> PassedOver:
        """What is neither an image nor a sidecar of one, nor a listing."""
        read = np.concatenate([self._images, self._sidecars, self._others, np.array(self.listings, np.int64)])
        unused = (self._names[member] for member in np.setdiff1d(np.arange(len(self._names)), read).tolist())
        names = [name for name in unused if name not in OF_BRICS]
        passed = PassedOver(names, num_read=len(self._names) - len(names) - len(self._others))
        for field, num in self._other_fields.items():
            passed.reasons[f"images {printable(field)} (--image-field)"] = num
        return passed

    def members(self, index: int) -> list[int]:
        """Image `index` and its sidecars."""
        first, last = self._sidecar_ends[index : index + 2]
        return [self.image(index), *self._sidecars[first:last].tolist()]

    def sidecars(self, index: int) -> list[tuple[int, str]]:
        """The sidecars of image `index` and their extensions: `cls`, `json`, `txt`, or `label.txt`."""
        _, *members = self.members(index)
        if not members:
            return []
        name = self.name(index)
        split = self._fields.split(name)
        key = name if split is None else split[0]
        stem = name.rpartition(".")[0]
        return [(member, self._extension(member, key, stem)) for member in members]

    def _extension(self, member: int, *stems: str) -> str:
        stem, _, extension = self._names[member].rpartition(".")
        return extension.lower() if stem in stems else f"{stem.rpartition('.')[2]}.{extension}".lower()


def tidy_name(name: str, *, where: str) -> str | None:
    """A member's name as a relative path; None for one that is hidden.

    Raises ArtefactError for one that leaves its folder or holds a NUL.
    """
    if "/" not in name and "\0" not in name and not name.startswith((".", "__MACOSX")):
        return name or None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise ArtefactError(f"{where} holds {printable(name)!r}, a name that leaves its folder")
    if not parts or parts[-1].startswith(".") or "__MACOSX" in parts:
        return None
    return "/".join(parts)
