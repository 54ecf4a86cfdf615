"""What this machine's PyTorch makes of a recipe, against fp64: `fastres doctor --numerics`.

Output and gradients of each convolution and each form of BN, the gradients of the whole step, both eager and compiled,
and the augmentation. A library that computes nonsense for one shape on one processor says nothing (convolutions of
wide strides under AMX have such a report), and a training shows it by a low accuracy at best.

An error is the distance to fp64 on the same rounded inputs, over the norm of what is right: 1 where nothing is right.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastres.augment import reference
from fastres.bench import norms
from fastres.bench.counts import Convolution, layers_of
from fastres.bench.training import random_data_module
from fastres.engine.compile import Compiled
from fastres.engine.precision import DTYPES
from fastres.kernels import Norm
from fastres.layers.convolution import Conv2d
from fastres.models import build
from fastres.recipe import Recipe
from fastres.training import session
from fastres.training.data import shape_of
from fastres.training.step import Step
from fastres.utils.json_files import Entry
from fastres.utils.progress import say

BATCH = 8
"""Images, unless the recipe's batches have fewer: a kernel that is wrong is wrong for few, and fp64 takes long."""
STEP = {torch.float32: 0.02, torch.float16: 0.3, torch.bfloat16: 0.6}
"""What the gradient of a weight may be off after a whole step, in which the errors of layers add up: 0.25 was seen in
bf16. One that is lost, or belongs to something else, is off by 1 or more."""


class Finding(Entry):
    """A line: how far something is off, and how far it may be."""

    name: str
    eager: list[float | None]
    """Errors, None where one is infinite or not a number: of a layer's output, its input's gradient and its weight's;
    of a step's weights the largest one; of the augmentation the share of values that differ."""
    compiled: list[float | None] | None
    """The same of compiled code; None where nothing was compiled."""
    limit: float
    note: str = ""

    @property
    def sound(self) -> bool:
        """Whether every error is within the limit."""
        return all(error is not None and error <= self.limit for error in (*self.eager, *(self.compiled or ())))


class Numerics(Entry):
    """Everything that was compared."""

    device: str
    precision: str
    batch: int
    findings: list[Finding]
    torch: str
    left_out: list[str]
    """What was not compared, and why."""

    @property
    def sound(self) -> bool:
        """Whether all of it is."""
        return all(finding.sound for finding in self.findings)


@dataclass(frozen=True)
class Layer:
    """A layer to be computed thrice: eagerly, compiled, and in fp64."""

    name: str
    inputs: list[Tensor]
    """x, then what it trains."""
    gradient: Tensor
    """Of the output."""
    forward: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    """The same in by_torch PyTorch, of fp64 inputs."""

    def errors(self, y: Tensor, gradients: Sequence[Tensor]) -> list[float | None]:
        """Of output, input's gradient and the weight's."""
        inputs = [tensor.detach().double().requires_grad_() for tensor in self.inputs]
        exact = self.exact(*inputs)
        wanted = torch.autograd.grad(exact, inputs, self.gradient.double())
        pairs = zip((y, *gradients[:2]), (exact, *wanted[:2]), strict=True)
        return [_finite(distance(computed, right)) for computed, right in pairs]


def distance(computed: Tensor, exact: Tensor) -> float:
    """‖computed − exact‖ / ‖exact‖ in fp64."""
    computed, exact = computed.detach().double(), exact.detach().double()
    size = exact.norm()
    return float((computed - exact).norm() / (size if size > 0 else 1))


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def numerics(recipe: Recipe, device: torch.device) -> Numerics:
    """Compare all that `recipe` computes on `device`. Raises UserError where its network cannot be built."""
    classes, side, _ = shape_of(recipe.data)
    batch = min(BATCH, recipe.train.batch_size)
    changes = {
        "train": recipe.train.model_copy(update={"batch_size": batch}),
        "model": recipe.model.model_copy(update={"dropout": 0.0}),  # types draw different masks
    }
    recipe = recipe.model_copy(update=changes)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(device_type="cuda"):
        layers = _layers(recipe, classes, side, device, generator)
        compiling = ", compiled too: up to a minute, seconds once that is cached" if recipe.train.compile else ""
        say(f"comparing {len(layers)} layers, the step and the augmentation with fp64{compiling}")
        function = Compiled(functools.partial(_all, layers), enabled=recipe.train.compile)
        eager = [_computed(layer) for layer in layers]
        compiled = _computed_at_once(layers, function)
        findings = [
            Finding(
                name=layer.name,
                eager=layer.errors(*eager[index]),
                compiled=None if compiled is None else layer.errors(*compiled[index]),
                limit=_limit(recipe, device),
            )
            for index, layer in enumerate(layers)
        ]
        left_out = [f"compiled layers: {function.fallback_reason}"] if not function.active else []
        if recipe.method.adds_to_steps:
            left_out.append(f"the step: {recipe.method.setting} adds to it what layers do not show")
        else:
            finding, reason = _step(recipe, classes, side, device)
            findings.append(finding)
            left_out += [] if reason is None else [f"a compiled step: {reason}"]
        findings.append(_augmentation(recipe, side, device))
    return Numerics(
        device=str(device),
        precision=recipe.train.precision,
        batch=batch,
        findings=findings,
        torch=torch.__version__,
        left_out=left_out,
    )


def _limit(recipe: Recipe, device: torch.device) -> float:
    """What a layer may be off. Where an intermediate value is rounded, as it is eagerly, about one in 1/epsilon of them
    passes zero before a ReLU, and each such value is off by all of itself: √epsilon of the whole. All else is less."""
    tf32 = recipe.train.precision == "fp32" and device.type == "cuda"  # in which cuDNN convolves by default
    epsilon = 2.0**-10 if tf32 else torch.finfo(DTYPES[recipe.train.precision]).eps
    return math.sqrt(epsilon)


# ------------------------------------------------------------------------------------------------------------- layers


def _layers(recipe: Recipe, classes: int, side: int, device: torch.device, generator: torch.Generator) -> list[Layer]:
    """Of each shape and form one."""
    layers = layers_of(build(recipe.model, classes, side), side)
    dtype, batch = DTYPES[recipe.train.precision], recipe.train.batch_size
    layout = torch.channels_last if recipe.train.channels_last else torch.contiguous_format

    def like(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype).contiguous(memory_format=layout)

    convolutions = {replace(one, first=False, trains=True): None for one in layers.convolutions}
    cases = dict.fromkeys(replace(case, batch=batch, dtype=dtype) for case in layers.norms)
    return [
        *(_convolution(one, batch, like) for one in convolutions),
        *(_norm(norms.problem(case, device), case) for case in cases),
    ]


def _convolution(one: Convolution, batch: int, like: Callable[..., Tensor]) -> Layer:
    outputs, channels, kernel, _ = one.weight
    (stride, *_), padding, dilation = one.geometry
    by_torch = functools.partial(F.conv2d, bias=None, stride=stride, padding=padding, dilation=dilation)
    forward: Callable[..., Tensor] = by_torch
    if padding == (kernel // 2, kernel // 2) and dilation == (1, 1):
        module = Conv2d(channels, outputs, kernel, stride)

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            y: Tensor = torch.func.functional_call(module, {"weight": weight}, (x,))
            return y

    _, height, width = one.x
    strided = f", stride {stride}" if stride > 1 else ""
    return Layer(
        f"convolution {kernel}×{kernel}{strided}, {channels} → {outputs}, {height}×{width}",
        [like(batch, *one.x).requires_grad_(), like(*one.weight).requires_grad_()],
        like(batch, *one.y),
        forward,
        by_torch,
    )


def _norm(problem: norms.Problem, case: norms.Case) -> Layer:
    names = [name for name in ("x", "weight", "bias", "other", "other_weight", "other_bias") if name in problem.leaves]

    def given(tensors: Sequence[Tensor]) -> norms.Problem:
        values: dict[str, Any] = dict(zip(names, tensors, strict=True))
        norm = problem.norm._replace(weight=values["weight"], bias=values["bias"])
        other_norm = problem.other_norm
        if other_norm is not None:
            other_norm = other_norm._replace(weight=values["other_weight"], bias=values["other_bias"])
        return problem._replace(x=values["x"], norm=norm, other=values.get("other"), other_norm=other_norm)

    def forward(*tensors: Tensor) -> Tensor:
        return norms.ours(given(tensors), True)

    def exact(*tensors: Tensor) -> Tensor:
        now = given(tensors)
        z = _batch_norm(now.x, now.norm)
        if now.other is not None:
            z = z + (now.other if now.other_norm is None else _batch_norm(now.other, now.other_norm))
        return z if case.activation == "none" else getattr(F, case.activation)(z)

    form = case.form.replace("_", " ")
    return Layer(
        f"{form}, {case.channels} channels, {case.height}×{case.width}",
        [problem.leaves[name] for name in names],
        problem.gradient,
        forward,
        exact,
    )


def _batch_norm(x: Tensor, norm: Norm) -> Tensor:
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def _all(layers: Sequence[Layer], *tensors: Tensor) -> list[Tensor]:
    """All layers in one graph: each alone would be compiled for seconds."""
    given = iter(tensors)
    return [layer.forward(*(next(given) for _ in layer.inputs)) for layer in layers]


def _computed(layer: Layer) -> tuple[Tensor, Sequence[Tensor]]:
    y = layer.forward(*layer.inputs)
    return y, torch.autograd.grad(y, layer.inputs, layer.gradient)


def _computed_at_once(layers: Sequence[Layer], function: Compiled) -> list[tuple[Tensor, Sequence[Tensor]]] | None:
    """By compiled code, or None where there is none."""
    inputs = [tensor for layer in layers for tensor in layer.inputs]
    if not function.active:
        return None
    outputs = function(*inputs)
    if not function.active:
        return None
    gradients = iter(torch.autograd.grad(outputs, inputs, [layer.gradient for layer in layers]))
    return [(y, [next(gradients) for _ in layer.inputs]) for y, layer in zip(outputs, layers, strict=True)]


# --------------------------------------------------------------------------------------------- step and augmentation


def _step(recipe: Recipe, classes: int, side: int, device: torch.device) -> tuple[Finding, str | None]:
    """The gradients of the first step, and why no compiled one was compared."""
    data = random_data_module(recipe, recipe.train.batch_size, device, side, classes)
    network = session.draw(recipe, classes, side, recipe.train.seed)
    if network.initial_images:
        network.initialise(data.sample(network.initial_images))
    network = session.move_network(network, recipe, device)
    rows = torch.arange(recipe.train.batch_size, device=device)
    images, labels = data.augment.augment(data.train.source, rows, 0, rows), data.train.labels[rows]

    precision = DTYPES[recipe.train.precision]

    def gradients(step: Step, images: Tensor) -> dict[str, Tensor]:
        function = functools.partial(step.loss_and_correct, variant=step.prepare(0).frozen)
        step.backward(function, images, labels)
        scale, parameters = step.scaler.get_scale(), step.network.named_parameters()
        trained = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        # None is a gradient of zero.
        return {name: (0 * one if one.grad is None else one.grad).double() / scale for name, one in trained.items()}

    def step_of(**changes: Any) -> Step:
        changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
        twin: nn.Module = copy.deepcopy(network)
        return Step(twin.double() if changes.get("precision") else twin, changed, 1, device)

    exact = gradients(step_of(compile=False, precision="fp32"), images.double())
    least = 1e-6 * max((float(gradient.norm()) for gradient in exact.values()), default=0.0)

    def worst(computed: dict[str, Tensor]) -> tuple[float, str]:
        """Zero is what a branch's weights get that starts at zero: any rounding would be all of it."""
        compared = [name for name, gradient in exact.items() if gradient.norm() > least]
        errors = ((distance(computed[name], exact[name]), name) for name in compared)
        return max(
            ((error if math.isfinite(error) else math.inf, name) for error, name in errors), default=(0.0, "none")
        )

    error, name = worst(gradients(step_of(compile=False), images))
    finding = Finding(name="gradients of the step", eager=[_finite(error)], compiled=None, limit=STEP[precision])
    if not recipe.train.compile:
        return finding.updated(note=f"most: {name}"), "train.compile is false"
    compiled = step_of(compile=True)
    computed = gradients(compiled, images)
    if not compiled.loss_and_correct.active:
        return finding.updated(note=f"most: {name}"), compiled.loss_and_correct.fallback_reason
    compiled_error, compiled_name = worst(computed)
    most = compiled_name if compiled_error > error else name
    return finding.updated(compiled=[_finite(compiled_error)], note=f"most: {most}"), None


def _augmentation(recipe: Recipe, side: int, device: torch.device) -> Finding:
    """By Numba or Triton, against NumPy."""
    count = recipe.train.batch_size
    data = random_data_module(recipe, count, device, side)
    rows = torch.arange(count, device=device)
    computed = data.augment(data.train.source, data.train.labels[rows], rows, 0, 0, rows).images
    mixing = data.augment.draw_mix(0, 0, (side, side))
    wanted = reference.augment_batch(data.augment, data.train.source, rows, 0, rows, mixing)
    differing = float((computed.cpu() != wanted).double().mean())
    return Finding(name="augmentation, values that differ", eager=[differing], compiled=None, limit=0.0)


ERRORS = ("output", "input", "weight")
HEADER = ["distance to fp64", *(f"{kind} {name}" for kind in ("eager", "compiled") for name in ERRORS), "limit", ""]


def lines(numerics: Numerics) -> list[list[str]]:
    """The cells below HEADER."""

    def cells(errors: list[float | None] | None) -> list[str]:
        shown = ["no number" if error is None else f"{error:.1e}" for error in errors or ()]
        return [*shown, *[""] * (len(ERRORS) - len(shown))]

    return [
        [
            finding.name,
            *cells(finding.eager),
            *cells(finding.compiled),
            f"{finding.limit:.1e}",
            ("" if finding.sound else "WRONG ") + finding.note,
        ]
        for finding in numerics.findings
    ]
