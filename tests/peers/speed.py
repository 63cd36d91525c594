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
from collections.abc import Mapping
from pathlib import Path

import torch
import torch_fidelity
from peers.parity import clean_fid_distance, clean_fid_features, clean_fid_network, standin_networks

from brics_cli.bench.evaluate import BATCH_SIZE, measure, write_images
from brics_cli.evaluation.moments import FeatureMoments
from brics_cli.images.loader import default_num_workers
from brics_cli.networks.features import FeatureNetwork
from brics_cli.networks.inception import fid_inception

CPU = torch.device("cpu")


def brics_seconds(folder: Path, reference: FeatureMoments, networks: Mapping[str, FeatureNetwork]) -> float:
    """Seconds to the distance from `reference` with its error bar."""
    start = time.perf_counter()
    measure(["fid"], real=reference.gaussian(), fake=folder, networks=networks, device=CPU)
    return time.perf_counter() - start


def clean_fid_seconds(folder: Path, reference: FeatureMoments, directory: Path) -> float:
    """Seconds to the figure, of clean-fid with our file of weights, in `directory`, and a worker per core."""
    network = clean_fid_network(directory, device=CPU)
    start = time.perf_counter()
    features = clean_fid_features(folder, network, device=CPU, num_workers=default_num_workers())
    clean_fid_distance(features, (reference.mean, reference.covariance))
    return time.perf_counter() - start


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
        folder = directory / "images"
        write_images(folder, num_images, seed=0)
        networks = standin_networks(directory, device=CPU)
        reference = FeatureMoments(2048)
        reference.update(torch.rand(2200, 2048, generator=torch.Generator()).numpy())
        rows = {
            "brics": brics_seconds(folder, reference, networks),
            "clean-fid": clean_fid_seconds(folder, reference, directory),
            "torch-fidelity": torch_fidelity_seconds(folder, directory),
        }
    for peer, seconds in rows.items():
        print(f"{peer:16} {num_images / seconds:6.2f} img/s, files to figure")


if __name__ == "__main__":
    main()
