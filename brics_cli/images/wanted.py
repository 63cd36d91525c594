"""What a user asks of a collection beside its path."""

from __future__ import annotations

from typing import Literal, NamedTuple

Labels = Literal["folder", "none"]


class Wanted(NamedTuple):
    """`subset` chooses where a path holds several collections or splits, `image_field` where samples hold several
    images; `labels="folder"` makes folders classes."""

    subset: str | None = None
    labels: Labels | None = None
    image_field: str | None = None

    def of(self, path: str) -> str:
        """A path that opens what `path` opens with this `image_field`: `shards/*.left.png`, `shards/*` for all."""
        if self.image_field is None:
            return path
        fields = self.image_field.lower().replace(" ", "").lstrip(".")
        return f"{path}/*" if fields == "all" else f"{path}/*.{fields}"


ANYTHING = Wanted()
