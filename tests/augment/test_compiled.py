"""The entry points under torch.compile: one whole graph, as many as eager calls' results, no graph for a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from policies import EVERYTHING, MEAN, STD

from fastres import recipe
from fastres.augment import Augment, AugmentModule, Mixed, mix_batch

MIX = recipe.MixConfig(mixup_alpha=1.0, cutmix_alpha=1.0, prob=0.8)
STEPS = 8
IMAGES = torch.randint(0, 256, (STEPS, 5, 16, 16, 3), dtype=torch.uint8)
LABELS = torch.arange(5)

pytestmark = pytest.mark.usefixtures("one_thread")


class Graphs:
    """A backend that runs a graph as it is, through AOTAutograd, and counts them: what a step costs more than once is
    Dynamo's and AOTAutograd's, whatever makes machine code of it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.count += 1
        backend: Any = torch._dynamo.lookup_backend("aot_eager")
        return backend(graph, inputs)


def compiled(function: Callable[..., Any], graphs: Graphs) -> Callable[..., Any]:
    return torch.compile(function, backend=graphs, fullgraph=True)


def same(found: Any, expected: Any) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def module(**options: Any) -> AugmentModule:
    return AugmentModule(Augment(EVERYTHING, MEAN, STD, mix=MIX, **options))


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_module_compiles_once(labels: torch.Tensor | None, channels_last: bool) -> None:
    """Within a network's own graph, over steps and epochs; the counters move on as they do eagerly."""
    eager, traced, graphs = module(channels_last=channels_last), module(channels_last=channels_last), Graphs()
    network = torch.nn.Conv2d(3, 2, 3)

    def step(images: torch.Tensor) -> Any:
        given = traced(images, labels=labels)
        return (*(given if labels is not None else (given,)), network(given[0] if labels is not None else given))

    run = compiled(step, graphs)
    for epoch in range(2):
        for augment in (eager, traced):
            augment.start_epoch(epoch)
        for images in IMAGES:
            expected = eager(images, labels=labels)
            *found, output = run(images)
            assert same(found, expected if labels is not None else (expected,))
            assert output.requires_grad
    assert graphs.count == 1
    assert traced.get_extra_state() == eager.get_extra_state() == {"epoch": 1, "step": STEPS, "seen": 5 * STEPS}


def test_two_calls_in_one_graph_are_two_draws() -> None:
    eager, traced = module(), module()
    first, second = compiled(lambda images: (traced(images), traced(images)), Graphs())(IMAGES[0])
    assert torch.equal(first, eager(IMAGES[0])) and torch.equal(second, eager(IMAGES[0]))
    assert not torch.equal(first, second)


def test_evaluation_is_in_the_graph_too() -> None:
    traced, graphs = module().eval(), Graphs()
    run = compiled(traced, graphs)
    for images in IMAGES:
        # Compiled code may fuse product and sum: an fp32 rounding of values up to 10.
        assert torch.allclose(run(images.permute(0, 3, 1, 2)), traced.augment.normalize(images), atol=2e-6)
    assert graphs.count == 1
    with pytest.raises(Exception, match="images must be uint8"):
        compiled(module().eval(), Graphs())(IMAGES[0].float())


def test_a_smaller_batch_and_another_seed() -> None:
    """Other shapes are another graph, as they are of any function; so is a seed, which changes once a run."""
    eager, traced, graphs = module(), module(), Graphs()
    run = compiled(traced, graphs)
    for images in (IMAGES[0], IMAGES[1][:3], IMAGES[2], IMAGES[3][:2]):
        assert torch.equal(run(images), eager(images))
    assert graphs.count == 2
    for augment in (eager, traced):
        augment.augment.reseed(7)
    assert torch.equal(run(IMAGES[0]), eager(IMAGES[0]))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_augment_compiles_once(as_tensor: bool) -> None:
    """Numbers are the user's arguments: torch.compile makes a graph for the first and one for all others."""
    augment, graphs = Augment(EVERYTHING, MEAN, STD, mix=MIX, seed=4), Graphs()

    def step(images: torch.Tensor, indices: torch.Tensor, number: Any) -> Any:
        mixed = augment(images, LABELS, indices, 1, number, rows=indices)
        return (*mixed, augment.augment(images, indices, number))

    run = compiled(step, graphs)
    for number, images in enumerate(IMAGES):
        of = torch.tensor([number]) if as_tensor else number
        expected = step(images, LABELS, of)
        assert same(run(images, LABELS, of), expected)
    assert graphs.count == (1 if as_tensor else 2)


@pytest.mark.parametrize("as_tensor", [True, False])
def test_mix_batch_compiles_once(as_tensor: bool) -> None:
    graphs, kinds = Graphs(), set()
    run = compiled(lambda batch, step: mix_batch(batch, LABELS, MIX, seed=2, epoch=1, step=step), graphs)
    batch = torch.rand(5, 3, 8, 6).to(memory_format=torch.channels_last).requires_grad_()
    for number in range(20):
        found = run(batch, torch.tensor([number]) if as_tensor else number)
        expected = mix_batch(batch, LABELS, MIX, seed=2, epoch=1, step=number)
        assert isinstance(found, Mixed) and same(found, expected) and not found.images.requires_grad
        kinds.add(float(found.weight))
    assert len(kinds) > 10
    assert graphs.count == (1 if as_tensor else 2)


def test_wrong_values_are_refused_when_compiled_code_runs() -> None:
    traced = module()
    run = compiled(traced, Graphs())
    with pytest.raises(ValueError, match="indices"):
        run(IMAGES[0], torch.arange(5) - 1)
    assert traced.step == 0
    for wrong in (1.5, -1):
        with pytest.raises(Exception, match="whole number"):
            compiled(mix_batch, Graphs())(torch.rand(2, 3, 4, 4), torch.arange(2), MIX, step=wrong)


def test_inductor_runs_them() -> None:
    """Its own code around the operators, with the strides that they promise."""
    traced, eager = module(), module()
    run = torch.compile(lambda images: traced(images, labels=LABELS), fullgraph=True)
    for images in IMAGES[:3]:
        assert same(run(images), eager(images, labels=LABELS))


def test_the_operators_keep_torchs_rules() -> None:
    """opcheck: schema, fake results, and what AOTAutograd does with them."""
    from fastres.augment import ops

    spec, of = Augment(EVERYTHING, MEAN, STD, mix=MIX), torch.tensor([3])
    indices, images = torch.arange(5), IMAGES[0]
    counters = torch.zeros(3, dtype=torch.int64)
    batch = torch.rand(5, 3, 8, 6)
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (ops.augment_op, (images, None, indices, LABELS, of, of, spec.text, 1)),
        (ops.augment_op, (images, indices, indices, None, of, None, spec.text, 1)),
        (ops.augment_next_op, (images, None, LABELS, counters, spec.text, 1)),
        (ops.mix_op, (batch, LABELS, 1.0, None, 1.0, 0.5, 0, 2, of, of)),
        (ops.mix_op, (batch, LABELS, None, None, 1.0, 0.5, 0, 2, of, of)),
    ]
    for operator, arguments in cases:
        # Not test_autograd_registration: images are whole numbers, and no gradient flows through a mixed batch.
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
        torch.library.opcheck(operator, arguments, test_utils=tests)
