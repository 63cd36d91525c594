"""The study in diffusability.md: autoencoders, one diffusion model on the codes of each, and scores of its samples.

    python recipes/studies/diffusability.py WORK make emoji/grid-0 emoji/kl-0 --decoder gan    # train, sample, score
    python recipes/studies/diffusability.py WORK make emoji/scale-0 --budget short
    python recipes/studies/diffusability.py WORK tables > tables.md
    python recipes/studies/diffusability.py WORK sheet emoji/grid-0 emoji/kl-0 --decoder gan --draw guided-2

A cell is COLLECTION/NAME-SEED: WORK/COLLECTION32 is what `brics pack --size 32` wrote, NAME one of CELLS. NAME-0.2 has
the codes of NAME-0, and decoders and a diffusion model of seed 2. Every step is a `brics` command, printed as it
starts, and is left out where its result is there; an interrupted training goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata, spearmanr

from brics_cli.autoencoder.autoencoder import load_autoencoder, to_uint8
from brics_cli.codes.reader import KeyCodeStore


class Cell(NamedTuple):
    """How the autoencoder of a cell differs from the recipe `tiny` at 32 px with codes of 4 x 4 x 16."""

    sets: tuple[str, ...] = ()
    start: str | None = None
    """The cell that it is fine-tuned from, of the same seed."""
    denoiser: tuple[str, ...] = ()
    about: str = ""


WIDER = "model.features.hidden_dim=200"  # without tables, at the cost of grid's codes to pixels
TUNED = {
    "more": Cell(about="1,000 steps more, the control of the next ones"),
    "noise": Cell(("model.bottleneck.noise=0.02",), about="code noise 0.02"),
    "scale": Cell(("terms.scale_equivariance.weight=0.25",), about="scale equivariance 0.25"),
    "turn": Cell(("terms.equivariance.weight=0.25",), about="implicit equivariance 0.25"),
    "spectrum": Cell(("terms.spectrum.weight=0.05",), about="spectrum matching 0.05"),
    "mask": Cell(("terms.spectrum.mask_weight=0.25",), about="decoding spectrum matching 0.25"),
    "gaussian": Cell(("terms.marginals.weight=0.01",), about="logits' moments towards N(0, 1), 0.01"),
    "uniform": Cell(("terms.marginals.weight=0.01", "terms.marginals.target=uniform"), about="uniform marginals 0.01"),
    "white": Cell(("terms.whitening.weight=0.1",), about="whitening 0.1"),
}
CELLS = {
    "grid": Cell(("model.bottleneck.noise=0",), about="grid without noise"),
    "kl": Cell(("model.bottleneck.kind=kl", WIDER), about="kl, weight 1e-6"),
    "none": Cell(("model.bottleneck.kind=none", WIDER), about="bounded codes, no tables"),
    "fsq": Cell(("model.bottleneck.kind=fsq", "model.bottleneck.levels=[16]", WIDER), about="fsq, 16 levels"),
    "f4": Cell(
        (
            "model.bottleneck.noise=0",
            "model.code_channels=4",
            "model.encoder.patch=2",
            "model.features.upscale=1",
        ),
        denoiser=("denoiser.patch=2",),
        about="grid without noise, codes of 8 x 8 x 4",
    ),
    "kl-strong": Cell(("model.bottleneck.weight=1e-4",), start="kl", about="kl fine-tuned with weight 1e-4"),
    **{name: cell._replace(start="grid") for name, cell in TUNED.items()},
}
BASE = ["model.image_size=32", "training.val_every=5000"]
TUNING = ["optimiser.lr=1e-3", "optimiser.warmup_steps=100"]
GAN = ["gan.weight=0.2", "gan.widths=[32,64]", "gan.ramp_steps=500"]
DECODERS = {
    "ae": None,
    "plain": (2000, []),
    "gan": (2000, GAN),
    "gan-strong": (2000, [*GAN, "gan.weight=0.5"]),
    "gan-one": (2000, [*GAN, "gan.weight=1"]),
    "gan-wide": (4000, [*GAN, "gan.weight=0.5", "gan.widths=[64,128]"]),
}
"""What stands behind the frozen encoder: `ae` as trained with it, else (steps, settings)."""
BUDGETS = {
    "full": (3000, ["denoiser.dim=128", "optimiser.lr=2e-3", "training.batch_size=64"]),
    "half": (1500, ["denoiser.dim=128", "optimiser.lr=2e-3", "training.batch_size=64"]),
    "short": (1500, ["training.batch_size=64"]),
}
DRAWS = {
    "plain": [],
    "ema-0.05": ["--ema", "0.05"],
    "ema-0.1": ["--ema", "0.1"],
    "guided": ["--guidance", "1.5"],
    "guided-2": ["--guidance", "2"],
    "guided-2.5": ["--guidance", "2.5"],
}
"""How samples are drawn; `guided` by a model of budget `short` of the same codes (autoguidance, arXiv 2406.02507)."""


ENOUGH = 8
"""Autoencoders for a correlation: of fewer, the interval is nearly all of [-1, 1]."""


class Place(NamedTuple):
    """The folder of a cell and of its seeds."""

    work: Path
    collection: str
    name: str
    seed: int
    """Of decoders and of diffusion."""
    codes_seed: int

    @classmethod
    def of(cls, work: Path, text: str) -> Place:
        collection, _, rest = text.partition("/")
        name, _, seed = rest.rpartition("-")
        codes_seed, _, own = seed.partition(".")
        if name not in CELLS or not codes_seed.isdigit() or not (own or "0").isdigit():
            raise SystemExit(f"{text}: must be COLLECTION/NAME-SEED, NAME one of {', '.join(CELLS)}")
        return cls(work, collection, name, int(own or codes_seed), int(codes_seed))

    @property
    def seeds(self) -> str:
        return str(self.seed) if self.seed == self.codes_seed else f"{self.codes_seed}.{self.seed}"

    @property
    def folder(self) -> Path:
        return self.work / self.collection / f"{self.name}-{self.seeds}"

    @property
    def images(self) -> Path:
        return self.work / f"{self.collection}32"


def sets(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def brics(*arguments: object) -> None:
    command = ["brics", *map(str, arguments)]
    print("$", shlex.join(command), flush=True)
    if code := subprocess.run(command).returncode:
        raise SystemExit(code)


def train(command: str, data: Path, out: Path, steps: int, *arguments: object) -> None:
    """A run of so many steps: whole, gone on with, or begun."""
    if (out / "checkpoints" / f"step-{steps:08d}").exists():
        return
    if any(out.glob("checkpoints/step-*")):
        brics(command, "--resume", out)
    else:
        brics(command, data, *arguments, "--steps", steps, "--out", out, "--overwrite")


def make_codes(place: Place) -> None:
    cell, out = CELLS[place.name], place.folder / "ae"
    place.folder.mkdir(parents=True, exist_ok=True)
    if place.seed != place.codes_seed:
        base = place._replace(seed=place.codes_seed)
        make_codes(base)
        for name in ("ae", "codes.h5"):
            if not (link := place.folder / name).exists():
                link.symlink_to(Path("..") / base.folder.name / name)
        return
    seeded = [f"training.seed={place.seed}"]
    if cell.start:
        start = place._replace(name=cell.start)
        make_codes(start)
        parent = start.folder / "ae"
        begin = ["--recipe", parent / "config.yaml", "--init-from", parent, *sets([*TUNING, *cell.sets, *seeded])]
        train("train-ae", place.images, out, 1000, *begin)
    else:
        train("train-ae", place.images, out, 5000, "--recipe", "tiny", *sets([*BASE, *seeded, *cell.sets]))
    if not (codes := place.folder / "codes.h5").exists():
        brics("encode-dataset", place.images, "--ae", out, "--out", codes)


def make_decoder(place: Place, name: str) -> None:
    if DECODERS[name] is None:
        return
    steps, settings = DECODERS[name]
    parent = place.folder / "ae"
    settings = [*TUNING, "training.freeze_encoder=true", f"training.seed={place.seed}", *settings]
    begin = ["--recipe", parent / "config.yaml", "--init-from", parent, *sets(settings)]
    train("train-ae", place.images, place.folder / name, steps, *begin)


def drawn(budget: str, draw: str) -> str:
    return budget if draw == "plain" else f"{budget}+{draw}"


def make_model(place: Place, budget: str) -> Path:
    steps, settings = BUDGETS[budget]
    model = place.folder / f"dit-{budget}"
    settings = [*settings, "training.fd_samples=0", f"training.seed={place.seed}", *CELLS[place.name].denoiser]
    train("train-diffusion", place.folder / "codes.h5", model, steps, "--recipe", "tiny", *sets(settings))
    return model


def make_samples(place: Place, budget: str, draw: str) -> None:
    model, how = make_model(place, budget), list(DRAWS[draw])
    if draw.startswith("guided"):
        how += ["--guide", make_model(place._replace(seed=place.codes_seed), "short")]
    if not (out := place.folder / f"samples-{drawn(budget, draw)}.h5").exists():
        form = ["--batch-size", 100, "--format", "h5", "--codes", "--out", out]
        brics("sample", "--n", 2000, "--model", model, *how, *form)


def score(place: Place, decoder: str, budget: str, metrics: list[str]) -> None:
    """Reports of the reconstructions, and of the samples, through a decoder; fd-effnet is of samples alone (slow)."""
    for metric, (kind, store) in itertools.product(metrics, [("floor", "codes.h5"), (budget, f"samples-{budget}.h5")]):
        report = place.folder / f"{metric}-{decoder}@{kind}.json"
        if metric == "fd-effnet" and kind == "floor":
            continue
        if not report.exists() and (place.folder / store).exists():
            inputs = ["--real", place.images, "--fake", place.folder / store, "--ae", place.folder / decoder]
            brics("eval", "--metric", metric, *inputs, "--batch-size", 8, "--out", report)
    if not (report := place.folder / "diffusability.json").exists():
        inputs = ["--real", place.images, "--fake", place.folder / "codes.h5"]
        brics("eval", "--metric", "diffusability", *inputs, "--out", report)


def figures(report: Path) -> dict[str, tuple[float, float]]:
    """(value, error) by name."""
    if not report.exists():
        return {}
    results = json.loads(report.read_text())["results"]
    return {each["metric"]: (each["value"], each["standard_error"] or 0.0) for each in results}


def held_out(run: Path) -> float:
    """PSNR in dB of the last validation."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["val/psnr"] for line in lines if "val/psnr" in line][-1]


def spread(place: Place, budget: str) -> float:
    """Variance of the samples' codes over that of the store's, each channel in units of its own."""
    found = []
    for name in ("codes.h5", f"samples-{budget}.h5"):
        with h5py.File(place.folder / name) as file:
            codes = file["codes"][:].astype(np.float64)  # (N, C, h, w)
        if name == "codes.h5":
            units = codes.std((0, 2, 3), keepdims=True)
        found.append((codes / units).var(0).mean())
    return found[1] / found[0]


class Row(NamedTuple):
    place: Place
    decoder: str
    budget: str
    psnr: float
    floor: float
    samples: tuple[float, float]


def rows(work: Path, metric: str) -> Iterator[Row]:
    """Every cell, decoder and budget that was scored."""
    for report in sorted(work.glob(f"*/*/{metric}-*@*.json")):
        if report.name.endswith(".brics.json"):
            continue
        decoder, _, budget = report.stem.removeprefix(f"{metric}-").partition("@")
        if budget == "floor":
            continue
        place = Place.of(work, f"{report.parent.parent.name}/{report.parent.name}")
        floor, _ = figures(report.with_name(f"{metric}-{decoder}@floor.json")).get(metric, (math.nan, 0.0))
        yield Row(place, decoder, budget, held_out(report.parent / decoder), floor, figures(report)[metric])


def score_table(work: Path, metric: str) -> None:
    found = defaultdict(list)
    for row in rows(work, metric):
        found[row.place.collection, row.budget, row.place.name, row.decoder].append(row)
    print(
        f"\n| {metric}: collection, budget | codes | decoder | seeds | PSNR dB | floor | samples | excess | variance |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (collection, budget, name, decoder), group in sorted(found.items()):
        about = f"{name}: {CELLS[name].about}"
        seeds = ", ".join(row.place.seeds for row in group)
        columns = [
            ([row.psnr for row in group], ".2f"),
            ([row.floor for row in group], ".2f"),
            ([row.samples[0] for row in group], ".2f"),
            ([row.samples[0] - row.floor for row in group], ".2f"),
            ([spread(row.place, row.budget) for row in group], ".0%"),
        ]
        cells = [
            "" if np.isnan(values).any() else " ".join(f"{value:{form}}" for value in values) + mean(values, form)
            for values, form in columns
        ]
        if len(group) == 1:
            cells[2] += f" ±{group[0].samples[1]:.2f}"
        print(f"| {collection}, {budget} | {about} | {decoder} | {seeds} | {' | '.join(cells)} |")


def mean(values: list[float], form: str) -> str:
    if len(values) == 1:
        return ""
    error = np.std(values, ddof=1) / len(values) ** 0.5
    return f", mean {np.mean(values):{form}} ±{error:{form}}"


def interval(x: np.ndarray, y: np.ndarray, *, draws: int = 10_000) -> tuple[float, float]:
    """95% of the bootstrap over cells of Spearman's correlation."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(x), (draws, len(x)))
    a, b = rankdata(x[drawn], axis=1), rankdata(y[drawn], axis=1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found = (a * b).sum(1)[norm > 0] / norm[norm > 0]
    return tuple(np.quantile(found, [0.025, 0.975]))


def correlation_table(work: Path, collection: str, budget: str) -> None:
    """Spearman's correlation of each measure with the samples' FD-random, and with their excess over the floor."""
    group = [
        row
        for row in rows(work, "fd-random")
        if (row.place.collection, row.budget, row.decoder, row.place.seed)
        == (collection, budget, "ae", row.place.codes_seed)
    ]
    if len(group) < ENOUGH:
        if group:
            print(f"\n{len(group)} autoencoders ({collection}, {budget}): no correlations, which take {ENOUGH}")
        return
    samples = np.array([row.samples[0] for row in group])
    floor = np.array([row.floor for row in group])
    measured = [figures(row.place.folder / "diffusability.json") for row in group]
    measures = {name: np.array([each[name][0] for each in measured]) for name in set.intersection(*map(set, measured))}
    measures |= {"floor": floor, "PSNR held out": np.array([row.psnr for row in group])}
    names = ", ".join(f"{row.place.name}-{row.place.seeds}" for row in group)
    print(
        f"\nSpearman's correlation over {len(group)} autoencoders ({collection}, {budget}: {names}), [95% by bootstrap]"
    )
    print("\n| measure | with FD-random of samples | p | with its excess over the floor | p |\n|---|---|---|---|---|")
    table = []
    for name, x in measures.items():
        if np.ptp(x) == 0:
            table.append((0.0, f"| {name} | the same for all | | | |"))
            continue
        cells, strength = [], 0.0
        for y in (samples, samples - floor):
            rho, p = spearmanr(x, y)
            low, high = interval(x, y)
            cells.append(f"{rho:+.2f} [{low:+.2f}, {high:+.2f}] | {p:.3f}")
            strength = strength or abs(rho)
        table.append((strength, f"| {name} | {' | '.join(cells)} |"))
    for _, line in sorted(table, key=lambda pair: -pair[0]):
        print(line)


def sheet(places: list[Place], decoder: str, budgets: list[str], out: Path) -> None:
    """The first 32 seeds of each cell and way of drawing, side by side, 8 to a row."""
    blocks = []
    for place, budget in itertools.product(places, budgets):
        model = load_autoencoder(str(place.folder / decoder), device="cpu")
        codes = KeyCodeStore(place.folder / f"samples-{budget}.h5").batch(list(range(32)))
        with torch.inference_mode():
            images = np.asarray(to_uint8(model.decode(torch.as_tensor(np.asarray(codes), dtype=torch.float32))))
        size = images.shape[1]
        tiled = images.reshape(4, 8, size, size, 3).transpose(0, 2, 1, 3, 4).reshape(4 * size, 8 * size, 3)
        blocks += [tiled, np.full((4 * size, 8, 3), 255, np.uint8)]
    Image.fromarray(np.concatenate(blocks[:-1], axis=1)).save(out, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("task", choices=["make", "tables", "sheet"])
    parser.add_argument("cells", nargs="*", metavar="COLLECTION/NAME-SEED")
    parser.add_argument("--decoder", action="append", choices=DECODERS, help="beside the autoencoder's own; repeatable")
    parser.add_argument("--budget", choices=BUDGETS, default="full", help="of the diffusion model")
    parser.add_argument("--draw", choices=DRAWS, default="plain", help="how samples are drawn of it")
    parser.add_argument("--metric", action="append", choices=["fd-random", "fd-effnet"], help="default: fd-random")
    parser.add_argument("--until", choices=["codes", "decoder", "samples", "scores"], default="scores")
    asked = parser.parse_args()
    if asked.task == "tables":
        for metric in ("fd-random", "fd-effnet"):
            score_table(asked.work, metric)
        for collection, budget in itertools.product(sorted(each.name for each in asked.work.iterdir()), BUDGETS):
            correlation_table(asked.work, collection, budget)
        return
    if asked.task == "sheet":
        budgets = [asked.budget, drawn(asked.budget, asked.draw)]
        places = [Place.of(asked.work, text) for text in asked.cells]
        sheet(places, (asked.decoder or ["ae"])[0], list(dict.fromkeys(budgets)), asked.work / "sheet.jpg")
        return
    for text in asked.cells:
        place = Place.of(asked.work, text)
        make_codes(place)
        if asked.until == "codes":
            continue
        decoders = ["ae", *(asked.decoder or [])]
        for decoder in decoders:
            make_decoder(place, decoder)
        if asked.until == "decoder":
            continue
        make_samples(place, asked.budget, asked.draw)
        if asked.until == "scores":
            for decoder in decoders:
                score(place, decoder, drawn(asked.budget, asked.draw), asked.metric or ["fd-random"])


if __name__ == "__main__":
    sys.exit(main())
