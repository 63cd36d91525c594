"""A store as a dataset of torch, in worker processes too; and read by h5py alone, with the README's snippet."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from store_files import write_store
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from brics_cli.codes import KeyCodeStore
from brics_cli.errors import ArtefactError

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture
def store(tmp_path: Path) -> KeyCodeStore:
    return KeyCodeStore(write_store(tmp_path / "codes.h5", ["s0", "s1", "s2", "s3"]))


def test_a_loader_takes_the_store_itself(store):
    batches = list(DataLoader(store, batch_size=5))
    assert [tuple(batch.shape) for batch in batches] == [(5, 2, 3, 3), (5, 2, 3, 3), (2, 2, 3, 3)]
    assert torch.equal(torch.cat(batches), torch.from_numpy(store.batch(slice(None))))
    both = ConcatDataset([Subset(store, [3, 1]), store])
    assert np.array_equal(both[0], store[3]) and np.array_equal(both[2], store[0]) and len(both) == 14


def test_it_is_a_dataset_with_labels_and_flips(store):
    dataset = store.as_dataset(flips=True)
    assert isinstance(dataset, Dataset) and len(dataset) == 24
    codes, labels = next(iter(DataLoader(dataset, batch_size=24)))
    assert torch.equal(codes[:12], torch.from_numpy(store.batch(slice(None))))
    assert torch.equal(codes[12:], torch.from_numpy(store.batch(slice(None), flipped=True)))
    assert labels.tolist() == store.labels.tolist() * 2
    assert torch.equal(dataset[-1][0], codes[-1]) and dataset[1][1] == 1
    with pytest.raises(IndexError):
        dataset[24]


def test_a_store_without_flips_has_none(tmp_path):
    plain = KeyCodeStore(write_store(tmp_path / "plain.h5", ["s0"], flipped=False))
    with pytest.raises(ArtefactError, match="no flipped codes"):
        plain.as_dataset(flips=True)


def test_it_pickles_as_a_path_and_reads_the_same(store):
    dataset = store.as_dataset(flips=True)
    dataset[0]  # mapped
    data = pickle.dumps(dataset)
    again = pickle.loads(data)
    assert len(data) < 1000 and torch.equal(again[13][0], dataset[13][0]) and again.flips


@pytest.mark.slow
def test_spawned_workers_read_the_same(store):
    loader = DataLoader(store.as_dataset(), batch_size=4, num_workers=1, multiprocessing_context="spawn")
    codes = torch.cat([codes for codes, _ in loader])
    assert torch.equal(codes, torch.from_numpy(store.batch(slice(None))))


def test_the_h5py_snippet_of_the_readme(store, monkeypatch):
    snippet = re.search(r"<!-- h5py snippet -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(store.path.parent)
    found: dict = {}
    exec(snippet[1], found)
    assert np.allclose(found["codes"], store.batch(slice(0, 8)))
    assert list(found["keys"]) == store.keys[:8]
    assert np.allclose(found["mean"], store.mean) and np.allclose(found["std"], store.std)
    assert isinstance(h5py, type(found["h5py"]))
