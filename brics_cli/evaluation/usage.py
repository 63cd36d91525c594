"""How much of its autoencoder's grid tables or codebooks the codes of a store use."""

from __future__ import annotations

import torch

from brics_cli.errors import UsageError
from brics_cli.evaluation.family import Family, Score
from brics_cli.evaluation.images import StoreStream
from brics_cli.evaluation.registry import Metric


class Usage(Family):
    """Reads the codes of the fake side, which must be a store, and no image."""

    def result(self, metric: Metric) -> Score:
        """Raises UsageError for a bottleneck that has neither grids nor codebooks."""
        source, limit = self.sides["fake"], self.context.limit
        assert isinstance(source, StoreStream)
        counter = source.autoencoder.bottleneck.usage_counter()
        num = min(len(source), limit or len(source))
        with self.context.reporter.task("usage", total=num, unit="img") as task, torch.inference_mode():
            for start in range(0, num, source.batch_size):
                rows = slice(start, min(start + source.batch_size, num))
                counter.add(torch.from_numpy(source.store.batch(rows)).to(source.device))  # (B, C, h, w)
                task.advance(rows.stop - rows.start)
        found = counter.result()
        if not found:
            raise UsageError(f"{metric.title}: the bottleneck of {source.path} has neither grids nor codebooks")
        parts = [f"{name.removeprefix('usage/')} {value:.3f}" for name, value in found.items() if "usage/" in name]
        return Score(found["usage"], note=", ".join(parts) or None, num_fake=num, details=dict(found))
