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
    def _down(sums, wide, thin, mine, t, rows, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        """Add the tokens' rows of wide (rows, size), times the rows of thin that are mine."""
        for start in range(0, size, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < size
            wides = tl.load(
                wide + t * size + i[None, :], mask=(t < rows) & inside[None, :], other=0.0
            )
            thins = tl.load(thin + i[:, None], mask=mine & inside[:, None], other=0.0)
            sums = tl.dot(wides, thins, sums)
        return sums

    @triton.jit
    def _kept(sums, thin, t, rows, SIZE: tl.constexpr, BLOCK_R: tl.constexpr):  # type: ignore[no-untyped-def]
        """The sums, rounded, which one of the tokens' programs stores in thin (rows, SIZE)."""
        j = tl.arange(0, BLOCK_R)[None, :]
        rounded = sums.to(thin.dtype.element_ty)
        if tl.program_id(1) == 0:
            tl.store(thin + t * SIZE + j, rounded, mask=(t < rows) & (j < SIZE))
        return rounded

    @triton.jit
    def _up(  # type: ignore[no-untyped-def]
        sums, thin, mine, wide, bias, t, rows, size, BIAS: tl.constexpr, BLOCK: tl.constexpr
    ):
        """Store in wide (rows, size) the sums times the rows of thin that are mine, and a bias."""
        for start in range(tl.program_id(1) * BLOCK, size, BLOCK * tl.num_programs(1)):
            i = start + tl.arange(0, BLOCK)[None, :]
            inside = i < size
            out = tl.dot(sums, tl.load(thin + i, mask=mine & inside, other=0.0))
            if BIAS:
                out += tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
            there = wide + t * size + i
            tl.store(there, out.to(wide.dtype.element_ty), mask=(t < rows) & inside)

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
        sums = _down(sums, x, A, is_row[None, :], t, rows, size_in, BLOCK)
        Ax = _kept(sums, Ax_of_all, t, rows, LAYERS * R, BLOCK_R)
        for layer in tl.static_range(LAYERS):
            B = _of(layer, B_0, B_1, B_2) + (j % R)[:, None] * B_stride
            mine = (j // R == layer)[:, None]
            y = _of(layer, y_0, y_1, y_2)
            bias = _of(layer, bias_0, bias_1, bias_2)
            _up(Ax, B, mine, y, bias, t, rows, _of(layer, out_0, out_1, out_2), BIAS, BLOCK)

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
            B = _of(layer, B_0, B_1, B_2) + (j % R)[None, :] * B_stride
            mine = (j // R == layer)[None, :]
            sums = _down(sums, g, B, mine, t, rows, _of(layer, out_0, out_1, out_2), BLOCK)
        gAx = _kept(sums, gAx_of_all, t, rows, LAYERS * R, BLOCK_R)
        A = _row_of(j, A_0, A_1, A_2, A_stride, R)[:, None]
        _up(gAx, A, is_row[:, None], dx, dx, t, rows, size_in, False, BLOCK)

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
