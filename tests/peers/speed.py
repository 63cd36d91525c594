"""How long one FID takes brics, clean-fid and torch-fidelity: the same images, weights and number of workers.

`PYTHONPATH=tests python -m peers.speed --num-images 1000`, on a machine that has nothing else to do: each row is one
timed run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch_fidelity
from peers.parity import clean_fid_distance, clean_fid_features, clean_fid_network

from brics_cli.bench.evaluate import gather, write_images
from brics_cli.bench.evaluation_networks import Networks, standin_networks
from brics_cli.bench.evaluation_numerics import BATCH_SIZE
from brics_cli.evaluation.frechet import frechet_distance
from brics_cli.evaluation.jackknife import NUM_GROUPS, frechet_standard_error
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.images.loader import default_num_workers
from brics_cli.networks.inception import fid_inception

CPU = torch.device("cpu")


def brics_seconds(folder: Path, reference: FeatureMoments, networks: Networks) -> tuple[float, float]:
    """Seconds to features, and to the distance from `reference` with its error bar."""
    start = time.perf_counter()
    with ThreadPoolExecutor(default_num_workers()) as pool:
        moments = gather(folder, [networks.inception], CPU, pool, num_groups=NUM_GROUPS)[networks.inception.key].moments
        to_features = time.perf_counter() - start
        frechet_distance(reference, moments), frechet_standard_error(reference, moments)
    return to_features, time.perf_counter() - start


def clean_fid_seconds(folder: Path, reference: FeatureMoments, networks: Networks) -> tuple[float, float]:
    """Seconds to features and to the figure, of clean-fid with our file of weights and a worker per core."""
    network = clean_fid_network(networks, device=CPU)
    start = time.perf_counter()
    features = clean_fid_features(folder, network, device=CPU, num_workers=default_num_workers())
    to_features = time.perf_counter() - start
    clean_fid_distance(features, (reference.mean, reference.covariance))
    return to_features, time.perf_counter() - start


def torch_fidelity_seconds(folder: Path, directory: Path) -> float:
    """Seconds of torch-fidelity's pass over the folder; random weights of the same architecture in its own format."""
    state_file = directory / "inception-state.pth"
    torch.save(fid_inception(init_weights=True).eval().state_dict(), state_file)
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        torch_fidelity.calculate_metrics(
            input1=str(folder),
            isc=True,
            cuda=False,
            batch_size=BATCH_SIZE,
            verbose=False,
            cache=False,
            feature_extractor_weights_path=str(state_file),
        )
    return time.perf_counter() - start


def main() -> None:
    """Print images per second of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=1000)
    num_images = parser.parse_args().num_images
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = Path(name)
        (folder := directory / "images").mkdir()
        write_images(folder, num_images, seed=0)
        networks = standin_networks(directory, device=CPU)
        reference = FeatureMoments(networks.inception.num_features)
        reference.update(torch.rand(2200, networks.inception.num_features, generator=torch.Generator()).numpy())
        rows: dict[str, tuple[float, float | None]] = {
            "brics": brics_seconds(folder, reference, networks),
            "clean-fid": clean_fid_seconds(folder, reference, networks),
            "torch-fidelity": (torch_fidelity_seconds(folder, directory), None),
        }
    for peer, (to_features, to_figure) in rows.items():
        print(
            f"{peer:16} to features {num_images / to_features:6.2f} img/s, to FID {num_images / to_figure:6.2f} img/s"
        )


if __name__ == "__main__":
    main()
