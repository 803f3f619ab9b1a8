"""LLVM: the one file that imports llvmlite.binding."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import llvmlite
import llvmlite.binding as binding

_KEEP: list[Any] = []
"""Loaded code lives as long as the process."""


@cache
def _target(opt: int) -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=opt,
        reloc="pic",
        codemodel="small",
    )


def identity() -> str:
    """What object code depends on beside its source: llvmlite, LLVM, the host's processor and its features."""
    features = binding.get_host_cpu_features().flatten()
    return f"{llvmlite.__version__} {binding.llvm_version_info} {binding.get_host_cpu_name()} {features}"


def triple() -> str:
    return str(binding.get_process_triple())


def compile_object(text: str, level: int = 2) -> bytes:
    """Object code of a module in textual IR. Raises RuntimeError with LLVM's message for a malformed one."""
    machine = _target(level)
    module = binding.parse_assembly(text)
    module.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=level)
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def add_symbol(name: str, address: int) -> None:
    """Let objects that are loaded later refer to `name`."""
    binding.add_symbol(name, address)


def load_object(data: bytes, names: list[str]) -> dict[str, int]:
    """Load object code; the addresses of `names`. The bytes must be whole: LLVM ends the process on damaged ones."""
    backing = binding.parse_assembly(f'target triple = "{triple()}"\n')
    # Its sections refer to each other by distances of 32 bits: llvmlite's memory manager puts them into one block.
    engine = binding.create_mcjit_compiler(backing, _target(2), use_lmm=True)
    engine.add_object_file(binding.ObjectFileRef.from_data(data))
    engine.finalize_object()
    _KEEP.append(engine)
    return {name: engine.get_function_address(name) for name in names}


def libc_address(name: str) -> int:
    """The address of a function of the C library."""
    function = getattr(ctypes.CDLL(None), name)
    return ctypes.cast(function, ctypes.c_void_p).value or 0
