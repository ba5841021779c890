"""Activations in NumPy: the error function, GELU, sigmoid and leaky ReLU, in blocks (`numpy_blocks.py`)."""

from math import pi
from math import sqrt as _sqrt
from typing import Any

import numpy as np

from .formulas import ERF_SMALL, ERFC_LARGE, ERFC_MIDDLE
from .numpy_blocks import Array, is_half, run_in_blocks

# --- Error function


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Array) -> Array:
    """The rational function at x, numerator / denominator, by Horner's method."""
    values = []
    for polynomial in coefficients:
        value = np.full_like(x, polynomial[0])
        for c in polynomial[1:]:
            value *= x
            value += c
        values.append(value)
    return np.asarray(values[0] / values[1])


def erf(a: Array) -> Array:
    """The error function (Cody 1969): one rational function for each of three ranges of |a|.

    The relative error in float64 is below 5e-16. float32 uses one polynomial, which is ten times as fast; its absolute
    error is below 1.4e-7.
    """
    if a.dtype.itemsize <= 4:
        single: Array = np.asarray(a, dtype=np.float32)
        return _erf_single(single, np.minimum(single * single, _LARGE), _ERF_OF_X).astype(a.dtype, copy=False)
    wide = np.atleast_1d(a).astype(np.float64, copy=False)
    y = np.abs(wide)
    result = np.sign(wide)  # erf is 1 in double precision beyond 6
    small = y <= 0.46875
    large = y > 4.0
    x = wide[small]
    result[small] = x * _ratio(ERF_SMALL, x * x)
    middle = ~(small | large | np.isnan(y))
    x = y[middle]
    result[middle] *= 1.0 - np.exp(-x * x) * _ratio(ERFC_MIDDLE, x)
    large &= y <= 6.0
    x = y[large]
    z = 1.0 / (x * x)
    result[large] *= 1.0 - np.exp(-x * x) / x * (1.0 / _sqrt(pi) - z * _ratio(ERFC_LARGE, z))
    return np.asarray(result.reshape(a.shape), dtype=a.dtype)


def _single(*numbers: float) -> tuple[Array, ...]:
    """The numbers as 0-d arrays in float32. NumPy takes twice as long with a Python number and a small array."""
    return tuple(np.array(number, np.float32) for number in numbers)


# Coefficients, highest power first, of a polynomial in x^2 that approximates atanh(erf(x)) / x on 0 < x <= 4. Fitted
# by least squares, weighted to minimize the maximum error of erf, which is 6e-8.
_ERF_SINGLE = (
    1.58950415e-7, -5.98555505e-6, 8.97119216e-5, -6.25718141e-4, -1.84385045e-4, 1.02765482e-1, 1.12837971,
)  # fmt: skip
_ERF_OF_X = _single(*_ERF_SINGLE)
_ERF_OF_SCALED = _single(*(c * 0.5 ** (6.5 - i) for i, c in enumerate(_ERF_SINGLE)))  # of x / sqrt(2), in x
_ONE, _HALF, _MINUS_HALF, _DENSITY_AT_0, _LARGE = _single(1.0, 0.5, -0.5, 1.0 / _sqrt(2.0 * pi), 256.0)


def _erf_single(x: Array, square: Array, coefficients: tuple[Array, ...]) -> Array:
    """erf in float32, as tanh of a polynomial. `square` is at most 256, where the polynomial does not overflow."""
    value = np.asarray(square * coefficients[0])
    for c in coefficients[1:-1]:
        value += c
        value *= square
    value += coefficients[-1]
    value *= x
    return np.asarray(np.tanh(value, out=value))


# --- GELU. Hendrycks & Gimpel, "Gaussian error linear units", arXiv:1606.08415, section 2.

_GELU_C = _sqrt(2.0 / pi)


def gelu(a: Array, approximate: str) -> tuple[Array, Array]:
    """a Phi(a), and its derivative Phi(a) + a Phi'(a), computed together while a is in the cache."""
    out, slope = _gelu(a, approximate, True)
    assert slope is not None
    return out, slope


def gelu_value(a: Array, approximate: str) -> Array:
    return _gelu(a, approximate, False)[0]


def _gelu(a: Array, approximate: str, with_slope: bool) -> tuple[Array, Array | None]:
    if a.dtype.itemsize < 4:  # squares overflow in half precision
        results = _gelu(a.astype(np.float32), approximate, with_slope)
        return results[0].astype(a.dtype), None if results[1] is None else results[1].astype(a.dtype)
    exact = _gelu_exact_single if a.dtype.itemsize == 4 else _gelu_exact
    formula = exact if approximate == "none" else _gelu_tanh
    flat = a.reshape(-1)
    out = np.empty(flat.shape, a.dtype)
    if not with_slope:
        run_in_blocks(lambda block: formula(flat[block], out[block], None), 19, flat.size)
        return out.reshape(a.shape), None
    slope = np.empty(flat.shape, a.dtype)
    run_in_blocks(lambda block: formula(flat[block], out[block], slope[block]), 25, flat.size)
    return out.reshape(a.shape), slope.reshape(a.shape)


def gelu_backward(g: Array, saved: Array, approximate: str) -> Array:
    return _multiply(g, saved)


def _gelu_exact_single(a: Array, out: Array, slope: Array | None) -> None:
    """Phi is the standard normal distribution function, Phi' its density. In float32."""
    square = a * a
    np.minimum(square, _LARGE, out=square)
    cdf = _erf_single(a, square, _ERF_OF_SCALED)
    cdf += _ONE
    cdf *= _HALF
    np.multiply(a, cdf, out=out)
    if slope is not None:
        np.multiply(square, _MINUS_HALF, out=slope)
        np.exp(slope, out=slope)
        slope *= a
        slope *= _DENSITY_AT_0
        slope += cdf


def _gelu_exact(a: Array, out: Array, slope: Array | None) -> None:
    cdf = erf(a * _sqrt(0.5))
    cdf += 1.0
    cdf *= 0.5
    np.multiply(a, cdf, out=out)
    if slope is not None:
        np.multiply(a, a, out=slope)
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= a
        slope *= 1.0 / _sqrt(2.0 * pi)
        slope += cdf


def _gelu_tanh(a: Array, out: Array, slope: Array | None) -> None:
    """Phi = (1 + tanh(c (a + 0.044715 a^3))) / 2, so Phi' = 2 Phi (1 - Phi) c (1 + 3 * 0.044715 a^2)."""
    square = a * a
    cdf = np.multiply(square, _GELU_C * 0.044715)
    cdf += _GELU_C
    cdf *= a
    np.tanh(cdf, out=cdf)
    cdf += 1.0
    cdf *= 0.5
    np.multiply(a, cdf, out=out)
    if slope is not None:
        np.subtract(1.0, cdf, out=slope)
        slope *= out  # a Phi (1 - Phi), which is 0 for large |a|, before the square overflows
        square *= 6.0 * _GELU_C * 0.044715
        square += 2.0 * _GELU_C
        slope *= square
        slope += cdf


# --- Sigmoid and leaky ReLU


def sigmoid(a: Array) -> Any:
    if is_half(a):
        return NotImplemented
    flat = a.reshape(-1)
    out = np.empty(flat.shape, a.dtype)

    @np.errstate(over="ignore")
    def formula(block: slice) -> None:
        divisor = one_plus_exp(flat[block], out[block])
        np.divide(1.0, divisor, out=divisor)

    run_in_blocks(formula, 12, flat.size)
    return out.reshape(a.shape)


def one_plus_exp(a: Array, out: Array) -> Array:
    """1 + e^-a, written to `out`. It is inf where e^-a overflows; the caller ignores that error."""
    np.negative(a, out=out)
    np.exp(out, out=out)
    out += 1.0
    return out


# Maas, Hannun & Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML workshop 2013, section 2.


def leaky_relu(a: Array, alpha: float) -> Array:
    return _multiply(a, a, alpha)


def leaky_relu_backward(g: Array, a: Array, alpha: float) -> Array:
    return _multiply(g, a, alpha)


def _multiply(g: Array, by: Array, alpha: float | None = None) -> Array:
    """g * by, or with alpha, g * (1 where by > 0, else alpha)."""
    gs, slopes = g.reshape(-1), by.reshape(-1)
    out = np.empty(gs.shape, g.dtype)
    low = None if alpha is None else np.asarray([1.0, alpha], g.dtype)

    def formula(block: slice) -> None:
        slope = slopes[block] if low is None else np.where(slopes[block] > 0, low[0], low[1])
        np.multiply(gs[block], slope, out=out[block])

    run_in_blocks(formula, 1 if low is None else 3, gs.size)
    return out.reshape(g.shape)
