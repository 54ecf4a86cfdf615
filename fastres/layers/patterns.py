"""Finds BatchNorm with what follows it in a torch.fx graph and puts one call in its place."""

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from fastres.layers.batch_norm import dual, norm_act
from fastres.layers.mutation import Memory
from fastres.layers.norms import activation_of, is_batch_norm, is_frozen, is_plain

_ACTIVATION_CALLS: dict[Any, str] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    F.silu: "silu",
    F.gelu: "gelu",
}
# Their first operand receives the sum; the others make a new tensor.
_ADDS_IN_PLACE = (operator.iadd, "add_")
_ADDS = (operator.add, torch.add, "add", *_ADDS_IN_PLACE)


@dataclass(frozen=True)
class Pattern:
    """One place that a graph computes in one call. `norms` and `passed`, the modules that are no longer called, are
    paths from the graph's module."""

    form: str
    norms: tuple[str, ...]
    passed: tuple[str, ...]


@dataclass
class _Match:
    norms: list[fx.Node]
    last: fx.Node
    add: fx.Node | None = None
    residual: fx.Node | None = None
    activation: str = "none"
    passed: list[str] = field(default_factory=list)


def is_norm(module: nn.Module) -> bool:
    """Whether `norm_act` and `dual` compute what calling `module` does."""
    return (is_batch_norm(module) or is_frozen(module)) and is_plain(module)


def rewrite(graph: fx.Graph, module: nn.Module) -> list[Pattern]:
    """Change `graph`, the forward of `module` with children as leaves, in place; return what was found.

    Recognised: BN→activation, BN→add→activation, BN+BN→activation, and the last two without activation, where nobody
    else reads what lies between. The BN is one of `is_norm` that the forward calls once; the add is +, +=, torch.add,
    .add or .add_; the activation a module, function or method of relu, silu or exact gelu; in place or not. An
    nn.Identity between them is passed over.
    """
    calls = {node: module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    times = Counter(id(called) for called in calls.values())
    norms = {
        node for node, called in calls.items() if is_norm(called) and times[id(called)] == 1 and _one_input(node)
    }  # fmt: skip
    identities = _remove_identities(graph, norms, calls)
    taken: set[fx.Node] = set()
    patterns = []
    for norm in [node for node in graph.nodes if node in norms]:
        if norm in taken:
            continue
        match = _match(norm, norms - taken, calls)
        if match is None or _is_changed(Memory(graph, calls), match):
            continue
        taken.update(match.norms)
        form = "+".join([*["bn"] * len(match.norms), *["add"] * bool(match.add), match.activation])
        names = tuple(str(node.target) for node in match.norms)
        inner = [f"{name}.{child}" for name in names for child in module.get_submodule(name)._modules]
        patterns.append(Pattern(form.removesuffix("+none"), names, (*names, *inner, *match.passed, *identities)))
        _replace(graph, match)
    return patterns


def _remove_identities(graph: fx.Graph, norms: set[fx.Node], calls: dict[fx.Node, nn.Module]) -> list[str]:
    """Take out each nn.Identity that follows a BN or a sum; others may be replaced one day and stay."""
    removed = []
    for node, called in list(calls.items()):
        if type(called) is not nn.Identity or not is_plain(called) or not _one_input(node):
            continue
        source = node.all_input_nodes[0]
        if source in norms or source.target in _ADDS:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            del calls[node]
            removed.append(str(node.target))
    return removed


def _one_input(node: fx.Node) -> bool:
    return len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)


def _match(norm: fx.Node, norms: set[fx.Node], calls: dict[fx.Node, nn.Module]) -> _Match | None:
    reader = _only_reader(norm)
    if reader is None:
        return None
    match = _Match([norm], norm)
    if reader.target in _ADDS and reader.op in ("call_function", "call_method"):
        if len(reader.args) != 2 or reader.kwargs or not all(isinstance(a, fx.Node) for a in reader.args):
            return None
        first, second = reader.args
        other = second if first is norm else first
        if other is norm:
            return None
        two = other in norms and _only_reader(other) is reader
        match.add = match.last = reader
        if two:
            match.norms = [first, second]  # type: ignore[list-item]
        else:
            match.residual = other  # type: ignore[assignment]
        reader = _only_reader(reader)
    activation = None if reader is None else _activation(reader, calls.get(reader))
    if reader is not None and activation is not None:
        match.activation, match.last = activation, reader
        match.passed += [str(reader.target)] if reader.op == "call_module" else []
    return None if match.last is norm else match


def _only_reader(node: Any) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node, called: nn.Module | None) -> str | None:
    if called is not None:
        return activation_of(called) if _one_input(node) else None
    if node.op not in ("call_function", "call_method") or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    # Whether in place makes no difference: nobody else reads what it would overwrite.
    options = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    if options not in ({}, {"approximate": "none"}) or not all(isinstance(a, bool) for a in node.args[1:]):
        return None
    return _ACTIVATION_CALLS.get(node.target)


def _is_changed(memory: Memory, match: _Match) -> bool:
    """Whether an operand may have changed when the one call reads it, or should have by an addition in place."""
    add, residual = match.add, match.residual
    reads = [(norm.args[0], norm) for norm in match.norms]
    if residual is not None and add is not None:
        reads.append((residual, add))
        in_place = add.target in _ADDS_IN_PLACE and add.args[0] is residual
        if in_place and memory.shows_elsewhere(residual, add):
            return True
    norms = [str(norm.target) for norm in match.norms]
    replaced = [*match.norms, *([add] if add else [])]
    return memory.may_differ(reads, norms, replaced, match.last)  # type: ignore[arg-type]


def _replace(graph: fx.Graph, match: _Match) -> None:
    with graph.inserting_before(match.last):
        layers = [graph.create_node("get_attr", norm.target) for norm in match.norms]
        inputs = [norm.args[0] for norm in match.norms]
        if len(layers) == 2:
            call = graph.call_function(dual, (*layers, *inputs, match.activation))
        else:
            call = graph.call_function(norm_act, (*layers, *inputs, match.residual, match.activation))
    match.last.replace_all_uses_with(call)
    for node in dict.fromkeys([match.last, *([match.add] if match.add else []), *match.norms]):
        graph.erase_node(node)
