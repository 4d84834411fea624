"""Compile the loops of the CPU kernels to LLVM's code, for the package: ``gptsweep/data/kernels.zip``.

    python scripts/compile_kernels.py

A user's machine makes machine code of that in two seconds at first use; of the loops themselves numba would in ten. Run this
after a change to them: until then, and on other systems than the one it ran on, numba compiles them at first use.
"""

from __future__ import annotations

import os
import zipfile

from llvmlite import binding

# One kernel is written for AVX-512, so numba compiles for a processor that has it, whichever this one is.
os.environ |= {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx2,+fma",
}

from gptsweep.kernels import codegen
from gptsweep.kernels import runtime as kernels


def main() -> None:
    kernels.machine()  # LLVM knows of it from here on
    with zipfile.ZipFile(kernels.SHIPPED, "w", zipfile.ZIP_LZMA) as shipped:
        shipped.comment = f"{kernels.loops_digest()} {binding.get_process_triple()}".encode()
        for name, dtype in codegen.LOOPS:
            code = codegen.module_of(name, dtype, kernels.SYMBOL).as_bitcode()
            shipped.writestr(zipfile.ZipInfo(f"{name}-{dtype}"), code, zipfile.ZIP_LZMA)
    print(f"{kernels.SHIPPED}: {kernels.SHIPPED.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
