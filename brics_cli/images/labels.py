"""From what a source says of its images to class numbers: one set of rules for every form of collection.

Classes are 0, 1, ...; N images. A label may be written as a whole number (also `1.0`, `"1"`, `[1]`), as a name, as a
truth value, or one-hot. Numbers that are not whole and vectors (StyleGAN's conditioning) are no classes: metadata.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from brics_cli.errors import UsageError

MAX_CLASSES = 100_000
"""A model has a vector per class number: larger numbers are renumbered, and more classes are a mistake."""
FIELDS = ("label", "labels", "cls", "class", "fine_label", "class_id", "label_id", "class_name")
"""What labels are called in tables and JSON; the first that is there is taken."""
NO_LABELS = "--labels none goes on without labels."
_NUMBER = re.compile(r"[+-]?\d{1,19}(\.\d*)?")
_LONGEST_NAME = 200
_FEW_NAMES = 1000
"""So many names are classes, even when hardly an image shares its own with another."""

Meta = dict[str, Any]
Scalar = int | float | str


@dataclass(frozen=True)
class Labelling:
    """The class of every image: `ids` (N,) int64, -1 for none.

    `names` are of classes 0, 1, ..., empty where they have none; `metas` is what labels say that are no classes, by
    image; `notes` is what a user should know.
    """

    ids: npt.NDArray[np.int64]
    names: tuple[str, ...] = ()
    metas: dict[int, Meta] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """`6 of 12 labelled (the others have none), 2 classes`."""
        labelled = self.ids[self.ids >= 0]
        others = " (the others have none)" if 0 < len(labelled) < len(self.ids) else ""
        num_classes = len(np.unique(labelled))
        classes = f", {num_classes:,} class" + ("es" if num_classes != 1 else "") if num_classes else ""
        return "; ".join([f"{len(labelled):,} of {len(self.ids):,} labelled{others}{classes}", *self.notes])


def number_labels(
    values: Sequence[Any] | npt.NDArray[np.int64],
    *,
    source: str,
    shown: Callable[[int], str],
    names: Sequence[str] = (),
) -> Labelling:
    """The classes that `values`, one per image and None for no label, stand for.

    `source` says whose labels they are, `shown(i)` names image i; `names` are those of numbers 0, 1, ... where the
    source knows them. Raises UsageError, one line, for labels that cannot be classes.
    """
    if isinstance(values, np.ndarray):
        return _of_numbers(values, source=source, shown=shown, names=tuple(names), notes=())
    scalars: dict[int, Scalar] = {}
    vectors: dict[int, list[float]] = {}
    for place, value in enumerate(values):
        try:
            plain = _plain(value)
        except ValueError as error:
            raise UsageError(
                f"the label of {shown(place)} in {source} is {error}",
                next=f"A label is a class number or a name; {NO_LABELS}",
            ) from None
        if isinstance(plain, list):
            vectors[place] = plain
        elif plain is not None:
            scalars[place] = plain
    metas: dict[int, Meta] = {}
    notes: list[str] = []
    if vectors and not scalars and _all_one_hot(vectors.values()):
        scalars = {place: vector.index(1) for place, vector in vectors.items()}
        notes.append("read from one-hot vectors")
    elif vectors:
        metas = {place: {"label_vector": vector} for place, vector in vectors.items()}
        notes.append(f"{len(vectors):,} labels are vectors, which are kept as metadata")
    kept = _classes_in(scalars, source=source, shown=shown)
    if isinstance(kept, str):
        metas |= {place: {"label_value": _number_or_text(value)} for place, value in scalars.items()}
        return Labelling(_no_ids(len(values)), metas=metas, notes=(*notes, kept))
    ids = _no_ids(len(values))
    places = np.fromiter(kept, np.int64, len(kept))
    if any(isinstance(value, str) for value in kept.values()):
        found = sorted({str(value) for value in kept.values()})
        known = tuple(names) if names and set(found) <= set(names) else tuple(found)
        number = {name: number for number, name in enumerate(known)}
        if num_digits := sum(_number(name) is not None for name in found):
            notes.append(f"names of classes, {num_digits:,} of which are numbers")
        ids[places] = [number[str(value)] for value in kept.values()]
        return Labelling(ids, known, metas, tuple(notes))
    numbers = [int(number) for number in kept.values()]
    if max(numbers, default=0) > np.iinfo(np.int64).max:
        raise _too_large(max(numbers), source)
    below = next((place for place, number in kept.items() if int(number) < -1), None)
    if below is not None:
        raise _below_zero(kept[below], source, shown(below))
    ids[places] = numbers
    labelling = _of_numbers(ids, source=source, shown=shown, names=tuple(names), notes=tuple(notes))
    return Labelling(labelling.ids, labelling.names, metas, labelling.notes)


def may_be_label(value: Any) -> bool:
    """Whether a field of this value can be the label: none, a number, a name, a truth value, a vector of numbers."""
    if isinstance(value, list):
        return all(isinstance(part, int | float) for part in value)
    return value is None or isinstance(value, str | int | float)


def as_class(value: Any) -> int | None:
    """The class number that `value` alone is, by the rules of `number_labels`; None when it is none."""
    try:
        plain = _plain(value)
    except ValueError:
        return None
    number = _number(plain) if isinstance(plain, str) else plain
    return number if isinstance(number, int) and 0 <= number < MAX_CLASSES else None


def _plain(value: Any) -> Scalar | list[float] | None:
    """A label in plain types: a whole number as int, a list of numbers as it is, None for none at all.

    Raises ValueError, saying what it is, for anything that no label can be.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            raise ValueError("infinite")
        return int(value) if value.is_integer() else value
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list):
        if len(value) == 1 and not isinstance(value[0], list):
            return _plain(value[0])
        if all(isinstance(part, int | float) and not isinstance(part, bool) for part in value):
            return value or None
        raise ValueError(f"{_short(value)}, a list of what is not numbers")
    raise ValueError(_short(value))


def _number(text: str) -> int | float | None:
    """The number that `text` is, a whole one as int."""
    if not (text.isascii() and _NUMBER.fullmatch(text)):
        return None
    return float(text) if text.partition(".")[2].strip("0") else int(text.partition(".")[0])


def _number_or_text(value: Scalar) -> Scalar:
    number = _number(value) if isinstance(value, str) else None
    return value if number is None else number


def _all_one_hot(vectors: Iterable[list[float]]) -> bool:
    lengths = set()
    for vector in vectors:
        lengths.add(len(vector))
        if vector.count(1) != 1 or vector.count(0) != len(vector) - 1:
            return False
    return len(lengths) == 1


def _classes_in(
    scalars: dict[int, Scalar], *, source: str, shown: Callable[[int], str]
) -> dict[int, int] | dict[int, str] | str:
    """All of `scalars` as whole numbers or all as names; as words, why they are no classes.

    Raises UsageError for labels of both kinds.
    """
    texts = {place: value for place, value in scalars.items() if isinstance(value, str)}
    numbers = {place: _number(text) for place, text in texts.items()}
    is_text = next((place for place, number in numbers.items() if number is None), None)
    if is_text is None:  # "1" is a number, where all texts are
        known: dict[int, Any] = {**scalars, **numbers}
        if fractions := sum(isinstance(value, float) for value in known.values()):
            return f"{fractions:,} labels are numbers that are not whole: all are kept as metadata"
        return {place: known[place] for place in scalars}
    is_number = next((place for place in scalars if place not in texts), None)
    if is_number is not None:
        raise UsageError(
            f"{source} has labels of two kinds: {shown(is_number)} has the number {scalars[is_number]}, "
            f"{shown(is_text)} the name {_short(texts[is_text])}",
            next=f"Write all as numbers or all as names; {NO_LABELS}",
        )
    if num_texts := sum(not (text.isprintable() and len(text) <= _LONGEST_NAME) for text in texts.values()):
        return f"{num_texts:,} labels are no names of classes (too long, or not printable): all are kept as metadata"
    num_names = len(set(texts.values()))
    if num_names > _FEW_NAMES and (num_names > MAX_CLASSES or num_names > len(texts) / 2):
        return f"{num_names:,} different texts are no classes: they are kept as metadata"
    return texts


def _of_numbers(
    ids: npt.NDArray[np.int64],
    *,
    source: str,
    shown: Callable[[int], str],
    names: tuple[str, ...],
    notes: tuple[str, ...],
) -> Labelling:
    """Class numbers, -1 for none, once they are looked at; large ones are renumbered."""
    if len(ids) and ids.min() < -1:
        place = int(ids.argmin())
        raise _below_zero(ids[place], source, shown(place))
    largest = int(ids.max(initial=-1))
    if names:
        if largest >= len(names):
            raise UsageError(
                f"the label of {shown(int(ids.argmax()))} in {source} is {largest:,}, "
                f"and there are {len(names):,} class names",
                next=f"Correct either; {NO_LABELS}",
            )
    elif largest >= MAX_CLASSES:
        distinct, dense = np.unique(ids, return_inverse=True)
        num_none = int(distinct[0] == -1)
        if len(distinct) - num_none > MAX_CLASSES:
            raise _too_large(largest, source)
        notes += (f"class numbers up to {largest:,} are renumbered, and kept as names",)
        return Labelling(dense.astype(np.int64) - num_none, tuple(map(str, distinct[num_none:].tolist())), notes=notes)
    return Labelling(ids, names, notes=notes)


def _below_zero(label: Any, source: str, image: str) -> UsageError:
    return UsageError(
        f"the label of {image} in {source} is {label}, and class numbers begin at 0 (-1: no label)",
        next=f"Number the classes from 0; {NO_LABELS}",
    )


def _too_large(largest: Any, source: str) -> UsageError:
    return UsageError(
        f"the labels of {source} are no classes: there are numbers up to {largest:,}",
        next=f"At most {MAX_CLASSES:,} classes, numbered from 0; {NO_LABELS}",
    )


def _no_ids(num: int) -> npt.NDArray[np.int64]:
    return np.full(num, -1, np.int64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
