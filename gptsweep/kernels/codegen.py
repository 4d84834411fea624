"""The loop of every kernel by name and dtype, and the LLVM code that numba generates from each, for `runtime`.

Each loop works on one unit at a time: some heads of a tile of tokens, a block of outputs of some rows, or a row. It sums what
belongs to a row in an order that depends on that row alone, so the bits depend neither on the batch nor on the number of
threads.
"""

from __future__ import annotations

from llvmlite import binding, ir
from numba import cfunc, from_dtype, types
from numba.core import config

from .abi import TASKS, ZERO
from .activation import activate_by, gate_by
from .attention import attend_by, store_by
from .gemm import gemm_by
from .int8 import multiply_int8, quantise_by, rescale_float32
from .intrinsics import bfloat16_at, float32_at, int16_at, uint8_at
from .linear import linear_bfloat16
from .norm import rms_norm_by, rotate_by
from .sampler import sample_by

binding.initialize_native_asmparser()  # for the inline assembly of the kernel ``linear``; numba loads no parser itself

LOOPS = {
    **{
        (name, dtype): kernel_by(at)
        for name, kernel_by in {
            "store": store_by,
            "attend": attend_by,
            "activate": activate_by,
            "gate": gate_by,
            "gemm": gemm_by,
            "rms_norm": rms_norm_by,
            "rotate": rotate_by,
            "sample": sample_by,
        }.items()
        for dtype, at in {"float32": float32_at, "bfloat16": bfloat16_at}.items()
    },
    ("linear", "bfloat16"): linear_bfloat16,
    ("multiply", "int8"): multiply_int8,
    ("quantise", "uint8"): quantise_by(uint8_at, ZERO),
    ("quantise", "int16"): quantise_by(int16_at, 0),
    ("rescale", "float32"): rescale_float32,
}


def module_of(name: str, dtype: str, symbol: str) -> binding.ModuleRef:
    """Return LLVM code, barely optimised, of a kernel ``void symbol(void *task)`` that needs nothing but the C library."""
    task = from_dtype(TASKS[name])
    level, config.OPT = config.OPT, config._OptLevel("0")  # type: ignore[attr-defined]
    try:
        compiled = cfunc(types.void(types.CPointer(task)), error_model="numpy")(LOOPS[name, dtype])
        module = binding.parse_assembly(compiled._library.get_llvm_str())  # type: ignore[attr-defined]
    finally:
        config.OPT = level  # type: ignore[attr-defined]
    # numba's own entry point for C calls Python to report errors, which these loops never raise.
    pointer = ir.IntType(8).as_pointer()
    entry = ir.Module()
    entry.triple = module.triple
    loops = ir.Function(entry, ir.FunctionType(ir.IntType(32), [pointer] * 3), compiled.native_name.removeprefix("cfunc."))
    builder = ir.IRBuilder(ir.Function(entry, ir.FunctionType(ir.VoidType(), [pointer]), symbol).append_basic_block())
    result, error = (builder.bitcast(builder.alloca(pointer), pointer) for _ in range(2))
    builder.call(loops, [result, error, builder.function.args[0]])
    builder.ret_void()
    module.link_in(binding.parse_assembly(str(entry)))
    for place, value in enumerate([*module.functions, *module.global_variables]):
        if not value.is_declaration and value.name != symbol:
            value.linkage, value.name = "internal", f"_{place}"
    # This shrinks the code to a quarter. It targets no specific processor: `runtime` optimises for the user's own.
    options = binding.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    any_processor = binding.Target.from_triple(binding.get_process_triple()).create_target_machine()
    builder = binding.create_pass_builder(any_processor, options)
    builder.getModulePassManager().run(module, builder)
    return module
