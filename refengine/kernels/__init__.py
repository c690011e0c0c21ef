"""Numba kernels: arrays in, arrays out. They know no op, no file and no option."""
