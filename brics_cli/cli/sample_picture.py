"""`brics sample --grid` and `brics sample --interpolate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brics_cli.cli.output import Session

if TYPE_CHECKING:
    import torch

    from brics_cli.diffusion.samplers import SamplerSettings


@dataclass(frozen=True)
class PictureRequest:
    """A picture as it was asked for: `grid` (rows, columns) from `first_seed` on, or `interpolate` (from, to)."""

    model: Path
    ema: float | None
    guide: Path | None
    ae: Path | None
    settings: SamplerSettings
    batch_size: int
    class_: str | None
    device: torch.device
    grid: tuple[int, int] | None
    first_seed: int
    interpolate: tuple[int, int] | None
    num_frames: int


def draw_picture(
    session: Session, request: PictureRequest, *, out: Path | None, dry_run: bool, overwrite: bool
) -> None:
    """Draw it, or say what would be drawn. Raises what the job raises."""
    from brics_cli.jobs.sample_picture import describe, draw, picture_path, summary
    from brics_cli.sampling.pictures import Grid, Interpolation, plan_grid, plan_interpolation
    from brics_cli.sampling.sample_models import load_sample_models

    models = load_sample_models(
        request.model,
        settings=request.settings,
        batch_size=request.batch_size,
        workspace=session.workspace,
        device=request.device,
        class_=request.class_,
        ema=request.ema,
        guide=request.guide,
        ae_path=request.ae,
    )
    picture: Grid | Interpolation
    if request.interpolate is not None:
        start, stop = request.interpolate
        picture = plan_interpolation(models, start=start, stop=stop, num_frames=request.num_frames)
        if picture.class_ is not None and request.class_ is None:
            shown = models.stream.denoiser.classes.shown(picture.class_)
            session.reporter.message(f"--class not given: class {shown}, that of seed {start}, for all frames")
    else:
        assert request.grid is not None
        rows, columns = request.grid
        picture = plan_grid(models, num_rows=rows, num_columns=columns, first_seed=request.first_seed)
    path = picture_path(picture, models, workspace=session.workspace, out=out)
    if dry_run:
        evaluations = request.settings.num_evaluations
        value = {
            "images": len(picture),
            "image_size": models.autoencoder.config.image_size,
            "num_evaluations": evaluations,
            "out": path,
            "settings": {**models.settings, **describe(picture)},
        }
        session.result(value, f"would draw {summary(picture)}, {evaluations} evaluations each, into {path}")
        return
    drawn = draw(picture, models, out=path, overwrite=overwrite, reporter=session.reporter)
    lines = [f"{summary(picture)}: {drawn.path}"]
    if drawn.frames:
        lines.append(f"frames: {drawn.frames[0]} to {drawn.frames[-1].name}")
    session.result(asdict(drawn), lines)
    session.next_step("brics", "sample", "--model", request.model, "--n", "1000")
