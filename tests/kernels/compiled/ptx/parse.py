"""PTX text, as Triton emits it for one kernel, as a list of instructions."""

import functools
import re
from dataclasses import dataclass


class PtxError(Exception):
    """What the machine refuses: an instruction that it does not know, or a fault of the kernel that it runs."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: `@guard name.modifier.modifier operands`."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    """Register of the predicate under which it runs."""
    negated: bool
    """Whether it runs where the predicate is false."""
    text: str


@dataclass(frozen=True, eq=False)
class Program:
    """A kernel. Positions are indices of `instructions`, one past the last is the end."""

    name: str
    target: str
    parameters: dict[str, str]
    """Type by name, in the order of the arguments."""
    registers: dict[str, str]
    """Type by name: pred, b16, b32 or b64."""
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    tables: dict[str, tuple[int, ...]]
    """Positions that `brx.idx` chooses from, by the table's name."""
    threads: int
    """Of a block."""
    shared: tuple[str, ...]
    """Names of the block of shared memory whose size the launch gives."""


COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\((.*?)\)\s*(.*?)\{", re.DOTALL)
PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>$")
LABEL = re.compile(r"([$\w]+)\s*:(?!:)\s*")
GUARD = re.compile(r"@(!?)\s*(%\w+)\s+")
LINE = re.compile(r"\.loc\b[^\n]*")
DYNAMIC = re.compile(r"\.extern\s+\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+(\w+)\[\]")
THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*1)*\s*$", re.MULTILINE)


@functools.lru_cache(maxsize=512)
def parse(ptx: str) -> Program:
    """The only kernel of a PTX module. Raises PtxError for what has no place in one kernel's code."""
    text = COMMENT.sub("", ptx)
    entries = list(ENTRY.finditer(text))
    if len(entries) != 1 or re.search(r"^\s*(\.visible\s+)?\.func\b", text, re.MULTILINE):
        raise PtxError("one kernel without functions is all that is understood")
    entry = entries[0]
    name, parameters, directives = entry.groups()
    threads, target = THREADS.search(directives), re.search(r"\.target\s+(\w+)", text)
    if threads is None or target is None:
        raise PtxError(f"{name} does not say its target or its number of threads")

    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    tables: dict[str, list[str]] = {}
    for piece in _body(text[entry.end() :]).split(";"):
        statement = piece.strip()
        while True:  # labels, and the braces of inline assembly's scopes
            statement = statement.lstrip("{} \t\n")
            label = LABEL.match(statement)
            if label is None:
                break
            statement = statement[label.end() :]
            if statement.startswith(".branchtargets"):
                tables[label[1]] = re.findall(r"[$\w]+", statement.removeprefix(".branchtargets"))
            else:
                labels[label[1]] = len(instructions)
        if statement.startswith("."):
            declared = REGISTERS.match(statement)
            if declared:
                kind, prefix, count = declared.groups()
                registers |= {f"{prefix}{number}": kind for number in range(int(count))}
            elif not statement.startswith((".pragma", ".branchtargets")):
                raise PtxError(f"unknown directive: {statement}")
        elif statement:
            instructions.append(_instruction(statement))
    return Program(
        name,
        target[1],
        {name: kind for kind, name in PARAMETER.findall(" ".join(parameters.split()))},
        registers,
        tuple(instructions),
        labels,
        {table: tuple(labels[label] for label in targets) for table, targets in tables.items()},
        int(threads[1]),
        tuple(DYNAMIC.findall(text)),
    )


def _body(text: str) -> str:
    """What stands before the brace that closes the kernel."""
    depth = 1
    for brace in re.finditer(r"[{}]", text):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return LINE.sub("", text[: brace.start()])
    raise PtxError("a kernel without end")


def _instruction(statement: str) -> Instruction:
    guard = GUARD.match(statement)
    code = statement[guard.end() :] if guard else statement
    opcode, operands = [*code.split(None, 1), ""][:2]
    name, *modifiers = opcode.replace("::", "_").split(".")
    text = " ".join(statement.split())
    return Instruction(
        name,
        tuple(modifiers),
        tuple(_operands(operands)),
        guard[2] if guard else None,
        bool(guard and guard[1]),
        text,
    )


def _operands(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    depth, operands, current = 0, [], ""
    for character in text.strip():
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += character
    return operands + ([current.strip()] if current.strip() else [])
