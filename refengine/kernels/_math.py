"""exp, log, sigmoid, softplus and 1/sqrt with the same bits on every machine (libm's and NumPy's differ between
releases and CPUs).

Each is computed in double-double (an unevaluated sum high + low, |low| <= ulp(high) / 2) to a relative 2^-65 or
better and rounded once, so it is within 0.51 ulp of the exact value and nearly always correctly rounded; the bounds
elsewhere assume one whole ulp, 2 u. Results below 2^-1022 are rounded twice and are within 2^-1073. `quick_sigmoid`, on
which no proved bound rests, is within 0.7 ulp.

    exp       x = n ln2 + r, |r| <= ln2 / 2; e^r = sum r^i / i!, i <= 5 in double-double, 6..17 in double (2^-18)
    log       x = m 2^n, f = (m - 1) / (m + 1); log m = 2 f (1 + f^2 / 3 + ...), the first two in double-double
    softplus  max(x, 0) + log1p(E), E = e^-|x|, by the same series in f = E / (2 + E)
    sigmoid   1 / (1 + E) for x >= 0, else E / (1 + E)
"""

from __future__ import annotations

from ._dd import LN2_A, LN2_B, LN2_C, ONE_OVER_LN2, SHIFT, fast_two_sum, two_sum
from ._jit import inline
from ._simd import absolute, choose, fma, power_of_two, split_exponent, sqrt


@inline
def horner(xh, xl, yh, yl, ch, cl):
    """c + x y in double-double, |c| >= |x y|."""
    p = xh * yh
    e = fma(xh, yh, -p) + (xh * yl + xl * yh)
    s, t = fast_two_sum(ch, p)
    return fast_two_sum(s, t + (e + cl))


@inline
def exp_parts(x):
    """(high, low, 2^m, 2^n): e^x = (high + low) 2^m 2^n. Arguments beyond the range of float64 are drawn to its
    edge."""
    x = -760.0 if x < -760.0 else x
    x = 720.0 if x > 720.0 else x
    n = (x * ONE_OVER_LN2 + SHIFT) - SHIFT
    r = fma(-n, LN2_A, x)
    p = n * LN2_B
    rh, rl = two_sum(r, -p)
    rh, rl = fast_two_sum(rh, rl - (fma(n, LN2_B, -p) + n * LN2_C))
    t = 2.8114572543455206e-15
    t = fma(t, rh, 4.779477332387385e-14)
    t = fma(t, rh, 7.647163731819816e-13)
    t = fma(t, rh, 1.1470745597729725e-11)
    t = fma(t, rh, 1.6059043836821613e-10)
    t = fma(t, rh, 2.08767569878681e-09)
    t = fma(t, rh, 2.505210838544172e-08)
    t = fma(t, rh, 2.755731922398589e-07)
    t = fma(t, rh, 2.7557319223985893e-06)
    t = fma(t, rh, 2.48015873015873e-05)
    t = fma(t, rh, 0.0001984126984126984)
    t = fma(t, rh, 0.001388888888888889)
    h, l = horner(rh, rl, t, 0.0, 0.008333333333333333, 1.1564823173178714e-19)
    h, l = horner(rh, rl, h, l, 0.041666666666666664, 2.3129646346357427e-18)
    h, l = horner(rh, rl, h, l, 0.16666666666666666, 9.25185853854297e-18)
    h, l = horner(rh, rl, h, l, 0.5, 0.0)
    h, l = horner(rh, rl, h, l, 1.0, 0.0)
    h, l = horner(rh, rl, h, l, 1.0, 0.0)
    half = (n * 0.5 + SHIFT) - SHIFT
    return h, l, power_of_two(half + SHIFT), power_of_two((n - half) + SHIFT)


@inline
def exp(x):
    h, _, m, n = exp_parts(x)
    return (h * m) * n


@inline
def log1p_ratio(nh, nl, dh, dl):
    """log((d + n) / (d - n)) as high + low, for |n / d| <= 1/3: twice the area tangent of f = n / d."""
    fh = nh / dh
    fl = (fma(-fh, dh, nh) + (nl - fh * dl)) / dh
    s = fh * fh
    t = 1.0 / 35.0
    t = fma(t, s, 1.0 / 33.0)
    t = fma(t, s, 1.0 / 31.0)
    t = fma(t, s, 1.0 / 29.0)
    t = fma(t, s, 1.0 / 27.0)
    t = fma(t, s, 1.0 / 25.0)
    t = fma(t, s, 1.0 / 23.0)
    t = fma(t, s, 1.0 / 21.0)
    t = fma(t, s, 1.0 / 19.0)
    t = fma(t, s, 1.0 / 17.0)
    t = fma(t, s, 1.0 / 15.0)
    t = fma(t, s, 1.0 / 13.0)
    t = fma(t, s, 1.0 / 11.0)
    t = fma(t, s, 1.0 / 9.0)
    t = fma(t, s, 1.0 / 7.0)
    t = fma(t, s, 1.0 / 5.0)
    # the first two terms in double-double: f + f^3 / 3 + f^5 t
    q = fh * s
    ql = fma(fh, s, -q) + fh * fma(fh, fh, -s) + 3.0 * s * fl
    third = q * (1.0 / 3.0)
    third_low = fma(-3.0, third, q) * (1.0 / 3.0) + ql * (1.0 / 3.0)
    h, l = fast_two_sum(fh, third)
    h, l = fast_two_sum(h, l + (fl + (third_low + (q * s) * t)))
    return h + h, l + l


@inline
def log(x):
    """log x; -inf at 0, NaN below."""
    if not x > 0.0:
        return (x - x) / (x - x) if x != 0.0 else -1.0 / (x * x)
    if x - x != 0.0:
        return x
    lift = 0.0
    if x < 2.2250738585072014e-308:
        x *= 18014398509481984.0  # 2^54
        lift = 54.0
    m, n = split_exponent(x)
    if m > 1.4142135623730951:
        m *= 0.5
        n += 1.0
    n -= lift
    d, dl = two_sum(m, 1.0)
    h, l = log1p_ratio(m - 1.0, 0.0, d, dl)
    p = n * LN2_B
    s, t = two_sum(n * LN2_A, h)
    t += l + (p + (fma(n, LN2_B, -p) + n * LN2_C))
    return s + t


@inline
def exp_minus_abs(x):
    """e^-|x| as high + low."""
    h, l, m, n = exp_parts(-abs(x))
    return (h * m) * n, (l * m) * n


@inline
def sigmoid(x):
    """1 / (1 + e^-x)."""
    h, l = exp_minus_abs(x)
    d, dl = fast_two_sum(1.0, h)
    dl += l
    nh = 1.0 if x >= 0.0 else h
    nl = 0.0 if x >= 0.0 else l
    f = nh / d
    return f + (fma(-f, d, nh) + (nl - f * dl)) / d


@inline
def quick_sigmoid(x):
    """1 / (1 + e^-x) within 0.7 ulp, for numbers and vectors alike, in half the time of `sigmoid`: of the series of
    e^r only 1 + r is in double-double."""
    size = absolute(x)
    size = choose(size - 760.0, 760.0, size)
    n = (size * -ONE_OVER_LN2 + SHIFT) - SHIFT
    c = fma(n, -LN2_A, -size)
    r = fma(n, -LN2_B, c)
    t = 1.6059043836821613e-10
    t = fma(t, r, 2.08767569878681e-09)
    t = fma(t, r, 2.505210838544172e-08)
    t = fma(t, r, 2.755731922398589e-07)
    t = fma(t, r, 2.7557319223985893e-06)
    t = fma(t, r, 2.48015873015873e-05)
    t = fma(t, r, 0.0001984126984126984)
    t = fma(t, r, 0.001388888888888889)
    t = fma(t, r, 0.008333333333333333)
    t = fma(t, r, 0.041666666666666664)
    t = fma(t, r, 0.16666666666666666)
    t = fma(t, r, 0.5)
    t = fma(t, r * r, fma(n, -LN2_B, c - r))
    h, l = fast_two_sum(1.0, r)
    h, l = fast_two_sum(h, l + t)
    half = (n * 0.5 + SHIFT) - SHIFT
    p, q = power_of_two(half + SHIFT), power_of_two((n - half) + SHIFT)
    h, l = (h * p) * q, (l * p) * q
    d, dl = fast_two_sum(1.0, h)
    dl = dl + l
    f = 1.0 / d
    s = choose(x, 1.0, h) * f
    return fma(fma(-s, d, choose(x, 1.0, h)) + fma(-s, dl, choose(x, 0.0, l)), f, s)


@inline
def softplus(x):
    """log(1 + e^x); from 50 on that is x."""
    if x > 50.0:
        return x
    h, l = exp_minus_abs(x)
    d, dl = two_sum(2.0, h)
    h, l = log1p_ratio(h, l, d, dl + l)
    s, t = two_sum(0.0 if x < 0.0 else x, h)
    return s + (t + l)


@inline
def rsqrt(x):
    """1 / sqrt(x), by one Newton step in double-double from the rounded quotient."""
    r = 1.0 / sqrt(x)
    h = x * r
    e = fma(-h, r, 1.0) - fma(x, r, -h) * r
    return fma(0.5 * r, e, r)
