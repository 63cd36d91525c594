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
from brics_cli.wording import count

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

    def of(self, image: int) -> tuple[int | None, Meta]:
        """(class, what its label says that is no class) of one image."""
        number = int(self.ids[image])
        return number if number >= 0 else None, self.metas.get(image, {})

    @property
    def said(self) -> str:
        """`6 of 12 labelled (the others have none), 2 classes`."""
        labelled = self.ids[self.ids >= 0]
        others = " (the others have none)" if 0 < len(labelled) < len(self.ids) else ""
        classes = f", {count(len(np.unique(labelled)), 'class')}" if len(labelled) else ""
        return "; ".join([f"{len(labelled):,} of {len(self.ids):,} labelled{others}{classes}", *self.notes])


@dataclass(frozen=True)
class _Labels:
    """Whose labels they are, how image i is shown, and the names of numbers 0, 1, ... where the source knows them."""

    source: str
    shown: Callable[[int], str]
    names: tuple[str, ...]


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
    of = _Labels(source, shown, tuple(names))
    if isinstance(values, np.ndarray):
        return _of_numbers(values, of)
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
    notes: tuple[str, ...] = ()
    if vectors and not scalars and _all_one_hot(vectors.values()):
        scalars = {place: vector.index(1) for place, vector in vectors.items()}
        notes = ("read from one-hot vectors",)
    elif vectors:
        metas = {place: {"label_vector": vector} for place, vector in vectors.items()}
        notes = (f"{count(len(vectors), 'vector')} kept as metadata",)
    ids = np.full(len(values), -1, np.int64)
    texts = {place: value for place, value in scalars.items() if isinstance(value, str)}
    numbers = {place: _number(value) if isinstance(value, str) else value for place, value in scalars.items()}
    are_names = None in numbers.values()  # "1" is a number, where all texts are
    if are_names and len(texts) < len(scalars):
        number = next(place for place in scalars if place not in texts)
        name = next(place for place in texts if numbers[place] is None)
        raise UsageError(
            f"{source} has labels of two kinds: {shown(number)} has the number {scalars[number]}, "
            f"{shown(name)} the name {_short(texts[name])}",
            next=f"Write all as numbers or all as names; {NO_LABELS}",
        )
    why_not = _why_no_names(texts) if are_names else _why_no_numbers(numbers)
    if why_not is not None:
        metas |= {
            place: {"label_value": value if numbers[place] is None else numbers[place]}
            for place, value in scalars.items()
        }
        return Labelling(ids, metas=metas, notes=(*notes, why_not))
    places = list(scalars)
    if are_names:
        found = sorted(set(texts.values()))
        known = of.names if of.names and set(found) <= set(of.names) else tuple(found)
        number_of = {name: number for number, name in enumerate(known)}
        if num_digits := sum(_number(name) is not None for name in found):
            notes += (f"names of classes, {num_digits:,} of which are numbers",)
        ids[places] = [number_of[text] for text in texts.values()]
        return Labelling(ids, known, metas, notes)
    whole = [int(number) for number in numbers.values() if number is not None]
    if max(whole, default=0) > np.iinfo(np.int64).max:
        raise _too_large(max(whole), of)
    if min(whole, default=0) < -1:
        raise _below_zero(min(whole), places[whole.index(min(whole))], of)
    ids[places] = whole
    return _of_numbers(ids, of, metas, notes)


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
        if math.isinf(value):
            raise ValueError("infinite")
        return None if math.isnan(value) else int(value) if value.is_integer() else value
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


def _all_one_hot(vectors: Iterable[list[float]]) -> bool:
    shapes = {(len(vector), vector.count(1), vector.count(0)) for vector in vectors}
    return all(num_ones == 1 and num_zeros == length - 1 for length, num_ones, num_zeros in shapes) and len(shapes) == 1


def _why_no_numbers(numbers: dict[int, Any]) -> str | None:
    fractions = sum(isinstance(number, float) for number in numbers.values())
    return f"{count(fractions, 'fractional label')}: all are kept as metadata" if fractions else None


def _why_no_names(texts: dict[int, str]) -> str | None:
    """Why these are no names of classes."""
    if num_texts := sum(not (text.isprintable() and len(text) <= _LONGEST_NAME) for text in texts.values()):
        labels = count(num_texts, "label")
        return f"{labels} too long or not printable for names of classes: all are kept as metadata"
    num_names = len(set(texts.values()))
    if num_names > _FEW_NAMES and (num_names > MAX_CLASSES or num_names > len(texts) / 2):
        return f"{num_names:,} different texts are no classes: they are kept as metadata"
    return None


def _of_numbers(
    ids: npt.NDArray[np.int64], of: _Labels, metas: dict[int, Meta] | None = None, notes: tuple[str, ...] = ()
) -> Labelling:
    """Class numbers, -1 for none, once they are looked at; large ones are renumbered."""
    metas = metas or {}
    if len(ids) and ids.min() < -1:
        raise _below_zero(ids.min(), int(ids.argmin()), of)
    largest = int(ids.max(initial=-1))
    if of.names and largest >= len(of.names):
        raise UsageError(
            f"the label of {of.shown(int(ids.argmax()))} in {of.source} is {largest:,}, "
            f"and there are {count(len(of.names), 'class name')}",
            next=f"Correct either; {NO_LABELS}",
        )
    if of.names or largest < MAX_CLASSES:
        return Labelling(ids, of.names, metas, notes)
    distinct, dense = np.unique(ids, return_inverse=True)
    num_none = int(distinct[0] == -1)
    if len(distinct) - num_none > MAX_CLASSES:
        raise _too_large(largest, of)
    notes += (f"class numbers up to {largest:,} are renumbered, and kept as names",)
    names = tuple(map(str, distinct[num_none:].tolist()))
    return Labelling(dense.astype(np.int64) - num_none, names, metas, notes)


def _below_zero(label: Any, place: int, of: _Labels) -> UsageError:
    return UsageError(
        f"the label of {of.shown(place)} in {of.source} is {label}, and class numbers begin at 0 (-1: no label)",
        next=f"Number the classes from 0; {NO_LABELS}",
    )


def _too_large(largest: int, of: _Labels) -> UsageError:
    return UsageError(
        f"the labels of {of.source} are no classes: there are numbers up to {largest:,}",
        next=f"At most {MAX_CLASSES:,} classes, numbered from 0; {NO_LABELS}",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
