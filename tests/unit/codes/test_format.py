"""Quantisation and statistics: exact at the ends, idempotent, the same on numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brics_cli.codes import QUANTISATIONS, dequantise, quantise
from brics_cli.codes.format import RowHash, Statistics, StoreHeader, fixed_bytes


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_exact_at_the_ends_and_idempotent(quantisation):
    codes = np.random.default_rng(0).random((3, 2, 4, 4), np.float32)
    codes[0, 0, 0, :2] = [0, 1]
    rows = quantise(codes, quantisation)
    again = dequantise(rows, quantisation)
    assert again[0, 0, 0, 0] == 0 and again[0, 0, 0, 1] == 1
    assert np.array_equal(quantise(again, quantisation), rows)
    step = {"uint8": 1 / 255, "uint16": 1 / 65535, "float16": 2**-11}[quantisation]
    assert np.abs(again - codes).max() <= step / 2 * 1.001


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_torch_and_numpy_agree(quantisation):
    codes = torch.rand((2, 3, 5, 5), generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    rows = quantise(codes, quantisation)
    assert rows.dtype == QUANTISATIONS[quantisation][0]
    assert np.array_equal(rows, quantise(codes.numpy(), quantisation))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    codes = np.full((1, 1, 1, 1), bad, np.float32)
    for given_codes in (codes, torch.from_numpy(codes)):
        with pytest.raises(ValueError, match="not finite"):
            quantise(given_codes, "uint8")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), max_size=5))
def test_fixed_bytes_keep_texts(texts):
    assert [text.decode() for text in fixed_bytes(texts)] == texts


def header(**changes) -> StoreHeader:
    values = {
        "code_shape": (2, 4, 4), "image_size": 8, "transform": "none/1", "quantisation": "uint8", "source": "/x",
        "source_sha256": "b" * 64, "num_images": 1, "autoencoder": {"sha256": "a" * 64, "config": {}},
    }  # fmt: skip
    return StoreHeader(**{**values, **changes})


def test_statistics_are_numpys_and_add_up():
    rows = np.random.default_rng(0).integers(0, 256, (10, 2, 4, 4), dtype=np.uint8)
    whole, first, second = (Statistics.empty(2) for _ in range(3))
    whole.add(rows, header())
    first.add(rows[:3], header())
    second.add(rows[3:], header())
    first.merge(second)
    codes = dequantise(rows, "uint8").astype(np.float64)
    assert np.allclose(whole.mean, codes.mean(axis=(0, 2, 3)), atol=1e-6)
    assert np.allclose(whole.std, codes.std(axis=(0, 2, 3)), atol=1e-6)
    assert np.array_equal(first.histogram, whole.histogram) and whole.histogram.sum() == rows.size
    assert np.allclose(first.mean, whole.mean, rtol=1e-12)


def test_every_column_is_in_the_row_hash():
    rows = np.zeros((2, 1, 2, 2), np.uint8)

    def digest(codes=rows, flipped=None, keys=(b"a", b"b"), labels=(0, 1), indices=(0, 1), metas=("", "{}")):
        row_hash = RowHash()
        row_hash.add(codes, flipped)
        return row_hash.hexdigest(keys, np.array(labels), np.array(indices), metas)

    digests = {
        digest(), digest(codes=rows + 1), digest(flipped=rows), digest(keys=(b"ab", b"")), digest(labels=(1, 1)),
        digest(indices=(0, 2)), digest(metas=("{}", "")), digest(metas=None),
    }  # fmt: skip
    assert len(digests) == 8


def test_identity_names_what_must_not_change():
    was = header().identity()
    for change in ({"image_size": 16}, {"transform": "adm/1"}, {"quantisation": "uint16"}, {"flipped": True},
                   {"precision": "bf16"}, {"source_sha256": "c" * 64}, {"num_images": 2},
                   {"autoencoder": {"sha256": "d" * 64, "config": {}}}):  # fmt: skip
        assert header(**change).identity() != was
    assert header(source="/moved").identity() == was
