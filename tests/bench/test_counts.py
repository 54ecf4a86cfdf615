"""Operations and bytes of a step's parts, by hand and against PyTorch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastres.bench.counts import Convolution, Layers, layers_of, norm_operations, total, update_work
from fastres.bench.norms import Case
from fastres.models import build, count_parameters, layers
from fastres.recipe import Recipe

RESNET = {"blocks": [1, 2], "channels": [4, 8], "strides": [1, 2]}
SPEEDNET = {"name": "speednet", "widths": [8, 16], "depth": 3}
IMAGENET = {"blocks": [1], "channels": [4], "stem": "imagenet"}


def network(model: dict[str, object], size: int = 32) -> tuple[nn.Module, Layers]:
    made = build(Recipe.model_validate({"model": model}).model, 10, size)
    return made, layers_of(made, size)


@pytest.mark.parametrize("model", [RESNET, SPEEDNET, IMAGENET], ids=["resnet", "speednet", "imagenet"])
def test_products_are_those_that_a_step_does(model: dict[str, object]) -> None:
    made, found = network(model)
    batch = 3
    with FlopCounterMode(display=False) as counter:
        made.train()(torch.randn(batch, 3, 32, 32)).sum().backward()
    counted = sum(one.operations(which, batch) for one in found.convolutions for which in ("forward", "backward"))
    assert counted + 6 * found.linear * batch == counter.get_total_flops()
    assert sum(one.operations("forward", 1) for one in found.convolutions) + 2 * found.linear == 2 * sum(
        layer.multiply_adds for layer in layers(made, 32)
    )


def test_a_convolution_by_hand() -> None:
    # 4 → 8 channels, 3×3, 6×6 maps, 2 images: 8 · 36 outputs of 36 products each, 2 operations a product.
    one = Convolution((4, 6, 6), (8, 6, 6), (8, 4, 3, 3), ((1, 1), (1, 1), (1, 1)), first=False, trains=True)
    product = 2 * 2 * 8 * 36 * 36
    assert [one.operations(which, 2) for which in ("forward", "backward")] == [product, 2 * product]
    x, y, weight = 2 * 4 * 36, 2 * 8 * 36, 8 * 4 * 9
    assert one.values("forward", 2) == x + weight + y
    assert one.values("backward", 2) == y + weight + x + x + weight, "dy, w → dx; and x → dw"
    first = Convolution(one.x, one.y, one.weight, one.geometry, first=True, trains=True)
    assert (first.operations("backward", 2), first.values("backward", 2)) == (product, y + x + weight)
    frozen = Convolution(one.x, one.y, one.weight, one.geometry, first=True, trains=False)
    assert (frozen.operations("backward", 2), frozen.values("backward", 2)) == (0, 0)


def test_calls_are_the_convolution_and_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    one = Convolution((4, 6, 6), (8, 3, 3), (8, 4, 3, 3), ((2, 2), (1, 1), (1, 1)), first=False, trains=True)
    drawn: list[torch.Tensor] = []

    def like(*shape: int) -> torch.Tensor:
        drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        return drawn[-1]

    forward, backward = one.call("forward", 2, like), one.call("backward", 2, like)
    for first in (0, 3):
        x, weight, gradient = drawn[first : first + 3]
        x.requires_grad_()
        weight.requires_grad_()
        y = nn.functional.conv2d(x, weight, stride=2, padding=1)
        if first == 0:
            assert torch.equal(forward(), y)  # type: ignore[arg-type]
            continue
        wanted = torch.autograd.grad(y, (x, weight), gradient)
        found = backward()
        assert all(torch.equal(mine, its) for mine, its in zip(found, wanted, strict=False))  # type: ignore[call-overload]


def test_norms_are_found_with_what_follows_them() -> None:
    _, found = network(RESNET)
    # The first block keeps the shape (add), the first of the second stage does not (dual), the last one adds again.
    assert [(norm.join, norm.activation, (norm.channels, norm.height, norm.width)) for norm in found.norms] == [
        ("none", "relu", (4, 32, 32)),
        ("none", "relu", (4, 32, 32)),
        ("add", "relu", (4, 32, 32)),
        ("none", "relu", (8, 16, 16)),
        ("dual", "relu", (8, 16, 16)),
        ("none", "relu", (8, 16, 16)),
        ("add", "relu", (8, 16, 16)),
    ]
    _, found = network(SPEEDNET)
    assert {norm.activation for norm in found.norms} == {"gelu"}
    assert [norm.join for norm in found.norms] == ["none", "none", "add"] * 2


def test_norms_by_hand() -> None:
    case = Case("none", "relu", 2, 5, 4, 3, torch.bfloat16)
    values = 2 * 5 * 4 * 3
    assert [norm_operations(case, which) for which in ("forward", "backward")] == [7 * values, 10 * values]
    assert [case.floor_bytes(which) for which in ("forward", "backward")] == [2 * 2 * values, 3 * 2 * values]
    dual = Case("dual", "gelu", 2, 5, 4, 3, torch.float32)
    assert [norm_operations(dual, which) for which in ("forward", "backward")] == [14 * values, 19 * values]
    # After an addition the sign is a bit that the forward writes, or, for other activations, the residual read again.
    add, smooth = (Case("add", name, 2, 5, 4, 8, torch.float32) for name in ("relu", "gelu"))
    values = 2 * 5 * 4 * 8
    assert [add.floor_bytes(which) for which in ("forward", "backward")] == [12 * values + 40, 16 * values + 40]
    assert [smooth.floor_bytes(which) for which in ("forward", "backward")] == [12 * values, 20 * values]


@pytest.mark.parametrize(
    ("options", "operations", "passes"),
    [
        ({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}, 6, 5),
        ({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}, 8, 5),
        ({"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}, 2, 3),
        ({"name": "adamw"}, 15, 7),
    ],
)
def test_updates_by_hand(options: dict[str, object], operations: int, passes: int) -> None:
    recipe = Recipe.model_validate({"optimizer": options})
    made, _ = network(RESNET)
    count = count_parameters(made)
    assert update_work(recipe.optimizer, made) == (operations * count, 4 * passes * count)  # type: ignore[arg-type]


def test_muon_counts_filters_apart() -> None:
    recipe = Recipe.model_validate({"optimizer": {"name": "muon", "nesterov": True}})
    made, found = network(RESNET)
    filters = sum(torch.Size(one.weight).numel() for one in found.convolutions)
    rest = count_parameters(made) - filters
    assert recipe.optimizer.name == "muon"
    other = Recipe.model_validate({"optimizer": recipe.optimizer.auxiliary.model_dump()}).optimizer
    alone = update_work(other, nn.Linear(rest, 1, bias=False))  # type: ignore[arg-type]
    assert update_work(recipe.optimizer, made) == total([(7 * filters, 20 * filters), alone])  # type: ignore[arg-type]
