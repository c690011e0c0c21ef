"""Elementwise maps and row sums over flat arrays of pairs (_dd.py): the arithmetic of the front end in double-double.
zh, zl are written."""

from __future__ import annotations

from . import _dd
from ._jit import njit


@njit
def add(xh, xl, yh, yl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.add(xh[i], xl[i], yh[i], yl[i])


@njit
def times(xh, xl, yh, yl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.times(xh[i], xl[i], yh[i], yl[i])


@njit
def over(xh, xl, yh, yl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.over(xh[i], xl[i], yh[i], yl[i])


@njit
def root(xh, xl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.root(xh[i], xl[i])


@njit
def exp(xh, xl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.exp(xh[i], xl[i])


@njit
def sigmoid(xh, xl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.sigmoid(xh[i], xl[i])


@njit
def softplus(xh, xl, zh, zl):
    for i in range(xh.size):
        zh[i], zl[i] = _dd.softplus(xh[i], xl[i])


@njit
def square_sums(xh, xl, zh, zl):
    """Sum of squares of each row of x [rows, D], in order."""
    for n in range(xh.shape[0]):
        h, l = 0.0, 0.0
        for i in range(xh.shape[1]):
            p, e = _dd.times(xh[n, i], xl[n, i], xh[n, i], xl[n, i])
            h, l = _dd.add(h, l, p, e)
        zh[n] = h
        zl[n] = l
