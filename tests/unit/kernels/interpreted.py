"""Runs the Triton kernels in Triton's interpreter and prints, per case, how far they are from the float64 reference.

    TRITON_INTERPRET=1 BRICS_KERNELS=triton python interpreted.py CASE ...

A process of its own, because triton reads TRITON_INTERPRET when it is imported. Case: key_dim-positions-index-dtype,
where the index `wide` is a tiled level of more than 2^31 vertices.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from grids import example, lattice_of, spec_of

from brics_cli.kernels import grid_retrieve, reference, triton_retrieve


def errors_of(case: str) -> dict[str, float]:
    """Largest differences, each relative to the largest value of its kind: features, gradients, and their reruns."""
    key_dim, positions, index, dtype_name = case.split("-")
    cap = None if index == "dense" else 40
    spec = spec_of(int(key_dim), positions, cap, "hash" if index == "hash" else "tiled")
    if index == "wide":
        spec = replace(spec, resolutions=(3, 1290))
    lattice, dtype = lattice_of(spec), getattr(torch, dtype_name)
    keys, tables, grad = example(spec, num_images=6 if key_dim == "1" else 2)  # 144 or 48 tokens
    keys = (keys * 2048).round() / 2048  # so that places in 1290 cells are exact in float32 too
    tables = tables.to(dtype).double()
    exact = (
        reference.retrieve(keys, tables, spec, lattice),
        *reference.retrieve_backward(grad, keys, tables, spec, lattice),
    )
    leaves = keys.float().requires_grad_(), tables.to(dtype).requires_grad_()
    features = grid_retrieve(*leaves, spec, lattice=lattice)
    found = features, *torch.autograd.grad(features, leaves, grad.float())
    assert [each.dtype for each in found] == [torch.float32, torch.float32, dtype]
    errors = {
        name: ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()
        for name, ours, theirs in zip(("features", "keys_grad", "tables_grad"), found, exact, strict=True)
    }
    if index == "dense" and dtype == torch.float32:
        torch.use_deterministic_algorithms(True)
        ordered = triton_retrieve.retrieve_backward(grad.float(), *(leaf.detach() for leaf in leaves), spec, lattice)
        torch.use_deterministic_algorithms(False)
        errors["deterministic"] = max(
            ((ours.double() - theirs).abs().max() / theirs.abs().max()).item()
            for ours, theirs in zip(ordered, exact[1:], strict=True)
        )
    return errors


if __name__ == "__main__":
    print(json.dumps({case: errors_of(case) for case in sys.argv[1:]}))
