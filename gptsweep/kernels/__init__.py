"""CPU kernels: numba loops, and their compilation to machine code."""
