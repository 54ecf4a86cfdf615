"""Kernels written by hand, for tests of the machine itself."""

from collections.abc import Mapping
from typing import Any

from ptx.machine import Machine, Order
from ptx.memory import Uninitialised
from ptx.parse import parse

HEADER = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel({parameters})
.reqntid {threads}
{{
.reg .pred %p<10>;
.reg .b16 %rs<20>;
.reg .b32 %r<60>;
.reg .b64 %rd<20>;
{loads}
mov.u32 %r50, %tid.x;
mul.wide.u32 %rd19, %r50, 4;
{body}
ret;
}}
"""
"""%r50 is the thread's number, %rd19 four times that; %rd0, %rd1, … point to the arguments."""


def execute(
    body: str,
    arguments: Mapping[str, Any],
    *,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    order: Order | None = None,
    cooperative: bool = False,
    exact: bool = False,
    uninitialised: Uninitialised | None = None,
) -> Machine:
    """Run a kernel of one dimension whose arguments are tensors; returns the machine as it was left."""
    names = [f"kernel_param_{number}" for number in range(len(arguments))]
    text = HEADER.format(
        parameters=",\n".join(f".param .u64 .ptr .global .align 1 {name}" for name in names),
        threads=threads,
        loads="\n".join(f"ld.param.b64 %rd{number}, [{name}];" for number, name in enumerate(names)),
        body=body,
    )
    machine = Machine(
        parse(text),
        (blocks, 1, 1),
        shared,
        arguments,
        exact=exact,
        uninitialised=uninitialised,
        count_sectors=True,
        limit=(2000, 1000),
    )
    machine.run(order, cooperative)
    return machine
