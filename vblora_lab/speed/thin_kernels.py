"""The thin products of `thin_products`, as three Triton kernels.

    down_up     Ax = x A^T and y = b + Ax B^T                forward
    back        gAx = g B and gAx A, summed over layers      backward
    gradients   dA = gAx^T x and dB^T = Ax^T g               backward

Up to three layers with one input (q, k and v) are one launch. Their A's count as one matrix of r
rows a layer, of which row j is number j % r of layer j // r. Where a product is with the matrix of
one layer, the rows of the others are read as zeros. Sums are in float32, and those that are
multiplied again are rounded first, as they are between two products of PyTorch. No sum is split
over programs: results are the same from run to run.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("triton"):
    import triton
    import triton.language as tl
else:  # nobody asks for the kernels then
    triton = None

MAX_LAYERS = 3  # that a kernel has arguments for

if triton is not None:

    @triton.jit
    def _of(i: tl.constexpr, first, second, third):  # type: ignore[no-untyped-def]
        """What belongs to layer i."""
        if i == 0:
            return first
        elif i == 1:
            return second
        else:
            return third

    @triton.jit
    def _row_of(j, first, second, third, stride, R: tl.constexpr):  # type: ignore[no-untyped-def]
        """Where row j of all layers' matrices starts."""
        layer = j // R
        matrix = tl.where(layer == 0, first, tl.where(layer == 1, second, third))
        return matrix + (j % R) * stride

    @triton.jit
    def down_up(  # type: ignore[no-untyped-def]
        x,
        A_0,
        A_1,
        A_2,
        B_0,
        B_1,
        B_2,
        bias_0,
        bias_1,
        bias_2,
        y_0,
        y_1,
        y_2,
        Ax_of_all,
        rows,
        size_in,
        out_0,
        out_1,
        out_2,
        A_stride,
        B_stride,
        BIAS: tl.constexpr,
        LAYERS: tl.constexpr,
        R: tl.constexpr,
        BLOCK_R: tl.constexpr,
        TOKENS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
        j = tl.arange(0, BLOCK_R)
        is_row = j < LAYERS * R
        A = _row_of(j, A_0, A_1, A_2, A_stride, R)[None, :]
        sums = tl.zeros((TOKENS, BLOCK_R), tl.float32)
        for start in range(0, size_in, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < size_in
            xs = tl.load(x + t * size_in + i[None, :], mask=(t < rows) & inside[None, :], other=0.0)
            As = tl.load(A + i[:, None], mask=is_row[None, :] & inside[:, None], other=0.0)
            sums = tl.dot(xs, As, sums)
        Ax = sums.to(x.dtype.element_ty)
        if tl.program_id(1) == 0:
            there = Ax_of_all + t * (LAYERS * R) + j[None, :]
            tl.store(there, Ax, mask=(t < rows) & is_row[None, :])
        for layer in tl.static_range(LAYERS):
            B = _of(layer, B_0, B_1, B_2)
            y = _of(layer, y_0, y_1, y_2)
            size_out = _of(layer, out_0, out_1, out_2)
            mine = (j // R == layer)[:, None]
            B_rows = B + (j % R)[:, None] * B_stride
            step = BLOCK * tl.num_programs(1)
            for start in range(tl.program_id(1) * BLOCK, size_out, step):
                o = start + tl.arange(0, BLOCK)[None, :]
                Bs = tl.load(B_rows + o, mask=mine & (o < size_out), other=0.0)
                out = tl.dot(Ax, Bs)
                if BIAS:
                    bias = _of(layer, bias_0, bias_1, bias_2)
                    out += tl.load(bias + o, mask=o < size_out, other=0.0).to(tl.float32)
                there = y + t * size_out + o
                tl.store(there, out.to(x.dtype.element_ty), mask=(t < rows) & (o < size_out))

    @triton.jit
    def back(  # type: ignore[no-untyped-def]
        g_0,
        g_1,
        g_2,
        A_0,
        A_1,
        A_2,
        B_0,
        B_1,
        B_2,
        gAx_of_all,
        dx,
        rows,
        size_in,
        out_0,
        out_1,
        out_2,
        A_stride,
        B_stride,
        LAYERS: tl.constexpr,
        R: tl.constexpr,
        BLOCK_R: tl.constexpr,
        TOKENS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
        j = tl.arange(0, BLOCK_R)
        is_row = j < LAYERS * R
        sums = tl.zeros((TOKENS, BLOCK_R), tl.float32)
        for layer in tl.static_range(LAYERS):
            g = _of(layer, g_0, g_1, g_2)
            size_out = _of(layer, out_0, out_1, out_2)
            mine = (j // R == layer)[None, :]
            B_rows = _of(layer, B_0, B_1, B_2) + (j % R)[None, :] * B_stride
            for start in range(0, size_out, BLOCK):
                o = start + tl.arange(0, BLOCK)
                inside = o < size_out
                gs = tl.load(
                    g + t * size_out + o[None, :], mask=(t < rows) & inside[None, :], other=0.0
                )
                Bs = tl.load(B_rows + o[:, None], mask=mine & inside[:, None], other=0.0)
                sums = tl.dot(gs, Bs, sums)
        gAx = sums.to(dx.dtype.element_ty)
        if tl.program_id(1) == 0:
            there = gAx_of_all + t * (LAYERS * R) + j[None, :]
            tl.store(there, gAx, mask=(t < rows) & is_row[None, :])
        A = _row_of(j, A_0, A_1, A_2, A_stride, R)[:, None]
        for start in range(tl.program_id(1) * BLOCK, size_in, BLOCK * tl.num_programs(1)):
            i = start + tl.arange(0, BLOCK)[None, :]
            As = tl.load(A + i, mask=is_row[:, None] & (i < size_in), other=0.0)
            out = tl.dot(gAx, As).to(dx.dtype.element_ty)
            tl.store(dx + t * size_in + i, out, mask=(t < rows) & (i < size_in))

    @triton.jit
    def gradients(  # type: ignore[no-untyped-def]
        x,
        g_0,
        g_1,
        g_2,
        Ax,
        gAx,
        dA_0,
        dA_1,
        dA_2,
        dB_0,
        dB_1,
        dB_2,
        rows,
        size_in,
        out_0,
        out_1,
        out_2,
        LAYERS: tl.constexpr,
        R: tl.constexpr,
        BLOCK_R: tl.constexpr,
        TOKENS: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        j = tl.arange(0, BLOCK_R)
        # Programs come in ranges: columns of x, of the first g, of the second, of the third.
        number = tl.program_id(0)
        before = tl.cdiv(size_in, WIDTH)
        if number < before:
            sums = _sums(gAx, x, rows, size_in, number, LAYERS * R, BLOCK_R, TOKENS, WIDTH)
            i = number * WIDTH + tl.arange(0, WIDTH)[None, :]
            there = _row_of(j, dA_0, dA_1, dA_2, size_in, R)[:, None] + i
            inside = (j < LAYERS * R)[:, None] & (i < size_in)
            tl.store(there, sums.to(x.dtype.element_ty), mask=inside)
        number -= before
        for layer in tl.static_range(LAYERS):
            size_out = _of(layer, out_0, out_1, out_2)
            blocks = tl.cdiv(size_out, WIDTH)
            if (number >= 0) & (number < blocks):
                g = _of(layer, g_0, g_1, g_2)
                sums = _sums(Ax, g, rows, size_out, number, LAYERS * R, BLOCK_R, TOKENS, WIDTH)
                o = number * WIDTH + tl.arange(0, WIDTH)[None, :]
                dB = _of(layer, dB_0, dB_1, dB_2)
                there = dB + (j % R)[:, None] * size_out + o
                inside = (j // R == layer)[:, None] & (o < size_out)
                tl.store(there, sums.to(x.dtype.element_ty), mask=inside)
            number -= blocks

    @triton.jit
    def _sums(  # type: ignore[no-untyped-def]
        thin,
        wide,
        rows,
        size,
        number,
        THIN: tl.constexpr,
        BLOCK_R: tl.constexpr,
        TOKENS: tl.constexpr,
        WIDTH: tl.constexpr,
    ):
        """Of thin^T wide, (THIN, size), the columns of one program."""
        j = tl.arange(0, BLOCK_R)
        i = number * WIDTH + tl.arange(0, WIDTH)[None, :]
        sums = tl.zeros((BLOCK_R, WIDTH), tl.float32)
        for start in range(0, rows, TOKENS):
            t = start + tl.arange(0, TOKENS).to(tl.int64)
            inside = t < rows
            thin_mask = (j < THIN)[:, None] & inside[None, :]
            thins = tl.load(thin + t[None, :] * THIN + j[:, None], mask=thin_mask, other=0.0)
            wides = tl.load(
                wide + t[:, None] * size + i, mask=inside[:, None] & (i < size), other=0.0
            )
            sums = tl.dot(thins, wides, sums)
        return sums
