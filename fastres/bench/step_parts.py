"""The parts of a training step, each with what counts.py counts of it, and calls of it to be timed.

Left out of the counts, which are therefore least values: pooling, the loss, averages of the weights, and the colours
and interpolation of an augmentation, which differ from image to image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastres.bench import norms
from fastres.bench.counts import Convolution, layers_of, norm_operations, total, update_work
from fastres.bench.schema import Kind
from fastres.bench.timing import Call
from fastres.bench.training import Ours, random_data_module
from fastres.engine.precision import DTYPES
from fastres.models import build
from fastres.optim import build_optimizer, rule_of
from fastres.recipe import Recipe
from fastres.training.session import draw, move_network

PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Part:
    """Something that a step does."""

    name: str
    kind: Kind
    operations: int
    bytes: int
    products: str
    """The precision whose matrix products bound its arithmetic."""
    make: Callable[[], Call]
    """A call of it on buffers of its own."""


class StepParts:
    """The parts of `recipe`'s step on `device`, on random images [side, side] of which a set has `count`; `forward`
    computes a BN. Raises UserError where the network cannot be built."""

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        side: int,
        device: torch.device,
        count: int,
        forward: norms.Forward = norms.ours,
    ) -> None:
        self.recipe, self.classes, self.side, self.device, self.forward = recipe, classes, side, device, forward
        self.network = build(recipe.model, classes, side)
        self.layers = layers_of(self.network, side)
        self.batch, self.dtype = recipe.train.batch_size, DTYPES[recipe.train.precision]
        self.cases = [replace(case, batch=self.batch, dtype=self.dtype) for case in self.layers.norms]
        tf32 = recipe.train.precision == "fp32" and device.type == "cuda"  # in which cuDNN convolves by default
        self.products = "tf32" if tf32 else recipe.train.precision
        self.data_module = random_data_module(recipe, count, device, side, classes)

    def all(self) -> list[Part]:
        """Augmentation, then convolutions and BN of each size of maps, the optimizer's update, and last the step."""
        augmentation, update = self._augmentation(), self._update()
        convolutions = self._convolutions()
        parts = [augmentation, *convolutions, *self._norms(), update]
        return [*parts, self._step([augmentation, *convolutions, update])]

    def _augmentation(self) -> Part:
        """From uint8 to the normalised, mixed batch: a multiply-add a value, two more where images are mixed."""
        source, labels, augment = self.data_module.train.source, self.data_module.train.labels, self.data_module.augment
        mixes, values = self.recipe.mix.active, 3 * self.side**2 * self.batch
        first = torch.zeros((), dtype=torch.int64, device=self.device)  # on the device, as a graph would have it

        def make() -> Call:
            rows = torch.randint(0, len(source), (self.batch,), device=self.device)
            of = labels[rows]
            if mixes:
                return lambda: augment(source, of, rows, first, first, rows)
            return lambda: augment.augment(source, rows, first, rows)

        moved = values * ((2 if mixes else 1) + self.dtype.itemsize)  # an image is another one's partner, too
        return Part("augmentation", "augmentation", values * (6 if mixes else 2), moved, "fp32", make)

    def _convolutions(self) -> list[Part]:
        """Those with maps of one size are one part, one after the other as the library does them."""
        parts = []
        for height in sorted({one.y[1] for one in self.layers.convolutions}, reverse=True):
            for which in PASSES:
                stage = [one for one in self.layers.convolutions if one.y[1] == height]
                working = [one for one in stage if one.operations(which, self.batch)]
                if working:
                    parts.append(self._stage(working, which))
        return parts

    def _stage(self, stage: Sequence[Convolution], which: str) -> Part:
        layout = torch.channels_last if self.recipe.train.channels_last else torch.contiguous_format

        def like(*shape: int) -> Tensor:
            return torch.randn(shape, device=self.device).to(self.dtype).contiguous(memory_format=layout)

        def make() -> Call:
            calls = [one.call(which, self.batch, like) for one in stage]
            return lambda: [call() for call in calls]

        operations = sum(one.operations(which, self.batch) for one in stage)
        moved = sum(one.values(which, self.batch) for one in stage) * self.dtype.itemsize
        _, height, width = stage[0].y
        name = f"convolutions {height}×{width}, {which}"
        return Part(name, "convolutions", operations, moved, self.products, make)

    def _norms(self) -> list[Part]:
        """The first BN with an activation alone after it of each size of maps."""
        shown: dict[int, norms.Case] = {}
        for case in self.cases:
            if case.join == "none" and case.activation != "none":
                shown.setdefault(case.height, case)
        return [self._norm(case, which) for case in shown.values() for which in PASSES]

    def _norm(self, case: norms.Case, which: str) -> Part:
        def make() -> Call:
            return norms.call(which, self.forward, norms.problem(case, self.device))

        name = f"BN, {case.activation} {case.height}×{case.width}, {which}"
        return Part(name, "BN and activation", norm_operations(case, which), case.floor_bytes(which), "fp32", make)

    def _update(self) -> Part:
        def make() -> Call:
            drawn = draw(self.recipe, self.classes, self.side, self.recipe.train.seed)
            network = move_network(drawn, self.recipe, self.device)
            optimizer = build_optimizer(self.recipe.optimizer, network)
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn_like(parameter) * 1e-3
            return optimizer.step

        operations, moved = update_work(self.recipe.optimizer, self.network)
        products = rule_of(self.recipe.optimizer).products(self.device)
        if products is not None:
            with FlopCounterMode(display=False) as counted:  # whose shapes depend on the device
                make()()
            operations += counted.get_total_flops()
        return Part("optimizer", "optimizer", operations, moved, products or "fp32", make)

    def _step(self, parts: Sequence[Part]) -> Part:
        """`parts`, all BNs and the classifier."""
        work = [(part.operations, part.bytes) for part in parts]
        work += [(norm_operations(case, which), case.floor_bytes(which)) for case in self.cases for which in PASSES]
        operations, moved = total([*work, (6 * self.layers.linear * self.batch, 0)])

        def make() -> Call:
            return Ours(self.recipe, self.data_module, self.classes, self.side, self.device).steps(1)

        return Part("whole step", "whole step", operations, moved, self.products, make)
