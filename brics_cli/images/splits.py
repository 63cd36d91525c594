"""Training, validation and test images are never mixed: one rule for folders, archives, shards and tables.

A name says which split it is by a word in it (`train`, `x_val_lmdb`, `imagenet-validation-000012.tar`, `testA`). One
such name proves nothing: a class may be called `test`, and photographs of steam trains `train_001.png`. So names of
files inside a collection say nothing, and folders count where every folder of a level is a split's and they differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from brics_cli.errors import UsageError
from brics_cli.images.collection import printable
from brics_cli.wording import count

ALL = "all"
"""`--subset all`: everything, whatever it is called."""
_SAME = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "dev", "minival"),
    "test": ("test", "testing", "tst", "testdev"),
    "eval": ("eval", "evaluation"),
    "heldout": ("heldout", "holdout"),
}
_SPLIT_OF = {word: split for split, words in _SAME.items() for word in words}
_ALSO = frozenset({"unlabeled", "unlabelled", "unsupervised", "extra", "additional"})
"""Words of splits beside those above (STL-10, SVHN, `train_extra`), which mean nothing alone."""
_HELD_OUT = re.compile(r"(held|hold)[\W_]+out")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
IMAGES = frozenset({"image", "images", "img", "imgs", "rgb", "jpegimages", "photo", "photos"})
NOT_IMAGES = frozenset(
    {"mask", "masks", "seg", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "depth",
     "depths", "normal", "normals", "label", "labels", "annotation", "annotations", "groundtruth", "gt",
     "matte", "mattes"}
)  # fmt: skip
_SIDES = frozenset({"left", "right"})
_DEEPEST = 8


class Chosen(NamedTuple):
    """The part that is read: its name as it stands, and the words that say so. None: all of it."""

    name: str | None
    note: str = ""


def split_of(name: str) -> str | None:
    """`train`, `val`, `test`, ...: the one split that the words of `name` say; None for none, or several."""
    found = {_SPLIT_OF[word] for word in _words(name) if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def _words(name: str) -> set[str]:
    text = _HELD_OUT.sub("heldout", _CAMEL.sub("-", name).lower())
    return {word.strip("0123456789") for word in re.split(r"[\W_]+", text)} - {""}


def _is_also(name: str) -> bool:
    """Whether `name` says that it is a split beside others: `extra`, `unlabeled2017`, `train_extra`."""
    words = _words(name)
    return not words.isdisjoint(_ALSO) and words <= _ALSO | IMAGES | _SPLIT_OF.keys()


def is_train(name: str) -> bool:
    """Whether `name` says that it is for training."""
    return split_of(name) == "train"


def is_part(name: str) -> bool:
    """Whether a folder of that name may be a part: a split, images, or masks."""
    return split_of(name) is not None or _word(name) in IMAGES | NOT_IMAGES | _SIDES


def _are_splits(parts: Iterable[str]) -> bool:
    splits = {part: split_of(part) for part in parts}
    named = {split for split in splits.values() if split is not None}
    also = {part for part in splits if _is_also(part)}
    if len(named) < 2 and not (named and also):
        return False
    if all(split is not None or part in also for part, split in splits.items()):
        return True
    # `train` and `val` by these very words beside something else: too likely to be splits to be read as classes
    plain = {split for part, split in splits.items() if part.lower().rstrip("0123456789") in _SPLIT_OF}
    return "train" in plain and len(plain) > 1


def _are_modalities(parts: Iterable[str]) -> bool:
    words = {_word(part) for part in parts}
    beside = not words.isdisjoint(NOT_IMAGES) and words <= IMAGES | NOT_IMAGES | _SIDES
    return beside or words == _SIDES


def _word(part: str) -> str:
    return re.sub(r"[\W_\d]+", "", part.lower())


def group_files(paths: Sequence[str]) -> dict[str, list[int]] | None:
    """Files of shards or tables by the split in their names, or in the nearest folder's: places in `paths`.

    `""` holds those without one. None where the names say fewer than two splits.
    """
    groups: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        split = next((split for part in reversed(path.split("/")) if (split := _split_of_file(part))), "")
        groups.setdefault(split, []).append(place)
    return groups if len(groups.keys() - {""}) > 1 and any(map(split_of, groups)) else None


def _split_of_file(name: str) -> str | None:
    """`split_of`; the words that stand before a dot or a number where those are of a split beside others."""
    start = re.split(r"[\W_]*(?:\d|\.)", name, maxsplit=1)[0]
    return start.lower() if _is_also(start) else split_of(name)


def choose(
    parts: Mapping[str, int | None],
    subset: str | None,
    *,
    where: str | Path,
    unit: str = "image",
    num_rest: int = 0,
    can_join: bool = True,
) -> Chosen:
    """The part `subset`; without one the only part for training, or the only one of images beside masks.

    Raises UsageError, listing the parts, when it is not clear which is meant and when there is no such subset.
    """
    if subset == ALL and ALL not in parts and can_join:
        return Chosen(None)
    shown = {name: printable(name) + ("" if num is None else f" ({count(num, unit)})") for name, num in parts.items()}
    listed = ", ".join(list(shown.values())[:20]) + (f" and {len(parts) - 20:,} more" if len(parts) > 20 else "")
    rest = f"; {count(num_rest, unit)} in none of them" if num_rest else ""
    if subset is not None:
        found = [name for name in parts if name == subset] or [name for name in parts if same_split(name, subset)]
        if len(found) == 1:
            return Chosen(found[0])
        there_are = f"; there are: {listed}{rest}" if parts else ""
        raise UsageError(f"no subset or folder {subset!r} in {where}{there_are}")
    train = [name for name in parts if is_train(name)]
    known = all(split_of(name) or _is_also(name) for name in parts)
    why = "the only one for training"
    if not train:
        train = [name for name in parts if _word(name) in IMAGES]
        known, why = _are_modalities(parts), "the only one of images"
    if len(train) == 1 and known:
        others = ", ".join(text for name, text in shown.items() if name != train[0])
        return Chosen(train[0], f" ({why}; also there: {others}{rest}; --subset takes another)")
    everything = f"; or --subset {ALL}, for all of it as one collection" if can_join else ""
    raise UsageError(
        f"{where} holds {count(len(parts), 'collection')}: {listed}{rest}",
        next=f"They are never mixed unasked. Give one: --subset {next(iter(parts))}{everything}.",
    )


def same_split(name: str, subset: str) -> bool:
    """Whether `name` is what a user may call `subset`: `validation` for `val`, any case."""
    return name.lower() == subset.lower() or (subset.lower() in _SPLIT_OF and split_of(name) == split_of(subset))


class Scope(NamedTuple):
    """The images of a collection that are read: those with the folder `parts[i][1]` at the depth `parts[i][0]`, for
    all i. `depth` folders at the front are of splits, and no classes."""

    parts: tuple[tuple[int, str], ...] = ()
    note: str = ""
    depth: int = 0

    def holds(self, name: str) -> bool:
        """Whether the file `name` is read."""
        if not self.parts:
            return True
        folders = name.split("/")[:-1]
        return all(depth < len(folders) and folders[depth] == part for depth, part in self.parts)

    def of(self, path: str, subset: str | None) -> str:
        """A path that opens these parts of what is at `path`; everything was asked for where `subset` is `ALL`."""
        if not self.parts:
            return f"{path}/{ALL}" if subset == ALL else path
        return f"{path}/{'/'.join(part for _, part in self.parts)}"

    def is_beside(self, name: str, images: Iterable[str]) -> bool:
        """Whether the file `name` stands in a folder of the `images` that are read, or above one."""
        folder = name[: len(name) - len(name.rpartition("/")[2])]
        return not self.parts or any(image.startswith(folder) and self.holds(image) for image in images)

    def common_folder(self, names: Iterable[str]) -> str:
        """The first `depth` folders of `names` where all have the same; else empty."""
        found = {"/".join(name.split("/", self.depth)[: self.depth]) for name in names}
        return found.pop() if len(found) == 1 else ""

    def is_above(self, name: str) -> bool:
        """Whether the file `name` is in no part at all."""
        return bool(self.parts) and name.count("/") <= min(depth for depth, _ in self.parts)


def scope_of(names: Iterable[str], subset: str | None, *, where: str | Path) -> Scope:
    """Which of the images `names` are read: of the split `subset`, or of the folder of that name (`masks/val`: both).

    Raises UsageError as `choose` does.
    """
    num_in = Counter(name.rpartition("/")[0] for name in names)
    folders = {tuple(folder.split("/")) if folder else (): num for folder, num in num_in.items()}
    wanted = [] if subset in (None, ALL) else str(subset).split("/")
    taken: list[tuple[int, str]] = []
    note, seen = "", Counter[str]()
    while True:
        past = {depth for depth, _ in taken}
        levels = ((depth, _parts_at(folders, depth)) for depth in range(_DEEPEST) if depth not in past)
        depth, parts = next(((depth, parts) for depth, parts in levels if _are_parts(parts)), (-1, Counter[str]()))
        if subset == ALL or (depth < 0 and not wanted):
            last = max([depth, *past]) if subset != ALL else depth
            return Scope(tuple(sorted(taken)), note, last + 1)
        asked = next((name for name in wanted if any(name == part or same_split(part, name) for part in parts)), None)
        if depth < 0:
            depth, asked = max(past, default=-1) + 1, wanted[0]
            parts = _parts_at(folders, depth)
            if asked not in parts:
                parts = seen + parts
        num_rest = sum(folders.values()) - parts.total() if asked is None else 0
        chosen = choose(parts, asked, where=where, num_rest=num_rest)
        assert chosen.name is not None
        note += chosen.note
        taken.append((depth, chosen.name))
        seen += parts
        wanted = [name for name in wanted if name != asked]
        folders = {path: num for path, num in folders.items() if path[depth : depth + 1] == (chosen.name,)}


def _parts_at(folders: Mapping[tuple[str, ...], int], depth: int) -> Counter[str]:
    parts: Counter[str] = Counter()
    for path, num in folders.items():
        if len(path) > depth:
            parts[path[depth]] += num
    return parts


def _are_parts(parts: Counter[str]) -> bool:
    """Whether folders of one depth are splits, or images beside masks."""
    return len(parts) > 1 and (_are_splits(parts) or _are_modalities(parts))
