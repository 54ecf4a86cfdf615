"""Compiling one kernel for a GPU that is not there: what all configurations do alike."""

from collections.abc import Collection, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def machine_code(
    kernel: Any,
    target: str,
    constants: Mapping[str, Any],
    types: Mapping[str, Collection[str]],
    default: str,
    options: Mapping[str, Any],
    multiples: tuple[str, ...] = (),
) -> Any:
    """Compile `kernel` for a target such as `cuda:90`; returns Triton's compiled kernel, whose `asm` holds "ptx" and
    "cubin".

    `constants` are the arguments that are fixed, None for those that are absent; `types` has the others' names by their
    type, which is `default` for those that it lacks. Pointers are taken to be aligned to 16 bytes, as launches find
    them, and the integers named in `multiples` to be multiples of 16. `options` are the compiler's.
    """
    kinds = {name: kind for kind, names in types.items() for name in names}
    signature = {name: "constexpr" if name in constants else kinds.get(name, default) for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in multiples
    }
    backend, capability = target.split(":")
    return triton.compile(
        ASTSource(kernel, signature, dict(constants), attributes),
        target=GPUTarget(backend, int(capability), 32),
        options=dict(options),
    )
