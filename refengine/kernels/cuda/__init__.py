"""The numba.cuda mirrors of the kernels: the same operations in the same order, so the same bits."""
