"""The label and the metadata of every image of a collection: from listings (`dataset.json`, `metadata.csv`), failing
these from the files beside it, or from its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brics_cli.errors import UsageError
from brics_cli.images.collection import printable
from brics_cli.images.labels import NO_LABELS, Labelling, Meta, as_class, number_labels
from brics_cli.images.listings import Listing, Texts, match_names, read_sidecars
from brics_cli.images.sources.memory import Names
from brics_cli.wording import count
from brics_cli.workspace import read_provenance

ALL_READ = 20_000
"""Images with sidecars of which all are read to see their labels; of more a few are, unless these are names."""
NUM_LOOKED_AT = 256


class Annotations:
    """`of(image, its sidecars)` gives its label and metadata; `class_names` are those of labels 0, 1, ..., empty where
    they have none; `said` is for the description of the collection.

    `names` are the images' as they stand; `sidecars` are the images that have any that may hold a label, and `texts`
    reads them. Raises UsageError, one line, when listings name no image, contradict themselves or hold what is no
    class. With `labels=False` no image has a label, and nothing is refused. `left_out` are images, of other splits,
    that are listed with these and not read.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        where: str,
        listings: Sequence[Listing] = (),
        sidecars: Sequence[int] = (),
        texts: Callable[[int], Texts] | None = None,
        class_names: Sequence[str] = (),
        labels: bool = True,
        left_out: Sequence[str] = (),
    ) -> None:
        self._labels = labels
        self._labelling: Labelling | None = None
        self.class_names: tuple[str, ...] = ()
        self.said = ""
        names = list(names) if listings else names
        notes = [listing.note for listing in listings if listing.note]
        listed: dict[int, tuple[Any, Meta]] = {}
        for listing in sorted(listings, key=lambda each: each.folder.count("/")):  # the deepest has the last word
            if labels or any(listing.metas):
                for place, (label, meta) in _matched(listing, names, left_out, labels, where, notes).items():
                    before = listed.get(place, (None, {}))
                    listed[place] = (before[0] if label is None else label, {**before[1], **(meta or {})})
        places = sorted(listed)
        self._listed = np.array(places, np.int64)  # images
        self._metas = Names(json.dumps(listed[place][1]) if listed[place][1] else "" for place in places)
        used = [printable(listing.source) for listing in listings if listing.has_labels]
        if labels:
            values: list[Any] = [None] * len(names)
            for place in places:
                values[place] = listed[place][0]
            class_names = next((listing.class_names for listing in listings if listing.class_names), class_names)
            if texts is None or self._read_beside(values, sidecars, texts, used, notes):
                self._number(values, names, used, class_names)
            else:
                self.class_names = tuple(class_names)
                self.said = f", labels from files beside {len(sidecars):,} of {count(len(names), 'image')}"
        else:
            notes += [f"labels of {source} not used" for source in used]
        self.said += "".join(f", {note}" for note in notes)

    def of(self, image: int, texts: Texts) -> tuple[int | None, Meta | None]:
        """(label, meta) of one image, whose sidecars are `texts`."""
        beside = read_sidecars(texts)
        meta, label = dict(beside.meta), None
        if self._labelling is not None:
            label, more = self._labelling.of(image)
            meta |= more
        elif self._labels:
            label = as_class(beside.label)
        if label is None and beside.is_alone and "label_value" not in meta and beside.label != "-1":
            meta["cls"] = beside.label
        place = int(np.searchsorted(self._listed, image))
        if place < len(self._listed) and self._listed[place] == image and self._metas[place]:
            meta |= json.loads(self._metas[place])
        return label, meta or None

    def _read_beside(
        self,
        values: list[Any],
        sidecars: Sequence[int],
        texts: Callable[[int], Texts],
        used: list[str],
        notes: list[str],
    ) -> bool:
        """Fill in `values` from the files beside images that are not listed. False when there are too many to be read
        and those looked at are class numbers, which can wait until their image is read."""
        others = [image for image in sidecars if values[image] is not None]
        written_too = [(image, read_sidecars(texts(image)).label) for image in _spread(others)]
        if any(label not in (None, "") and str(label) != str(values[image]) for image, label in written_too):
            notes.append("labels of files beside the images that are listed are not used")
        beside = [image for image in sidecars if values[image] is None]
        few = beside if len(beside) <= ALL_READ or used else _spread(beside)
        written = {image: read_sidecars(texts(image)).label for image in few}
        if len(few) < len(beside) and any(label is not None for label in written.values()):
            if all(label is None or as_class(label) is not None for label in written.values()):
                return False
            written |= {image: read_sidecars(texts(image)).label for image in beside}
        for image, label in written.items():
            values[image] = label
        if any(label is not None for label in written.values()):
            used.append("files beside the images")
        return True

    def _number(
        self, values: Sequence[Any], names: Sequence[str], used: Sequence[str], class_names: Sequence[str]
    ) -> None:
        if not used:
            return
        source = " and ".join(used)
        shown = lambda image: printable(names[image])  # noqa: E731
        self._labelling = number_labels(values, source=source, shown=shown, names=class_names)
        self.class_names = self._labelling.names
        self.said = f", labels from {source}: {self._labelling.said}"


def _matched(
    listing: Listing, names: Sequence[str], left_out: Sequence[str], labels: bool, where: str, notes: list[str]
) -> dict[int, tuple[Any, Meta | None]]:
    """What one listing says, by image. Raises UsageError when it names none, or one twice with two labels."""
    folder, source = listing.folder, printable(listing.source)
    inside = [place for place, name in enumerate(names) if name.startswith(folder)]
    there = [names[place] for place in inside] + [name for name in left_out if name.startswith(folder)]
    positions = match_names(listing.names, [name[len(folder) :] for name in there])
    is_left_out = positions >= len(inside)
    said: dict[int, tuple[Any, Meta | None]] = {}
    num_twice = 0
    for row in np.flatnonzero((positions >= 0) & ~is_left_out).tolist():
        place, label = inside[positions[row]], listing.labels[row]
        if place in said:
            num_twice += 1
            if said[place][0] != label and labels:
                raise UsageError(
                    f"{where}: {source} lists {printable(names[place])} twice, with the labels "
                    f"{said[place][0]!r} and {label!r}",
                    next=f"Leave one in; {NO_LABELS}",
                )
        said[place] = (label, listing.metas[row])
    if len(listing.names) and not said and not is_left_out.any() and labels:
        first = printable(names[inside[0]]) if inside else "none"
        raise UsageError(
            f"{where}: {source} names none of its {count(len(inside), 'image')}: the first that it names is "
            f"{printable(listing.names[0])!r}, the first image {first!r}",
            next=f"Correct its names (relative to its folder), or move it away; {NO_LABELS}",
        )
    of_all = f"of the {count(len(positions), 'name')} in {source}"
    if num_twice:
        notes.append(f"{count(num_twice, 'name')} listed twice in {source}")
    if num_left_out := int(is_left_out.sum()):
        notes.append(f"{num_left_out:,} {of_all} are of images left out")
    if num_missed := int((positions < 0).sum()):
        notes.append(f"{num_missed:,} {of_all} are of no image here")
    if any(meta for _, meta in said.values()):
        notes.append(f"metadata of {len(said):,} of {count(len(inside), 'image')} from {source}")
    return said


class FolderClasses:
    """The classes of the images `names`: their top-level folders, or those below folders that all have in common,
    numbered in sorted order.

    `depth` folders at the front (a split's) are no classes; `said` is for a description.
    """

    def __init__(self, names: Sequence[str], *, depth: int = 0) -> None:
        folders = [name.split("/")[:-1] for name in names]
        first, last = min(folders), max(folders)
        common = next(
            (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other),
            min(len(first), len(last)),
        )
        self._depth = common if common > depth and all(len(each) > common for each in folders) else depth
        found = {each[self._depth] for each in folders if len(each) > self._depth}
        self._number = {name: number for number, name in enumerate(sorted(found))}
        self.names = tuple(map(printable, self._number))
        num_without = sum(len(each) <= self._depth for each in folders)
        without = f", {num_without:,} of {count(len(names), 'image')} in none" if num_without else ""
        self.said = f", {count(len(found), 'folder')} as {'a class' if len(found) == 1 else 'classes'}{without}"

    def of(self, name: str, meta: Meta | None) -> tuple[int | None, Meta | None]:
        """(label, meta with its class) of the image `name`; no label for one in no class's folder."""
        folders = name.split("/")[:-1]
        if len(folders) <= self._depth:
            return None, meta
        folder = folders[self._depth]
        return self._number[folder], {**(meta or {}), "class": printable(folder)}


def recorded_class_names(*files: Path) -> tuple[str, ...]:
    """What labels in these files of one collection stand for, where brics wrote them and knew."""
    folders = {file.parent for file in files}
    places = [*files[:1], *folders] if len(folders) == 1 else []
    for artefact in filter(None, map(read_provenance, places)):
        if names := artefact.details.get("class_names"):
            return tuple(map(str, names))
    return ()


def _spread(images: Sequence[int]) -> Sequence[int]:
    """`NUM_LOOKED_AT` of `images`, evenly spread; all where these are no more."""
    num = NUM_LOOKED_AT
    if len(images) <= num:
        return images
    return [images[round(step * (len(images) - 1) / (num - 1))] for step in range(num)]
