"""The Triton kernels of retrieval. Only `triton_retrieve` imports this, and only where a kernel is launched.

Letters as in `reference`: tokens run over M, rows over V, features over F (padded to a power of two). `levels` (L, 3)
is cells, first row and number of each level, the NUM_DENSE dense ones first; it is read in loops, so that one compiled
kernel is as long for 16 levels as for one. A token's query is held as q0 .. q4, the unused ones idle: Triton has no
arrays of tensors. WIDE: row numbers or table offsets do not fit 32 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    keys, tables, levels, features, num_tokens, num_rows, height, width,
    KEY_DIM: tl.constexpr, POSITIONS: tl.constexpr, CELL: tl.constexpr, F: tl.constexpr, F_PADDED: tl.constexpr,
    NUM_LEVELS: tl.constexpr, NUM_DENSE: tl.constexpr, CAP: tl.constexpr, HASH: tl.constexpr, PRIMES: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """features (M, G, L * F) of keys (G, M, key_dim); grid (blocks of tokens, G)."""
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keys += group * num_tokens * KEY_DIM
    tables += group * num_rows * F
    features += group * (NUM_LEVELS * F)
    of_token = tl.num_programs(1).to(tl.int64) * (NUM_LEVELS * F)
    q0, q1, q2, q3, q4 = _queries(keys, token, num_tokens, height, width, KEY_DIM, POSITIONS, CELL)
    feature = tl.arange(0, F_PADDED)[None, :]
    mask = (token < num_tokens)[:, None] & (feature < F)
    D: tl.constexpr = KEY_DIM + (2 if POSITIONS else 0)
    UNROLLED: tl.constexpr = 8 if D > 3 else 1 << D  # more corners than eight take minutes to compile
    for dense in tl.static_range(2):
        for index in range(0 if dense else NUM_DENSE, NUM_DENSE if dense else NUM_LEVELS):
            cells = tl.load(levels + 3 * index)
            start = tl.load(levels + 3 * index + 1)
            number = tl.load(levels + 3 * index + 2)
            c0, c1, c2, c3, c4, p0, p1, p2, p3, p4 = _places(cells, q0, q1, q2, q3, q4, D)
            value = tl.zeros((BLOCK, F_PADDED), tl.float32)
            for high in range((1 << D) // UNROLLED):
                for low in tl.static_range(UNROLLED):
                    row = _row(high, low, cells, c0, c1, c2, c3, c4, D, dense == 1, CAP, HASH, PRIMES, WIDE)
                    weight = _weight(high, low, -1, p0, p1, p2, p3, p4, D)
                    at_corner = tl.load(tables + (start + row)[:, None] * F + feature, mask=mask, other=0.0)
                    value += weight[:, None] * at_corner.to(tl.float32)
            tl.store(features + token[:, None] * of_token + number * F + feature, value, mask=mask)


@triton.jit
def backward(
    grad, keys, tables, levels, keys_grad, tables_grad, num_tokens, num_rows, height, width,
    KEY_DIM: tl.constexpr, POSITIONS: tl.constexpr, CELL: tl.constexpr, F: tl.constexpr, F_PADDED: tl.constexpr,
    NUM_LEVELS: tl.constexpr, NUM_DENSE: tl.constexpr, CAP: tl.constexpr, HASH: tl.constexpr, PRIMES: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, NUM_POOLED: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """keys_grad (G, M, key_dim), and added to tables_grad (G, V, F) that of all levels but the NUM_POOLED first ones,
    of grad (M, G, L * F).

    Grid as in `forward`. Not ADDS: tables_grad is left alone.
    """
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    grad += group * (NUM_LEVELS * F)
    of_token = tl.num_programs(1).to(tl.int64) * (NUM_LEVELS * F)
    keys += group * num_tokens * KEY_DIM
    keys_grad += group * num_tokens * KEY_DIM
    tables += group * num_rows * F
    tables_grad += group * num_rows * F
    q0, q1, q2, q3, q4 = _queries(keys, token, num_tokens, height, width, KEY_DIM, POSITIONS, CELL)
    feature = tl.arange(0, F_PADDED)[None, :]
    mask = (token < num_tokens)[:, None] & (feature < F)
    g0 = tl.zeros((BLOCK,), tl.float32)
    g1 = tl.zeros((BLOCK,), tl.float32)
    g2 = tl.zeros((BLOCK,), tl.float32)
    D: tl.constexpr = KEY_DIM + (2 if POSITIONS else 0)
    UNROLLED: tl.constexpr = 8 if D > 3 else 1 << D
    for part in tl.static_range(3):  # pooled levels, other dense levels, levels above the cap
        for index in range(
            0 if part == 0 else (NUM_POOLED if part == 1 else NUM_DENSE),
            NUM_POOLED if part == 0 else (NUM_DENSE if part == 1 else NUM_LEVELS),
        ):
            cells = tl.load(levels + 3 * index)
            start = tl.load(levels + 3 * index + 1)
            number = tl.load(levels + 3 * index + 2)
            of_level = grad + token[:, None] * of_token + number * F + feature
            of_level = tl.load(of_level, mask=mask, other=0.0)
            c0, c1, c2, c3, c4, p0, p1, p2, p3, p4 = _places(cells, q0, q1, q2, q3, q4, D)
            for high in range((1 << D) // UNROLLED):
                for low in tl.static_range(UNROLLED):
                    row = _row(high, low, cells, c0, c1, c2, c3, c4, D, part < 2, CAP, HASH, PRIMES, WIDE)
                    offset = (start + row)[:, None] * F + feature
                    at_corner = tl.load(tables + offset, mask=mask, other=0.0).to(tl.float32)
                    along = tl.sum(at_corner * of_level, axis=1) * cells.to(tl.float32)
                    g0 += along * _weight(high, low, 0, p0, p1, p2, p3, p4, D)
                    if KEY_DIM > 1:
                        g1 += along * _weight(high, low, 1, p0, p1, p2, p3, p4, D)
                    if KEY_DIM > 2:
                        g2 += along * _weight(high, low, 2, p0, p1, p2, p3, p4, D)
                    if ADDS and part > 0:
                        weight = _weight(high, low, -1, p0, p1, p2, p3, p4, D)
                        tl.atomic_add(tables_grad + offset, weight[:, None] * of_level, mask=mask, sem="relaxed")
    at = keys_grad + token.to(tl.int64) * KEY_DIM
    tl.store(at, g0, mask=token < num_tokens)
    if KEY_DIM > 1:
        tl.store(at + 1, g1, mask=token < num_tokens)
    if KEY_DIM > 2:
        tl.store(at + 2, g2, mask=token < num_tokens)


@triton.jit
def pooled_backward(
    grad, keys, levels, tables_grad, num_tokens, num_rows, height, width,
    KEY_DIM: tl.constexpr, POSITIONS: tl.constexpr, CELL: tl.constexpr, F: tl.constexpr, F_PADDED: tl.constexpr,
    NUM_LEVELS: tl.constexpr, NUM_DENSE: tl.constexpr, CAP: tl.constexpr, HASH: tl.constexpr, PRIMES: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Add to tables_grad (G, V, F) the gradient of the first levels, of grad (M, G, L * F); grid (chunks of tokens, G,
    levels).

    The weights of a block of tokens on all ROWS rows are one matrix, a product of hat functions of the axes; its
    product with the gradient is the block's sum per row. One atomic per row and feature ends STEPS blocks.
    """
    group = tl.program_id(1).to(tl.int64)
    index = tl.program_id(2)
    cells = tl.load(levels + 3 * index)
    start = tl.load(levels + 3 * index + 1)
    number = tl.load(levels + 3 * index + 2)
    grad += group * (NUM_LEVELS * F) + number * F
    of_token = tl.num_programs(1).to(tl.int64) * (NUM_LEVELS * F)
    keys += group * num_tokens * KEY_DIM
    tables_grad += group * num_rows * F
    feature = tl.arange(0, F_PADDED)[None, :]
    row = tl.arange(0, ROWS)
    D: tl.constexpr = KEY_DIM + (2 if POSITIONS else 0)
    num_vertices = 1
    for _ in tl.static_range(D):
        num_vertices *= cells + 1
    in_level = (row < num_vertices)[:, None]
    total = tl.zeros((ROWS, F_PADDED), tl.float32)
    for step in range(STEPS):
        begin = (tl.program_id(0) * STEPS + step) * BLOCK
        if begin < num_tokens:
            token = begin + tl.arange(0, BLOCK)
            q0, q1, q2, q3, q4 = _queries(keys, token, num_tokens, height, width, KEY_DIM, POSITIONS, CELL)
            mask = (token < num_tokens)[:, None] & (feature < F)
            of_level = grad + token[:, None] * of_token + feature
            of_level = tl.load(of_level, mask=mask, other=0.0)
            weights = tl.full((ROWS, BLOCK), 1.0, tl.float32)
            coordinates = row
            for back in tl.static_range(D):  # the last axis is the fastest digit of a row
                vertex = (coordinates % (cells + 1)).to(tl.float32)[:, None]
                coordinates = coordinates // (cells + 1)
                position = _pick(D - 1 - back, q0, q1, q2, q3, q4)[None, :] * cells.to(tl.float32)
                weights *= tl.maximum(1.0 - tl.abs(position - vertex), 0.0)
            weights = tl.where(in_level, weights, 0.0)  # the digits of rows past the last wrapped round
            total += tl.dot(weights, of_level, input_precision="ieee")
    at = tables_grad + (start + row)[:, None] * F + feature
    tl.atomic_add(at, total, mask=in_level & (feature < F), sem="relaxed")


@triton.jit
def _centre(index, num_cells):
    """(index + 1/2) / num_cells, rounded as torch rounds it: `/` is approximate on a GPU (2 ulp)."""
    return tl.math.div_rn(index.to(tl.float32) + 0.5, tl.zeros(index.shape, tl.float32) + num_cells)


@triton.jit
def _queries(
    keys, token, num_tokens, height, width, KEY_DIM: tl.constexpr, POSITIONS: tl.constexpr, CELL: tl.constexpr
):
    """The axes of each token's query: its keys, then y and x; axes it has not repeat the first."""
    mask = token < num_tokens
    at = keys + token.to(tl.int64) * KEY_DIM
    q0 = tl.load(at, mask=mask, other=0.0)
    q1 = q0
    q2 = q0
    q3 = q0
    q4 = q0
    if KEY_DIM > 1:
        q1 = tl.load(at + 1, mask=mask, other=0.0)
    if KEY_DIM > 2:
        q2 = tl.load(at + 2, mask=mask, other=0.0)
    if POSITIONS > 0:
        i = (token // width) % height
        j = token % width
        if POSITIONS == 1:
            y = _centre(i, height)
            x = _centre(j, width)
        else:
            y = _centre(i % CELL, CELL)
            x = _centre(j % CELL, CELL)
        if KEY_DIM == 1:
            q1 = y
            q2 = x
        elif KEY_DIM == 2:
            q2 = y
            q3 = x
        else:
            q3 = y
            q4 = x
    return q0, q1, q2, q3, q4


@triton.jit
def _pick(d: tl.constexpr, a0, a1, a2, a3, a4):
    if d == 0:
        a = a0
    elif d == 1:
        a = a1
    elif d == 2:
        a = a2
    elif d == 3:
        a = a3
    else:
        a = a4
    return a


@triton.jit
def _places(cells, q0, q1, q2, q3, q4, D: tl.constexpr):
    """c0 .. c4, the cell that each axis of a query is in, and p0 .. p4, its place in that cell, in [0, 1].

    A NaN is in cell 0, at place NaN.
    """
    c0, p0 = _place(cells, q0)
    c1, p1, c2, p2, c3, p3, c4, p4 = c0, p0, c0, p0, c0, p0, c0, p0
    if D > 1:
        c1, p1 = _place(cells, q1)
    if D > 2:
        c2, p2 = _place(cells, q2)
    if D > 3:
        c3, p3 = _place(cells, q3)
    if D > 4:
        c4, p4 = _place(cells, q4)
    return c0, c1, c2, c3, c4, p0, p1, p2, p3, p4


@triton.jit
def _place(cells, q):
    position = q * cells.to(tl.float32)
    cell = tl.minimum(tl.maximum(tl.floor(position), 0.0), cells.to(tl.float32) - 1.0)
    return cell.to(tl.int32), position - cell


@triton.jit
def _row(
    high, low: tl.constexpr, cells, c0, c1, c2, c3, c4,
    D: tl.constexpr, DENSE: tl.constexpr, CAP: tl.constexpr, HASH: tl.constexpr, PRIMES: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The row, within its level, of corner 8 * high + low, whose lowest bit is its side along the last axis."""
    row = tl.zeros(c0.shape, tl.uint32 if HASH and not DENSE else (tl.int64 if WIDE else tl.int32))
    for d in tl.static_range(D):
        side = (low >> (D - 1 - d)) & 1 if D - 1 - d < 3 else (high >> (D - 4 - d)) & 1
        vertex = _pick(d, c0, c1, c2, c3, c4) + side
        if HASH and not DENSE:
            row ^= vertex.to(tl.uint32) * PRIMES[d]
        else:
            row = row * (cells + 1) + vertex
    return row if DENSE else (row % CAP).to(tl.int64 if WIDE else tl.int32)


@triton.jit
def _weight(high, low: tl.constexpr, slope: tl.constexpr, p0, p1, p2, p3, p4, D: tl.constexpr):
    """The weight of corner 8 * high + low; for slope >= 0 its derivative by the place along that axis."""
    weight = tl.full(p0.shape, 1.0, tl.float32)
    for d in tl.static_range(D):
        side = (low >> (D - 1 - d)) & 1 if D - 1 - d < 3 else (high >> (D - 4 - d)) & 1
        if d == slope:
            weight *= 2.0 * side - 1.0
        else:
            place = _pick(d, p0, p1, p2, p3, p4)
            if D - 1 - d < 3:
                weight *= place if side else 1.0 - place
            else:
                weight *= tl.where(side == 1, place, 1.0 - place)
    return weight
