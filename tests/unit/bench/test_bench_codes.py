"""`brics bench encode` counts what it says, with threads and with processes."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest
import torch

from brics_cli.bench import encode
from brics_cli.images import loader


def bench() -> dict[str, Any]:
    return encode.bench_encode(
        num_images=120, width=24, codec="png", size=16, repeats=1, device=torch.device("cpu"), num_workers=2
    ).value


def test_all_images_go_through_the_real_path() -> None:
    measured = bench()
    assert (measured["num_images"], measured["size"], measured["num_workers"]) == (120, 16, 2)
    assert measured["processes_img_per_s"] is None
    (encoding,) = measured["encodings"]
    assert encoding["network"] == "none" and encoding["img_per_s"] == measured["pipeline_img_per_s"]
    assert 0 < encoding["early_peak_mib"] <= encoding["peak_mib"]
    assert measured["ratio"] > 0 and measured["alone_cpu_us_per_img"] > 0


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux' memfd_create")
def test_decoding_in_processes_is_measured_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "WORTH_A_PROCESS", 60)
    measured = bench()
    assert measured["processes_img_per_s"] > 0


def test_every_process_decodes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(encode, "load_pixels", lambda data, **options: decoded.append(data))
    encode._hold([b"a", b"b", b"c"], 64, multiprocessing.get_context("spawn").Barrier(1))
    encode._decode_share((0, 2))
    assert decoded == [b"a", b"c"]
    encode._decode_share((1, 2))
    assert decoded == [b"a", b"c", b"b"]
