"""Double-double: an unevaluated sum high + low of two float64, over numbers and over wide vectors alike.

With u = 2^-53 and no underflow. A pair is normal when |low| <= u |high|. Every function wants normal pairs and, but for
`lean_product`, returns one; relative errors as in Joldes, Muller, Popescu, "Tight and rigorous error bounds for basic
building blocks of double-word arithmetic" (2017):

    add        3 u^2 / (1 - 4 u)     their algorithm 6
    times      5 u^2                 their algorithm 11
    over       16 u^2                their algorithm 17
    root       8 u^2                 the rounded root s and (x - s^2) / 2 s, x - s^2 being exact but for one rounding

and of the elementary functions, each below 2^-98 = 256 u^2:

    exp        x = n ln2 + r, |r| <= ln2 / 2, ln2 in three parts: n of the first and its difference from x are exact, r
               errs by less than 2 u^2; e^r by Taylor's polynomial of degree 24, whose tail is below 2^-115 and whose
               steps err by 8 u^2, each a third of the next: 40 u^2 in all
    sigmoid    1 / (1 + E) or E / (1 + E), E = e^-|x|: 40 + 3 + 16 u^2
    softplus   max(x, 0) + 2 artanh(E / (2 + E)): the quotient 40 + 3 + 16 u^2, the series in its square (at most 1/9)
               to 33 terms, a tail of 2^-106 of the whole and steps of 8 u^2, each a ninth of the next

What underflows is off by 2^-1073 besides. Every operation is one IEEE rounding or an explicit fma: the same bits on
every machine.
"""

from __future__ import annotations

from fractions import Fraction
from math import factorial

from ._jit import inline
from ._simd import fma, power_of_two, sqrt

SHIFT = 6755399441055744.0  # 1.5 * 2^52: adding and subtracting it rounds to an integer
ONE_OVER_LN2 = 1.4426950408889634
LN2_A, LN2_B, LN2_C = (
    0.6931471805592082,
    7.371002565167799e-13,
    1.94704509238075e-31,
)  # the first has 40 bits: n LN2_A is exact


def pairs(numbers: list[Fraction]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """High and low parts of exact fractions."""
    high = tuple(float(x) for x in numbers)
    return high, tuple(float(x - Fraction(h)) for x, h in zip(numbers, high, strict=True))


TAYLOR, TAYLOR_LOW = pairs([Fraction(1, factorial(i)) for i in range(25)])
ODD, ODD_LOW = pairs([Fraction(1, 2 * i + 1) for i in range(33)])


@inline
def fast_two_sum(a, b):
    """a + b = high + low exactly, for |a| >= |b|."""
    high = a + b
    return high, b - (high - a)


@inline
def two_sum(a, b):
    """a + b = high + low exactly."""
    high = a + b
    c = high - a
    return high, (a - (high - c)) + (b - c)


@inline
def two_product(a, b):
    """a b = high + low exactly."""
    high = a * b
    return high, fma(a, b, -high)


@inline
def add(xh, xl, yh, yl):
    s, t = two_sum(xh, yh)
    v, w = two_sum(xl, yl)
    s, t = fast_two_sum(s, t + v)
    return fast_two_sum(s, t + w)


@inline
def times(xh, xl, yh, yl):
    p, e = two_product(xh, yh)
    return fast_two_sum(p, e + fma(xh, yl, xl * yh))


@inline
def lean_product(xh, xl, yh, yl):
    """x y as high + low, not normalised: |low| <= 6 u |x y| and an error of at most 12 u^2 |x y|, for |xl| <= 4 u |xh|
    and |yl| <= u |yh|."""
    p = xh * yh
    return p, fma(xl, yh, fma(xh, yl, fma(xh, yh, -p)))


@inline
def over(xh, xl, yh, yl):
    t = xh / yh
    p, e = two_product(yh, t)
    ph, pl = fast_two_sum(p, fma(yl, t, e))
    return fast_two_sum(t, ((xh - ph) + (xl - pl)) / yh)


@inline
def root(xh, xl):
    """The square root of a number that is not negative."""
    if xh == 0.0:
        return xh, xl
    s = sqrt(xh)
    return fast_two_sum(s, (fma(-s, s, xh) + xl) / (s + s))


@inline
def exp(xh, xl):
    """e^x. Arguments beyond the range of float64 are drawn to its edge."""
    if xh < -760.0 or xh > 720.0:
        xh, xl = min(max(xh, -760.0), 720.0), 0.0
    n = (xh * ONE_OVER_LN2 + SHIFT) - SHIFT
    rh, rl = two_sum(fma(-n, LN2_A, xh), xl)
    p, e = two_product(n, LN2_B)
    rh, rl = add(rh, rl, -p, -(e + n * LN2_C))
    h, l = TAYLOR[24], TAYLOR_LOW[24]
    for i in range(23, -1, -1):
        h, l = times(h, l, rh, rl)
        h, l = add(h, l, TAYLOR[i], TAYLOR_LOW[i])
    half = (n * 0.5 + SHIFT) - SHIFT
    a, b = power_of_two(half + SHIFT), power_of_two((n - half) + SHIFT)
    return (h * a) * b, (l * a) * b


@inline
def sigmoid(xh, xl):
    """1 / (1 + e^-x)"""
    if xh < 0.0:
        h, l = exp(xh, xl)
        dh, dl = add(h, l, 1.0, 0.0)
        return over(h, l, dh, dl)
    h, l = exp(-xh, -xl)
    dh, dl = add(h, l, 1.0, 0.0)
    return over(1.0, 0.0, dh, dl)


@inline
def softplus(xh, xl):
    """log(1 + e^x)"""
    if xh < 0.0:
        h, l = exp(xh, xl)
    else:
        h, l = exp(-xh, -xl)
    dh, dl = add(h, l, 2.0, 0.0)
    fh, fl = over(h, l, dh, dl)
    sh, sl = times(fh, fl, fh, fl)
    h, l = ODD[32], ODD_LOW[32]
    for i in range(31, -1, -1):
        h, l = times(h, l, sh, sl)
        h, l = add(h, l, ODD[i], ODD_LOW[i])
    h, l = times(h, l, fh + fh, fl + fl)
    if xh > 0.0:
        h, l = add(h, l, xh, xl)
    return h, l
