"""CPU kernels: numba loops, and how they become machine code."""
