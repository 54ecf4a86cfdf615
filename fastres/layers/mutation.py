"""Which nodes of a torch.fx graph may overwrite a tensor that another node is to read later than it did.

A graph knows nodes, not memory: `x[:, :3]` is another node than `x` and the same memory, so that `x.zero_()` changes
both. Each node is given the memory that its result may lie in. What is not known to be new memory may be that of every
operand, and what is not known to write nothing may write to all of them: a mistake loses a fused site, never a value.
What a module keeps of its operands or its result between two calls is not followed.
"""

import torch
from torch import fx, nn

from fastres.layers.batch_norm import dual, norm_act
from fastres.layers.norms import class_name, is_known, is_plain

_ARGUMENTS = "(arguments)"  # one name for all: two of them may share memory
_NEW_MEMORY_MODULES = tuple(
    f"torch.nn.modules.{name}." for name in ("conv", "batchnorm", "normalization", "pooling", "activation")
)
_NEW_MEMORY = frozenset((
    "add", "sub", "mul", "truediv", "neg", "matmul", "cat", "conv2d", "linear", "relu", "relu6", "silu", "gelu",
    "sigmoid", "hardswish", "hardsigmoid", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
))  # fmt: skip
_WRITES = frozenset((
    "batch_norm", "instance_norm", "setitem", "delitem", "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul",
    "imod", "imul", "ior", "ipow", "irshift", "isub", "itruediv", "ixor",
))  # fmt: skip
_LIBRARIES = ("torch", "torch.nn.functional", "torch.functional", "torch._C._nn", "_operator", "builtins")


class Memory:
    """What the tensors of `graph` may share; `calls` are its nodes that call a module."""

    def __init__(self, graph: fx.Graph, calls: dict[fx.Node, nn.Module]) -> None:
        self._calls = calls
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._of: dict[fx.Node, frozenset[str]] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                self._of[node] = frozenset((_ARGUMENTS,))
            elif node.op == "get_attr":
                self._of[node] = frozenset((str(node.target),))
            elif self._writes_nothing(node) and self._is_new(node):
                self._of[node] = frozenset((f"({node.name})",))
            else:
                self._of[node] = self._touched(node) | {f"({node.name})"}

    def may_differ(
        self, reads: list[tuple[fx.Node, fx.Node]], norms: list[str], replaced: list[fx.Node], last: fx.Node
    ) -> bool:
        """Whether it may matter that `last` reads, for each pair in `reads`, the first node where the second one did,
        and calls the BatchNorms of those paths. Something in between that is not `replaced` may write to what is read,
        or reads or writes what a BatchNorm owns: its statistics would have moved by then."""
        owned = tuple(f"{norm}." for norm in norms)
        for operand, reader in reads:
            for node, index in self._order.items():
                if node in replaced or not self._order[reader] < index < self._order[last]:
                    continue
                touched = self._touched(node)
                if any(name.startswith(owned) for name in touched):
                    return True
                if touched & self._of[operand] and not self._writes_nothing(node):
                    return True
        return False

    def shows_elsewhere(self, written: fx.Node, by: fx.Node) -> bool:
        """Whether what the node `by` writes to `written` can be seen in more than the result of `by`: in an argument or
        a buffer, or by a later node."""
        memory, written_at = self._of[written], self._order[by]
        if any(name == _ARGUMENTS or not name.startswith("(") for name in memory):
            return True
        return any(
            self._of[node] & memory and any(self._order[user] > written_at for user in node.users)
            for node, defined in self._order.items()
            if defined < written_at
        )

    def _touched(self, node: fx.Node) -> frozenset[str]:
        return frozenset[str]().union(*(self._of[operand] for operand in node.all_input_nodes))

    def _is_new(self, node: fx.Node) -> bool:
        if node in self._calls:
            called = self._calls[node]
            return class_name(called).startswith(_NEW_MEMORY_MODULES) or is_known(called)
        return node.target in (norm_act, dual) or _name(node) in _NEW_MEMORY

    def _writes_nothing(self, node: fx.Node) -> bool:
        """Whether it is known to leave its operands alone: plain modules of torch.nn, functions of PyTorch and Python,
        methods of tensors, as long as they are not in place."""
        if node in self._calls:
            called = self._calls[node]
            return all(is_plain(part) for part in called.modules()) and (
                is_known(called)
                or all(
                    class_name(part).startswith("torch.nn.modules.") and not getattr(part, "inplace", False)
                    for part in called.modules()
                )
            )
        name = _name(node)
        known = node.op in ("call_method", "output") or (
            node.target in (norm_act, dual, getattr(torch, name, None))
            or getattr(node.target, "__module__", None) in _LIBRARIES
        )
        # F.relu(x, True) and F.relu(x, inplace=True); a flag that means something else is taken for it.
        flagged = any(value is True for value in (*node.args, node.kwargs.get("inplace")))
        return known and not (name in _WRITES or name.endswith("_") or flagged or node.kwargs.get("out") is not None)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
