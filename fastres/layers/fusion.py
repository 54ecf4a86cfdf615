"""`fuse(model)`: one call for BatchNorm and what follows it, in a model that knows nothing of fastres.

Modules, parameters and names stay. What changes is the forward of the modules in which a BatchNorm meets an add or an
activation: torch.fx writes it down (tracing.py), the patterns in it become calls of `norm_act` and `dual`
(patterns.py), and the result becomes the forward of a subclass that the module takes as its class, the way
torch.nn.utils.parametrize works. Nothing is stored in the module, so that copies need no care.
"""

import copy
import functools
import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn

from fastres.layers.batch_norm import ends_in_activation
from fastres.layers.converters import named_children, prepare_scriptable
from fastres.layers.norms import has_global_hooks, inner_activation, is_plain, is_sequence
from fastres.layers.patterns import Pattern, is_norm, rewrite
from fastres.layers.tracing import Refused, trace


@dataclass(frozen=True)
class Site:
    """One place in a model that is computed in one call."""

    module: str
    """Path of the module whose forward holds it; "" is the model itself."""
    form: str
    """Operations in one: `bn`, `bn+bn` (two, added), `add` (of a residual), `relu`, `silu`, `gelu`, joined by +."""
    norms: tuple[str, ...]
    """Paths of its BatchNorm modules."""

    def __str__(self) -> str:
        return f"{self.module or '(model)'}: {self.form} ({', '.join(self.norms)})"


@dataclass(frozen=True)
class _Plan:
    """Assumptions of a fused forward: while they hold, the forward computes what the original would."""

    original: type[nn.Module]
    patterns: tuple[Pattern, ...]
    entered: tuple[str, ...]
    """Paths of the modules whose children the forward calls one by one: nn.Sequential, nn.ModuleList, ConvNormAct."""
    attributes: tuple[tuple[str, Any], ...]
    """Attributes of the module that the original forward read when it was traced, with their values."""
    passed: tuple[tuple[tuple[str, ...], type[nn.Module]], ...]
    """Paths and classes of the modules that are not called any more: a hook of theirs would not run."""
    children: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    """Names of the children of the module and of those entered."""

    def holds(self, module: nn.Module) -> bool:
        if has_global_hooks():
            return False
        for name, value in self.attributes:
            now = getattr(module, name, ...)
            if type(now) is not type(value) or now != value:
                return False
        for path, kind in self.passed:
            part = _descend(module, path)
            if type(part) is not kind or not is_plain(part):
                return False
            if kind is nn.GELU and part.approximate != "none":
                return False
        return all(tuple(_descend(module, path)._modules.keys()) == names for path, names in self.children)


def fuse(model: nn.Module) -> nn.Module:
    """Compute BatchNorm with the add and the activation after it in one call wherever `model` has them; in place.

    Returns `model`. Parameters, buffers, names, `state_dict`, hooks and results stay; `fused_sites(model)` tells what
    was found, `unfuse` undoes it. Recognised in the forward of any module: `nn.BatchNorm2d` → ReLU, SiLU or exact GELU,
    with an add of a residual or of a second BatchNorm's output between them, as in the ResNets of torchvision and timm;
    the second one may end an `nn.Sequential`, such as `downsample`, or timm's `ConvNormAct`. A BatchNorm that none of
    these follows is no site. timm's `BatchNormAct2d`, with its own activation or an add after it, and torchvision's and
    timm's FrozenBatchNorm2d are taken too.

    Left alone: other subclasses of `nn.BatchNorm2d`; SyncBatchNorm, whose statistics no call here exchanges; modules
    with hooks or parametrizations, whose results several read or that are called twice; what might be overwritten, also
    through a view, before the one call reads it; and every forward that torch.fx cannot write down faithfully: with
    optional arguments, data-dependent decisions, random numbers, side effects on the module, no_grad or autocast
    inside, or activation checkpointing switched on.

    A fused forward steps aside for the original one when an argument is no tensor (such as the list of features that
    torchvision's DenseNet hands on), and as long as something it rests on differs from what it was: a BatchNorm or
    activation was replaced or got a hook, a hook of all modules was registered, or an attribute that the forward reads
    changed (such as timm's `grad_checkpointing`). The checks take 3 to 10 µs a block, none when compiled. What goes
    unnoticed are changes in other modules' attributes and in global variables that a forward reads: fuse after setting
    those. FSDP may shard the model before or after. torch.fx sees the original forward; torch.jit.script needs the
    model unfused; a pickle of it is.
    """
    inside: set[nn.Module] = set()
    for module in list(model.modules()):  # parents first: they may enter a Sequential, which is then theirs
        plan = _plan_of(module)
        if plan is None and module not in inside:
            plan = _fuse_norm(module) if inner_activation(module) else _fuse_one(module)
        if plan is not None:
            inside.update(module.get_submodule(path) for path in plan.entered)
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Give every module of `model` its own forward back, in place. Returns `model`."""
    for module in model.modules():
        if _plan_of(module) is not None:
            module.__class__ = _unfused(type(module))
    return model


def fused_sites(model: nn.Module) -> list[Site]:
    """Sites that `fuse` still computes in one call, in the order of `model.named_modules()`; printed, one a line."""
    sites = []
    for name, module in model.named_modules():
        plan = _plan_of(module)
        if plan is not None and plan.holds(module):
            sites += [Site(name, p.form, tuple(f"{name}.{norm}".strip(".") for norm in p.norms)) for p in plan.patterns]
    return sites


def _plan_of(module: nn.Module) -> _Plan | None:
    return getattr(type(module), "_fastres_plan", None)


def _unfused(kind: type) -> type:
    """The class that `kind` would be without `fuse`: its original, or what FSDP and parametrizations, which derive
    classes of their own, would have made of that."""
    if "_fastres_plan" in vars(kind):
        return vars(kind)["_fastres_plan"].original
    if not hasattr(kind, "_fastres_plan"):
        return kind
    contents = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, tuple(_unfused(base) for base in kind.__bases__), contents)


def _descend(module: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        module = getattr(module, name, None)
    return module


def _may_enter(child: nn.Module) -> bool:
    """Whether a parent may call the children of `child` itself: a sequence that ends in a BatchNorm. One that does not
    gains nothing and keeps its hooks."""
    layers = [layer for layer in child.children() if type(layer) is not nn.Identity] if is_sequence(child) else []
    return bool(layers) and (is_norm(layers[-1]) or _may_enter(layers[-1]))


def _fuse_one(module: nn.Module) -> _Plan | None:
    """Change the class of `module` if its forward has something to fuse."""
    kind = type(module)
    lists = [child for child in module.children() if isinstance(child, (nn.ModuleList, nn.ModuleDict))]
    children = itertools.chain(module.children(), *(child.children() for child in lists))
    if not any(is_norm(child) or _may_enter(child) for child in children):
        return None
    # These make their forward themselves, or keep it in the instance, where a class cannot reach it.
    if isinstance(module, (fx.GraphModule, torch.jit.ScriptModule)) or "forward" in vars(module):
        return None
    try:
        graphs, reads = zip(*(trace(module, _may_enter, training) for training in (True, False)), strict=True)
    except Refused:
        return None
    calls = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"]
    entered = tuple(dict.fromkeys(parent for path in calls for parent in _parents(path)))
    matches = [rewrite(graph, module) for graph in graphs]
    patterns = tuple(dict.fromkeys(pattern for patterns in matches for pattern in patterns))
    if not patterns:
        return None
    passed = dict.fromkeys(path for pattern in patterns for path in pattern.passed) | dict.fromkeys(entered)
    plan = _Plan(
        original=kind,
        patterns=patterns,
        entered=entered,
        attributes=tuple({**reads[0], **reads[1]}.items()),
        passed=tuple((tuple(path.split(".")), type(module.get_submodule(path))) for path in passed),
        children=tuple(
            (tuple(path.split(".")) if path else (), tuple(module.get_submodule(path)._modules))
            for path in ("", *entered)
        ),
    )
    codes = [graph.python_code("self") for graph in graphs]
    module.__class__ = _subclass(plan, tuple((code.src, code.globals) for code in codes))
    return plan


def _fuse_norm(norm: nn.Module) -> _Plan | None:
    """Change the class of a BatchNorm whose own forward ends with an activation."""
    if "forward" in vars(norm):
        return None
    activation = inner_activation(norm)
    assert activation is not None
    children = tuple(norm._modules)
    plan = _Plan(
        original=type(norm),
        patterns=(Pattern(f"bn+{activation}", ("",), children),),
        entered=(),
        attributes=(),
        passed=tuple(((name,), type(norm.get_submodule(name))) for name in children),
        children=(((), children),),
    )
    source = f"def forward(self, x):\n    return ends_in_activation(self, x, original, {activation!r})\n"
    code = (source, {"ends_in_activation": ends_in_activation, "original": type(norm)})
    norm.__class__ = _subclass(plan, (code, code))
    return plan


def _parents(path: str) -> list[str]:
    """ "a.b.c" → "a", "a.b"."""
    return list(itertools.accumulate(path.split(".")[:-1], "{}.{}".format))


_classes: "WeakValueDictionary[Any, type[nn.Module]]" = WeakValueDictionary()


def _subclass(plan: _Plan, codes: tuple[tuple[str, dict[str, object]], ...]) -> type[nn.Module]:
    """The class for `plan` and its forwards for training and evaluation, each a source and its globals.

    Modules that are alike share one, as they shared the original: torch.compile, applied to block after block, then
    compiles once for all of them instead of giving up at its limit of 8.
    """
    key = (plan.original, repr(plan), *((source, *scope.items()) for source, scope in codes))
    if key not in _classes:
        training, evaluation = (_function(source, scope, plan.original.__name__) for source, scope in codes)
        _classes[key] = kind = _make(plan, training, evaluation)
        return kind
    return _classes[key]


def _function(source: str, scope: dict[str, Any], owner: str) -> Any:
    """The forward that fx wrote, as a function; tracebacks show its lines."""
    name = f"<fused {owner} {next(_serial)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope = dict(scope)
    exec(compile(source, name, "exec"), scope)
    return scope["forward"]


_serial = itertools.count()


def _make(plan: _Plan, training: Any, evaluation: Any) -> type[nn.Module]:
    original = plan.original

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # fx took the arguments for tensors; None or a list would have taken another way.
        if plan.holds(self) and all(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            return (training if self.training else evaluation)(self, *args, **kwargs)
        return original.forward(self, *args, **kwargs)

    # A forward that comes in between from another thread computes the same, in more calls.
    def as_original(self: nn.Module, act: Callable[[], Any]) -> Any:
        kind = type(self)
        self.__class__ = _unfused(kind)
        try:
            return act()
        finally:
            self.__class__ = kind

    def reduce(self: nn.Module, protocol: Any) -> Any:
        """For pickle: as the original class, which is found by its name, also where there is no fastres."""
        # Protocol 1's form works in all; that of 2 insists on the class that the object has.
        return as_original(self, lambda: self.__reduce_ex__(1))

    def copied(self: nn.Module, act: Callable[[nn.Module], Any]) -> Any:
        twin = as_original(self, lambda: act(self))
        if type(twin) is original:
            twin.__class__ = fused
        return twin

    contents: dict[str, object] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce,
        "__copy__": lambda self: copied(self, copy.copy),
        "__deepcopy__": lambda self, memo: copied(self, lambda module: copy.deepcopy(module, memo)),
        "__prepare_scriptable__": prepare_scriptable,
        "forward": forward,
        "named_children": named_children,
        "_fastres_plan": plan,
        "_instead_of_converting": "call fastres.layers.unfuse(model) first",
    }
    if hasattr(original, "_orig_cls_mro_index"):  # by which FSDP finds the class that a slice of a Sequential has
        contents["_orig_cls_mro_index"] = original._orig_cls_mro_index + 1
    fused: Any = type(original.__name__, (original,), contents)
    return fused
