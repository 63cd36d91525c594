"""`brics doctor` on machines that this one is not."""

from __future__ import annotations

import pytest
import torch

from brics_cli.jobs import doctor


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_missing_compiler_matters_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, has_gpu: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(doctor, "missing_for_triton", lambda: "a C compiler: apt install gcc, or set CC")
    check = doctor._compiler()
    assert check.ok is not has_gpu and "apt install gcc" in check.found and bool(check.advice) is has_gpu
    monkeypatch.setattr(doctor, "missing_for_triton", lambda: "")
    assert doctor._compiler().ok
