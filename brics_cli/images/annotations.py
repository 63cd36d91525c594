"""The label and the metadata of every image of a collection: from listings (`dataset.json`, `metadata.csv`), failing
these from the files beside it. N images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from brics_cli.errors import UsageError
from brics_cli.images.collection import printable
from brics_cli.images.labels import NO_LABELS, Labelling, Meta, as_class, number_labels
from brics_cli.images.listings import Listing
from brics_cli.images.matching import match_names
from brics_cli.images.names import Names
from brics_cli.images.sidecars import read_sidecars
from brics_cli.workspace import read_provenance

ALL_READ = 20_000
"""Images with sidecars of which all are read to see their labels; of more a few are, unless these are names."""
NUM_LOOKED_AT = 256

Texts = list[tuple[str, bytes]]
"""The sidecars of one image: extension and bytes."""


class _Listed(NamedTuple):
    """What listings say of the images `places` (K,): labels as written, metadata as JSON, empty for none."""

    places: npt.NDArray[np.int64]
    labels: list[Any]
    metas: Names


class Annotations:
    """`of(image, its sidecars)` gives its label and metadata; `class_names` are those of labels 0, 1, ..., empty where
    they have none; `said` is for the description of the collection.

    `names` are the images' as they stand; `sidecars` are the images that have any in `LABELLING`, and `texts` reads
    them. Raises UsageError, one line, when listings name no image, contradict themselves or hold what is no class.
    With `labels=False` no image has a label, and nothing is refused. `left_out` are images, of other splits, that are
    listed with these and not read.
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
        self._shown: Callable[[int], str] | None = lambda image: printable(names[image])
        self._labels = labels
        self._notes = [listing.note for listing in listings if listing.note]
        self._listed = self._match(names, listings, left_out, where=where)
        self._labelling: Labelling | None = None
        self.class_names: tuple[str, ...] = ()
        self.said = ""
        if not labels:
            unused = [printable(each.source) for each in listings if any(label is not None for label in each.labels)]
            self._notes += [f"labels of {source} not used" for source in unused]
        else:
            known = next((listing.class_names for listing in listings if listing.class_names), tuple(class_names))
            self._number(len(names), listings, sidecars, texts, known)
        self.said += "".join(f", {note}" for note in self._notes)
        self._shown = None

    def of(self, image: int, texts: Texts) -> tuple[int | None, Meta | None]:
        """(label, meta) of one image, whose sidecars are `texts`."""
        beside = read_sidecars(texts)
        meta, label = dict(beside.meta), None
        if self._labelling is not None:
            number = int(self._labelling.ids[image])
            label = number if number >= 0 else None
            meta |= self._labelling.metas.get(image, {})
        elif self._labels:
            label = as_class(beside.label)
        if label is None and beside.from_cls and "label_value" not in meta and beside.label != "-1":
            meta["cls"] = beside.label
        place = int(np.searchsorted(self._listed.places, image))
        if place < len(self._listed.places) and self._listed.places[place] == image and self._listed.metas[place]:
            meta |= json.loads(self._listed.metas[place])
        return label, meta or None

    def _match(
        self, names: Sequence[str], listings: Sequence[Listing], left_out: Sequence[str], *, where: str
    ) -> _Listed:
        """What all listings say, by image: one in a deeper folder has the last word on its images."""
        found: dict[int, tuple[Any, Meta | None]] = {}
        for listing in sorted(listings, key=lambda listing: listing.folder.count("/")):
            if not self._labels and not any(listing.metas):
                continue
            inside = [place for place, name in enumerate(names) if name.startswith(listing.folder)]
            there = [
                *(names[place] for place in inside),
                *(name for name in left_out if name.startswith(listing.folder)),
            ]
            positions = match_names(listing.names, [name[len(listing.folder) :] for name in there])
            source = printable(listing.source)
            said: dict[int, tuple[Any, Meta | None]] = {}
            num_twice = num_left_out = 0
            for row, position in enumerate(positions.tolist()):
                if position < 0 or position >= len(inside):
                    num_left_out += position >= 0
                    continue
                place, value = inside[position], (listing.labels[row], listing.metas[row])
                if place in said:
                    num_twice += 1
                    if said[place][0] != value[0] and self._labels:
                        raise UsageError(
                            f"{where}: {source} lists {printable(names[place])} twice, with the labels "
                            f"{said[place][0]!r} and {value[0]!r}",
                            next=f"Leave one in; {NO_LABELS}",
                        )
                said[place] = value
            num_missed = int((positions < 0).sum())
            if len(listing.names) and not said and not num_left_out and self._labels:
                first = printable(names[inside[0]]) if inside else "none"
                raise UsageError(
                    f"{where}: {source} names none of its {len(inside):,} images: the first that it names is "
                    f"{printable(listing.names[0])!r}, the first image {first!r}",
                    next=f"Correct its names (relative to its folder), or move it away; {NO_LABELS}",
                )
            if num_twice:
                self._notes.append(f"{num_twice:,} names appear twice in {source}")
            if num_left_out:
                self._notes.append(
                    f"{num_left_out:,} of the {len(positions):,} names in {source} are of images left out"
                )
            if num_missed:
                self._notes.append(f"{num_missed:,} of the {len(positions):,} names in {source} are of no image here")
            if said and any(meta for _, meta in said.values()):
                self._notes.append(f"metadata of {len(said):,} of {len(inside):,} images from {source}")
            for place, (label, meta) in said.items():
                before = found.get(place, (None, None))
                found[place] = (before[0] if label is None else label, {**(before[1] or {}), **(meta or {})})
        places = sorted(found)
        return _Listed(
            np.array(places, np.int64),
            [found[place][0] for place in places],
            Names(json.dumps(found[place][1]) if found[place][1] else "" for place in places),
        )

    def _number(
        self,
        num_images: int,
        listings: Sequence[Listing],
        sidecars: Sequence[int],
        texts: Callable[[int], Texts] | None,
        class_names: Sequence[str],
    ) -> None:
        """Number the labels, as far as they have to be known beforehand."""
        assert self._shown is not None
        values: list[Any] = [None] * num_images
        for place, label in zip(self._listed.places.tolist(), self._listed.labels, strict=True):
            values[place] = label
        self._listed.labels.clear()
        used = [printable(listing.source) for listing in listings if any(label is not None for label in listing.labels)]
        beside = [image for image in sidecars if values[image] is None]
        others = [image for image in sidecars if values[image] is not None]
        if others and texts is not None:
            looked_at = others if len(others) <= NUM_LOOKED_AT else _spread(others, NUM_LOOKED_AT)
            written_too = (read_sidecars(texts(image)).label for image in looked_at)
            if any(
                label not in (None, "") and str(label) != str(values[image])
                for label, image in zip(written_too, looked_at, strict=True)
            ):
                self._notes.append("labels of files beside the images that are listed are not used")
        if beside and texts is not None:
            few = beside if len(beside) <= ALL_READ or used else _spread(beside, NUM_LOOKED_AT)
            written = {image: read_sidecars(texts(image)).label for image in few}
            if len(few) < len(beside) and any(label is not None for label in written.values()):
                if all(label is None or as_class(label) is not None for label in written.values()):
                    self.class_names = tuple(class_names)
                    self.said = f", labels from files beside {len(beside):,} of {num_images:,} images"
                    return
                written |= {image: read_sidecars(texts(image)).label for image in beside}
            for image, label in written.items():
                values[image] = label
            if any(label is not None for label in written.values()):
                used.append("files beside the images")
        if not used:
            return
        source = " and ".join(used)
        self._labelling = number_labels(values, source=source, shown=self._shown, names=class_names)
        self.class_names = self._labelling.names
        self.said = f", labels from {source}: {self._labelling.said}"


def recorded_class_names(*files: Path) -> tuple[str, ...]:
    """What labels in these files of one collection stand for, where brics wrote them and knew."""
    folders = {file.parent for file in files}
    places = [*files[:1], *folders] if len(folders) == 1 else []
    for artefact in filter(None, map(read_provenance, places)):
        if names := artefact.details.get("class_names"):
            return tuple(map(str, names))
    return ()


def _spread(images: Sequence[int], num: int) -> list[int]:
    """`num` of `images`, evenly spread."""
    return [images[round(step * (len(images) - 1) / (num - 1))] for step in range(num)]
