"""Pieces of definitions, in the plain arithmetic of a `step`: activations with their slopes, LayerNorm with the
gradient of the error behind it, and Newton-Schulz."""

from __future__ import annotations

import numpy as np

GELU = 0.7978845608028654, 0.044715  # gelu(x) = x / 2 (1 + tanh(a (x + b x^3))), a = sqrt(2 / pi) in float64


def sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2  # unlike 1 / (1 + exp(-x)) this never overflows


def silu(x):
    return x * sigmoid(x)


def silu_slope(x):
    s = sigmoid(x)
    return s * (1 + x * (1 - s))


def gelu(x):
    a, b = GELU
    return x * sigmoid(2 * a * (x + b * x**3))


def gelu_slope(x):
    a, b = GELU
    s = sigmoid(2 * a * (x + b * x**3))
    return s + x * s * (1 - s) * 2 * a * (1 + 3 * b * x**2)


def standardised(z, eps):
    """(x, sigma): every row of z less its mean, over the root of its variance + eps."""
    D = z.shape[-1]
    centred = z - z.sum(axis=-1, keepdims=True) / D
    sigma = np.sqrt((centred * centred).sum(axis=-1, keepdims=True) / D + eps)
    return centred / sigma, sigma


def layer_norm(z, w, b, eps):
    return w * standardised(z, eps)[0] + b


def layer_norm_errors(z, target, w, b, eps):
    """The gradient of 1/2 |LN(z) - target|^2 by z: (m - mean m - x mean(m x)) / sigma, m = w (LN(z) - target)."""
    D = z.shape[-1]
    x, sigma = standardised(z, eps)
    m = w * (w * x + b - target)
    along = (m * x).sum(axis=-1, keepdims=True) / D
    return (m - m.sum(axis=-1, keepdims=True) / D - x * along) / sigma


NEWTON_SCHULZ = {
    "lact": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "muon": ((3.4445, -4.7750, 2.0315),) * 5,
}


def orthogonalised(G, steps):
    """Newton-Schulz: every singular value of G is drawn towards 1. Of zeros: zeros."""
    X = G / (np.sqrt((G * G).sum()) + 1e-7)
    for a, b, c in steps:
        A = X @ X.T if len(X) <= len(X.T) else X.T @ X
        B = b * A + c * (A @ A)
        X = a * X + (B @ X if len(X) <= len(X.T) else X @ B)
    return X
