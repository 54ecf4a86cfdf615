"""The report network's training step: against the report's own configuration, and against the machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import MatrixProduct, note
from fastres.bench.timing import Ratio, compare, seconds
from fastres.memory import keep_freed_memory
from fastres.models import build, convolution, layers
from fastres.recipe import Recipe
from fastres.step import Step

RECIPE = Path(__file__).parents[1] / "recipes" / "report_best.toml"
CPU = torch.device("cpu")

# `fastres train` does this for its process. Here it serves the rival as well, which without it is slower still.
keep_freed_memory()


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 10, (size,), generator=generator)


def ours(size: int) -> Callable[[], object]:
    """The step of recipes/report_best.toml as `fastres train` runs it: channels-last, bf16, compiled."""
    recipe = Recipe.load(RECIPE)
    network = build(recipe.model, 10, 32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = Step(network, recipe, 2000, CPU)
    images, labels = batch(size)
    images = images.bfloat16().contiguous(memory_format=torch.channels_last)
    return lambda: step(0, images, labels)


def reports(size: int) -> Callable[[], object]:
    """The step of the report's code: eager, contiguous N, C, H, W, fp32, torch's own SGD."""
    recipe = Recipe.load(RECIPE)
    network = build(recipe.model, 10, 32).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = batch(size)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def convolutions_alone(size: int) -> Callable[[], object]:
    """The step's convolutions as oneDNN does them, forward and backward, with nothing between them."""
    network = build(Recipe.load(RECIPE).model, 10, 32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    operations: list[Callable[[], object]] = []

    def record(module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().bfloat16().contiguous(memory_format=torch.channels_last)
        weight = module.weight.detach().bfloat16()
        gradient = torch.randn_like(output, dtype=torch.bfloat16)
        geometry = (module.stride, module.padding, module.dilation, False, (0, 0), 1)
        wanted = (module is not network.conv1, True, False)  # images need no gradient
        operations.append(lambda: torch.ops.aten.convolution(x, weight, None, *geometry))
        operations.append(lambda: torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, wanted))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(record)
    with torch.no_grad():
        network(batch(size)[0].contiguous(memory_format=torch.channels_last))
    return lambda: [operation() for operation in operations]


@pytest.mark.parametrize("size", [20, 256])
def test_step_against_the_reports(size: int, versus: Callable[..., Ratio]) -> None:
    torch.manual_seed(0)
    ratio = versus(ours(size), reports(size), rounds=20 if size == 20 else 8, batch_size=size)
    assert ratio.median > 1, "slower than what it is meant to replace"


@pytest.mark.skipif(not convolution.HAS_AMX, reason="products replace convolutions only on a CPU with AMX")
@pytest.mark.parametrize("size", [20, 128])
def test_products_against_convolutions(
    size: int, versus: Callable[..., Ratio], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step with some convolutions as matrix products (models/convolution.py) against the step without."""
    torch.manual_seed(0)
    step, plain = ours(size), ours(size)

    def convolutions_only() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(convolution, "HAS_AMX", False)  # compiled code is chosen by it
            plain()

    versus(step, convolutions_only, rounds=20 if size == 20 else 10, batch_size=size)


def test_step_against_the_matrix_units(benchmark: Any, request: pytest.FixtureRequest) -> None:
    """At batch 128: multiply-adds a second of whole steps over those of plain matrix products, measured in turn."""
    torch.manual_seed(0)
    size = 128
    recipe = Recipe.load(RECIPE)
    # Forward, gradient of the input, gradient of the weights: three products for each of the forward pass.
    work = 6 * sum(layer.multiply_adds for layer in layers(build(recipe.model, 10, 32), 32)) * size
    step, product, convolutions = ours(size), MatrixProduct(), convolutions_alone(size)
    for function in (step, product, convolutions):
        function()
    products: list[float] = []
    alone: list[float] = []

    def measure_the_others() -> None:
        products.append(min(seconds(product) for _ in range(5)))
        alone.append(seconds(convolutions))

    benchmark.pedantic(step, setup=measure_the_others, rounds=12, iterations=1)
    # Operations over seconds on both sides, so the ratio of the rates is the share of the machine that a step uses.
    rates = [took / product.operations for took in products]
    share = compare([took / work for took in benchmark.stats.stats.data], rates)
    convolution_share = compare([took / work for took in alone], rates)
    note(
        request,
        benchmark,
        share_of_matrix_product=share.median,
        share_quartiles=[share.low, share.high],
        convolutions_alone_share=convolution_share.median,
        step_gflops=1 / share.seconds / 1e9,
        convolutions_alone_gflops=1 / convolution_share.seconds / 1e9,
        matrix_product_gflops=1 / share.rival_seconds / 1e9,
        images_per_second=size / (share.seconds * work),
    )
    assert 0 < share.median < 1.5, "a step cannot do more than the matrix units can"
