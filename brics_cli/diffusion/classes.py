"""The classes of a diffusion model: which have images, what they are called, and how one is drawn for a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from brics_cli.config.names import ClassBalance
from brics_cli.config.suggestions import did_you_mean
from brics_cli.errors import UsageError
from brics_cli.runtime.randomness import Stream, keyed_generator
from brics_cli.wording import count

NUM_LISTED = 10


@dataclass(frozen=True)
class Classes:
    """Classes 0 ... `num` - 1; `num` 0: none at all.

    `counts` says how many images of each were trained on, and is empty where that is not known (in models from before
    it was kept); `names` is empty where they have none.
    """

    num: int = 0
    counts: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: npt.NDArray[np.int64], names: Sequence[str] = ()) -> Self:
        """Those of the images with `labels` (N,), -1 for none."""
        labelled = labels[labels >= 0]
        if not len(labelled):
            return cls()
        counts = np.bincount(labelled, minlength=len(names)).tolist()
        return cls(len(counts), tuple(counts), tuple(names))

    @property
    def present(self) -> list[int]:
        """Those with images; all where that is not known."""
        return [number for number in range(self.num) if not self.counts or self.counts[number]]

    def shown(self, number: int) -> str:
        """The class by its name, if it has one, else by its number."""
        return self.names[number] if number < len(self.names) else str(number)

    def listed(self) -> str:
        """`cats (6 images), dogs (1 image)`, the first few."""
        num = [f" ({count(n, 'image')})" for n in self.counts] or [""] * self.num
        listed = [f"{self.shown(number)}{num[number]}" for number in self.present]
        more = f" and {len(listed) - NUM_LISTED:,} more" if len(listed) > NUM_LISTED else ""
        return ", ".join(listed[:NUM_LISTED]) + more

    def find(self, text: str, *, where: object) -> int:
        """The class that a user calls `text`: a name, or a number. Raises UsageError when `where` has none such."""
        if text in self.names:
            number = self.names.index(text)
        elif text.isascii() and text.isdigit() and len(text) < 19:
            number = int(text)
        else:
            known = [self.shown(number) for number in self.present]
            raise UsageError(f"--class {text}: {where} has no such class{did_you_mean(text, known)}")
        self.check(number, where=where)
        return number

    def check(self, number: int, *, where: object) -> None:
        """Raise UsageError for a class that cannot be sampled."""
        if not 0 <= number < self.num:
            raise UsageError(f"--class {number}: {where} has classes 0 to {self.num - 1}: {self.listed()}")
        if self.counts and not self.counts[number]:
            raise UsageError(
                f"--class {self.shown(number)}: {where} was trained on no image of it, only on {self.listed()}"
            )

    def draw(self, seeds: Sequence[int], balance: ClassBalance | None = None) -> list[int]:
        """A class for the image of each seed, from a stream of its own: of those with images alone.

        `proportional`: as often as in training; `even`: each as often as any other. None: proportional, or even where
        counts are not known.
        """
        present = self.present
        streams = (keyed_generator(seed, stream=Stream.IMAGE_LABEL) for seed in seeds)
        if balance == "even" or not self.counts:
            return [present[int(stream.integers(len(present)))] for stream in streams]
        ends = np.cumsum(self.counts)
        places = [int(stream.integers(ends[-1])) for stream in streams]  # the class of an image of the store
        return np.searchsorted(ends, places, side="right").tolist()
