"""What the chapters of one page share: where they look, what was looked at already, and what could not be shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from brics_cli.codes import KeyCodeStore
from brics_cli.errors import BricsError
from brics_cli.evaluation.comparing import LoadedReport, read_report
from brics_cli.jobs.plot import Curves, read_curves
from brics_cli.report.collection import Looked, look, open_node
from brics_cli.report.gathering import Gathered, Node
from brics_cli.report.pictures import Pixels
from brics_cli.runtime.reporting import Reporter
from brics_cli.workspace import Workspace
from brics_cli.workspace.embedded import embedded_at
from brics_cli.workspace.files import read_json

if TYPE_CHECKING:
    from brics_cli.autoencoder.autoencoder import Autoencoder

T = TypeVar("T")

DECODING_S = 6.0
"""Of decoding codes, for each thing whose images are not on disk; then the page shows those that are done."""
DAMAGE = (BricsError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What reading files that are damaged, or hold something else than they should, ends in."""


class Measured(NamedTuple):
    """A report of `brics eval`: as it is compared with others, and all that is in its file."""

    node: Node
    loaded: LoadedReport
    record: dict[str, Any]


@dataclass
class Context:
    """`left_out`: (what, why) of everything that should be on the page and is not."""

    gathered: Gathered
    workspace: Workspace
    reporter: Reporter
    watts: float | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    _looked: dict[int, Looked | None] = field(default_factory=dict)
    _curves: dict[int, Curves] = field(default_factory=dict)
    _stores: dict[Path, KeyCodeStore] = field(default_factory=dict)
    _autoencoders: dict[str, Autoencoder] = field(default_factory=dict)
    _reports: list[Measured] | None = None

    def attempt(self, what: str, otherwise: T, make: Callable[..., T], *arguments: Any) -> T:
        """`make(*arguments)`; `otherwise`, with the reason noted, where files are damaged or hold something else."""
        try:
            return make(*arguments)
        except DAMAGE as error:
            reason = error.what if isinstance(error, BricsError) else f"{type(error).__name__}: {error}"
            self.leave_out(what, reason)
            return otherwise

    def leave_out(self, what: str, reason: str) -> None:
        """Note what is not on the page, and say so."""
        if (what, reason) not in self.left_out:
            self.left_out.append((what, reason))
            self.reporter.warning(f"left out of the report: {what}: {reason}")

    def looked(self, node: Node | None) -> Looked | None:
        """What was seen of a collection; None where there is none, it is gone or cannot be read."""
        if node is None:
            return None
        if id(node) not in self._looked:
            self._looked[id(node)] = self.attempt(str(node.path), None, _look, node) if node.there else None
        return self._looked[id(node)]

    def curves(self, node: Node) -> Curves:
        """The metrics of a run; empty where it has logged nothing, they are damaged, or the model came with brics."""
        if embedded_at(node.path):
            return {}
        if id(node) not in self._curves:
            self._curves[id(node)] = self.attempt(f"the curves of {node.path}", {}, read_curves, node.path)
        return self._curves[id(node)]

    @property
    def reports(self) -> list[Measured]:
        """The reports that can be read, the newest first."""
        if self._reports is None:
            self._reports = []
            for node in self.gathered.of("scores"):
                self._reports += self.attempt(str(node.path), list[Measured](), _measured, node)
        return self._reports

    def store(self, path: Path) -> KeyCodeStore:
        """The store at a path. Raises ArtefactError."""
        if path not in self._stores:
            self._stores[path] = KeyCodeStore(path)
        return self._stores[path]

    def store_or_none(self, path: Path) -> KeyCodeStore | None:
        """The same, for `attempt`."""
        return self.store(path)

    def autoencoder_of(self, store: KeyCodeStore) -> Autoencoder:
        """The autoencoder of a store's codes, on the CPU. Raises ArtefactError where it is not found. Loads torch."""
        from brics_cli.codes.lineage import load_store_autoencoder

        sha256 = store.autoencoder["sha256"]
        if sha256 not in self._autoencoders:
            self.reporter.message(f"loading the autoencoder of {store.path}")
            self._autoencoders[sha256] = load_store_autoencoder(store, workspace=self.workspace)
        return self._autoencoders[sha256]

    def decoded(self, store: KeyCodeStore, rows: list[int]) -> list[Pixels]:
        """The images of these rows, (H, W, 3) each: as many of the first ones as DECODING_S is enough for."""
        import torch

        from brics_cli.autoencoder.autoencoder import to_uint8

        autoencoder, images = self.autoencoder_of(store), list[Pixels]()
        until = time.monotonic() + DECODING_S
        with torch.inference_mode():
            for start in range(0, len(rows), 4):
                if images and time.monotonic() > until:
                    break
                codes = torch.from_numpy(store.batch(rows[start : start + 4]))  # (B, C, h, w)
                images += list(to_uint8(autoencoder.decode(codes)))
        return images


def _measured(node: Node) -> list[Measured]:
    record = read_json(node.path, what="report")
    return [Measured(node, read_report(record, path=node.path), record)]


def _look(node: Node) -> Looked | None:
    return look(*open_node(node))
