"""Compile the loops of the CPU kernels to LLVM's code, for the package: ``gptsweep/data/kernels.zip``.

    python scripts/compile_kernels.py            # after a change in gptsweep/kernels/
    python scripts/compile_kernels.py --check    # is the archive what the sources give?

A user's machine makes machine code of that in two seconds at first use; numba takes ten to twenty for the loops themselves.
Where the archive is not of these loops, and on other systems than the one it was made on, numba compiles them at first use.

The archive is committed. The package's build could make it, but that would make the README's commands slower and less sure.
numba takes 21 s of CPU for all kernels on a slow machine and 10 s on a fast one, whether a user needs them or not. `pip` builds
in an environment of its own, so it would download numba and llvmlite (63 MB) once more, perhaps in a version other than the
installed one, and would need wheels of them for the platform. `.ci/run` checks instead that the archive is what the sources
give: the digest of the sources has to match, and LLVM's code of each kernel, unless another numba or llvmlite made it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

from llvmlite import binding

# One kernel is written for AVX-512, so numba compiles for a processor that has it, whichever this one is.
os.environ |= {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx2,+fma",
}

from gptsweep.kernels import codegen
from gptsweep.kernels import runtime as kernels


def compile_to(path: Path) -> None:
    """Write the archive: LLVM's bitcode of each kernel; its comment says what it was made of, for what, and by what."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        compilers = f"numba {version('numba')} llvmlite {version('llvmlite')}"
        archive.comment = f"{kernels.archive_key()} {compilers}".encode()
        for name, dtype in codegen.LOOPS:
            code = codegen.module_of(name, dtype, kernels.SYMBOL).as_bitcode()
            archive.writestr(zipfile.ZipInfo(f"{name}-{dtype}"), code, zipfile.ZIP_LZMA)


def difference(shipped: Path, fresh: Path) -> str:
    """How the archive at ``shipped`` differs from what the sources give, ``fresh``; empty where it does not."""
    with zipfile.ZipFile(shipped) as old, zipfile.ZipFile(fresh) as new:
        made, wanted = (archive.comment.decode().split(maxsplit=2) for archive in (old, new))
        if made[0] != wanted[0]:
            return "it was made of other sources"
        if sorted(old.namelist()) != sorted(new.namelist()):
            return f"it has {', '.join(sorted(old.namelist()))}"
        if made != wanted:
            print(f"made for {' with '.join(made[1:])}, not {' with '.join(wanted[1:])}: the code itself is not compared")
            return ""
        for kernel in new.namelist():
            if str(binding.parse_bitcode(old.read(kernel))) != str(binding.parse_bitcode(new.read(kernel))):
                return f"LLVM's code of {kernel} is another"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where the archive is not of the sources")
    check = parser.parse_args().check
    kernels.machine()  # LLVM knows of it from here on
    if not check:
        compile_to(kernels.SHIPPED)
        print(f"{kernels.SHIPPED}: {kernels.SHIPPED.stat().st_size:,} bytes")
        return
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "kernels.zip"
        compile_to(fresh)
        if found := difference(kernels.SHIPPED, fresh):
            sys.exit(f"{kernels.SHIPPED}: {found}; run scripts/compile_kernels.py")
    print(f"{kernels.SHIPPED} is what the sources give")


if __name__ == "__main__":
    main()
