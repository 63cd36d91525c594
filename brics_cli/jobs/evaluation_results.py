"""The figures of `brics eval` that come from pairs, codes and nearest neighbours, and the form all figures take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage

from brics_cli.errors import UsageError
from brics_cli.evaluation.images import StoreStream
from brics_cli.evaluation.meters import Image, PairMeter
from brics_cli.evaluation.neighbours import NeighbourSearch
from brics_cli.evaluation.registry import Metric, Settings, definition_of
from brics_cli.evaluation.report import OWN_WEIGHTS, UNKNOWN_STATISTICS, EvaluationReport, MetricResult
from brics_cli.evaluation.scores import Score
from brics_cli.evaluation.selection import Choice
from brics_cli.evaluation.statistics import SavedStatistics
from brics_cli.images.reading import ImageStream
from brics_cli.images.sheets import contact_sheet
from brics_cli.jobs.evaluation_pass import Input, Measured
from brics_cli.runtime.reporting import Reporter

NUM_SHEET_ROWS = 16
SHEET_SIDE = 128


def result_of(
    chosen: Metric, score: Score, found: Measured, choice: Choice, settings: Settings, real: Input, fake: Input
) -> MetricResult:
    """A figure with everything needed to compare it."""
    key = choice.networks.get(chosen.name)
    network = found.networks.get(key) if key is not None else None
    obstacle = _why_not_comparable(chosen, choice, real, fake)
    return MetricResult(
        metric=chosen.name,
        title=chosen.title,
        real=real.path,
        fake=fake.path,
        value=score.value,
        standard_error=score.error,
        num_real=score.num_real,
        num_fake=score.num_fake,
        unit=chosen.unit,
        better=chosen.better,
        definition=definition_of(chosen, settings, network=key),
        resize=network.resize if network is not None else None,
        comparable=chosen.published and obstacle is None,
        note=score.note,
        error_kind=score.error_kind,
        details=score.details,
        not_comparable=obstacle,
    )


def _why_not_comparable(chosen: Metric, choice: Choice, real: Input, fake: Input) -> str | None:
    """What keeps a figure that others measure, too, from being compared with theirs."""
    obstacles = []
    if not all(weights.verified for weights in choice.weights[chosen.name]):
        obstacles.append(OWN_WEIGHTS)
    if chosen.family == "frechet" and any(
        isinstance(side, SavedStatistics) and side.network is None for side in (real, fake)
    ):
        obstacles.append(UNKNOWN_STATISTICS)
    return ", ".join(obstacles) or None


def pair_score(meter: PairMeter) -> Score:
    """The mean over pairs and its standard error."""
    error = meter.standard_error
    kind = None if error is None else "standard error over pairs"
    return Score(meter.value, error, kind, meter.note, meter.num, meter.num)


def usage_of_store(fake: Input, *, limit: int | None, reporter: Reporter) -> Score:
    """How much of its autoencoder's tables or codebooks the codes of a store use. Raises UsageError for a
    bottleneck that has none."""
    assert isinstance(fake, StoreStream)
    counter = fake.autoencoder.bottleneck.usage_counter()
    num = min(len(fake), limit or len(fake))
    with reporter.task("usage", total=num, unit="img") as task, torch.inference_mode():
        for start in range(0, num, fake.batch_size):
            rows = slice(start, min(start + fake.batch_size, num))
            counter.add(torch.from_numpy(fake.store.batch(rows)).to(fake.device))  # (B, C, h, w)
            task.advance(rows.stop - rows.start)
    found = counter.result()
    if not found:
        raise UsageError(f"Usage: the bottleneck of {fake.path} has neither grids nor codebooks")
    parts = ", ".join(f"{name.removeprefix('usage/')} {value:.3f}" for name, value in found.items() if "usage/" in name)
    return Score(found["usage"], None, None, parts or None, None, num, dict(found))


def neighbour_score(
    search: NeighbourSearch, real: Input, fake: Input, *, sheet: Path, report: EvaluationReport
) -> Score:
    """The median distance to the nearest real image, every neighbour found, and the sheet: a fake image per row,
    then its neighbours, the rows nearest to a copy first."""
    assert isinstance(real, ImageStream) and isinstance(fake, ImageStream)
    results = search.results()
    nearest = np.array([result.distances[0] for result in results])
    order = np.argsort(nearest, kind="stable")[:NUM_SHEET_ROWS]
    rows, labels = [], []
    for index in order:
        found = results[index]
        rows.append([_tile(search.query_images[index]), *(_tile(search.images[at]) for at in found.positions)])
        shown = ", ".join(
            f"{real.keys[at]} {distance:.4f}" for at, distance in zip(found.positions, found.distances, strict=True)
        )
        labels.append(f"{fake.keys[found.query]}: {shown}")
    contact_sheet(rows, path=sheet, row_labels=labels, title="each fake image, then the real ones nearest to it")
    report.sheets.append(str(sheet))
    copies = int((nearest <= 1e-12).sum())
    note = f"sheet: {sheet}"
    if copies:
        note = f"{copies:,} of {len(results):,} are copies of a real image; {note}"
    details = {
        "sheet": str(sheet),
        "neighbours": [
            {
                "fake": fake.keys[result.query],
                "real": [real.keys[at] for at in result.positions],
                "distances": result.distances,
            }
            for result in results
        ],
    }
    error, kind = None, None
    return Score(float(np.median(nearest)), error, kind, note, search.num_real, len(results), details)


def _tile(image: Image) -> Image:
    """At most SHEET_SIDE px, square: images of a sheet have one size."""
    if image.shape[:2] == (SHEET_SIDE, SHEET_SIDE):
        return image
    return np.array(PillowImage.fromarray(image).resize((SHEET_SIDE, SHEET_SIDE), PillowImage.Resampling.BICUBIC))
