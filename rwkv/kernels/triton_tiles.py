"""What the Triton kernels of several operations share: decays in base 2, and tiles of C tokens of one head.

Tensors of tokens are [B, T, H, N]; n chunks, G = B*H. `live` masks what lies beyond the last token or channel.
"""

import os

import triton
import triton.language as tl

SIZES = ["n", "G", "H", "T"]  # one compiled kernel serves all
LOG2_E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")  # the interpreter knows no PTX


@triton.jit
def exp2_fast(x):
    """Without the scaling that keeps denormal results, a third of the instructions."""
    if COMPILED:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def exp_exact(x):
    """e^x to the last digit for x <= 88: the logarithm of a fast decay is e^x, and an error in it one of the decay's digits."""
    x = tl.where(x < -104.0, -104.0, x)  # where it is 0
    n = tl.floor(x * LOG2_E + 0.5)
    f = x - n * 0.693359375 + n * 2.12194440e-4  # x - n ln 2, whose first part has few digits
    series = ((f * (1.0 / 5040.0) + 1.0 / 720.0) * f + 1.0 / 120.0) * f + 1.0 / 24.0
    return ((((series * f + 1.0 / 6.0) * f + 0.5) * f + 1.0) * f + 1.0) * tl.exp2(n)


@triton.jit
def sigmoid(x):
    y = 1.0 + exp2_fast(x * -LOG2_E)
    if COMPILED:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / y


@triton.jit
def place(n, G, H, T, C: tl.constexpr, N: tl.constexpr):
    """This program's batch row, first token, tile number, and the offset of its first token in [B, T, H, N]."""
    pid = tl.program_id(0).to(tl.int64)
    g, c = pid % G, pid // G  # heads of one chunk side by side: their tokens share memory pages
    return g // H, c * C, g * n + c, first_token(g, c, H, T, C, N)


@triton.jit
def first_token(g, c, H, T, C: tl.constexpr, N: tl.constexpr):
    """The offset in [B, T, H, N] of the first token of chunk c of head g, an int64."""
    return ((g // H * T + c * C) * H + g % H) * N


@triton.jit
def segments(reset, row, t0, T, C: tl.constexpr, RESET: tl.constexpr):
    """[C] number of the segment of each token, and the last one's; constants that fold away without resets."""
    if RESET:
        t = t0 + tl.arange(0, C)
        index = tl.cumsum(tl.load(reset + row * T + t, mask=t < T, other=0).to(tl.int32), 0)
        return index, tl.max(index, 0)
    else:
        return tl.zeros([C], tl.int32), 0


@triton.jit
def load(x, at, live):
    return tl.load(x + at, mask=live, other=0.0).to(tl.float32)


@triton.jit
def dot(x, y, DOT: tl.constexpr, PREC: tl.constexpr):
    return tl.dot(x.to(DOT), y.to(DOT), input_precision=PREC)
