"""Machine code of the CPU kernels: compiled from their loops once per machine, cached in a directory, and called.

The kernels do what torch has no fast operation for: attention over pages, rows through a layer, sampling tokens. They run in
torch's own OpenMP threads: a second thread pool would compete with torch's spinning workers for the cores in each of the dozens
of small calls of a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib.util
import threading
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding

from ..display import get_logger
from ..files import OwnDirectory, user_cache
from .abi import ROW, TASKS

log = get_logger(__name__)

SYMBOL = "kernel"
SHIPPED = Path(__file__).parents[1] / "data" / "kernels.zip"
"""LLVM bitcode of the loops, as ``scripts/compile_kernels.py`` writes it."""
SOURCES = (
    *(
        "abi.py",
        "activation.py",
        "attention.py",
        "codegen.py",
        "draw.py",
        "gemm.py",
        "int8.py",
        "intrinsics.py",
        "linear.py",
        "norm.py",
    ),
    *("onednn.py", "pages.py", "penalties.py", "sampler.py", "scan.py", "selection.py", "truncation.py"),
)
"""The files of this folder that the kernels' code is compiled from: all but this one."""
_LINE = 64
"""Bytes of a cache line: a vector that crosses two lines takes two loads."""
_HASH = hashlib.sha256().digest_size

if importlib.util.find_spec("numba") is None:
    raise ImportError("numba, which compiles the kernels, has no wheel for this platform")


# -- machine code ------------------------------------------------------------------------------------------------------------


def machine() -> binding.TargetMachine:
    """Return this machine as LLVM sees it. An engine that runs code on it takes ownership, so each call makes a new one."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    target = binding.Target.from_triple(binding.get_process_triple())
    cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    if target.name.startswith("x86"):
        features += ",-prefer-256-bit"  # LLVM avoids 512-bit vectors, as they lower the clock of early CPUs with AVX-512
    return target.create_target_machine(cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True)


def cache_directory() -> Path:
    """Return the directory of cached machine code: ``$XDG_CACHE_HOME/gptsweep/kernels``."""
    return user_cache("kernels")


def llvm_version() -> int:
    """Return the major version of the LLVM that compiles the machine code: another version may order a sum differently."""
    major: int = binding.llvm_version_info[0]
    return major


@functools.cache
def loops_digest() -> str:
    """Return a hash of all that the loops are compiled from, including the fields that samplers declare."""
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    return hashlib.sha256(sources + repr(ROW.descr).encode()).hexdigest()


def archive_key() -> str:
    """Return what identifies a usable archive: the loops that it is compiled from, and the platform that it is for."""
    return f"{loops_digest()} {binding.get_process_triple()}"


def _module(name: str, dtype: str) -> binding.ModuleRef:
    """Return a kernel's LLVM code: the package's if it is of these loops and for this platform, else numba's."""
    try:
        with zipfile.ZipFile(SHIPPED) as shipped:
            if shipped.comment.decode().startswith(f"{archive_key()} "):
                return binding.parse_bitcode(shipped.read(f"{name}-{dtype}"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: a newer LLVM made it
        log.debug("the package's kernels are not used: %s", error)
    from .codegen import module_of  # imported late: few users need numba, which takes seconds to load

    return module_of(name, dtype, SYMBOL)


def _object_file(module: binding.ModuleRef) -> bytes:
    """Optimise LLVM code and compile it to an object file for this machine."""
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    this = machine()
    builder = binding.create_pass_builder(this, options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = this.emit_object(module)
    return code


@functools.cache
def _code_digest() -> str:
    """Return a hash of what machine code depends on: the loops, what compiles them, and the processor."""
    cpu = f"{binding.get_process_triple()} {binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    made_of = f"{loops_digest()} {version('llvmlite')} {version('numba')} {cpu} {Path(__file__).read_text()}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _machine_code(name: str, dtype: str) -> bytes:
    """Return a kernel's object file, from the cache or compiled and cached; where the cache is unusable, compile without it."""
    file = f"{name}-{dtype}-{_code_digest()}.o"
    with contextlib.ExitStack() as stack:
        kept = None
        try:
            kept = stack.enter_context(OwnDirectory(cache_directory()))
            stored = kept.read(file)
            if hashlib.sha256(stored[_HASH:]).digest() == stored[:_HASH]:
                return stored[_HASH:]
        except (OSError, RuntimeError) as error:  # not cached yet; or no home directory is known
            if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.ELOOP, errno.ENOTDIR) and kept is None:
                _say_not_kept(f"{error.filename}: {error.strerror}")
        code = _object_file(_module(name, dtype))
        if kept is not None:
            try:
                kept.write(file, hashlib.sha256(code).digest() + code)
            except OSError as error:
                log.debug("the machine code of kernels is not kept: %s", error)
    return code


@functools.cache
def _say_not_kept(why: str) -> None:
    """Warn once, not for each kernel."""
    log.warning("the machine code of kernels is made anew in each run, as its directory is not yours alone (%s)", why)


@functools.cache
def _loaded(name: str, dtype: str) -> tuple[int, Any]:
    """Load a kernel; return its address, and the engine that has to live as long as it is called."""
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(_machine_code(name, dtype)))
    engine.finalize_object()
    return engine.get_function_address(SYMBOL), engine


@functools.cache
def has_fused_vectors() -> bool:
    """Return whether this CPU has AVX2 and FMA, for which the kernel ``gemm`` is written."""
    features = binding.get_host_cpu_features()
    return bool(features.get("avx2", False) and features.get("fma", False))


@functools.cache
def has_wide_vectors() -> bool:
    """Return whether this CPU has AVX-512, for which the kernel ``linear`` and some tiles of attention are written."""
    return bool(binding.get_host_cpu_features().get("avx512f", False))


# -- calling -----------------------------------------------------------------------------------------------------------------


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """Return the OpenMP runtime that torch uses, or None where it is not GNU's or cannot be found."""
    folder = Path(torch.__file__).parent
    for path in [*sorted((folder / "lib").glob("libgomp*")), *sorted(folder.with_name("torch.libs").glob("libgomp*"))]:
        try:
            library = ctypes.CDLL(str(path))
            library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
        except (OSError, AttributeError):
            continue
        return library
    return None


class _Scratch(threading.local):
    """Memory that kernels use while they run: one block per calling thread, shared by all kernels so that it stays in cache."""

    def __init__(self) -> None:
        self.memory, self.address = np.empty(_LINE, np.uint8), 0

    def address_of(self, size: int) -> int:
        """Return the address of at least ``size`` bytes, valid until the next call."""
        if len(self.memory) < size + _LINE:
            self.memory = np.empty(size + _LINE, np.uint8)
            self.address = -(-self.memory.ctypes.data // _LINE) * _LINE
        return self.address


_scratch = _Scratch()


class Kernel:
    """A compiled kernel and the record that it works on.

    Fields are set in advance or with a call; an array stands for its address. The field ``scratch`` is the number of bytes that
    each thread needs for itself.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        fields = TASKS[name].names or ()
        self._places = {field: place for place, field in enumerate(fields)}
        # A ctypes array: a step sets a thousand fields, and numpy takes ten times as long. The two counters come last.
        self._task = (ctypes.c_int64 * (len(fields) + 2))()
        self._data = ctypes.addressof(self._task)
        self._arrays: dict[str, Any] = {}
        self._in_use = threading.Lock()  # one call at a time uses the record, and other threads run during a call
        self.set(next_unit=self._data + 8 * len(fields), next_scratch=self._data + 8 * len(fields) + 8)
        self._address, self._code = _loaded(name, str(dtype).removeprefix("torch."))
        self._serial = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)
        self._openmp = _openmp()

    def set(self, **fields: Any) -> None:
        """Set fields of the record, and keep arrays alive as long as it refers to them."""
        for field, value in fields.items():
            if isinstance(value, np.ndarray):
                self._arrays[field] = value
                value = value.ctypes.data
            self._task[self._places[field]] = int(value)

    def __call__(self, **fields: Any) -> None:
        """Set fields of the record, and run the kernel on as many threads as torch uses."""
        with self._in_use:
            self.set(**fields)
            self._run(torch.get_num_threads())

    def _run(self, threads: int) -> None:
        self._task[-2], self._task[-1] = 0, _scratch.address_of(threads * self._task[self._places["scratch"]])
        if self._openmp is None or threads == 1:
            self._serial(self._data)
        else:
            self._openmp.GOMP_parallel(self._address, self._data, threads, 0)
