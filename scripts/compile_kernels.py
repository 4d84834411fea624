"""Compile the loops of the CPU kernels to LLVM bitcode, for the package: ``gptsweep/data/kernels.zip``.

    python scripts/compile_kernels.py            # after a change in gptsweep/kernels/
    python scripts/compile_kernels.py --check    # does the archive match the sources?

At first use, a user's machine compiles the bitcode to machine code, in two seconds; numba takes ten to twenty seconds for the
loops themselves. It compiles them only if the archive does not match the loops or was built for another platform.

The archive is committed. The package's build could create it, but that would make the README's commands slower and less
reliable. numba takes 10 to 21 s of CPU for all kernels, whether a user needs them or not. `pip` builds in an environment of its
own, so it would download numba and llvmlite (63 MB) again, perhaps in other versions than the installed ones, and would need
wheels of them for the platform. Instead, `.ci/run` checks that the archive matches the sources: the digest of the sources must
be equal, and so must the bitcode of each kernel, unless it was built with another numba or llvmlite.
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

# One kernel is written for AVX-512, so numba compiles for a processor with AVX-512, whatever this one is.
os.environ |= {
    "NUMBA_CPU_NAME": "skylake-avx512",
    "NUMBA_CPU_FEATURES": "+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx2,+fma",
}

from gptsweep.kernels import codegen
from gptsweep.kernels import runtime as kernels


def compile_to(path: Path) -> None:
    """Write the archive: the bitcode of each kernel, and a comment with the sources' digest, the platform and the compilers."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        compilers = f"numba {version('numba')} llvmlite {version('llvmlite')}"
        archive.comment = f"{kernels.archive_key()} {compilers}".encode()
        for name, dtype in codegen.LOOPS:
            code = codegen.module_of(name, dtype, kernels.SYMBOL).as_bitcode()
            archive.writestr(zipfile.ZipInfo(f"{name}-{dtype}"), code, zipfile.ZIP_LZMA)


def difference(shipped: Path, fresh: Path) -> str:
    """Describe how the archive ``shipped`` differs from ``fresh``, which was just built; empty if it does not."""
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
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the archive does not match")
    check = parser.parse_args().check
    kernels.machine()  # initialises LLVM for this processor
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
