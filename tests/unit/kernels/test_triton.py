"""The Triton kernels on the CPU, in Triton's interpreter, and compiled for a GPU that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton comes with the CUDA builds of torch")

HERE = Path(__file__).parent
# At least one of every key dimension, positions, index and dtype; every combination is in the slow test.
CASES = [
    "1-none-dense-float32", "2-none-dense-bfloat16", "3-none-dense-float32", "2-none-tiled-float32",
    "3-none-hash-float32", "1-image-dense-float32", "1-image-tiled-bfloat16", "2-cell-hash-float32",
    "3-none-wide-float32",
]  # fmt: skip
EVERY_CASE = [
    "-".join(parts)
    for parts in product("123", ("none", "image", "cell"), ("dense", "tiled", "hash"), ("float32", "bfloat16"))
]
# Relative to the largest value. bf16 gradients of tables: 8 bits.
TOLERANCE = {"features": 1e-6, "keys_grad": 1e-6, "tables_grad": 1e-6, "deterministic": 1e-6}


def interpreted(cases: list[str]) -> dict[str, dict[str, float]]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "BRICS_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, HERE / "interpreted.py", *cases]
    result = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def check(case: str, errors: dict[str, float]) -> None:
    for name, error in errors.items():
        rounds_to_bf16 = name == "tables_grad" and case.endswith("bfloat16")
        assert error <= (2**-8 if rounds_to_bf16 else TOLERANCE[name]), f"{case}: {name} is off by {error:.1e}"


@pytest.fixture(scope="module")
def short_run() -> dict[str, dict[str, float]]:
    return interpreted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_agree_with_the_float64_reference(case: str, short_run) -> None:
    check(case, short_run[case])


@pytest.mark.slow
def test_the_kernels_agree_with_the_float64_reference_in_every_case() -> None:
    for case, errors in interpreted(EVERY_CASE).items():
        check(case, errors)


def test_no_command_on_a_cpu_needs_triton() -> None:
    """Forward and backward in a process in which importing triton fails."""
    script = """
import sys; sys.modules["triton"] = None
import torch
from brics_cli.kernels import GridSpec, grid_retrieve
keys = torch.rand(2, 16, 2, requires_grad=True)
tables = torch.rand(2, 25, 4, requires_grad=True)
grid_retrieve(keys, tables, GridSpec(2, (4,), 4)).sum().backward()
print(tuple(keys.grad.shape), tuple(tables.grad.shape))
"""
    environment = {name: value for name, value in os.environ.items() if name != "BRICS_KERNELS"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.stdout == "(2, 16, 2) (2, 25, 4)\n", result.stderr


@pytest.mark.slow
def test_the_kernels_compile_for_hopper_without_spilling() -> None:
    """Every kernel of the paper's grids to machine code for sm_90: needs triton's own ptxas, no GPU."""
    script = """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from brics_cli.kernels import GridSpec, triton_kernels, triton_retrieve
spec = GridSpec(1, (4, 16, 64), 4, "image", table_cap=2**18)
types = {"tables": "*bf16", "levels": "*i32", **dict.fromkeys(("num_tokens", "num_rows", "height", "width"), "i32")}
types |= dict.fromkeys(("keys", "features", "grad", "keys_grad", "tables_grad"), "*fp32")
for kernel, options in triton_retrieve.launches(spec).items():
    function, warps = getattr(triton_kernels, kernel), options.pop("num_warps", 4)
    names = function.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in options.items()}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if types.get(name, "").startswith("*")}
    target = GPUTarget("cuda", 90, 32)
    compiled = compile(ASTSource(function, signature, constants, aligned), target=target, options={"num_warps": warps})
    ptx = compiled.asm["ptx"]
    print(json.dumps([kernel, len(compiled.asm["cubin"]) > 0, ".v4.f32" in ptx, ".local" in ptx]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = {name: rest for name, *rest in map(json.loads, result.stdout.splitlines())}
    assert set(found) == {"forward", "backward", "pooled_backward"}
    assert all(cubin and not uses_local_memory for cubin, _, uses_local_memory in found.values())
    assert found["backward"][1]  # four features at a time are added
