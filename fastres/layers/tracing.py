"""torch.fx, made strict: a forward becomes a graph only where the graph surely does what the forward does.

fx runs the forward once with stand-ins for tensors and writes down what happens to them. What the forward does besides
is lost, and what it decides is decided for good. The tracer here refuses where that would change anything, and notes
the attributes of the module that the forward looked at, so that a later change of one of them can be noticed.
"""

import copy
import inspect
import operator
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.utils._mode_utils import no_dispatch

_OF_EVERY_MODULE = frozenset(dir(nn.Module())) | {"__dict__"}
_CONSTANTS = (types.NoneType, bool, int, float, str, torch.dtype, types.FunctionType, types.BuiltinFunctionType)


def is_traced(*operands: Any) -> bool:
    """Whether a tracer of torch.fx runs the forward: one of its operands stands for a tensor. Raises Refused where
    `trace` does: what it finds is in one call already."""
    for operand in operands:
        if isinstance(operand, fx.Proxy):
            if isinstance(operand.tracer, _Tracer):
                raise Refused("it calls norm_act or dual")
            return True
    return False


def as_node(module: nn.Module, *operands: Any, fork: bool = False) -> Any:
    """A call of `module` as one node in the graph that is being traced, whichever tracer it is; with `fork` its result
    twice. So mode, routing and errors stay those of the module."""
    tracer: Any = next(operand.tracer for operand in operands if isinstance(operand, fx.Proxy))
    y = tracer.create_proxy("call_module", tracer.path_of_module(module), operands, {})
    return (y, y) if fork else y


class Refused(Exception):
    """The forward does something that its graph would not."""


def trace(module: nn.Module, through: Callable[[nn.Module], bool], training: bool) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph of `module`'s forward in training or evaluation, calls of children as nodes, and the attributes of
    `module` that the forward looked at, with their values.

    Children for which `through` holds are entered. Nothing of `module` changes. Raises Refused.
    """
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    # fx would take a default or a missing argument for a tensor: `if mask is None` would be decided wrongly.
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD or p.default is not p.empty for p in parameters):
        raise Refused("it has optional arguments")
    graphs = []
    seen: dict[str, Any] = {}
    for gradients in (True, False):
        twin = _twin(module, seen)
        twin.training = training
        inside = {name: _contents(value) for name, value in vars(twin).items()}
        before = _random_state()
        try:
            with torch.set_grad_enabled(gradients):
                graphs.append(_Tracer(through).trace(twin))
        except Exception as error:  # a forward may fail in any way on stand-ins
            raise Refused(str(error)) from error
        finally:
            after = _random_state()
            _restore(before)
        if after != before:
            raise Refused("it draws random numbers outside of tensors")
        if {name: _contents(value) for name, value in vars(twin).items()} != inside:
            raise Refused("it changes the module")
    with_gradients, without = (graph.python_code("self").src for graph in graphs)
    if with_gradients != without:
        raise Refused("it differs under no_grad")
    if not all(_is_plain(value) for value in seen.values()):
        raise Refused("it reads attributes that may change unnoticed")
    return graphs[0], seen


class _Proxy(fx.Proxy):
    """A stand-in whose `x += y` is one in place, as a tensor's is: fx would make `x = x + y` of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise Refused("it sets an attribute of a tensor")
        super().__setattr__(name, value)


def _in_place(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"):
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _Given(_Proxy):
    """An argument of the forward, which is a tensor; `isinstance(x, Tensor)` has to be true."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Tensor


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else `self.steps.add_(1)` would happen now instead of being written down

    def __init__(self, through: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._through = through
        self._ambient = _ambient()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._through(m)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (_Given if node.op == "placeholder" else _Proxy)(node, self)

    def create_arg(self, a: Any) -> Any:
        if issubclass(type(a), fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            raise Refused("it computes a tensor that does not depend on its input")
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _ambient() != self._ambient:
            raise Refused("it enters no_grad or autocast")
        frame = sys._getframe(1)
        while frame.f_back is not None:
            if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
                raise Refused("it checkpoints activations")
            frame = frame.f_back
        return super().create_node(*args, **kwargs)


def _ambient() -> tuple[bool, ...]:
    """The modes that a `with` in a forward may change and that a graph does not hold."""
    autocast = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _twin(module: nn.Module, seen: dict[str, Any]) -> nn.Module:
    """A stand-in with the same children and parameters that forgets what is assigned to it, and notes in `seen` which
    of its attributes are read, children, tensors and methods apart."""
    original = type(module)

    def note(name: str, value: Any) -> Any:
        # By type(), since a proxy claims to be a tensor.
        apart = issubclass(type(value), (nn.Module, Tensor, fx.Proxy, types.MethodType))
        if name not in _OF_EVERY_MODULE and not apart:
            seen[name] = copy.copy(value)
        return value

    def getattribute(self: nn.Module, name: str) -> Any:
        return note(name, super(kind, self).__getattribute__(name))

    def getattr_(self: nn.Module, name: str) -> Any:
        return note(name, super(kind, self).__getattr__(name))

    kind: Any = type(original.__name__, (original,), {"__getattribute__": getattribute, "__getattr__": getattr_})
    twin: nn.Module = object.__new__(kind)  # FSDP's classes have a `__new__` that makes another one's
    for name, value in vars(module).items():
        vars(twin)[name] = copy.copy(value) if isinstance(value, (dict, list, set)) else value
    return twin


def _contents(value: Any) -> Any:
    """Identities by which a replaced attribute or a changed container shows, without comparisons of tensors."""
    if isinstance(value, dict):
        return id(value), [(key, id(item)) for key, item in value.items()]
    if isinstance(value, (list, set)):
        return id(value), [id(item) for item in value]
    return id(value)


def _is_plain(value: Any) -> bool:
    """Whether `==` with a copy tells if it changed."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return isinstance(value, _CONSTANTS)


def _random_state() -> tuple[bytes, Any, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (what an unsuspecting forward draws from)
    with no_dispatch():  # FakeTensorMode has no bytes
        state = torch.get_rng_state().numpy().tobytes()
    return state, random.getstate(), (kind, tuple(keys), *rest)


def _restore(state: tuple[bytes, Any, Any]) -> None:
    with no_dispatch():
        torch.set_rng_state(torch.frombuffer(bytearray(state[0]), dtype=torch.uint8))
    random.setstate(state[1])
    np.random.set_state(state[2])  # noqa: NPY002
